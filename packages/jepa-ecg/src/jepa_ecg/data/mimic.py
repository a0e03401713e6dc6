"""MIMIC-IV-ECG: 800,035 records of 10 s at 500 Hz, listed in `record_list.csv`.

Gow et al., "MIMIC-IV-ECG: Diagnostic Electrocardiogram Matched Subset", PhysioNet (2023).
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jepa_ecg.data.errors import ECGFormatError, refuse_lfs_pointer
from jepa_ecg.data.source import Entry, Labels, ReadOptions, read_wfdb
from jepa_ecg.data.wfdb_record import Record


@dataclass(frozen=True)
class MIMIC:
    """A MIMIC-IV-ECG folder as a source.

    Attributes
    ----------
    root
        Folder of `record_list.csv` (columns `subject_id`, `study_id`, `path`).
    """

    root: str
    name: str = "mimic-iv-ecg"

    def entries(self) -> Iterator[Entry]:
        """Rows of the record list."""
        listing = Path(self.root) / "record_list.csv"
        refuse_lfs_pointer(listing)
        try:
            with open(listing, newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                wanted = {"subject_id", "study_id", "path"}
                if absent := wanted - set(reader.fieldnames or ()):
                    raise ECGFormatError(
                        f"there is no column {', '.join(sorted(absent))}", file=listing
                    )
                for row in reader:
                    path = os.path.join(self.root, row["path"])
                    yield Entry(row["study_id"], path, patient=row["subject_id"])
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ECGFormatError(f"cannot be read: {error}", file=listing) from None

    def read(self, entry: Entry, options: ReadOptions) -> tuple[Record, Labels]:
        """One record."""
        return read_wfdb(entry, options)

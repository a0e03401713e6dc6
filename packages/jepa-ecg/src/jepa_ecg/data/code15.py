"""CODE-15%: 4096 samples at 400 Hz in HDF5 files, listed in `exams.csv`.

Ribeiro et al., "CODE-15%: a large scale annotated dataset of 12-lead ECGs", Zenodo (2021).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jepa_ecg.data.databases import DATABASES
from jepa_ecg.data.errors import ECGFormatError, refuse_lfs_pointer
from jepa_ecg.data.leads import plan_leads
from jepa_ecg.data.source import Entry, Labels, ReadOptions
from jepa_ecg.data.wfdb_record import Record, finish

_CLASSES = ("1dAVb", "RBBB", "LBBB", "SB", "ST", "AF")


@dataclass(frozen=True)
class CODE15:
    """A CODE-15 folder as a source. Samples are taken as mV.

    Attributes
    ----------
    root
        Folder of `exams.csv` and of the HDF5 files (`exam_id` (N,), `tracings` (N, 4096, 12)).
    """

    root: str
    name: str = "code-15"

    def entries(self) -> Iterator[Entry]:
        """Rows of the HDF5 files, file by file, without those that `exams.csv` does not list."""
        root = Path(self.root)
        exams = _exams(root / "exams.csv")
        files = sorted(root.glob("*.hdf5")) + sorted(root.glob("*.h5"))
        if not files:
            raise ECGFormatError("there is no HDF5 file beside exams.csv", file=root)
        for path in files:
            with _open(path) as file:
                ids = file["exam_id"][:]
                if file["tracings"].ndim != 3 or file["tracings"].shape[::2] != (len(ids), 12):
                    raise ECGFormatError(
                        f"tracings of {file['tracings'].shape} for {len(ids)} exams", file=path
                    )
            # Every file ends with a row of zeros under the id 0, which exams.csv lacks.
            for row, exam in enumerate(ids.tolist()):
                if exam in exams:
                    patient, labels = exams[exam]
                    yield Entry(str(exam), str(path), row, patient, labels={"code-15": labels})

    def read(self, entry: Entry, options: ReadOptions) -> tuple[Record, Labels]:
        """One record; one that zeros pad at an end is refused, as in the paper."""
        database = DATABASES["code-15"]
        with _open(entry.path) as file:
            tracing: Float[np.ndarray, "time leads"] = file["tracings"][entry.row]
        if not (tracing[0].all() and tracing[-1].all()):
            raise ECGFormatError(
                f"exam {entry.id} is padded with zeros to {len(tracing)} samples", file=entry.path
            )
        plan = plan_leads(
            database.leads,
            options.leads,
            derive=options.derive,
            fill=options.fill,
            file=entry.path,
        )
        signal, missing, notes = finish(tracing, plan, fill=options.fill, file=entry.path)
        record = Record(
            signal, database.fs, plan.leads, None, missing, warnings=plan.warnings + notes
        )
        return record, entry.labels or {}


def _open(path: str | Path) -> Any:
    import h5py

    refuse_lfs_pointer(path)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ECGFormatError(f"is no HDF5 file: {error}", file=path) from None
    if not {"exam_id", "tracings"} <= set(file):
        file.close()
        raise ECGFormatError("there is no exam_id or no tracings", file=path)
    return file


def _exams(path: Path) -> Mapping[int, tuple[str, tuple[str, ...]]]:
    refuse_lfs_pointer(path)
    exams = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                labels = tuple([name for name in _CLASSES if row.get(name) == "True"])
                try:
                    exams[int(row["exam_id"])] = row["patient_id"], labels
                except (KeyError, ValueError, TypeError):
                    raise ECGFormatError(
                        "no exam_id and patient_id", file=path, line=number, field="exam_id"
                    ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ECGFormatError(f"cannot be read: {error}", file=path) from None
    return exams

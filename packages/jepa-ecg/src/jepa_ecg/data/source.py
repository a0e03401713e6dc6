"""What a corpus is built from: entries that are cheap to list, and how to read one of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

from jepa_ecg.data.errors import ECGFormatError
from jepa_ecg.data.leads import Fill
from jepa_ecg.data.wfdb_frames import Truncated, Verify
from jepa_ecg.data.wfdb_record import Record, read_record

Labels = Mapping[str, Sequence[str]]

NO_FOLD = 0

GIVE_FS = "give it in Hz with --fs (jepa ecg data build: --source-fs)"


class Entry(NamedTuple):
    """One record to be read.

    Attributes
    ----------
    id
        Unique within its source.
    path
        File.
    row
        Row or index in the file, where it holds many records.
    patient, fold
        As the source says; "" and 0 where it does not.
    labels
        Per task the record's labels, as far as the listing knows them.
    """

    id: str
    path: str
    row: int = 0
    patient: str = ""
    fold: int = NO_FOLD
    labels: Labels | None = None


class ReadOptions(NamedTuple):
    """Options of `read_record` that a corpus passes on."""

    leads: Sequence[str] | None = None
    derive: bool = False
    fill: Fill = None
    truncated: Truncated = "error"
    verify: Verify = "warn"


class Source(Protocol):
    """A data set on disk. Picklable; `entries` streams, so a million records cost no memory.

    `name` goes into the corpus; that of a database in `DATABASES` brings its statistics.
    """

    @property
    def name(self) -> str: ...

    def entries(self) -> Iterator[Entry]:
        """The records in a fixed order; also those that are listed and whose files are missing."""
        ...

    def read(self, entry: Entry, options: ReadOptions) -> tuple[Record, Labels]:
        """One record and its labels per task; raises `ECGFormatError`."""
        ...


def read_wfdb(entry: Entry, options: ReadOptions) -> tuple[Record, Labels]:
    """`Source.read` of the sources whose records are WFDB files."""
    return read_record(entry.path, **options._asdict()), entry.labels or {}


def fold_number(value: object, *, file: object, record: object) -> int:
    """A fold 1..10.

    Raises
    ------
    ECGFormatError
        Anything else.
    """
    try:
        fold = float(str(value))
    except ValueError:
        fold = 0.0
    if fold not in range(1, 11):
        raise ECGFormatError(
            f"record {record} has the fold {value!r}, not one of 1..10",
            file=file,
            field="strat_fold",
        )
    return int(fold)


def refuse_missing(source: Source) -> None:
    """Look for the file of every record before the first one is read.

    Raises
    ------
    ECGFormatError
        Some are missing: the first five of them and their number.
    """
    missing = (
        entry.path
        for entry in source.entries()
        if not (os.path.exists(entry.path + ".hea") or os.path.exists(entry.path))
    )
    shown = list(islice(missing, 5))
    if shown:
        more = sum(1 for _ in missing)
        raise ECGFormatError(
            f"{len(shown) + more} listed records do not exist: {', '.join(shown)}"
            + (", ..." if more else ""),
            file=source.name,
            remedy="download them, or leave them out with --on-error skip",
        )


def open_source(path: str | os.PathLike[str], *, name: str = "", fs: float | None = None) -> Source:
    """Recognise what lies at `path`.

    A folder with `ptbxl_database.csv` (PTB-XL), `record_list.csv` (MIMIC-IV-ECG), `exams.csv`
    (CODE-15) or WFDB headers anywhere below it (Challenge 2020/2021, any other); a `.npy` or `.npz`
    of signals; a `.csv` or `.parquet` list of files; a single WFDB record, with or without `.hea`.

    Parameters
    ----------
    path
        Folder or file.
    name
        Name of the source in the corpus; default by kind, else that of the folder or file.
    fs
        Sampling rate in Hz: of arrays it must be given; of PTB-XL, 100 or 500 (default).

    Raises
    ------
    ECGFormatError
        Nothing that can be read.
    """
    from jepa_ecg.data.arrays import Dump, FileList
    from jepa_ecg.data.challenge import WFDBFolder, WFDBRecord
    from jepa_ecg.data.code15 import CODE15
    from jepa_ecg.data.mimic import MIMIC
    from jepa_ecg.data.ptbxl import PTBXL

    place = Path(path).expanduser()
    own = name or place.resolve().stem
    if place.is_dir():
        if (place / "ptbxl_database.csv").exists():
            return PTBXL(str(place), fs=fs or 500, name=name or "ptb-xl")
        if (place / "record_list.csv").exists():
            return MIMIC(str(place), name=name or "mimic-iv-ecg")
        if (place / "exams.csv").exists():
            return CODE15(str(place), name=name or "code-15")
        if next(place.rglob("*.hea"), None) is not None:
            return WFDBFolder(str(place), name=own)
        what = "there is no PTB-XL, MIMIC-IV-ECG, CODE-15 or WFDB record in this folder"
        raise ECGFormatError(what, file=place)
    record = str(place).removesuffix(".hea")
    if os.path.exists(record + ".hea"):
        return WFDBRecord(record, name=own)
    if not place.exists():
        raise ECGFormatError("there is no such file or folder", file=place)
    suffix = place.suffix.lower()
    if suffix in (".npy", ".npz"):
        if fs is None:
            raise ECGFormatError(
                "arrays do not say their sampling rate", file=place, remedy=GIVE_FS
            )
        return Dump(str(place), fs=fs, name=own)
    if suffix in (".csv", ".parquet"):
        return FileList(str(place), name=own, fs=fs)
    raise ECGFormatError(
        f"{suffix or 'a file without suffix'} is nothing to read",
        file=place,
        remedy="name a folder, a .hea, .npy, .npz, .csv or .parquet",
    )

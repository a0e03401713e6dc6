"""What a corpus is built from: entries that are cheap to list, and how to read one of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from jepa_ecg.data.errors import ECGFormatError
from jepa_ecg.data.leads import Fill
from jepa_ecg.data.wfdb_frames import Truncated, Verify
from jepa_ecg.data.wfdb_record import Record, read_record

Missing = Literal["error", "skip"]
Labels = Mapping[str, Sequence[str]]

NO_FOLD = 0


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
        """The records in a fixed order."""
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


def exists(path: str) -> bool:
    """Whether there is a WFDB record, or another file, of that name."""
    return os.path.exists(path + ".hea") or os.path.exists(path)


def refuse_missing(paths: Iterable[str], listing: object) -> None:
    """Name the first records that are listed and not there.

    Raises
    ------
    ECGFormatError
        With the first five and the count.
    """
    missing = [path for path in paths if not exists(path)]
    if missing:
        shown = ", ".join(missing[:5])
        raise ECGFormatError(
            f"{len(missing)} listed records do not exist: {shown}"
            + (", ..." if len(missing) > 5 else ""),
            file=listing,
            remedy='download them, or leave them out with missing="skip"',
        )


def open_source(path: str | os.PathLike[str], *, name: str = "", fs: float | None = None) -> Source:
    """Recognise what lies at `path`.

    A folder with `ptbxl_database.csv` (PTB-XL), `record_list.csv` (MIMIC-IV-ECG), `exams.csv`
    (CODE-15) or WFDB headers anywhere below it (Challenge 2020/2021, any other); a `.npy` or `.npz`
    of signals; a `.csv` or `.parquet` list of files.

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
    from jepa_ecg.data.challenge import WFDBFolder
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
    if not place.exists():
        raise ECGFormatError("there is no such file or folder", file=place)
    suffix = place.suffix.lower()
    if suffix in (".npy", ".npz"):
        if fs is None:
            raise ECGFormatError(
                "arrays do not say their sampling rate", file=place, remedy="give fs in Hz"
            )
        return Dump(str(place), fs=fs, name=own)
    if suffix in (".csv", ".parquet"):
        return FileList(str(place), name=own, fs=fs)
    raise ECGFormatError(f"{suffix or 'a file without suffix'} is nothing to read", file=place)

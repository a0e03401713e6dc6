"""WFDB records: PhysioNet/CinC Challenge 2020 and 2021, any other tree of headers, one record.

Challenge headers carry the diagnoses as SNOMED CT codes in a comment `Dx: 426177001,164934002`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jepa_ecg.data.errors import ECGFormatError
from jepa_ecg.data.source import Entry, Labels, ReadOptions, read_wfdb
from jepa_ecg.data.wfdb_record import Record


def diagnoses(comments: Sequence[str]) -> tuple[str, ...] | None:
    """The SNOMED CT codes of a Challenge header, sorted; None when it has no `Dx` line."""
    for comment in comments:
        key, colon, value = comment.partition(":")
        if colon and key.strip().casefold() == "dx":
            return tuple(sorted({code.strip() for code in value.split(",") if code.strip()}))
    return None


@dataclass(frozen=True)
class WFDBFolder:
    """Every WFDB record below a folder, in the order of their paths.

    Headers of the segments of a multi-segment record are records of their own here; list files
    with `FileList` where that is not wanted.

    Attributes
    ----------
    root
        Folder.
    name
        Of the source; that of a known database ("georgia", "ningbo", ...) brings its statistics.
    """

    root: str
    name: str

    def entries(self) -> Iterator[Entry]:
        """Headers below the folder; the id is the path without `.hea`."""
        found = False
        for folder, folders, files in os.walk(self.root):
            folders.sort()
            for file in sorted(files):
                if file.endswith(".hea"):
                    found = True
                    path = os.path.join(folder, file.removesuffix(".hea"))
                    yield Entry(os.path.relpath(path, self.root).replace(os.sep, "/"), path)
        if not found:
            raise ECGFormatError("there is no header (.hea) in this folder", file=self.root)

    def read(self, entry: Entry, options: ReadOptions) -> tuple[Record, Labels]:
        """One record; the task "dx" holds its diagnoses where the header has them."""
        return _read(entry, options)


@dataclass(frozen=True)
class WFDBRecord:
    """One WFDB record as a source.

    Attributes
    ----------
    path
        The record, without `.hea`.
    name
        Of the source.
    """

    path: str
    name: str

    def entries(self) -> Iterator[Entry]:
        """The record; the id is its file name."""
        yield Entry(os.path.basename(self.path), self.path)

    def read(self, entry: Entry, options: ReadOptions) -> tuple[Record, Labels]:
        """The record; the task "dx" holds its diagnoses where the header has them."""
        return _read(entry, options)


def _read(entry: Entry, options: ReadOptions) -> tuple[Record, Labels]:
    record, labels = read_wfdb(entry, options)
    codes = diagnoses(record.comments)
    return record, labels if codes is None else {"dx": codes}

"""The error of every reader: file, line, field and remedy in one line."""

from __future__ import annotations

import os

from jepa_core.errors import DataError
from jepa_core.files import HEAD, PULL, lfs_pointer


class ECGFormatError(DataError):
    """A file or an array that is no readable electrocardiogram.

    Parameters
    ----------
    what
        What is wrong, with the offending value.
    file
        Path of the file (or a name for an array in memory).
    line
        Line in the file, from 1; 0 where lines mean nothing.
    field
        Name of the field, e.g. `"gain"`.
    remedy
        What to do about it.
    """

    def __init__(
        self, what: str, *, file: object = "", line: int = 0, field: str = "", remedy: str = ""
    ) -> None:
        self.file = os.fspath(file) if isinstance(file, os.PathLike) else str(file)
        self.line = line
        self.field = field
        place = [self.file] if self.file else []
        place += [f"line {line}"] if line else []
        place += [f"field {field}"] if field else []
        super().__init__(what, where=", ".join(place), remedy=remedy)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.file, self.line, self.field, self.remedy))


def _rebuild(
    cls: type[ECGFormatError], what: str, file: str, line: int, field: str, remedy: str
) -> ECGFormatError:
    return cls(what, file=file, line=line, field=field, remedy=remedy)


def refuse_lfs_pointer(path: str | os.PathLike[str], head: bytes | None = None) -> None:
    """Say so when a file is what Git LFS leaves in place of a file that was not downloaded.

    Parameters
    ----------
    path
        The file.
    head
        Its first bytes, when they are at hand.

    Raises
    ------
    ECGFormatError
        The file is a Git LFS pointer.
    """
    if head is None:
        try:
            if os.path.getsize(path) > HEAD:
                return
            with open(path, "rb") as file:
                head = file.read(HEAD)
        except OSError:
            return
    if what := lfs_pointer(head):
        raise ECGFormatError(what, file=path, remedy=PULL)

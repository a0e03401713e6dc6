"""Files that a command writes for its user: whole or not at all, and over another only if asked."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Shaped

from jepa_core.errors import RunError
from jepa_core.run import fsync


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Refuse to write over a file without `overwrite`.

    Raises
    ------
    RunError
        It is there.
    """
    if path.exists() and not overwrite:
        raise RunError("already exists", where=path, remedy="give --overwrite or another --out")


@contextmanager
def whole_file(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A place beside `path` to write to; what is there when the block ends gets the name.

    Nothing does if the block raises or writes nothing; then a file of that name stays as it was.

    Raises
    ------
    RunError
        The file exists, or cannot be written: that is found out before the block begins.
    """
    refuse_existing(path, overwrite)
    beside = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(b"")  # a command that was killed may have left something there
        yield beside
        if beside.stat().st_size:
            fsync(beside)
            os.replace(beside, path)
    except OSError as error:
        raise RunError(
            f"cannot be written: {error.strerror or error}",
            where=error.filename or path,
            remedy="check free space and permissions",
        ) from error
    finally:
        with suppress(OSError):
            beside.unlink()


def list_skipped(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    """Write what was left out, and why, beside a result; a list of an earlier time goes.

    Returns
    -------
    The .csv, which is there if there are rows.
    """
    listing = path.with_name(f"{path.name}.skipped.csv")
    if not rows:
        listing.unlink(missing_ok=True)
        return listing
    with listing.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return listing


class NpyWriter:
    """Appends rows to an .npy whose length comes out at the end.

    Parameters
    ----------
    file
        Open for writing, empty.
    dtype
        Of the array.
    shape
        Of a row.

    Attributes
    ----------
    rows
        Rows so far.
    """

    def __init__(self, file: BinaryIO, dtype: str, shape: tuple[int, ...] = ()) -> None:
        self._file, self._dtype, self._shape, self.rows = file, np.dtype(dtype), shape, 0
        self._header()

    def append(self, rows: Shaped[np.ndarray, "rows *shape"]) -> None:
        """Add rows of the array's type.

        Raises
        ------
        TypeError
            They are of another type or shape.
        """
        if rows.dtype != self._dtype or rows.shape[1:] != self._shape:
            raise TypeError(
                f"rows of {rows.dtype} {rows.shape[1:]} for an array of {self._dtype} {self._shape}"
            )
        self._file.write(np.ascontiguousarray(rows).data)
        self.rows += len(rows)

    def finish(self) -> None:
        """Give the array its length."""
        self._file.seek(0)
        self._header()
        self._file.flush()

    def _header(self) -> None:
        # NumPy leaves room in the header for the first axis to grow, so its length never changes.
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.rows, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, header)

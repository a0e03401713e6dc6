"""Files as people bring them: missing, empty, a Git LFS pointer, shorter than their header says.

And where real data lie.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import IO

import numpy as np

from jepa_core.errors import DataError

HEAD = 1024  # bytes that show a Git LFS pointer: its specification allows no more
PULL = "run `git lfs pull` in the repository it came from, or download the file itself"
_POINTER = b"version https://git-lfs"
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def lfs_pointer(head: bytes) -> str:
    """What is wrong with a file that Git LFS left in place of one it did not download.

    Parameters
    ----------
    head
        The first `HEAD` bytes of the file.

    Returns
    -------
    A phrase, whose remedy is `PULL`; empty when the file is no pointer.
    """
    if not head.startswith(_POINTER):
        return ""
    size = re.search(rb"^size (\d{1,18})$", head, re.MULTILINE)
    of = f" to a file of {int(size[1]):,} bytes" if size else ""
    return f"this is a Git LFS pointer{of}, not the file itself"


def must_be_content(path: Path) -> None:
    """Refuse what is no file, or a file without its content.

    Raises
    ------
    DataError
        It is not there, a folder, not readable, empty or a Git LFS pointer.
    """
    if path.is_dir():
        raise DataError("is a folder", where=path, remedy="name one file in it")
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError("no such file", where=path, remedy="check the path") from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=path) from None
    if not head:
        raise DataError("the file is empty", where=path, remedy="fetch it again")
    if what := lfs_pointer(head):
        raise DataError(what, where=path, remedy=PULL)


def npy_header(file: IO[bytes], size: int, where: object) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of an array in NumPy's format, checked before anything is allocated.

    Parameters
    ----------
    file
        At the beginning of the array; behind its header afterwards.
    size
        Bytes that the array has in the file, header included.
    where
        What the array is called in an error.

    Raises
    ------
    DataError
        No such header or one of another format than 1.0 or 2.0, pickled objects, or more values
        than there are bytes.
    """
    try:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise DataError(f"is an array of format {version}", where=where, remedy="save it again")
        shape, _, dtype = _HEADERS[version](file)
    except DataError:
        raise
    except Exception as error:  # a damaged header is Python code that NumPy cannot parse
        said = " ".join(str(error).split())[:200]
        what = f"is no NumPy array that can be read ({said})"
        raise DataError(what, where=where, remedy="fetch it again") from None
    if dtype.hasobject:
        raise DataError(
            "holds pickled objects, which are never read",
            where=where,
            remedy="save plain numbers or text, or a CSV or Parquet file",
        )
    wanted = math.prod(int(side) for side in shape) * dtype.itemsize
    if min(shape, default=0) < 0 or wanted > size:
        raise DataError(
            f"is cut off: {shape} of {dtype} is {wanted} bytes, the file has {size}",
            where=where,
            remedy="fetch it again",
        )
    return shape, dtype


def data_folder(domain: str, sign: str, what: str, remedy: str = "or give --data") -> Path:
    """A domain's folder of real data: in $JEPA_DATA, else beside the working folder.

    Parameters
    ----------
    domain
        The folder's name.
    sign
        What lies in it.
    what
        The files that are wanted, as an error names them.
    remedy
        What helps besides setting JEPA_DATA.

    Raises
    ------
    DataError
        There is none.
    """
    for root in (os.environ.get("JEPA_DATA"), "../shared/data"):
        if root and (Path(root) / domain / sign).exists():
            return Path(root) / domain
    raise DataError(
        f"{what} are not here",
        remedy=f"set JEPA_DATA to the folder that holds {domain}/, {remedy}",
    )

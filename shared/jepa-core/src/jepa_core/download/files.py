"""What downloading and unpacking share: safe paths, a place for unfinished files, progress."""

from __future__ import annotations

import errno
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jepa_core.errors import DataError, JepaError

CHUNK = 1 << 16  # bytes read at a time
AGAIN = "run the same command again: finished files are kept"
_STAGING = ".partial-"
_STALE = 86_400.0  # s; an unfinished folder that old belongs to a run that was killed
_PATIENCE, _BETWEEN_LINES = 2.0, 30.0  # s


def inside(name: str, where: object) -> str:
    """`name` without a leading `./`, refused unless it stays inside the folder it is put in.

    Raises
    ------
    DataError
        Absolute, with `..`, a backslash, a drive letter or a character that is not printable.
    """
    path = name.removeprefix("./")
    parts = path.split("/")
    if (
        "\\" in path
        or path[1:2] == ":"
        or not path.isprintable()
        or any(part in ("", ".", "..") for part in parts)
        or parts[0].startswith(_STAGING)
    ):
        raise DataError(f"the path {name!r} is not one inside its folder", where=where)
    return path


@contextmanager
def staging(root: Path) -> Iterator[Path]:
    """A folder for what is not finished, on the disk of `root`, so that renaming works."""
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        for old in root.glob(f"{_STAGING}*"):
            if time.time() - old.stat().st_mtime > _STALE:
                shutil.rmtree(old, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=_STAGING, dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    """Turn what the disk raises into one line."""
    try:
        yield
    except JepaError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = f"free some space and {AGAIN}"
            raise DataError("the disk is full", where=root, remedy=remedy) from None
        what, remedy = f"cannot be written: {error.strerror or error}", "choose another folder"
        raise DataError(what, where=error.filename or root, remedy=remedy) from None

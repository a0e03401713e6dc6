"""What downloading and unpacking share: safe paths, a place for unfinished files, progress."""

from __future__ import annotations

import errno
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

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


class Progress:
    """Rate and time left on stderr: a bar on a terminal, else plain lines; at first nothing."""

    def __init__(self, label: str, total: int, show: bool) -> None:
        self.label, self.total, self.show = label, total, show
        self._console = Console(stderr=True)
        self._begin = time.monotonic()
        self._next = self._begin + _PATIENCE
        self._bar: Bar | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, note: str = "") -> None:
        """Say that `done` files are done; `note` stands at the end of the line."""
        now = time.monotonic()
        if not self.show or now < self._next:
            return
        rate = done / (now - self._begin)
        left = f", {(self.total - done) / rate:.0f} s left" if rate else ""
        tail = f"{rate:.3g} files/s{left}{note and ', '}{note}"
        if not self._console.is_terminal:
            self._next = now + _BETWEEN_LINES
            print(f"{self.label} {done}/{self.total}, {tail}", file=self._console.file, flush=True)
            return
        if self._bar is None:
            columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[tail]}")
            self._bar = Bar(TextColumn("{task.description}"), *columns, console=self._console)
            self._bar.add_task(self.label, total=self.total, tail="")
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, tail=tail)

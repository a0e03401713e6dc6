"""Zip and tar archives, extracted as if they came from an enemy."""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from jepa_core.download.files import CHUNK, disk_errors, inside, staging
from jepa_core.errors import DataError, JepaError
from jepa_core.progress import Progress

# Name, declared size in bytes, and how to read it.
Member = tuple[str, int, Callable[[], IO[bytes]]]

# What reading a damaged archive can raise.
_DAMAGED = (
    EOFError,
    NotImplementedError,
    OSError,
    OverflowError,
    ValueError,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


def unpack(archive: str | Path, folder: str | Path, *, progress: bool = True) -> list[Path]:
    """Extract a zip or tar archive (plain, gzip, bzip2, xz) that nobody vouches for.

    Everything is checked before the first byte is written: names stay inside `folder`, there are
    only plain files and folders, and the declared sizes fit the free space.

    Parameters
    ----------
    archive
        The file.
    folder
        Where to; made if it is not there. Files of the same name are replaced.
    progress
        Show rate and time left on stderr when it takes longer than two seconds.

    Returns
    -------
    The files, in the archive's order.

    Raises
    ------
    DataError
        No such archive, a damaged, encrypted or hostile one, or too little space.
    """
    source, root = Path(archive).expanduser(), Path(folder).expanduser()
    with staging(root) as partial_, disk_errors(root), _sound(source), _members(source) as found:
        members = {}
        for name, size, read in found:
            path = inside(name, source)
            if path in members:
                raise DataError(f"{path} is there twice", where=source)
            if size < 0:
                raise DataError(f"{path} has a negative size", where=source)
            members[path] = size, read
        total, free = sum(size for size, _ in members.values()), shutil.disk_usage(root).free
        if total > free:
            raise DataError(
                f"unpacked it takes {total / 1e9:.1f} GB and {free / 1e9:.1f} GB are free",
                where=source,
                remedy=f"free some space at {root}",
            )
        with Progress("unpacking", len(members), quiet=not progress) as bar:
            for done, (path, (_, read)) in enumerate(members.items(), 1):
                (partial_ / path).parent.mkdir(parents=True, exist_ok=True)
                with read() as packed, open(partial_ / path, "wb") as file:
                    shutil.copyfileobj(packed, file, CHUNK)
                bar.update(done)
        for path in members:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial_ / path, root / path)
    return [root / path for path in members]


@contextmanager
def _members(path: Path) -> Iterator[Iterator[Member]]:
    """The plain files of an archive; of what else it can hold only folders are allowed."""
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic in (b"PK\3\4", b"PK\5\6"):
        with zipfile.ZipFile(path) as packed:
            yield _zip_members(packed, path)
    else:
        with tarfile.open(path) as tape:
            yield _tar_members(tape, path)


def _zip_members(packed: zipfile.ZipFile, path: Path) -> Iterator[Member]:
    for info in packed.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DataError(f"{info.filename!r} is a link or a device", where=path)
        if info.flag_bits & 1:
            raise DataError(f"{info.filename!r} is encrypted", where=path)
        if info.filename.endswith("/"):
            inside(info.filename.rstrip("/"), path)
        else:
            yield info.filename, info.file_size, partial(packed.open, info)


def _tar_members(tape: tarfile.TarFile, path: Path) -> Iterator[Member]:
    for info in tape:
        if info.isdir():
            if info.name != ".":
                inside(info.name, path)
        elif info.isreg():
            yield info.name, info.size, partial(_plain_file, tape, info)
        else:
            raise DataError(f"{info.name!r} is a link or a device", where=path)
    # gzip's checksum stands behind what tar reads; who stops there misses a damaged file.
    while tape.fileobj is not None and tape.fileobj.read(CHUNK):
        pass


def _plain_file(tape: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = tape.extractfile(info)
    assert file is not None, "only links and devices have no content"
    return file


@contextmanager
def _sound(archive: Path) -> Iterator[None]:
    """Turn what a missing or damaged archive raises into one line."""
    try:
        yield
    except JepaError:
        raise
    except FileNotFoundError as error:
        if error.filename != str(archive):
            raise
        raise DataError("no such file", where=archive) from None
    except _DAMAGED as error:
        # bzip2 says it with an OSError that, unlike the disk's, has no number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"no archive that can be read ({reason})", where=archive) from None

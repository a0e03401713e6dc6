"""Where image files lie: a folder, or a zip archive that is read in place.

An archive is treated as if it came from an enemy: names that leave it, links, encrypted members
and zip bombs are refused before a byte is unpacked, and no more is unpacked than its table says.
"""

from __future__ import annotations

import io
import os
import stat
import threading
import zipfile
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from jepa_core.download.files import inside
from jepa_core.errors import DataError
from jepa_vision.data.images import ImageReadError, open_file

_LARGEST = 1 << 30  # bytes of one member
_SUSPECT = 1 << 26  # bytes from which a member's compression is looked at
_PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # methods that unpack in bounded steps
_RATIO = 200  # no picture's file is compressed as well as that

_DAMAGED = (EOFError, NotImplementedError, OSError, ValueError, zipfile.BadZipFile, zlib.error)


class Files(Protocol):
    """Files by name: paths relative to a root, with forward slashes."""

    def names(self) -> list[str]:
        """All of them, sorted by code point; hidden ones are left out."""
        ...

    def has(self, name: str) -> bool:
        """Whether there is one of that name."""
        ...

    def open(self, name: str) -> BinaryIO:
        """Open one for reading."""
        ...

    def where(self, name: str) -> str:
        """What a person calls it."""
        ...


class FolderFiles:
    """The files of a folder and of those in it; links are followed, each folder once."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    def names(self) -> list[str]:
        found: list[str] = []
        seen: set[tuple[int, int]] = set()

        def refuse(error: OSError) -> None:
            reason = f"cannot be listed ({error.strerror or error})"
            raise DataError(reason, where=error.filename, remedy="check its permissions")

        for folder, inner, files in os.walk(self.root, onerror=refuse, followlinks=True):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                inner.clear()  # a link back into what was walked
                continue
            seen.add((status.st_dev, status.st_ino))
            inner[:] = sorted(name for name in inner if not _hidden(name))
            below = os.path.relpath(folder, self.root).replace(os.sep, "/")
            prefix = "" if below == "." else below + "/"
            found += [prefix + name for name in files if not _hidden(name)]
        return sorted(found)

    def has(self, name: str) -> bool:
        return (self.root / name).is_file()

    def open(self, name: str) -> BinaryIO:
        return open_file(self.root / name)

    def where(self, name: str) -> str:
        return str(self.root / name)


class ZipFiles:
    """The members of a zip archive.

    Raises
    ------
    DataError
        On first use: it is damaged, encrypted or hostile.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}  # every process opens the archive itself

    def names(self) -> list[str]:
        return sorted(name for name in self._members if not any(map(_hidden, name.split("/"))))

    def has(self, name: str) -> bool:
        return name in self._members

    def open(self, name: str) -> BinaryIO:
        if name not in self._members:
            raise ImageReadError("no such member", file=self.where(name))
        info = self._members[name]
        try:
            with self._lock, self._archive.open(info) as member:
                return io.BytesIO(member.read(info.file_size))
        except _DAMAGED as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ImageReadError(f"damaged ({reason})", file=self.where(name)) from None

    def where(self, name: str) -> str:
        return f"{self.path}!{name}"

    @cached_property
    def _lock(self) -> threading.Lock:
        return threading.Lock()

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except _DAMAGED as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"no zip archive that can be read ({reason})", where=self.path
            ) from None

    @cached_property
    def _members(self) -> dict[str, zipfile.ZipInfo]:
        members: dict[str, zipfile.ZipInfo] = {}
        for info in self._archive.infolist():
            if info.is_dir():
                continue
            name = inside(info.filename, self.path)
            if name in members:
                raise DataError(f"{name} is there twice", where=self.path)
            self._refuse(info)
            members[name] = info
        return members

    def _refuse(self, info: zipfile.ZipInfo) -> None:
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise DataError(f"{info.filename!r} is a link or a device", where=self.path)
        if info.flag_bits & 1:
            remedy = "unpack it with its password, and name the folder"
            raise DataError(f"{info.filename!r} is encrypted", where=self.path, remedy=remedy)
        if info.compress_type not in _PLAIN:
            raise DataError(
                f"{info.filename!r} is packed with another method than deflate",
                where=self.path,
                remedy="unpack it and name the folder",
            )
        size = info.file_size
        packed = max(info.compress_size, 1)
        if size > _LARGEST or (size > _SUSPECT and size > _RATIO * packed):
            raise DataError(
                f"{info.filename!r} unpacks from {packed / 1e6:.1f} MB to {size / 1e6:.0f} MB, "
                "as a zip bomb does",
                where=self.path,
                remedy="if you trust it, unpack it and name the folder",
            )


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")

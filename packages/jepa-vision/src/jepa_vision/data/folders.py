"""Find images, and read them one by one from where they lie."""

from __future__ import annotations

import csv
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import joblib
import numpy as np
from jaxtyping import Int32, Int64

from jepa_core.errors import DataError
from jepa_core.jobs import in_order
from jepa_core.progress import Progress
from jepa_vision.data import layouts
from jepa_vision.data.archives import Files, FolderFiles, ZipFiles
from jepa_vision.data.images import Header, ImageReadError, Pixels, ReadOptions
from jepa_vision.data.layouts import Layout, SceneFolder
from jepa_vision.data.listing import SUFFIXES, Listing, from_list, is_image, of_split

_LISTS = (".txt", ".lst", ".list")
_BLOCK = 256  # files that a process looks at at a time


class Skipped(NamedTuple):
    """A file that was left out, and why."""

    name: str
    reason: str


def open_files(path: str | os.PathLike[str]) -> Files:
    """A folder or a zip archive."""
    root = Path(path).expanduser()
    if root.is_dir():
        return FolderFiles(root)
    if root.is_file() and root.suffix.lower() == ".zip":
        return ZipFiles(root)
    what = "neither a folder nor a zip archive" if root.exists() else "no such file or folder"
    raise DataError(what, where=root)


def find_images(
    path: str | os.PathLike[str],
    *,
    split: str = "",
    subset: str | os.PathLike[str] | None = None,
) -> Listing:
    """The images at a place; nothing is decoded.

    Parameters
    ----------
    path
        A folder of images, of classes, or of splits and classes, however deep; a zip archive of
        such a folder; a data set in its own layout (Caltech-101, Oxford-IIIT Pet, pictures beside
        label pictures); a text file that lists images beside it; or one image.
    split
        train, val or test, where there are splits; all of them by default.
    subset
        A text file that lists which of them to take.

    Raises
    ------
    DataError
        There is no image there, or no such place.
    ConfigError
        There is no such split.
    """
    root = Path(path).expanduser()
    if root.is_file() and root.suffix.lower() in _LISTS:
        listing = from_list(FolderFiles(root.parent), _read_lines(root), root)
    elif root.is_file() and is_image(root.name):
        listing = Listing(FolderFiles(root.parent), [root.name], [""])
    elif subset is not None:
        listing = _subset(open_files(root), Path(subset))
    else:
        listing = layouts.image_listing(open_files(root))
    if not len(listing):
        there = ", ".join(f"{n} {suffix}" for suffix, n in listing.ignored[:5])
        raise DataError(
            f"no image (there are {there})" if there else "no image",
            where=root,
            remedy=f"known suffixes: {', '.join(sorted(SUFFIXES))}",
        )
    return of_split(listing, split, root)


def _subset(files: Files, path: Path) -> Listing:
    """The images that a list names, with the labels of the list, or else of their folders."""
    listed = from_list(files, _read_lines(path), path)
    if listed.labels is not None:
        return listed
    everything = layouts.image_listing(files)
    place = {name: i for i, name in enumerate(everything.names)}
    if not all(name in place for name in listed.names):
        return listed
    return everything.take([place[name] for name in listed.names])


def find_scenes(
    path: str | os.PathLike[str],
    *,
    layout: Layout = "auto",
    split: str = "",
    classes: int | Sequence[str] | None = None,
    ignore_index: int | None = None,
) -> SceneFolder:
    """Pictures and label pictures in a folder or a zip archive; see `layouts.find_scenes`."""
    return layouts.find_scenes(
        open_files(path), layout=layout, split=split, classes=classes, ignore_index=ignore_index
    )


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=path) from None
    except UnicodeDecodeError:
        raise DataError("not UTF-8 text", where=path) from None


class ImageFolder:
    """Images in files, read when they are asked for.

    Parameters
    ----------
    root
        What `find_images` takes, or what it gave.
    split
        As in `find_images`.
    options
        How files become pixels.
    on_error
        "raise": a file that cannot be read is an error when it is read. "skip": every file is read
        once in the beginning, and those that cannot be are left out and listed in `skipped`, so
        that a long run does not end at one of them.
    jobs
        Processes that look at the files.

    Attributes
    ----------
    skipped
        Files that were left out, and why.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | Listing,
        *,
        split: str = "",
        options: ReadOptions = ReadOptions(),
        on_error: Literal["raise", "skip"] = "raise",
        jobs: int = 1,
    ) -> None:
        if isinstance(root, Listing):
            self.listing = of_split(root, split, root.files.where(""))
        else:
            self.listing = find_images(root, split=split)
        self.options, self.jobs = options, jobs
        self.skipped: list[Skipped] = []
        if on_error == "skip":
            self._leave_out()

    def __len__(self) -> int:
        return len(self.listing)

    @property
    def names(self) -> Sequence[str]:
        return self.listing.names

    @property
    def labels(self) -> Int64[np.ndarray, " images"] | None:
        return self.listing.labels

    @property
    def classes(self) -> tuple[str, ...]:
        return self.listing.classes

    @cached_property
    def sizes(self) -> Int32[np.ndarray, "images 2"]:
        """Height and width of every image, from the beginning of every file on first use."""
        headers = self._headers
        for note, n in Counter(note for header in headers for note in header.notes).items():
            warnings.warn(f"{n} of {len(headers)} files {note}", UserWarning, stacklevel=3)
        return np.array([header[:2] for header in headers], np.int32).reshape(-1, 2)

    @cached_property
    def channels(self) -> int:
        """3 for pictures; of arrays, those of the first."""
        known = self.__dict__.get("_headers")
        return known[0].channels if known else self.listing.header(0).channels

    def read(self, i: int, at_least: int | None = None) -> Pixels:
        """Image `i`.

        Raises
        ------
        ImageReadError
            It cannot be read, or has other channels than the first.
        """
        pixels = self.listing.read(i, self.options, at_least).pixels
        if pixels.shape[2] != self.channels:
            raise ImageReadError(
                f"{pixels.shape[2]} channels, the first image has {self.channels}",
                file=self.listing.files.where(self.names[i]),
            )
        return pixels

    def _leave_out(self) -> None:
        found = self._look(decode=True)
        headers = [one for one in found if isinstance(one, Header)]
        if not headers:
            assert isinstance(found[0], Skipped), "every image is one or the other"
            raise DataError(
                f"none of {len(found)} images can be read, the first: {found[0].reason}",
                where=self.listing.files.where(""),
            )
        good: list[int] = []
        for i, one in enumerate(found):
            if isinstance(one, Skipped):
                self.skipped.append(one)
            elif one.channels != headers[0].channels:
                reason = f"{one.channels} channels, the first image has {headers[0].channels}"
                self.skipped.append(Skipped(self.names[i], reason))
            else:
                good.append(i)
        self.listing = self.listing.take(good)
        self.__dict__["_headers"] = [one for i in good if isinstance(one := found[i], Header)]

    @cached_property
    def _headers(self) -> list[Header]:
        found = self._look(decode=False)
        for one in found:
            if isinstance(one, Skipped):
                raise ImageReadError(one.reason, file=self.listing.files.where(one.name))
        return [one for one in found if isinstance(one, Header)]

    def _look(self, *, decode: bool) -> list[Header | Skipped]:
        n, listing = len(self.listing), self.listing
        blocks = [listing.names[i : i + _BLOCK] for i in range(0, n, _BLOCK)]
        options = self.options if decode else None
        found: list[Header | Skipped] = []
        with Progress("reading images" if decode else "reading sizes", n) as bar:
            work = (joblib.delayed(_headers)(listing.files, b, options) for b in blocks)
            for some in in_order(work, self.jobs):
                found += some
                bar.update(len(found))
        return found


def _headers(
    files: Files, names: Sequence[str], options: ReadOptions | None
) -> list[Header | Skipped]:
    """What some files say of themselves; read as a whole where options are given."""
    listing = Listing(files, names, [""] * len(names))
    found: list[Header | Skipped] = []
    for i, name in enumerate(names):
        try:
            if options is None:
                found.append(listing.header(i))
            else:
                pixels, kind, notes = listing.read(i, options)
                height, width, channels = pixels.shape
                found.append(Header(height, width, channels, kind, notes))
        except ImageReadError as error:
            found.append(Skipped(name, error.reason))
    return found


def write_skipped(path: str | os.PathLike[str], skipped: Sequence[Skipped]) -> None:
    """List files that were left out, and why, as CSV."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(Skipped._fields)
        lines.writerows(skipped)

"""Which images there are, and what their folders say of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64

from jepa_core.errors import ConfigError, DataError
from jepa_vision.data.archives import Files
from jepa_vision.data.images import (
    Header,
    ImageReadError,
    Reading,
    ReadOptions,
    read_header,
    read_image,
)

SUFFIXES = frozenset(
    (
        *("avif", "bmp", "gif", "jfif", "jp2", "jpe", "jpeg", "jpg", "npy", "npz"),
        *("pbm", "pgm", "png", "pnm", "ppm", "tif", "tiff", "webp"),
    )
)
# What folders of a split are called, and what the split is called here.
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_NO_CLASS = ("unlabelled", "unlabeled")


@dataclass(frozen=True, eq=False)
class Listing:
    """Images by name, in the order of their names.

    Attributes
    ----------
    files
        Where they lie.
    names
        Paths in there.
    splits
        "train", "val", "test" or "" of each.
    labels
        (n,) index into `classes`; None where not every image has one.
    classes
        Names, sorted; those of all splits, also where only one of them is listed.
    ignored
        Suffixes of files that are no images, and how many have them.
    """

    files: Files
    names: Sequence[str]
    splits: Sequence[str]
    labels: Int64[np.ndarray, " images"] | None = None
    classes: tuple[str, ...] = ()
    ignored: tuple[tuple[str, int], ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Sequence[int] | Int64[np.ndarray, " rows"]) -> Listing:
        """Some of the images, in the order given."""
        rows = np.asarray(rows, np.int64)
        return replace(
            self,
            names=[self.names[i] for i in rows.tolist()],
            splits=[self.splits[i] for i in rows.tolist()],
            labels=None if self.labels is None else self.labels[rows],
        )

    def read(self, i: int, options: ReadOptions, at_least: int | None = None) -> Reading:
        """Read image `i`."""
        return read_member(self.files, self.names[i], options, at_least)

    def header(self, i: int) -> Header:
        """Size and kind of image `i`, without decoding it."""
        with self.files.open(self.names[i]) as file:
            return read_header(file, self.files.where(self.names[i]))


def read_member(
    files: Files, name: str, options: ReadOptions, at_least: int | None = None
) -> Reading:
    """Read an image by its name."""
    with files.open(name) as file:
        return read_image(file, files.where(name), options, at_least)


def is_image(name: str) -> bool:
    """Whether a file's suffix, in either case, is that of an image."""
    return name.rpartition(".")[2].lower() in SUFFIXES


def ignored_suffixes(names: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Suffixes of files that are no images, the most frequent first."""
    others = (name.rpartition("/")[2] for name in names if not is_image(name))
    return tuple(Counter(_suffix(name) for name in others).most_common())


def _suffix(name: str) -> str:
    return "." + name.rpartition(".")[2].lower() if "." in name else "no suffix"


def of_split(listing: Listing, split: str, where: object) -> Listing:
    """The images of one split; all of them for "".

    Raises
    ------
    ConfigError
        There is no such split.
    """
    if not split:
        return listing
    wanted = SPLITS.get(split.lower(), split)
    rows = [i for i, name in enumerate(listing.splits) if name == wanted]
    if not rows:
        there = ", ".join(sorted({name for name in listing.splits if name})) or "none"
        raise ConfigError(f"there is no split {split!r}", where=where, remedy=f"there are: {there}")
    return listing.take(rows)


def tree(files: Files, names: Sequence[str]) -> Listing:
    """Images of a tree of folders.

    Folders called train, val or test at the top are splits. Where every image lies in a folder,
    the first one (below the split) is its class; in a flat folder, or where some images lie beside
    the folders, there are no classes. Folders that hold nothing but one folder are looked through.
    """
    images = [name for name in names if is_image(name)]
    depth = _shared(images)
    parts = [tuple(name.split("/")[depth:]) for name in images]
    has_splits = bool(parts) and all(len(p) > 1 and p[0].lower() in SPLITS for p in parts)
    splits = [SPLITS[p[0].lower()] if has_splits else "" for p in parts]
    folders = [p[1:-1] if has_splits else p[:-1] for p in parts]
    labels, classes = _classes([p[0] if p else "" for p in folders])
    return Listing(files, images, splits, labels, classes, ignored_suffixes(names))


def _shared(images: Sequence[str]) -> int:
    """How many folders at the top hold all the images in folders of their own."""
    depth = 0
    while images:
        tops = {tuple(name.split("/")[: depth + 1]) for name in images}
        deeper = all(name.count("/") > depth + 1 for name in images)
        if len(tops) > 1 or not deeper or next(iter(tops))[-1].lower() in SPLITS:
            break
        depth += 1
    return depth


def _classes(of: Sequence[str]) -> tuple[Int64[np.ndarray, " images"] | None, tuple[str, ...]]:
    """Labels and class names for the class of each image, "" = none."""
    classes = tuple(sorted(set(of)))
    if not classes or "" in classes or (len(classes) == 1 and classes[0].lower() in _NO_CLASS):
        return None, ()
    number = {name: i for i, name in enumerate(classes)}
    return np.array([number[name] for name in of], np.int64), classes


def from_list(files: Files, lines: Sequence[str], where: object) -> Listing:
    """Images that a list names, in its order.

    A line is a path, a path and a class with white space between, or (in lists of subsets of
    ImageNet) a file `<class>_<rest>` that lies in `<class>/` or `train/<class>/`.

    Raises
    ------
    ImageReadError
        A file is not there; names file and line of the list.
    """
    found, labelled = [], []
    for number, text in _lines(lines):
        name, label = _resolve(text, files)
        if not name:
            raise ImageReadError(
                f"{text!r} is not there", file=f"{where}:{number}", remedy="mend the list"
            )
        found.append(name)
        labelled.append(label)
    if not found:
        raise DataError("an empty list", where=where)
    labels, classes = _classes(labelled)
    return Listing(files, found, [""] * len(found), labels, classes)


def _lines(lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line.strip().removeprefix("./")


def _resolve(text: str, files: Files) -> tuple[str, str]:
    """Name and class of a line of a list; no name where there is no such file."""
    if files.has(text):
        return text, ""
    label = text.partition("_")[0]
    for folder in (label, f"train/{label}"):
        if files.has(f"{folder}/{text}"):
            return f"{folder}/{text}", label
    words = text.rsplit(maxsplit=1)
    if len(words) == 2 and files.has(words[0]):
        return words[0], words[1]
    return "", ""

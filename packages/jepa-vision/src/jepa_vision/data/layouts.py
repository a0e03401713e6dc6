"""Data sets that are laid out in ways of their own, and pictures with a label for every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int64
from PIL import Image

from jepa_core.errors import ConfigError, DataError
from jepa_vision.data.archives import Files
from jepa_vision.data.images import ImageReadError, Pixels, ReadOptions, read_header, sound
from jepa_vision.data.listing import (
    SPLITS,
    Listing,
    ignored_suffixes,
    is_image,
    of_split,
    read_member,
    tree,
)

Layout = Literal["auto", "camvid", "ade20k", "voc", "oxford-pet", "pairs"]

IGNORE = 255  # the label of a pixel that has none, where a data set has no other
_CAMVID = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign"),
    *("fence", "car", "pedestrian", "bicyclist"),
)
_VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person"),
    *("pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_ADE20K_CLASSES = 150

_IMAGE_FOLDERS = ("images", "jpegimages")
_LABEL_FOLDERS = ("labels", "masks", "annotations", "segmentationclass")
_ANNOTATED = "annot"  # the suffix of a folder of labels beside a folder of images
_LISTED = 10  # values that an error names


class _Form(NamedTuple):
    """Classes of a data set, the stored value of pixels without one, what becomes of that value,
    and the number of the first class."""

    classes: tuple[str, ...]
    none: int
    ignore_index: int
    shift: int = 0


_FORMS = {
    "camvid": _Form(_CAMVID, len(_CAMVID), len(_CAMVID)),
    "voc": _Form(_VOC, IGNORE, IGNORE),
    "oxford-pet": _Form(("pet", "background"), 3, IGNORE, 1),
}


class _Pair(NamedTuple):
    image: str
    label: str
    split: str


@dataclass(frozen=True, eq=False)
class SceneFolder:
    """Pictures and label pictures in files; read when asked for.

    Attributes
    ----------
    layout
        Which one was found.
    pairs
        Names of picture and labels, and the split.
    none
        Stored value of pixels without a class; they become `ignore_index`.
    shift
        Subtracted from the other stored values: the number of the first class.
    unpaired
        Pictures without labels, which are left out.
    """

    files: Files
    layout: str
    pairs: Sequence[_Pair]
    classes: tuple[str, ...]
    none: int
    ignore_index: int
    shift: int = 0
    unpaired: int = 0

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def names(self) -> list[str]:
        return [pair.image for pair in self.pairs]

    @property
    def pictures(self) -> Listing:
        """The pictures alone."""
        return Listing(self.files, self.names, [pair.split for pair in self.pairs])

    def image(self, i: int) -> Pixels:
        """uint8 [height, width, 3]."""
        return read_member(self.files, self.pairs[i].image, ReadOptions()).pixels

    def label(self, i: int) -> Int64[np.ndarray, "height width"]:
        """Class of every pixel, or `ignore_index`.

        Raises
        ------
        ImageReadError
            The labels have another size than the picture, or values that are no classes.
        """
        pair = self.pairs[i]
        where = self.files.where(pair.label)
        stored = _read_indices(self.files, pair.label)
        with self.files.open(pair.image) as file:
            height, width = read_header(file, self.files.where(pair.image))[:2]
        if stored.shape != (height, width):
            raise ImageReadError(
                f"labels of {stored.shape[1]}x{stored.shape[0]} pixels for a picture of "
                f"{width}x{height}",
                file=where,
                remedy="resize the labels without mixing values (nearest)",
            )
        return self._checked(stored, where)

    def _checked(
        self, stored: Int64[np.ndarray, "height width"], where: str
    ) -> Int64[np.ndarray, "height width"]:
        first, last = self.shift, self.shift + len(self.classes) - 1
        values = np.unique(stored).tolist()
        wrong = [v for v in values if not first <= v <= last and v != self.none]
        if wrong:
            more = ", ..." if len(wrong) > _LISTED else ""
            raise ImageReadError(
                f"values {', '.join(map(str, wrong[:_LISTED]))}{more} are neither classes "
                f"({first} to {last}) nor ignored ({self.none})",
                file=where,
                remedy="mend it, or give the classes and the ignore_index that it uses",
            )
        return np.where(stored == self.none, self.ignore_index, stored - self.shift)


def find_scenes(
    files: Files,
    *,
    layout: Layout = "auto",
    split: str = "",
    classes: int | Sequence[str] | None = None,
    ignore_index: int | None = None,
) -> SceneFolder:
    """Pictures and their labels.

    Parameters
    ----------
    layout
        camvid: `<split>/images` and `<split>/labels`, or `<split>` and `<split>annot`; 11 classes
        and 11 for none. ade20k: `images/<split>` and `annotations/<split>`; 1 to 150, 0 for none.
        voc: `JPEGImages` and `SegmentationClass`; 21 classes. oxford-pet: `images` and
        `annotations/trimaps`; pet, background, and none at their border. pairs: as any of these,
        with classes of your own. auto looks at the folders.
    split
        train, val or test, where the data set has splits.
    classes
        Number or names of the classes of pairs; by default the lines of `classes.txt`.
    ignore_index
        Label of pixels that have none, in pairs; 255 by default.

    Raises
    ------
    DataError
        There is no picture with labels.
    ConfigError
        The classes are not known, or there is no such split.
    """
    names = files.names()
    if layout == "auto":
        layout = "pairs" if classes is not None else _guess(files, names)
    pairs, unpaired = _pair(files, names, pet=layout == "oxford-pet")
    if not pairs:
        raise DataError(
            "no picture with labels",
            where=files.where(""),
            remedy="put them into images/ and labels/, with the same names",
        )
    listing = Listing(files, [p.image for p in pairs], [p.split for p in pairs])
    kept = set(of_split(listing, split, files.where("")).names)
    pairs = [pair for pair in pairs if pair.image in kept]
    if layout == "pairs":
        none = IGNORE if ignore_index is None else ignore_index
        form = _Form(_own_classes(files, names, classes), none, none)
    elif layout == "ade20k":
        form = _Form(_ade20k_classes(files, names), 0, IGNORE, 1)
    else:
        form = _FORMS[layout]
    return SceneFolder(files, layout, pairs, *form, unpaired)


def _guess(files: Files, names: Sequence[str]) -> Layout:
    folders = {folder.lower() for name in names for folder in name.split("/")[:-1]}
    if "trimaps" in folders:
        return "oxford-pet"
    if "segmentationclass" in folders:
        return "voc"
    if {"annotations", "training"} <= folders or {"annotations", "validation"} <= folders:
        return "ade20k"
    where = files.where("").lower().replace("\\", "/").split("/")
    if "camvid" in where or any(_is_annotated(folder) for folder in folders):
        return "camvid"
    return "pairs"


def _own_classes(
    files: Files, names: Sequence[str], classes: int | Sequence[str] | None
) -> tuple[str, ...]:
    if isinstance(classes, int):
        return tuple(map(str, range(classes)))
    if classes is None and "classes.txt" in names:
        classes = [line.strip() for line in _text(files, "classes.txt") if line.strip()]
    if not classes:
        raise ConfigError(
            "the classes of these labels are not known",
            where=files.where(""),
            remedy="give their number or names, or name them in classes.txt, one a line",
        )
    return tuple(classes)


def _ade20k_classes(files: Files, names: Sequence[str]) -> tuple[str, ...]:
    """Names out of objectInfo150.txt (index, ratio, train, val, name), else numbers from 1."""
    numbers = tuple(map(str, range(1, _ADE20K_CLASSES + 1)))
    if "objectInfo150.txt" not in names:
        return numbers
    rows = [line.split("\t") for line in _text(files, "objectInfo150.txt")[1:] if line.strip()]
    known = tuple(row[-1].split(",")[0].strip() for row in rows)
    return known if len(known) == _ADE20K_CLASSES else numbers


def _text(files: Files, name: str) -> list[str]:
    with files.open(name) as file:
        try:
            return file.read().decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise DataError("not UTF-8 text", where=files.where(name)) from None


def _is_annotated(folder: str) -> bool:
    return folder.lower().endswith(_ANNOTATED) and len(folder) > len(_ANNOTATED)


def _pair(files: Files, names: Sequence[str], pet: bool = False) -> tuple[list[_Pair], int]:
    """Pictures and labels of the same name, and the number of pictures without labels."""
    if pet:  # annotations/trimaps/x.png belongs to images/x.jpg
        names = [name.replace("annotations/trimaps/", "annotations/") for name in names]
    images, labels = _sort(names)
    if pet:
        labels = {
            k: name.replace("annotations/", "annotations/trimaps/") for k, name in labels.items()
        }
    listed = _listed_splits(files, names)
    pairs = [
        _Pair(name, labels[key], listed.get(key[-1], _split(key)))
        for key, name in images.items()
        if key in labels
    ]
    return pairs, len(images) - len(pairs)


def _sort(names: Sequence[str]) -> tuple[dict[tuple[str, ...], str], dict[tuple[str, ...], str]]:
    """Pictures and labels, each by the folders and the stem that two of a pair have in common."""
    images, labels, plain = {}, {}, {}
    for name in filter(is_image, names):
        *folders, file = name.split("/")
        lower, stem = [folder.lower() for folder in folders], file.rpartition(".")[0]
        marks = [i for i, folder in enumerate(lower) if folder in _LABEL_FOLDERS]
        annotated = [i for i, folder in enumerate(folders) if _is_annotated(folder)]
        pictures = [i for i, folder in enumerate(lower) if folder in _IMAGE_FOLDERS]
        if marks:
            labels[(*folders[: marks[0]], *folders[marks[0] + 1 :], stem)] = name
        elif annotated:
            i = annotated[0]
            key = (*folders[:i], folders[i][: -len(_ANNOTATED)], *folders[i + 1 :], stem)
            labels[key] = name
        elif pictures:
            images[(*folders[: pictures[0]], *folders[pictures[0] + 1 :], stem)] = name
        else:
            plain[(*folders, stem)] = name
    images |= {key: name for key, name in plain.items() if key in labels}
    return images, labels


def _split(key: tuple[str, ...]) -> str:
    found = [SPLITS[folder.lower()] for folder in key[:-1] if folder.lower() in SPLITS]
    return found[0] if found else ""


def _listed_splits(files: Files, names: Sequence[str]) -> dict[str, str]:
    """Splits that a data set keeps in lists of stems: those of VOC and of Oxford-IIIT Pet."""
    lists = {
        "ImageSets/Segmentation/train.txt": "train",
        "ImageSets/Segmentation/val.txt": "val",
        "annotations/trainval.txt": "train",
        "annotations/test.txt": "test",
    }
    found: dict[str, str] = {}
    for name in names:
        for end, split in lists.items():
            if name == end or name.endswith(f"/{end}"):
                lines = (line.split() for line in _text(files, name))
                found |= {words[0]: split for words in lines if words and words[0] != "#"}
    return found


def _read_indices(files: Files, name: str) -> Int64[np.ndarray, "height width"]:
    """Stored values of a label picture: of a palette its indices."""
    where = files.where(name)
    with files.open(name) as file, sound(where), Image.open(file) as image:
        if image.format in ("JPEG", "MPO"):
            raise ImageReadError(
                "labels in a JPEG, which changes values", file=where, remedy="store them as PNG"
            )
        if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
            raise ImageReadError(
                f"labels of mode {image.mode}; one channel of class numbers is needed",
                file=where,
                remedy="store the number of the class of each pixel, not a colour",
            )
        return np.asarray(image).astype(np.int64)


def image_listing(files: Files) -> Listing:
    """The images among some files, with labels where the layout has them."""
    names = files.names()
    for name in names:
        if name.endswith("annotations/list.txt"):
            return _oxford_pet(files, names, name)
    parts = [name.split("/") for name in names]
    objects = [name for name, p in zip(names, parts, strict=True) if "101_ObjectCategories" in p]
    if objects:  # the clutter class is no object
        return tree(files, [name for name in objects if "/BACKGROUND_Google/" not in f"/{name}"])
    images, labels = _sort(names)
    paired = sum(key in labels for key in images)
    # Pictures beside label pictures have no class, and labels are no pictures. A data set among
    # others does not decide what these are.
    if paired and 2 * paired >= sum(map(is_image, names)) - len(labels):
        pictures = sorted(images.values())
        splits = {name: _split(key) for key, name in images.items()}
        of = [splits[name] for name in pictures]
        return Listing(files, pictures, of, None, (), ignored_suffixes(names))
    return tree(files, names)


def _oxford_pet(files: Files, names: Sequence[str], listed: str) -> Listing:
    """Oxford-IIIT Pet: breeds from `annotations/list.txt` (image, breed, species, number)."""
    root = listed.removesuffix("annotations/list.txt")
    there = set(names)
    splits = _listed_splits(files, names)
    found: list[str] = []
    labels: list[int] = []
    breeds: dict[int, str] = {}
    for number, line in enumerate(_text(files, listed), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        where = f"{files.where(listed)}:{number}"
        if len(words) < 2 or not words[1].isdecimal() or int(words[1]) < 1:
            raise DataError("not an image and the number of its breed", where=where)
        name = f"{root}images/{words[0]}.jpg"
        if name not in there:
            raise ImageReadError(f"{name} is not there", file=where, remedy="fetch it again")
        found.append(name)
        labels.append(int(words[1]) - 1)
        breeds.setdefault(labels[-1], words[0].rpartition("_")[0])
    classes = tuple(breeds.get(i, str(i + 1)) for i in range(max(breeds, default=-1) + 1))
    of = [splits.get(name.rpartition("/")[2].removesuffix(".jpg"), "") for name in found]
    return Listing(files, found, of, np.array(labels, np.int64), classes)

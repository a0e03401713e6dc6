"""Read one image: any file that people bring, to pixels or to an error that names it.

What differs from "open, convert to RGB", which is all that the official programs do:

- EXIF orientation is applied;
- 16-bit grey values are scaled by 1/257, where Pillow clips all above 255 to white;
- of several frames the first is taken, and noted;
- floating-point images need a range or a stretch, and must be finite;
- .npy and .npz arrays of any number of channels are images, and nothing in them is unpickled.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Literal, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64, UInt8
from PIL import Image, UnidentifiedImageError

from jepa_core.config import check
from jepa_core.errors import ConfigError, DataError
from jepa_core.files import HEAD, PULL, lfs_pointer
from jepa_vision.data import arrays

Pixels = UInt8[np.ndarray, "height width channels"] | Float32[np.ndarray, "height width channels"]

FRAMES = "have several frames, of which the first is taken"
_ORIENTATION = 274  # the EXIF tag
_PERCENTILES = (1.0, 99.0)
_REPLACE = "replace it, or leave it out (on_error: skip)"


class ImageReadError(DataError):
    """A file that is no readable image.

    Parameters
    ----------
    reason
        What is wrong.
    file
        Path of the file, or of a member of an archive.
    remedy
        What to do about it.
    """

    def __init__(self, reason: str, *, file: object = "", remedy: str = _REPLACE) -> None:
        self.reason = reason
        self.file = os.fspath(file) if isinstance(file, os.PathLike) else str(file)
        super().__init__(reason, where=self.file, remedy=remedy)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.reason, self.file, self.remedy))


def _rebuild(cls: type[ImageReadError], reason: str, file: str, remedy: str) -> ImageReadError:
    return cls(reason, file=file, remedy=remedy)


@dataclass(frozen=True)
class ReadOptions:
    """How files become pixels."""

    compat: Literal["none", "official"] = "none"
    """official opens and converts to RGB, as the programs do, and nothing else."""
    stretch: Literal["none", "minmax", "percentile"] = "none"
    """Map values of more than 8 bits to the whole range: from the image's least and largest value,
    or from its 1st and 99th percentile."""
    value_range: tuple[float, float] | None = None
    """Map values of more than 8 bits from this range, and cut what lies outside."""

    def __post_init__(self) -> None:
        check(self)
        if self.value_range is not None:
            low, high = self.value_range
            if not (np.isfinite([low, high]).all() and low < high):
                raise ConfigError(
                    f"value_range is {[low, high]}", remedy="allowed: the smaller value first"
                )
            if self.stretch != "none":
                raise ConfigError(
                    "stretch and value_range are both given", remedy="give one of the two"
                )


class Reading(NamedTuple):
    """One image and what there is to say of it.

    Attributes
    ----------
    pixels
        uint8 RGB of a picture; of an array its own channels, uint8 or float32.
    kind
        Format and mode of the file, such as "JPEG RGB".
    notes
        Phrases that go on from "3 files ...".
    """

    pixels: Pixels
    kind: str
    notes: tuple[str, ...]


class Header(NamedTuple):
    """What a file says of itself before its pixels are decoded; height and width as read."""

    height: int
    width: int
    channels: int
    kind: str
    notes: tuple[str, ...]


class Images(Protocol):
    """A collection of images, read one by one.

    Attributes
    ----------
    sizes
        (n, 2) height and width in pixels.
    channels
        Of every image.
    names
        What each image is called: a path, for files.
    labels
        (n,) index into `classes`; None where the images have no labels.
    classes
        Names of the classes; empty without labels.
    """

    @property
    def sizes(self) -> Int32[np.ndarray, "images 2"]: ...
    @property
    def channels(self) -> int: ...
    @property
    def names(self) -> Sequence[str]: ...
    @property
    def labels(self) -> Int64[np.ndarray, " images"] | None: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def read(self, i: int, at_least: int | None = None) -> Pixels:
        """Image `i`; where a least short side is given it may be smaller than its size says."""
        ...


class ArrayImages:
    """Images of one size in an array.

    Parameters
    ----------
    array
        (n, height, width, channels) uint8, or float32 with finite values.
    labels
        (n,) class of each image.
    classes
        Names of the classes; by default their numbers.
    """

    def __init__(
        self,
        array: Pixels,
        labels: Int64[np.ndarray, " images"] | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        if array.ndim != 4 or array.dtype not in (np.uint8, np.float32):
            raise DataError(
                f"an array of {array.dtype} with the shape {array.shape}",
                remedy="give uint8 or float32 [images, height, width, channels]",
            )
        if labels is not None and len(labels) != len(array):
            raise DataError(f"{len(labels)} labels for {len(array)} images")
        self.array, self.labels = array, labels
        self.channels = int(array.shape[3])
        self.sizes: Int32[np.ndarray, "images 2"] = np.tile(
            np.array(array.shape[1:3], np.int32), (len(array), 1)
        )
        self.names = [str(i) for i in range(len(array))]
        if labels is not None and not classes:
            classes = [str(i) for i in range(int(labels.max(initial=-1)) + 1)]
        self.classes = tuple(classes)

    def __len__(self) -> int:
        return len(self.array)

    def read(self, i: int, at_least: int | None = None) -> Pixels:
        return self.array[i]


def load_image(
    path: str | os.PathLike[str],
    *,
    compat: Literal["none", "official"] = "none",
    stretch: Literal["none", "minmax", "percentile"] = "none",
    value_range: tuple[float, float] | None = None,
    at_least: int | None = None,
) -> Pixels:
    """Read an image file.

    Parameters
    ----------
    path
        Anything that Pillow opens, or .npy or .npz: [height, width] or [height, width, channels].
    compat, stretch, value_range
        As in `ReadOptions`.
    at_least
        Decode a JPEG at an half, a quarter or an eighth of its size where its short side stays at
        least this long (pixels): several times as fast.

    Returns
    -------
    uint8 RGB [height, width, 3]; of an array its own channels, uint8 as they are, uint16 as
    float32 in 0..1, floating point as float32.

    Raises
    ------
    ImageReadError
        The file cannot be read, with the reason.
    """
    options = ReadOptions(compat, stretch, value_range)
    with open_file(path) as file:
        return np.array(read_image(file, path, options, at_least).pixels)


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading, or say why it cannot be."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise ImageReadError(f"cannot be opened ({error.strerror or error})", file=path) from None


def read_image(
    file: BinaryIO,
    where: object,
    options: ReadOptions = ReadOptions(),
    at_least: int | None = None,
) -> Reading:
    """Read an open file; `where` is what it is called. As `load_image`; pixels may be read-only."""
    official = options.compat == "official"
    with sound(where):
        if form := _array_form(file, where):
            if official:
                raise ImageReadError("the official program reads no arrays", file=where)
            return _read_array(file, form, where, options)
        with Image.open(file) as image:
            kind, several = f"{image.format} {image.mode}", _several(image)
            if official:
                return Reading(_rgb(image), kind, (FRAMES,) if several else ())
            if at_least is not None and image.format in ("JPEG", "MPO"):
                image.draft(None, (at_least, at_least))
            image.load()
            orientation = _orientation(image)
            note = ""
            if image.mode.startswith(("I", "F")):
                grey, note = _to_8_bit(np.asarray(image), where, options)
                pixels = np.repeat(grey[:, :, None], 3, 2)
            else:
                pixels = _rgb(image)
    notes = tuple(text for text in (FRAMES if several else "", note) if text)
    return Reading(_upright(pixels, orientation), kind, notes)


def read_header(file: BinaryIO, where: object) -> Header:
    """Size, channels and kind of an open file, without decoding its pixels."""
    with sound(where):
        if form := _array_form(file, where):
            height, width, channels, dtype = arrays.read_shape(file, form)
            return Header(height, width, channels, f"{form} {dtype}", ())
        with Image.open(file) as image:
            width, height = image.size
            # Pillow turns a TIFF itself, and announces the size that comes of it.
            if image.format != "TIFF" and _orientation(image) >= 5:
                width, height = height, width
            kind, notes = f"{image.format} {image.mode}", (FRAMES,) if _several(image) else ()
            return Header(height, width, 3, kind, notes)


@contextmanager
def sound(where: object) -> Iterator[None]:
    """Turn what a damaged file raises into an `ImageReadError`."""
    try:
        yield
    except ImageReadError:
        raise
    except arrays.ArrayError as error:
        raise ImageReadError(str(error), file=where) from None
    except Image.DecompressionBombError as error:
        reason = f"too large ({str(error).split(',')[0]})"
        remedy = "make it smaller; if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS"
        raise ImageReadError(reason, file=where, remedy=remedy) from None
    except UnidentifiedImageError:
        raise ImageReadError("no image of a known format", file=where) from None
    except Exception as error:  # a damaged file makes decoders raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageReadError(f"damaged ({reason})", file=where) from None


def _array_form(file: BinaryIO, where: object) -> Literal["", "NPY", "NPZ"]:
    head = file.read(HEAD)
    file.seek(0)
    if not head:
        raise ImageReadError("the file is empty", file=where)
    if what := lfs_pointer(head):
        raise ImageReadError(what, file=where, remedy=PULL)
    return "NPY" if head.startswith(b"\x93NUMPY") else "NPZ" if head.startswith(b"PK\3\4") else ""


def _several(image: Image.Image) -> bool:
    # The second picture in a phone's JPEG (MPO) is a preview or a depth map, not a frame.
    if image.format in ("JPEG", "MPO"):
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged second frame is none of our business
        return False


def _orientation(image: Image.Image) -> int:
    try:
        # Not the method of PNG files, which decodes them to look for EXIF behind the pixels.
        value = Image.Image.getexif(image).get(_ORIENTATION)
    except Exception:  # damaged EXIF says nothing
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Pixels as the EXIF orientation asks for: 5 and 7 transpose, the others turn or mirror."""
    if orientation == 1:
        return pixels
    if orientation in (5, 7):
        pixels = pixels.swapaxes(0, 1)
    turns = {3: 2, 6: -1, 7: 2, 8: 1}.get(orientation, 0)
    pixels = np.rot90(pixels, turns)
    if orientation in (2, 4):
        pixels = np.flip(pixels, 1 if orientation == 2 else 0)
    return np.ascontiguousarray(pixels)


def _rgb(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    if image.mode == "RGB":
        return np.asarray(image)
    image.load()
    # Alpha is dropped; Pillow would warn of a palette's.
    if image.mode == "P":
        image.info.pop("transparency", None)
    return np.asarray(image.convert("RGB"))


def _to_8_bit(
    values: np.ndarray, where: object, options: ReadOptions
) -> tuple[UInt8[np.ndarray, "height width"], str]:
    """Grey values of more than 8 bits as uint8, and how."""
    floating = values.dtype.kind == "f"
    if floating:
        arrays.refuse_unfinite(values)
    if limits := _limits(values, options):
        scaled, note = _map(values, limits), _note(options)
        return np.rint(scaled * 255).astype(np.uint8), note
    remedy = "give a value_range, or a stretch"
    if floating:
        raise ImageReadError("floating-point values", file=where, remedy=remedy)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        reason = f"values from {low} to {high}, beyond 16 bits"
        raise ImageReadError(reason, file=where, remedy=remedy)
    scaled = values.astype(np.float32) / np.float32(257)
    return np.rint(scaled).astype(np.uint8), "have 16 bits, scaled by 1/257"


def _limits(values: np.ndarray, options: ReadOptions) -> tuple[float, float] | None:
    if options.value_range is not None:
        return options.value_range
    if options.stretch == "minmax":
        return float(values.min()), float(values.max())
    if options.stretch == "percentile":
        low, high = np.percentile(values, _PERCENTILES)
        return float(low), float(high)
    return None


def _map(values: np.ndarray, limits: tuple[float, float]) -> Float64[np.ndarray, "..."]:
    low, high = limits
    if high <= low:
        return np.zeros(values.shape)
    return np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)


def _note(options: ReadOptions) -> str:
    if options.value_range is not None:
        low, high = options.value_range
        return f"have more than 8 bits, mapped from {low:g}..{high:g}"
    of = "least and largest value" if options.stretch == "minmax" else "1st and 99th percentile"
    return f"have more than 8 bits, stretched from each one's {of}"


def _read_array(
    file: BinaryIO, form: Literal["NPY", "NPZ"], where: object, options: ReadOptions
) -> Reading:
    values = arrays.read_array(file, form)
    kind = f"{form} {values.dtype}"
    if values.dtype == np.uint8:
        return Reading(values, kind, ())
    if values.dtype.kind == "f":
        arrays.refuse_unfinite(values)
    if options.value_range is None and options.stretch == "none":
        scale = np.float32(65535 if values.dtype.kind == "u" else 1)
        return Reading(values.astype(np.float32) / scale, kind, ())
    mapped = np.empty(values.shape, np.float32)
    for channel in range(values.shape[2]):  # bands have ranges of their own
        band = values[:, :, channel]
        limits = _limits(band, options)
        assert limits is not None, "a range or a stretch is given"
        mapped[:, :, channel] = _map(band, limits)
    return Reading(mapped, kind, (_note(options),))

"""From images to what the encoder takes: random crops, the evaluation's crop, normalisation.

Draws are a function of (seed, image, visit), never of a batch. The official draws, from torch's
stream, are there for comparison.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Float64, Int, Int32, Int64, UInt8
from PIL import Image

from jepa_core import rng
from jepa_core.errors import ConfigError, DataError
from jepa_core.progress import Progress
from jepa_vision.data.images import Images, Pixels

if TYPE_CHECKING:
    import torch

SCALE = (0.3, 1.0)
RATIO = (3 / 4, 4 / 3)
COVER = 8 / 7  # 256 pixels for a crop of 224, as is usual
_TRIES = 10


def crop_boxes(
    sizes: Int[np.ndarray, "batch 2"],
    keys: Int[np.ndarray, " batch"],
    counters: int | Int[np.ndarray, " batch"],
    *,
    seed: int,
    scale: tuple[float, float] = SCALE,
    ratio: tuple[float, float] = RATIO,
) -> Int64[np.ndarray, "batch 4"]:
    """Random crops of random area and aspect, for a whole batch.

    The area is uniform in `scale` of the image, the logarithm of width over height uniform in that
    of `ratio`. The first of ten tries that fits is placed uniformly; if none fits, the largest
    crop in the middle whose aspect is in `ratio`.

    Parameters
    ----------
    sizes
        Height and width of each image (pixels).
    keys
        Which image each is, in all the data.
    counters
        Which visit of it this is.

    Returns
    -------
    Top, left, height and width of each crop (pixels).
    """
    # Two words a number: the place, then area and aspect of every try.
    words = rng.words(seed, "crop", keys, counters, 4 * (1 + _TRIES))
    uniform = rng.uniform64(words)
    height, width = np.asarray(sizes, np.int64).T[:, :, None]
    area = height * width * (scale[0] + uniform[:, 2::2] * (scale[1] - scale[0]))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = np.exp(low + uniform[:, 3::2] * (high - low))
    w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    rows = np.arange(len(keys))
    first = fits.argmax(1)
    crop = np.stack((h[rows, first], w[rows, first]), 1).astype(np.int64)
    none = ~fits[rows, first]
    crop[none] = _largest(np.asarray(sizes)[none], ratio)
    room = np.asarray(sizes, np.int64) - crop
    corner = np.floor(uniform[:, :2] * (room + 1)).astype(np.int64)
    corner[none] = room[none] // 2
    return np.concatenate((corner, crop), 1)


def _largest(
    sizes: Int[np.ndarray, "images 2"], ratio: tuple[float, float]
) -> Int64[np.ndarray, "images 2"]:
    """Height and width of the largest crop of each image whose aspect is in `ratio`."""
    height, width = np.asarray(sizes, np.int64).T
    h = np.where(width < height * ratio[0], np.rint(width / ratio[0]), height)
    w = np.where(width > height * ratio[1], np.rint(height * ratio[1]), width)
    return np.maximum(np.stack((h, w), 1), 1).astype(np.int64)


def official_boxes(
    size: tuple[int, int],
    n: int,
    *,
    scale: tuple[float, float] = SCALE,
    ratio: tuple[float, float] = RATIO,
    generator: torch.Generator | None = None,
) -> Int64[np.ndarray, "n 4"]:
    """`n` crops of an image of that height and width, drawn from torch's stream.

    Equal, draw for draw, to what the official programs crop; as `crop_boxes`, one try at a time.
    """
    import torch

    height, width = size
    log_ratio = torch.log(torch.tensor(ratio)).tolist()

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.empty(1).uniform_(low, high, generator=generator)

    def place(room: int) -> int:
        return int(torch.randint(0, room + 1, (1,), generator=generator))

    def box() -> list[int]:
        for _ in range(_TRIES):
            area = height * width * uniform(*scale).item()
            aspect = torch.exp(uniform(*log_ratio)).item()
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return [place(height - h), place(width - w), h, w]
        h, w = _largest(np.array([size]), ratio)[0].tolist()
        return [(height - h) // 2, (width - w) // 2, h, w]

    return np.array([box() for _ in range(n)], np.int64).reshape(n, 4)


def resized_crop(
    image: Pixels, box: Sequence[int] | Int64[np.ndarray, "4"], size: tuple[int, int]
) -> Pixels:
    """Cut out a box (top, left, height, width) and resize it, with Pillow's bilinear filter.

    The filter widens where it shrinks, so nothing is aliased. Three channels of uint8 go through
    it together, others one by one.
    """
    top, left, height, width = (int(value) for value in box)
    return _resize(image[top : top + height, left : left + width], size)


def _resize(image: Pixels, size: tuple[int, int]) -> Pixels:
    if image.shape[:2] == tuple(size):
        return np.array(image)
    wanted = size[::-1]
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize(wanted, Image.Resampling.BILINEAR))
    channels = [
        Image.fromarray(np.ascontiguousarray(image[:, :, c])).resize(
            wanted, Image.Resampling.BILINEAR
        )
        for c in range(image.shape[2])
    ]
    return np.stack([np.asarray(channel) for channel in channels], 2)


def _resize_fast(image: Pixels, size: tuple[int, int]) -> Pixels:
    """The same filter by torch: for uint8 several times as fast, and at most 1 of 255 away."""
    from torch import from_numpy
    from torch.nn.functional import interpolate

    if image.shape[:2] == tuple(size):
        return np.array(image)
    # A copy of the crop: torch takes no read-only memory, and is faster on one piece.
    x = from_numpy(np.array(image)).permute(2, 0, 1)[None]
    out = interpolate(x, size=size, mode="bilinear", antialias=True)
    return out[0].permute(1, 2, 0).numpy()


def crops(
    images: Images,
    ids: Int64[np.ndarray, " batch"],
    boxes: Int64[np.ndarray, "batch 4"],
    size: tuple[int, int],
    *,
    exact: bool = False,
) -> UInt8[np.ndarray, "batch h w channels"] | Float32[np.ndarray, "batch h w channels"]:
    """Boxes of some images, resized to one size.

    Parameters
    ----------
    images
        The collection.
    ids
        Which of them.
    boxes
        Top, left, height and width of each, in pixels of `images.sizes`.
    size
        Height and width of the result.
    exact
        Decode whole images and resize with Pillow, bit for bit as the official programs. Else
        JPEG files are decoded at a fraction of their size where the box is shrunk by two or more,
        and resized by torch: several times as fast. What differs is how it is smoothed, and a
        shift of up to half a pixel of the result.
    """
    resize = _resize if exact else _resize_fast
    ids = np.asarray(ids)
    out: Pixels | None = None
    rows = zip(ids.tolist(), images.sizes[ids].tolist(), boxes.tolist(), strict=True)
    for slot, (i, shape, box) in enumerate(rows):
        shrink = min(box[2] / size[0], box[3] / size[1])
        at_least = None if exact or shrink < 2 else math.ceil(min(shape) / shrink)
        image = images.read(i, at_least)
        if image.shape[:2] != tuple(shape):
            box = _scaled(box, shape, image.shape)
        top, left, height, width = box
        piece = resize(image[top : top + height, left : left + width], size)
        if out is None:
            out = np.empty((len(ids), *piece.shape), piece.dtype)
        out[slot] = piece
    if out is None:
        return np.empty((0, *size, images.channels), np.uint8)
    return out


def _scaled(box: Sequence[int], old: Sequence[int], new: Sequence[int]) -> list[int]:
    """A box in the pixels of an image that was decoded at another size."""
    corner, extent = [], []
    for axis in (0, 1):
        scale = new[axis] / old[axis]
        begin = min(round(box[axis] * scale), new[axis] - 1)
        corner.append(begin)
        extent.append(max(round((box[axis] + box[2 + axis]) * scale) - begin, 1))
    return [*corner, *extent]


def centre(image: Pixels, size: tuple[int, int], *, cover: float = COVER) -> Pixels:
    """The evaluation's crop: resize to cover `cover` times the size, cut out the middle.

    With the default a crop of 224 is cut from an image whose short side is 256.
    """
    return _middle(_resize(image, _covering(image.shape, size, cover)), size)


def centres(
    images: Images,
    ids: Int64[np.ndarray, " batch"],
    size: tuple[int, int],
    *,
    cover: float = COVER,
    exact: bool = True,
) -> UInt8[np.ndarray, "batch h w channels"] | Float32[np.ndarray, "batch h w channels"]:
    """`centre` of some images; `exact` as in `crops`."""
    resize = _resize if exact else _resize_fast
    out: Pixels | None = None
    for slot, i in enumerate(np.asarray(ids).tolist()):
        if exact:
            image = images.read(i)
            resized = _covering(image.shape, size, cover)
        else:
            resized = _covering(images.sizes[i], size, cover)
            image = images.read(i, min(resized))
        piece = _middle(resize(image, resized), size)
        if out is None:
            out = np.empty((len(ids), *piece.shape), piece.dtype)
        out[slot] = piece
    if out is None:
        return np.empty((0, *size, images.channels), np.uint8)
    return out


def _covering(
    shape: Sequence[int] | Int32[np.ndarray, "2"], size: tuple[int, int], cover: float
) -> tuple[int, int]:
    """Height and width of an image that just covers `cover` times a size."""
    height, width = int(shape[0]), int(shape[1])
    rows, columns = round(size[0] * cover), round(size[1] * cover)
    if rows * width >= columns * height:
        return rows, rows * width // height
    return columns * height // width, columns


def _middle(image: Pixels, size: tuple[int, int]) -> Pixels:
    top, left = (round((image.shape[axis] - size[axis]) / 2) for axis in (0, 1))
    return image[top : top + size[0], left : left + size[1]]


def normalise(
    x: UInt8[np.ndarray, "batch h w channels"] | Float32[np.ndarray, "batch h w channels"],
    mean: Sequence[float] | Float64[np.ndarray, " channels"],
    std: Sequence[float] | Float64[np.ndarray, " channels"],
) -> Float32[np.ndarray, "batch channels h w"]:
    """Channels first, less their mean, over their standard deviation.

    `mean` and `std` are in 0..1 of uint8, and in the images' own unit of float32.

    Raises
    ------
    ConfigError
        Not as many values as channels.
    """
    batch, height, width, channels = x.shape
    if len(mean) != channels or len(std) != channels:
        raise ConfigError(
            f"mean and std of {len(mean)} channels for images of {channels}",
            remedy="measure them: jepa vision data check",
        )
    unit = 255.0 if x.dtype == np.uint8 else 1.0
    out = np.empty((batch, channels, height, width), np.float32)
    for c in range(channels):
        # Subtracted first, so that what is rounded is small.
        np.subtract(x[..., c], np.float32(unit * mean[c]), out=out[:, c])
        out[:, c] *= np.float32(1 / (unit * std[c]))
    return out


def measure_statistics(
    images: Images, ids: Int64[np.ndarray, " images"] | None = None
) -> tuple[Float64[np.ndarray, " channels"], Float64[np.ndarray, " channels"]]:
    """Mean and standard deviation of each channel over all pixels of some images, or all of them.

    In 0..1 for uint8, in the images' own unit for float32. A channel that does not vary has the
    standard deviation 1.
    """
    rows = range(len(images)) if ids is None else np.asarray(ids).tolist()
    sums = Sums(images.channels)
    with Progress("measuring", len(rows)) as bar:
        for done, i in enumerate(rows, 1):
            sums.add(images.read(i))
            bar.update(done)
    if not sums.pixels:
        raise DataError("no images to measure")
    return sums.statistics()


class Sums:
    """Running sums of the values and of their squares, per channel, in 0..1 for uint8."""

    def __init__(self, channels: int) -> None:
        self.pixels = 0
        self.total, self.square = np.zeros(channels), np.zeros(channels)

    def add(self, pixels: Pixels) -> None:
        flat = pixels.reshape(-1, pixels.shape[2])
        self.pixels += len(flat)
        if flat.dtype == np.uint8:
            self.total += flat.sum(0, dtype=np.uint64) / 255
            self.square += np.square(flat, dtype=np.uint32).sum(0, dtype=np.uint64) / 255**2
        else:
            self.total += flat.sum(0, dtype=np.float64)
            self.square += np.square(flat, dtype=np.float64).sum(0)

    def statistics(
        self,
    ) -> tuple[Float64[np.ndarray, " channels"], Float64[np.ndarray, " channels"]]:
        n = max(self.pixels, 1)
        mean = self.total / n
        std = np.sqrt(np.maximum(self.square / n - mean**2, 0))
        # What rounding leaves of the variance of equal values is no variation.
        return mean, np.where(std > 1e-7 * np.abs(mean), std, 1.0)


def warn_tiny(sizes: Int32[np.ndarray, "images 2"], crop: tuple[int, int]) -> int:
    """Count the images whose short side is below a quarter of the crop's; warn of them once."""
    n = int((sizes.min(1, initial=np.iinfo(np.int32).max) < min(crop) / 4).sum())
    if n:
        warnings.warn(
            f"{n} of {len(sizes)} images have a short side of less than a quarter of the crop "
            f"({crop[0]}x{crop[1]}) and are enlarged more than fourfold",
            UserWarning,
            stacklevel=2,
        )
    return n

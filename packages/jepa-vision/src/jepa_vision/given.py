"""Images as callers hold them: arrays, paths and Pillow images, as one collection."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, Shaped
from PIL import Image, ImageOps

from jepa_core.errors import DataError
from jepa_vision.data.images import ArrayImages, Images, Pixels, load_image

One = str | os.PathLike[str] | Image.Image | Pixels
Given = Images | Shaped[np.ndarray, "images height width channels"] | Sequence[One]


def as_images(given: Given) -> Images:
    """Images that are given in any way, as a collection.

    Parameters
    ----------
    given
        uint8 or float32 [images, height, width, channels]; or a sequence of paths, Pillow images
        and arrays [height, width, channels], of any sizes; or a collection already.

    Raises
    ------
    DataError
        They are given in another way.
    """
    if isinstance(given, str | os.PathLike | Image.Image):
        raise DataError("one image is given", remedy="give a list of images, if only of one")
    if isinstance(given, np.ndarray):
        return ArrayImages(given)
    if isinstance(given, Sequence):
        return SomeImages(given)
    return given


class SomeImages:
    """Images of any sizes that somebody holds, or has the paths of."""

    labels = None
    classes: tuple[str, ...] = ()

    def __init__(self, items: Sequence[One]) -> None:
        self.items = items
        self.names = [str(i) for i in range(len(items))]

    def __len__(self) -> int:
        return len(self.items)

    @functools.cached_property
    def sizes(self) -> Int32[np.ndarray, "images 2"]:
        return np.array([self.read(i).shape[:2] for i in range(len(self))], np.int32).reshape(-1, 2)

    @functools.cached_property
    def channels(self) -> int:
        return int(self.read(0).shape[2])

    def read(self, i: int, at_least: int | None = None) -> Pixels:
        item = self.items[i]
        if isinstance(item, str | os.PathLike):
            return load_image(item, at_least=at_least)
        if isinstance(item, Image.Image):
            return _from_pillow(item)
        pixels = np.asarray(item)
        if pixels.ndim != 3 or pixels.dtype not in (np.uint8, np.float32):
            raise DataError(
                f"image {i} is an array of {pixels.dtype} with the shape {list(pixels.shape)}",
                remedy="give uint8 or float32 [height, width, channels]",
            )
        return pixels


def _from_pillow(image: Image.Image) -> Pixels:
    if image.mode.startswith(("I", "F")):
        raise DataError(
            f"a Pillow image of mode {image.mode} does not say its range",
            remedy="give the path of the file, or an array",
        )
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))

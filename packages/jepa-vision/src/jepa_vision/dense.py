"""What patch tokens are worth: segmentation by a linear probe of each patch, and its scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int, Int64, Shaped

from jepa_core import rng
from jepa_core.errors import DataError
from jepa_core.evaluation.linear import LinearProbe
from jepa_core.evaluation.metrics import Counts, Parts, Statistic
from jepa_vision.evaluation import held_out
from jepa_vision.logistic import choose_penalty, fit_logistic

IGNORE = 255
NO_LABEL = -1

# Images of one size to their patch tokens.
Encode = Callable[
    [Shaped[np.ndarray, "batch height width channels"]], Float[np.ndarray, "batch patches dim"]
]
Upsampling = Literal["bilinear", "nearest"]


# ---- scores


class Confusion:
    """Pixels by true and predicted class, summed over images as they come.

    Parameters
    ----------
    classes
        Number of classes.
    ignore
        Label of pixels that count for nobody.

    Attributes
    ----------
    matrix
        int64 [true, predicted].
    """

    def __init__(self, classes: int, ignore: int = IGNORE) -> None:
        self.classes, self.ignore = classes, ignore
        self.matrix = np.zeros((classes, classes), np.int64)

    def add(self, label: Int[np.ndarray, "..."], predicted: Int[np.ndarray, "..."]) -> None:
        """Count some pixels.

        Raises
        ------
        DataError
            Differing shapes, or a class outside of [0, classes) at a labelled pixel.
        """
        if label.shape != predicted.shape:
            raise DataError(f"labels are {label.shape} and predictions {predicted.shape}")
        kept = label != self.ignore
        t, p = label[kept].astype(np.int64), predicted[kept].astype(np.int64)
        for name, values in (("labels", t), ("predictions", p)):
            if values.size and not 0 <= values.min() <= values.max() < self.classes:
                raise DataError(
                    f"{name} go from {values.min()} to {values.max()}, not 0..{self.classes - 1}"
                )
        counts = np.bincount(t * self.classes + p, minlength=self.classes**2)
        self.matrix += counts.reshape(self.classes, self.classes)

    @property
    def scores(self) -> Segmentation:
        """What the pixels so far come to."""
        return segmentation(self.matrix)


@dataclass(frozen=True)
class Segmentation:
    """Scores of a segmentation over all pixels of all images.

    Parameters
    ----------
    iou
        Intersection over union of each class; NaN where a class is neither labelled nor predicted,
        0 where it is predicted only.
    mean_iou
        Mean of those that are not NaN.
    pixel_accuracy
        Share of labelled pixels with the right class.
    class_accuracy
        Mean over labelled classes of that share.
    """

    iou: Float[np.ndarray, " classes"]
    mean_iou: float
    pixel_accuracy: float
    class_accuracy: float


def segmentation(confusion: Int[np.ndarray, "classes classes"]) -> Segmentation:
    """Scores of a confusion matrix [true, predicted]."""
    hits, truth = confusion.diagonal(), confusion.sum(1)
    iou = _ratio(hits, truth + confusion.sum(0) - hits)
    recall = _ratio(hits, truth)
    accuracy = hits.sum() / truth.sum() if truth.sum() else math.nan
    return Segmentation(iou, _mean(iou), float(accuracy), _mean(recall))


def mean_iou(
    predicted: Int[np.ndarray, "..."],
    label: Int[np.ndarray, "..."],
    classes: int,
    ignore: int = IGNORE,
) -> Segmentation:
    """Scores of predictions that are all there; `Confusion` takes them image by image."""
    confusion = Confusion(classes, ignore)
    confusion.add(np.asarray(label), np.asarray(predicted))
    return confusion.scores


def mean_iou_statistic(confusions: Int[np.ndarray, "images classes classes"]) -> Statistic:
    """Mean IoU as a function of how often each image was drawn, for the bootstrap."""
    hits = np.diagonal(confusions, axis1=1, axis2=2).astype(np.float64)
    union = confusions.sum(1) + confusions.sum(2) - hits

    def statistic(counts: Counts) -> Parts:
        iou = _ratio(counts @ hits, counts @ union)
        defined = ~np.isnan(iou)
        return _ratio(np.where(defined, iou, 0).sum(1), defined.sum(1))[:, None]

    return statistic


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    found = np.full(np.broadcast(a, b).shape, np.nan)
    np.divide(a, b, out=found, where=b > 0)
    return found


def _mean(values: np.ndarray) -> float:
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else math.nan


# ---- labels and tokens of patches


def patch_labels(
    label: Int[np.ndarray, "*batch height width"], patch: int, *, ignore: int = IGNORE
) -> Int64[np.ndarray, "*batch rows cols"]:
    """The commonest class of each patch's labelled pixels, the lower of equally common ones.

    `NO_LABEL` where no pixel is labelled.

    Raises
    ------
    DataError
        Sides that are no multiples of the patch.
    """
    *batch, height, width = label.shape
    if height % patch or width % patch:
        raise DataError(f"labels of {height} x {width} pixels are no whole patches of {patch}")
    rows, cols = height // patch, width // patch
    cut = label.reshape(-1, rows, patch, cols, patch).swapaxes(2, 3).reshape(-1, patch * patch)
    kept = cut != ignore
    classes = int(cut[kept].max(initial=0)) + 1
    number = np.arange(len(cut))[:, None] * classes + cut.astype(np.int64)
    counts = np.bincount(number[kept], minlength=len(cut) * classes).reshape(len(cut), classes)
    found = np.where(kept.any(1), counts.argmax(1), NO_LABEL)
    return found.reshape(*batch, rows, cols)


def raw_patches(patch: int) -> Encode:
    """An "encoder" whose tokens are the patches' own pixels, 0..1: what an encoder has to beat."""

    def encode(images: np.ndarray) -> np.ndarray:
        batch, height, width, channels = images.shape
        rows, cols = height // patch, width // patch
        cut = images.reshape(batch, rows, patch, cols, patch, channels).swapaxes(2, 3)
        flat = cut.reshape(batch, rows * cols, -1).astype(np.float32)
        return flat / 255 if images.dtype == np.uint8 else flat

    return encode


def token_map(
    encode: Encode,
    image: Shaped[np.ndarray, "height width channels"],
    patch: int,
    *,
    tile: tuple[int, int] | None = None,
    overlap: float = 0.5,
    batch: int = 16,
) -> Float32[np.ndarray, "rows cols dim"]:
    """Tokens of one image, whose sides are multiples of the patch, in one piece or from tiles.

    Parameters
    ----------
    tile
        Height and width of a window, multiples of the patch; tokens that several windows hold are
        averaged. None encodes the image as it is.
    overlap
        Share of a window that the next one covers again.

    Raises
    ------
    DataError
        Sides that are no multiples of the patch.
    """
    height, width = image.shape[:2]
    if height % patch or width % patch:
        raise DataError(f"an image of {height} x {width} pixels is no whole patches of {patch}")
    rows, cols = height // patch, width // patch
    if tile is None or (tile[0] >= height and tile[1] >= width):
        return np.asarray(encode(image[None])[0], np.float32).reshape(rows, cols, -1)
    size = min(tile[0], height) // patch, min(tile[1], width) // patch
    places = [
        (top, left)
        for top in _starts(rows, size[0], overlap)
        for left in _starts(cols, size[1], overlap)
    ]
    total, seen = np.zeros((0,)), np.zeros((rows, cols, 1))
    for first in range(0, len(places), batch):
        some = places[first : first + batch]
        windows = [
            image[i * patch : (i + size[0]) * patch, j * patch : (j + size[1]) * patch]
            for i, j in some
        ]
        tokens = encode(np.stack(windows))
        if not total.size:
            total = np.zeros((rows, cols, tokens.shape[-1]))
        for (i, j), found in zip(some, tokens, strict=True):
            total[i : i + size[0], j : j + size[1]] += found.reshape(*size, -1)
            seen[i : i + size[0], j : j + size[1]] += 1
    return (total / seen).astype(np.float32)


def _starts(length: int, window: int, overlap: float) -> list[int]:
    """First cells of windows that cover `length` cells, evenly laid."""
    step = max(1, math.floor(window * (1 - overlap)))
    count = 1 + math.ceil((length - window) / step)
    return np.linspace(0, length - window, count).round().astype(int).tolist()


def upsample(
    logits: Float[np.ndarray, "rows cols classes"],
    size: tuple[int, int],
    mode: Upsampling = "bilinear",
) -> Float32[np.ndarray, "height width classes"]:
    """Logits of patches at every pixel; bilinear is with align_corners False."""
    x = torch.from_numpy(np.ascontiguousarray(logits)).float().permute(2, 0, 1)[None]
    corners = False if mode == "bilinear" else None
    found = F.interpolate(x, size, mode=mode, align_corners=corners)
    return found[0].permute(1, 2, 0).numpy()


# ---- linear probe


@dataclass(frozen=True)
class EncodedScene:
    """An image as patch tokens, with its label map; the map may be of another size.

    Parameters
    ----------
    tokens
        Of the image's patches.
    label
        Class of each pixel.
    """

    tokens: Float32[np.ndarray, "rows cols dim"]
    label: Int[np.ndarray, "height width"]

    def patch_labels(self, ignore: int = IGNORE) -> Int64[np.ndarray, "rows cols"]:
        """The commonest class of the pixels that lie in each patch."""
        rows, cols = self.tokens.shape[:2]
        height, width = self.label.shape
        side = max(1, round(max(height / rows, width / cols)))
        i = (np.arange(rows * side) + 0.5) * height / (rows * side)
        j = (np.arange(cols * side) + 0.5) * width / (cols * side)
        return patch_labels(self.label[np.ix_(i.astype(int), j.astype(int))], side, ignore=ignore)


# Tokens to logits at the resolution of a label map.
Segmenter = Callable[
    [Float32[np.ndarray, "rows cols dim"], tuple[int, int]],
    Float32[np.ndarray, "height width classes"],
]


@dataclass(frozen=True)
class PatchProbe:
    """A linear classifier of patches as a segmenter."""

    probe: LinearProbe
    mode: Upsampling = "bilinear"

    def __call__(
        self, tokens: Float32[np.ndarray, "rows cols dim"], size: tuple[int, int]
    ) -> Float32[np.ndarray, "height width classes"]:
        """Logits of every pixel."""
        rows, cols, dim = tokens.shape
        logits = self.probe.scores(tokens.reshape(-1, dim)).reshape(rows, cols, -1)
        return upsample(logits, size, self.mode)


def patch_probe(
    scenes: Sequence[EncodedScene],
    classes: int,
    *,
    ignore: int = IGNORE,
    mode: Upsampling = "bilinear",
    most: int = 40_000,
    seed: int = 0,
) -> PatchProbe:
    """Multinomial logistic regression on the tokens of labelled patches.

    The L2 strength is the one with the least log loss on the patches of a fifth of the scenes.

    Parameters
    ----------
    most
        Labelled patches used, drawn at random; a quarter of them for the choice of the strength.

    Raises
    ------
    DataError
        No patch has a label.
    """
    labels = [scene.patch_labels(ignore).ravel() for scene in scenes]
    sizes = [len(label) for label in labels]
    y, scene = np.concatenate(labels), np.repeat(np.arange(len(scenes)), sizes)
    order = np.argsort(rng.words(seed, "patches", np.arange(len(y)), 0, 1)[:, 0], kind="stable")
    chosen = order[y[order] != NO_LABEL][:most]
    if not len(chosen):
        raise DataError("no patch of the training scenes has a label")
    x = np.concatenate(
        [one.tokens.reshape(size, -1) for one, size in zip(scenes, sizes, strict=True)]
    )
    few = chosen[: max(1, most // 4)]
    outside = held_out(np.zeros(len(scenes), np.int64), seed)[scene]
    C = choose_penalty(x[few], y[few], outside[few], classes=classes)
    return PatchProbe(fit_logistic(x[chosen], y[chosen], classes=classes, C=C), mode)


def constant(frequent: int, classes: int) -> Segmenter:
    """A segmenter that sees one class everywhere."""

    def segment(tokens: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return np.broadcast_to(np.eye(classes, dtype=np.float32)[frequent], (*size, classes))

    return segment


def confusions(
    segment: Segmenter, scenes: Sequence[EncodedScene], classes: int, *, ignore: int = IGNORE
) -> Int64[np.ndarray, "scenes classes classes"]:
    """Confusion matrix [true, predicted] of each scene, at the resolution of its label map."""
    found = np.zeros((len(scenes), classes, classes), np.int64)
    for i, scene in enumerate(scenes):
        one = Confusion(classes, ignore)
        one.add(scene.label, segment(scene.tokens, scene.label.shape).argmax(-1))
        found[i] = one.matrix
    return found

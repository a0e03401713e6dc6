"""Video object segmentation without training: labels carried along by the similarity of patches.

The protocol of DINO (Caron et al. 2021) and SelfPatch (Yun et al. 2022) on DAVIS-2017, and its
measures J and F (Perazzi et al. 2016, Pont-Tuset et al. 2017).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64, UInt8
from PIL import Image
from torch import Tensor

from jepa_core.errors import DataError

VOID = 255  # pixels that count for nobody

_TILE = 16  # target cells of a side that are compared at once

# Frame to patch tokens: uint8 [height, width, channels] to [rows, cols, dim].
TokenMap = Callable[
    [UInt8[np.ndarray, "height width channels"]], Float[np.ndarray, "rows cols dim"]
]


def propagate_labels(
    source_features: Float[Tensor, "frames cells dim"],
    source_labels: Float[Tensor, "frames classes rows cols"],
    target_features: Float[Tensor, "cells dim"],
    *,
    radius: int | None = 12,
    topk: int = 5,
    temperature: float = 0.1,
) -> Float[Tensor, "classes rows cols"]:
    """Soft labels of a frame: weighted labels of the cells of earlier frames that resemble it most.

    A cell's weights are exp(cosine / temperature) of the `topk` most similar source cells of all
    frames together (those equal to the last of them included), normalised to sum 1.

    Parameters
    ----------
    source_features, target_features
        Patch tokens, row-major.
    radius
        Cells of a source frame further away than this in rows or columns are not looked at; None
        looks everywhere.

    Raises
    ------
    DataError
        Features of another grid than the labels'.
    """
    frames, classes, rows, cols = source_labels.shape
    if source_features.shape[:2] != (frames, rows * cols) or len(target_features) != rows * cols:
        raise DataError(
            f"features are of {tuple(source_features.shape[:2])} source and "
            f"{len(target_features)} target cells, labels of {frames} x {rows} x {cols}"
        )
    source = F.normalize(source_features, dim=-1).view(frames, rows, cols, -1)
    target = F.normalize(target_features, dim=-1).view(rows, cols, -1)
    labels = source_labels.permute(0, 2, 3, 1)
    found = target.new_empty(rows, cols, classes)
    reach = max(rows, cols) if radius is None else radius
    for top in range(0, rows, _TILE):
        for left in range(0, cols, _TILE):
            here = slice(top, top + _TILE), slice(left, left + _TILE)
            # Only what the tile can see: a matrix of all cells of all frames need not exist.
            i = torch.arange(max(0, top - reach), min(rows, top + _TILE + reach))
            j = torch.arange(max(0, left - reach), min(cols, left + _TILE + reach))
            window = slice(int(i[0]), int(i[-1]) + 1), slice(int(j[0]), int(j[-1]) + 1)
            tile = target[here]
            keys = source[:, *window].reshape(-1, target.shape[-1])
            weight = (tile.reshape(-1, target.shape[-1]) @ keys.T / temperature).exp()
            if radius is not None:
                at = _cells(range(top, top + tile.shape[0]), range(left, left + tile.shape[1]))
                near = (at[:, None] - _cells(i.tolist(), j.tolist())[None]).abs().amax(-1) <= radius
                weight = weight * near.repeat(1, frames).to(weight)
            least = weight.topk(min(topk, weight.shape[1]), dim=1).values[:, -1:]
            weight = torch.where(weight >= least, weight, 0)
            weight = weight / weight.sum(1, keepdim=True)
            values = labels[:, *window].reshape(-1, classes).to(weight)
            found[here] = (weight @ values).view(*tile.shape[:2], classes)
    return found.permute(2, 0, 1)


def _cells(i: Iterable[int], j: Iterable[int]) -> Int64[Tensor, "cells 2"]:
    return torch.cartesian_prod(torch.tensor(list(i)), torch.tensor(list(j))).view(-1, 2)


def stretch(labels: Float[Tensor, "classes height width"]) -> Float[Tensor, "classes height width"]:
    """Each class between 0 and 1, as the protocol compares them; classes never above 0 stay.

    A class that is the same positive number everywhere becomes 0.
    """
    low, high = labels.amin((1, 2), keepdim=True), labels.amax((1, 2), keepdim=True)
    stretched = (labels - low) / torch.where(high > low, high - low, 1)
    return torch.where(high > 0, stretched, labels)


def frame_size(height: int, width: int, patch: int, short: int = 480) -> tuple[int, int]:
    """Height and width a frame is resized to: the short side `short`, the long one a multiple of 64
    below its share; both multiples of the patch."""
    multiple = math.lcm(64, patch)
    scale = short / min(height, width)
    side = max(patch, short // patch * patch)
    long = max(multiple, math.floor(max(height, width) * scale) // multiple * multiple)
    return (side, long) if height <= width else (long, side)


def track(
    frames: Iterable[UInt8[np.ndarray, "height width channels"]],
    first: Int[np.ndarray, "height width"],
    features: TokenMap,
    patch: int,
    *,
    short: int = 480,
    memory: int = 7,
    radius: int | None = 12,
    topk: int = 5,
    temperature: float = 0.1,
) -> Iterator[UInt8[np.ndarray, "height width"]]:
    """Carry the labels of the first frame through a video; yields a label map a frame.

    Parameters
    ----------
    first
        Objects of the first frame by number, 0 for the background; void is background.
    features
        From a frame resized by `frame_size` to its patch tokens.
    memory
        Frames before the present one that labels are taken from, beside the first.
    """
    first = np.where(first == VOID, 0, first).astype(np.uint8)
    classes = int(first.max()) + 1
    known: deque[tuple[Tensor, Tensor]] = deque(maxlen=memory)
    start: tuple[Tensor, Tensor] | None = None
    for frame in frames:
        height, width = frame.shape[:2]
        size = frame_size(height, width, patch, short)
        tokens = torch.from_numpy(np.ascontiguousarray(features(_resized(frame, size))))
        grid = tokens.shape[:2]
        cells = tokens.flatten(0, 1).float()
        if start is None:
            coarse = _nearest(first, (grid[0], grid[1]))
            soft = F.one_hot(torch.from_numpy(coarse.astype(np.int64)), classes)
            start = cells, soft.permute(2, 0, 1).float()
            yield first
            continue
        sources = [start, *known]
        soft = propagate_labels(
            torch.stack([source for source, _ in sources]),
            torch.stack([label for _, label in sources]),
            cells,
            radius=radius,
            topk=topk,
            temperature=temperature,
        )
        known.append((cells, soft))
        fine = F.interpolate(soft[None], scale_factor=patch, mode="bilinear", align_corners=False)
        answer = stretch(fine[0]).argmax(0).numpy().astype(np.uint8)
        yield _nearest(answer, (height, width))


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if image.shape[:2] == size:
        return image
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    found = np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR))
    return found[..., None] if found.ndim == 2 else found


def _nearest(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    picture = Image.fromarray(labels.astype(np.uint8))
    return np.asarray(picture.resize(size[::-1], Image.Resampling.NEAREST))


def davis_j(
    truth: Bool[np.ndarray, "height width"], predicted: Bool[np.ndarray, "height width"]
) -> float:
    """J: intersection over union of two masks; 1 if both are empty."""
    union = int((truth | predicted).sum())
    return int((truth & predicted).sum()) / union if union else 1.0


def davis_f(
    truth: Bool[np.ndarray, "height width"],
    predicted: Bool[np.ndarray, "height width"],
    tolerance: float = 0.008,
) -> float:
    """F: harmonic mean of precision and recall of the boundary.

    A boundary pixel is matched if the other boundary passes within a disk around it.

    Parameters
    ----------
    tolerance
        Radius of the disk: a share of the image's diagonal, rounded up, or pixels from 1 on.
    """
    radius = tolerance if tolerance >= 1 else math.ceil(tolerance * math.hypot(*truth.shape))
    one, other = boundary(truth), boundary(predicted)
    if not one.any() or not other.any():
        return float(not one.any() and not other.any())
    precision = float((_distance(one)[other] <= radius).mean())
    recall = float((_distance(other)[one] <= radius).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Pixels of which the one to the right, below, or below to the right is on the other side."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, below, corner = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    found: Bool[np.ndarray, "height width"] = (mask ^ right) | (mask ^ below) | (mask ^ corner)
    return found


def _distance(edge: np.ndarray) -> np.ndarray:
    """Of every pixel to the nearest boundary pixel: within r of it is inside the disk of r."""
    from scipy.ndimage import distance_transform_edt

    found: np.ndarray = distance_transform_edt(~edge)
    return found


@dataclass(frozen=True)
class ObjectScore:
    """Mean J and F of one object over the frames between the first and the last."""

    sequence: str
    number: int
    j: float
    f: float

    @property
    def jf(self) -> float:
        """Mean of J and F."""
        return (self.j + self.f) / 2


def sequence_scores(
    name: str,
    truth: Sequence[Int[np.ndarray, "height width"]],
    predicted: Sequence[Int[np.ndarray, "height width"]],
) -> list[ObjectScore]:
    """J and F of each object of a video; the first frame was given and the last is left out too.

    Void pixels of the truth count for nobody.

    Raises
    ------
    DataError
        Differing numbers or sizes of frames, or fewer than three.
    """
    if len(truth) != len(predicted) or len(truth) < 3:
        raise DataError(
            f"{len(truth)} frames of truth and {len(predicted)} predicted ones", where=name
        )
    if any(a.shape != b.shape for a, b in zip(truth, predicted, strict=True)):
        raise DataError("truth and prediction differ in size", where=name)
    objects = sorted({int(i) for frame in truth for i in np.unique(frame)} - {0, VOID})
    scores = []
    for number in objects:
        pairs = [
            (a == number, (b == number) & (a != VOID))
            for a, b in zip(truth[1:-1], predicted[1:-1], strict=True)
        ]
        scores.append(
            ObjectScore(
                name,
                number,
                float(np.mean([davis_j(a, b) for a, b in pairs])),
                float(np.mean([davis_f(a, b) for a, b in pairs])),
            )
        )
    return scores


@dataclass(frozen=True)
class Video:
    """One sequence of a folder in the layout of DAVIS."""

    name: str
    frames: tuple[Path, ...]
    labels: tuple[Path, ...]

    def images(self) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        """The frames, RGB."""
        for path in self.frames:
            with _opened(path) as image:
                yield np.asarray(image.convert("RGB"))

    def truth(self) -> list[UInt8[np.ndarray, "height width"]]:
        """Object numbers of every frame.

        Raises
        ------
        DataError
            A frame without its label map, or a map that holds colours instead of numbers.
        """
        found = []
        for path in self.labels:
            with _opened(path) as image:
                if image.mode not in ("P", "L"):
                    raise DataError(
                        f"holds colours ({image.mode}), not the numbers of objects",
                        where=path,
                        remedy="give PNG files with a palette, as DAVIS has them",
                    )
                found.append(np.asarray(image))
        if [path.stem for path in self.labels] != [path.stem for path in self.frames]:
            raise DataError(
                f"{len(self.frames)} frames and {len(self.labels)} label maps, not one for each",
                where=self.labels[0].parent if self.labels else self.name,
            )
        return found


def find_videos(root: str | Path, split: str = "val", resolution: str = "480p") -> list[Video]:
    """Sequences of a folder in the layout of DAVIS.

    Frames lie in JPEGImages/<resolution>/<sequence>, label maps in Annotations/<resolution>/
    <sequence>, and ImageSets/<year>/<split>.txt names the sequences; without such a list all are
    taken.

    Raises
    ------
    DataError
        No such folder, or a listed sequence that is not there.
    """
    images, labels = (Path(root) / name / resolution for name in ("JPEGImages", "Annotations"))
    if not images.is_dir():
        raise DataError("there is no such folder", where=images, remedy="give the root of DAVIS")
    lists = sorted((Path(root) / "ImageSets").rglob(f"{split}.txt"))
    if lists:
        words = [line.split()[0] for line in lists[-1].read_text().splitlines() if line.strip()]
        # DAVIS-2016 lists every frame by its path.
        names = list(dict.fromkeys(Path(w).parent.name if "/" in w else w for w in words))
    else:
        names = sorted(path.name for path in images.iterdir() if path.is_dir())
    videos = []
    for name in names:
        frames = tuple(sorted((images / name).glob("*.jpg")))
        if not frames:
            raise DataError("there is no frame of this sequence", where=images / name)
        videos.append(Video(name, frames, tuple(sorted((labels / name).glob("*.png")))))
    if not videos:
        raise DataError("there is no sequence", where=images)
    return videos


def score_videos(
    videos: Sequence[Video],
    features: TokenMap | None,
    patch: int,
    *,
    short: int = 480,
    save: Path | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[ObjectScore]:
    """J and F of every object of every sequence.

    Parameters
    ----------
    features
        From a resized frame to its patch tokens; None repeats the first mask, which every tracker
        has to beat.
    save
        Folder for the answers, as PNG files in the layout of DAVIS.
    progress
        Is told how many sequences are done.
    """
    scores = []
    for done, video in enumerate(videos, 1):
        truth = video.truth()
        if features is None:
            predicted = [np.where(truth[0] == VOID, 0, truth[0])] * len(truth)
        else:
            predicted = list(track(video.images(), truth[0], features, patch, short=short))
        scores += sequence_scores(video.name, truth, predicted)
        if save is not None:
            _write(save / video.name, video, predicted)
        progress(done)
    return scores


def _write(folder: Path, video: Video, predicted: Sequence[np.ndarray]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with _opened(video.labels[0]) as image:
        palette = image.getpalette() if image.mode == "P" else None
    for path, labels in zip(video.frames, predicted, strict=True):
        picture = Image.fromarray(labels.astype(np.uint8))
        if palette is not None:
            picture.putpalette(palette)
        picture.save(folder / f"{path.stem}.png")


def _opened(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except OSError as error:
        raise DataError(f"is no image that can be read: {error}", where=path) from error
    return image

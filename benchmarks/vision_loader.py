"""Batches of random crops: our loading against torchvision's, in one thread of one process.

The baseline is the usual way: torchvision's ImageFolder, RandomResizedCrop, ToTensor and
Normalize under torch's DataLoader. Ours reads the same JPEG files, decoding them no larger than
the crop needs, or a corpus of their pixels. Everyone gets the same number of images; the crops are
drawn alike, and are not the same ones.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.transforms import functional

from benchmarks.harness import Contender, Row, compare, main
from jepa_vision.data.build import CorpusConfig, build
from jepa_vision.data.corpus import ImageCorpus
from jepa_vision.data.folders import ImageFolder, find_images
from jepa_vision.data.images import Images
from jepa_vision.data.transforms import crop_boxes, crops, normalise

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ROOT = Path(__file__).resolve().parents[1]
BATCH = 64


def run(quick: bool = False) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder, _caltech(Path(folder) / "small") as small:
        rows = _rows("JPEG files of 72x72", small, 64, Path(folder) / "a", 2 if quick else 9)
        count = 64 if quick else 256
        large = _generated(Path(folder) / "large", count, (375, 500))
        rows += _rows("JPEG files of 500x375", large, 224, Path(folder) / "b", count // BATCH)
        return rows


def _rows(name: str, files: Path, side: int, place: Path, batches: int) -> list[Row]:
    build(find_images(files), place / "corpus", CorpusConfig(short_side=side * 8 // 7))
    build(find_images(files), place / "whole", CorpusConfig(short_side=0))
    usual = datasets.ImageFolder(
        str(files),
        transforms.Compose(
            [
                transforms.RandomResizedCrop(side, scale=(0.3, 1.0)),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        ),
    )
    folder = ImageFolder(files)
    corpus, whole = ImageCorpus(place / "corpus"), ImageCorpus(place / "whole")
    order = np.arange(batches * BATCH) % len(folder)

    def theirs() -> int:
        loader = DataLoader(usual, batch_size=BATCH, sampler=order.tolist())
        return sum(len(x) for x, _ in loader)

    def ours(images: Images, *, exact: bool = False) -> Contender:
        return lambda: sum(len(x) for x in _batches(images, order, side, exact=exact))

    contenders: dict[str, Contender] = {
        "torchvision": theirs,
        "files, exact": ours(folder, exact=True),
        "files": ours(folder),
        "corpus, exact, whole images": ours(whole, exact=True),
        "corpus": ours(corpus),
    }
    return compare(
        f"{batches * BATCH} crops of {side} from {name}, batch {BATCH}",
        contenders,
        "torchvision",
        check=lambda: _equal(folder, whole, side),
        target={"files": 1.0, "corpus": 3.0},
        notes={
            "files": "decoded no larger than needed, resized by torch",
            "corpus": f"of short side {side * 8 // 7}, resized by torch",
        },
    )


def _batches(
    images: Images, order: np.ndarray, side: int, *, exact: bool = False
) -> Iterator[torch.Tensor]:
    for begin in range(0, len(order), BATCH):
        ids = order[begin : begin + BATCH]
        boxes = crop_boxes(images.sizes[ids], ids, begin, seed=0)
        cut = crops(images, ids, boxes, (side, side), exact=exact)
        yield torch.from_numpy(normalise(cut, MEAN, STD))


def _equal(folder: ImageFolder, whole: ImageCorpus, side: int) -> bool:
    """Our exact crops of the same boxes are torchvision's."""
    ids = np.arange(8)
    boxes = crop_boxes(folder.sizes[ids], ids, 0, seed=0)
    same = []
    for images in (folder, whole):
        cut = normalise(crops(images, ids, boxes, (side, side), exact=True), MEAN, STD)
        for i in ids:
            image = Image.fromarray(folder.read(int(i)))
            expected = functional.resized_crop(image, *boxes[i].tolist(), [side, side])
            expected = functional.normalize(functional.to_tensor(expected), MEAN, STD)
            same.append(np.allclose(cut[i], expected.numpy(), atol=1e-6))
    return all(same)


@contextmanager
def _caltech(place: Path) -> Iterator[Path]:
    """Real photographs of 72x72 where the data folder is there, else generated ones."""
    data = Path(os.environ.get("JEPA_DATA", ROOT.parent / "shared" / "data"))
    real = data / "vision" / "caltech10" / "train"
    yield real if real.is_dir() else _generated(place, 576, (72, 72))


def _generated(place: Path, count: int, size: tuple[int, int]) -> Path:
    """JPEG files that are about as hard to decode as photographs: noise of all scales."""
    random = np.random.default_rng(0)
    for number in range(count):
        pixels = np.zeros((*size, 3), np.float32)
        for cells in (4, 8, 16, 32, 64):
            noise = random.integers(0, 256, (cells, cells, 3), np.uint8)
            layer = Image.fromarray(noise).resize(size[::-1], Image.Resampling.BICUBIC)
            pixels += np.asarray(layer, np.float32) * (2 / cells)
        pixels *= 255 / pixels.max()
        path = place / str(number % 4) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path, quality=90)
    return place


if __name__ == "__main__":
    main(run)

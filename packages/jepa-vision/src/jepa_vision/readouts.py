"""What probes take from an encoder and from its untrained twin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64

from jepa_vision.data.images import Images, Pixels
from jepa_vision.data.transforms import normalise
from jepa_vision.evaluation import Pooled
from jepa_vision.inference import PretrainedImage, encode
from jepa_vision.pretrain import untrained


class Some:
    """Some rows of a collection of images, in the order given."""

    def __init__(self, images: Images, rows: Int64[np.ndarray, " rows"]) -> None:
        self.images, self.rows = images, rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sizes(self) -> Int32[np.ndarray, "images 2"]:
        return self.images.sizes[self.rows]

    @property
    def channels(self) -> int:
        return self.images.channels

    @property
    def names(self) -> Sequence[str]:
        return [self.images.names[row] for row in self.rows]

    @property
    def labels(self) -> Int64[np.ndarray, " images"] | None:
        return None if self.images.labels is None else self.images.labels[self.rows]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.images.classes

    def read(self, i: int, at_least: int | None = None) -> Pixels:
        return self.images.read(int(self.rows[i]), at_least)


def twin_of(model: PretrainedImage, seed: int) -> PretrainedImage:
    """The encoder as training with this seed found it, with a head if the model has one."""
    module = untrained(model.config, seed).eval()
    head = None if model.head is None else module.target_head
    return PretrainedImage(module.target_encoder, model.config, head=head, device=model.device)


def pooled(model: PretrainedImage, images: Images, *, progress: str = "") -> Pooled:
    """Features of images as probes read them; every image is encoded once, or twice with a head."""
    depth, dim = model.model.depth, model.model.dim
    layers = tuple(range(max(1, depth - 3), depth + 1))
    found = encode(model, images, layers=layers, pool=True, progress=progress)
    head = None
    if model.head is not None:
        words = f"{progress}, with head" if progress else ""
        head = encode(model, images, with_head=True, pool=True, progress=words)
    return Pooled(found[:, -dim:], found if len(layers) == 4 else None, head)


def targets_of(model: PretrainedImage, crops: Pixels) -> Float32[np.ndarray, "images patches dim"]:
    """What training with this encoder and head would have the predictor predict.

    Parameters
    ----------
    crops
        uint8 or float32 [images, height, width, channels]; sides are multiples of the patch.
    """
    config = model.config
    # A warm-up is over, and neighbours are those that are similar.
    config = replace(config, dmt=replace(config.dmt, warmup=0.0, choice="similar"))
    jepa = untrained(config, 0).eval()
    jepa.target_encoder.load_state_dict(model.encoder.state_dict())
    if jepa.target_head is not None and model.head is not None:
        jepa.target_head.load_state_dict(model.head.state_dict())
    x = torch.from_numpy(normalise(crops, config.augment.mean, config.augment.std))
    return jepa.targets(x).numpy()


def cropped(model: PretrainedImage, images: Images) -> Pixels:
    """The crops of images that are encoded, as pixels."""
    size = model.crop_size()
    return np.stack([model.prepare(images.read(i), size) for i in range(len(images))])

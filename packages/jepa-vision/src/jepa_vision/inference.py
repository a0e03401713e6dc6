"""Pre-trained encoders on new images: files, pictures or arrays in, features out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from jepa_core import hub
from jepa_core.config import to_dict
from jepa_core.errors import ConfigError, DataError
from jepa_core.progress import Progress
from jepa_core.run import refuse_unfinished
from jepa_core.training.device import find_device
from jepa_vision.data.images import Images, Pixels
from jepa_vision.data.transforms import centre, normalise
from jepa_vision.given import Given, as_images
from jepa_vision.head import AggregationHead, PaperHead
from jepa_vision.model import ImageEncoder, build_head
from jepa_vision.presets import ModelConfig, PretrainConfig
from jepa_vision.saved import FORMAT, PACKAGE, filled_from, read_recipe

_T = TypeVar("_T")

Head = AggregationHead | PaperHead
Crops = Shaped[np.ndarray, "images height width channels"]
Features = Float32[np.ndarray, "images *features"]

# Tokens computed at once. An image's result depends on how many are computed beside it by rounding,
# so the number is fixed, and what is missing in the last block is filled up with zeros.
TOKENS = {"cpu": 512, "mps": 8192, "cuda": 16384}

OFFICIAL = (".pth.tar", ".pth", ".pt", ".tar", ".ckpt")


@dataclass(frozen=True)
class Readout:
    """What is taken from an encoder.

    Parameters
    ----------
    layers
        Numbers of blocks, counted from 1, whose outputs stand side by side; none = the last.
    pool
        The mean over the tokens.
    with_head
        Through DMT-JEPA's head, as in training the context is.
    """

    layers: tuple[int, ...] = ()
    pool: bool = False
    with_head: bool = False

    def __post_init__(self) -> None:
        if self.with_head and self.layers:
            raise ConfigError(
                "layers and with_head are both given", remedy="the head is for the last layer"
            )


class PretrainedImage:
    """An encoder with the preprocessing of its images; call it with images.

    Parameters
    ----------
    encoder
        The encoder.
    config
        The recipe it was trained with: channel statistics, form of the head.
    head
        The aggregation head; None where there is none.
    details
        The contents of the folder's config.json.
    device
        Where to compute: "auto", "cpu", "cuda" or "mps".

    Attributes
    ----------
    low_precision
        Compute under autocast to bfloat16; False at first.
    """

    low_precision: bool = False

    def __init__(
        self,
        encoder: ImageEncoder,
        config: PretrainConfig,
        *,
        head: Head | None = None,
        details: Mapping[str, Any] | None = None,
        device: str = "auto",
    ) -> None:
        self.encoder, self.head = encoder.eval(), None if head is None else head.eval()
        self.config, self.details, self.device = config, dict(details or {}), device

    @property
    def model(self) -> ModelConfig:
        """Shapes of the encoder."""
        return self.encoder.config

    def __call__(
        self,
        images: Given,
        *,
        size: int | tuple[int, int] | None = None,
        layers: Sequence[int] = (),
        pool: bool = False,
        with_head: bool = False,
        progress: str = "",
    ) -> Features:
        """Features of images: a centre crop of each, encoded.

        Parameters
        ----------
        images
            uint8 (or float32) [images, height, width, channels], or a list of paths, Pillow images
            and arrays [height, width, channels], of any sizes.
        size
            Height and width of the crop (pixels), multiples of the patch; None takes those of
            training.
        layers, pool, with_head
            As in `Readout`.
        progress
            Words before a progress bar; none without.

        Returns
        -------
        float32 [images, tokens, dim], tokens row by row; [images, dim] under `pool`. Of several
        layers as many times wider.

        Raises
        ------
        ImageReadError
            A file that cannot be read.
        DataError
            Images of another number of channels.
        ConfigError
            A size, layer or head that is not to be had.
        """
        return encode(
            self,
            as_images(images),
            size=size,
            layers=layers,
            pool=pool,
            with_head=with_head,
            progress=progress,
        )

    def crop_size(self, size: int | tuple[int, int] | None = None) -> tuple[int, int]:
        """Height and width of the crop that is encoded.

        Raises
        ------
        ConfigError
            They are no multiples of the patch.
        """
        if size is None:
            return self.model.image
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 1 or height % self.model.patch or width % self.model.patch:
            raise ConfigError(
                f"size is {height} x {width}",
                remedy=f"allowed: multiples of patch ({self.model.patch})",
            )
        return height, width

    def prepare(self, pixels: Pixels, size: tuple[int, int]) -> Pixels:
        """The crop of one image that is encoded.

        Raises
        ------
        DataError
            It has another number of channels.
        """
        if pixels.ndim != 3 or pixels.shape[2] != self.model.channels:
            raise DataError(
                f"an image has the shape {list(pixels.shape)}",
                remedy=f"the encoder takes [height, width, {self.model.channels}]",
            )
        return centre(pixels, size)

    def width(self, readout: Readout) -> int:
        """Features of a token.

        Raises
        ------
        ConfigError
            There is no such layer, or no head.
        """
        depth = self.model.depth
        if wrong := [number for number in readout.layers if not 1 <= number <= depth]:
            raise ConfigError(f"there is no layer {wrong[0]}", remedy=f"allowed: 1 to {depth}")
        if readout.with_head and self.head is None:
            raise ConfigError("the encoder has no head", remedy="leave with_head out")
        return self.model.dim * max(1, len(readout.layers))

    def read(self, crops: Crops, readout: Readout = Readout(), *, batch: int = 0) -> Features:
        """Features of crops as they are, in blocks of one size.

        Parameters
        ----------
        crops
            uint8 or float32 [images, height, width, channels]; sides are multiples of the patch.
        batch
            Images in a block; 0 takes as many as hold the device's number of tokens. A result
            depends on it by rounding alone, and on the other images not at all.
        """
        wide, patch = self.width(readout), self.model.patch
        tokens = (crops.shape[1] // patch) * (crops.shape[2] // patch)
        shape = (wide,) if readout.pool else (tokens, wide)
        out = np.empty((len(crops), *shape), np.float32)
        kind = find_device(self.device)
        batch = batch or block_size(kind, tokens)
        self._to(kind)
        augment = self.config.augment
        for first in range(0, len(crops), batch):
            part = crops[first : first + batch]
            x = torch.from_numpy(normalise(part, augment.mean, augment.std))
            if len(part) < batch:
                x = torch.cat((x, x.new_zeros((batch - len(part), *x.shape[1:]))))
            out[first : first + len(part)] = self._features(x.to(kind), readout)[: len(part)]
        return out

    def _features(
        self, x: Float32[Tensor, "batch channels height width"], readout: Readout
    ) -> Features:
        with (
            torch.no_grad(),
            torch.autocast(x.device.type, torch.bfloat16, enabled=self.low_precision),
        ):
            if readout.layers:
                z = torch.cat(self.encoder.features(x, readout.layers), -1)
            else:
                z = self.encoder(x)
            if readout.with_head:
                z = through_head(self.head, z, self.config)
            z = z.float()
            return (z.mean(1) if readout.pool else z).cpu().numpy()

    def _to(self, kind: str) -> None:
        """Move a copy to the device where the encoder is elsewhere; it may be in use there."""
        if next(self.encoder.parameters()).device.type != kind:
            self.encoder = copy.deepcopy(self.encoder).to(kind)
        if self.head is not None and next(self.head.parameters()).device.type != kind:
            self.head = copy.deepcopy(self.head).to(kind)


def through_head(
    head: Head | None, z: Float32[Tensor, "batch n dim"], config: PretrainConfig
) -> Float32[Tensor, "batch n dim"]:
    """Tokens after the head, used as it is for the context in training."""
    assert head is not None
    if isinstance(head, AggregationHead):
        return head(z, form=config.dmt.context)
    return head(z)


def block_size(kind: str, tokens: int) -> int:
    """Images of so many tokens that are computed at once on a device."""
    return max(1, TOKENS[kind] // tokens)


def encode(
    model: PretrainedImage,
    images: Images,
    *,
    size: int | tuple[int, int] | None = None,
    layers: Sequence[int] = (),
    pool: bool = False,
    with_head: bool = False,
    batch: int = 0,
    jobs: int = 1,
    progress: str = "",
    out: Float32[np.ndarray, "images *features"] | None = None,
) -> Features:
    """Features of a collection of images, read a block ahead: memory holds the result and blocks.

    Parameters
    ----------
    size, layers, pool, with_head
        As in calling the model.
    batch
        As in `PretrainedImage.read`.
    jobs
        Threads that read.
    progress
        Words before a progress bar; none without.
    out
        Where to write, a memory-mapped array for instance.

    Raises
    ------
    ImageReadError, DataError, ConfigError
        As calling the model.
    """
    readout = Readout(tuple(layers), pool, with_head)
    sides, wide = model.crop_size(size), model.width(readout)
    tokens = (sides[0] // model.model.patch) * (sides[1] // model.model.patch)
    if out is None:
        out = np.empty((len(images), *((wide,) if pool else (tokens, wide))), np.float32)
    batch = batch or block_size(find_device(model.device), tokens)

    def crop(i: int) -> Pixels:
        return model.prepare(images.read(i), sides)

    with Progress(progress, len(images), quiet=not progress) as bar:
        done = 0
        for crops in read_ahead(crop, len(images), batch, jobs):
            last = done + len(crops)
            out[done:last] = model.read(np.stack(crops), readout, batch=batch)
            bar.update(done := last)
    return out


def read_ahead(
    read: Callable[[int], _T], count: int, batch: int, jobs: int = 1
) -> Iterator[list[_T]]:
    """`read` of 0, 1, ... by threads, a batch at a time; the next is read while one is in use."""
    with ThreadPoolExecutor(jobs) as readers:

        def begin(first: int) -> list[Future[_T]]:
            return [readers.submit(read, i) for i in range(first, min(first + batch, count))]

        ahead = begin(0)
        try:
            for first in range(0, count, batch):
                now, ahead = ahead, begin(first + batch)
                yield [one.result() for one in now]
        finally:
            readers.shutdown(wait=False, cancel_futures=True)


# ---- folders


def save(
    folder: str | Path,
    encoder: ImageEncoder,
    config: PretrainConfig,
    head: Head | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write an encoder, and its head where it has one, as safetensors and JSON.

    Parameters
    ----------
    config
        The recipe.
    extra
        More to be kept in config.json.
    """
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    if head is not None:
        state |= {f"head.{name}": value for name, value in head.state_dict().items()}
    details = {"package": PACKAGE, "format": FORMAT, "recipe": to_dict(config), **(extra or {})}
    return hub.save_encoder(folder, state, details)


def load(
    path_or_id: str | Path, *, heads: int | None = None, device: str = "auto"
) -> PretrainedImage:
    """A pre-trained encoder, ready for images.

    Parameters
    ----------
    path_or_id
        A run folder, an encoder folder, a hub id, or an official checkpoint (`.pth.tar`). A run of
        `jepa vision finetune` gives the fine-tuned encoder.
    heads
        Of an official checkpoint of no published size.
    device
        Where to compute.

    Raises
    ------
    DataError
        There is no encoder of this package, or its file is damaged.
    """
    path = Path(path_or_id)
    if (path / "classifier").is_dir():
        from jepa_vision.classifier import load_classifier

        return load_classifier(path, device=device).pretrained()
    if str(path_or_id).endswith(OFFICIAL):
        from jepa_vision.checkpoints import load_official

        official = load_official(path, heads=heads)
        return PretrainedImage(
            official.target_encoder, official.recipe, head=official.target_head, device=device
        )
    refuse_unfinished(path, "encoder", "vision")
    details, state = hub.load_encoder(path_or_id, PACKAGE)
    config = read_recipe(details, path_or_id)
    encoder = filled_from(state, "encoder.", lambda: ImageEncoder(config.model), path_or_id)
    head = None
    if any(name.startswith("head.") for name in state):
        head = filled_from(state, "head.", lambda: _head(config), path_or_id)
    return PretrainedImage(encoder, config, head=head, details=details, device=device)


def _head(config: PretrainConfig) -> Head:
    head = build_head(config)
    if head is None:
        raise DataError("the recipe has no head, and the weights have one")
    return head

"""Beyond a linear probe of patches: a light decoder, and an encoder as others' backbone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from jepa_core import rng
from jepa_core.config import Range, check
from jepa_core.errors import ConfigError, DataError
from jepa_vision.dense import IGNORE, EncodedScene
from jepa_vision.evaluation import held_out
from jepa_vision.model import ImageEncoder

_FINER = 4  # pixels of a patch's side at which the loss is computed


@dataclass(frozen=True)
class DecoderConfig:
    """How the light decoder is trained."""

    width: Annotated[int, Range(ge=8)] = 64
    """Channels; a multiple of 8."""
    steps: Annotated[int, Range(ge=1)] = 400
    """Optimiser steps, at most."""
    batch: Annotated[int, Range(ge=1)] = 4
    """Scenes in a step."""
    learning_rate: Annotated[float, Range(gt=0)] = 2e-3
    """AdamW's, decaying to 0 on a cosine."""
    weight_decay: Annotated[float, Range(ge=0)] = 0.05
    """AdamW's."""
    validate_every: Annotated[int, Range(ge=1)] = 25
    """Steps between two validations."""
    patience: Annotated[int, Range(ge=1)] = 4
    """Validations without a better loss after which training stops."""

    def __post_init__(self) -> None:
        check(self)
        if self.width % 8:
            raise ConfigError(f"width is {self.width}", remedy="allowed: a multiple of 8")


class Decoder(nn.Module):
    """Two 3 x 3 convolutions, the second at twice the grid, between linear maps of each place.

    Parameters
    ----------
    mean, std
        float32 [dim] of the training tokens.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, classes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.project = nn.Conv2d(len(mean), width, 1)
        self.mix = _convolution(width)
        self.refine = _convolution(width)
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(
        self, tokens: Float[Tensor, "batch rows cols dim"], size: tuple[int, int]
    ) -> Float[Tensor, "batch classes height width"]:
        """Logits of every pixel of a map of this size."""
        x = ((tokens - self.mean) / self.std).permute(0, 3, 1, 2)
        x = self.project(x)
        x = x + self.mix(x)
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = x + self.refine(x)
        return F.interpolate(self.classify(x), size, mode="bilinear", align_corners=False)


def _convolution(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.GELU())


@dataclass(frozen=True)
class TrainedDecoder:
    """A decoder as a segmenter, and how its training went.

    Parameters
    ----------
    decoder
        With the weights of the best validation.
    step
        Of that validation.
    losses
        Step and loss of every validation.
    """

    decoder: Decoder
    step: int
    losses: tuple[tuple[int, float], ...]

    @torch.no_grad()
    def __call__(
        self, tokens: Float32[np.ndarray, "rows cols dim"], size: tuple[int, int]
    ) -> Float32[np.ndarray, "height width classes"]:
        """Logits of every pixel."""
        x = torch.from_numpy(tokens)[None].to(self.decoder.mean.device)
        return self.decoder(x, size)[0].permute(1, 2, 0).cpu().numpy()


def train_decoder(
    scenes: Sequence[EncodedScene],
    classes: int,
    config: DecoderConfig = DecoderConfig(),
    *,
    ignore: int = IGNORE,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[int], None] = lambda step: None,
) -> TrainedDecoder:
    """Train a light decoder on frozen tokens; a fifth of the scenes says when to stop.

    Raises
    ------
    DataError
        Fewer than two scenes: none would be left to validate on.
    """
    if len(scenes) < 2:
        raise DataError(f"{len(scenes)} training scenes", remedy="a decoder needs two at least")
    outside = held_out(np.zeros(len(scenes), np.int64), seed)
    train, validation = np.flatnonzero(~outside), np.flatnonzero(outside)
    tokens = [torch.from_numpy(scene.tokens) for scene in scenes]
    labels = [_coarser(scene) for scene in scenes]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = Decoder(*_statistics([tokens[i] for i in train]), classes, config.width)
    decoder.to(device)
    optimiser = torch.optim.AdamW(
        decoder.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)

    def loss_of(rows: Int64[np.ndarray, " batch"]) -> Tensor:
        return _loss(decoder, [tokens[i] for i in rows], [labels[i] for i in rows], ignore)

    best, best_loss, losses = copy.deepcopy(decoder.state_dict()), math.inf, []
    best_step = 0
    for step in range(config.steps):
        optimiser.zero_grad()
        loss_of(train[_drawn(seed, step, len(train), config.batch)]).backward()
        optimiser.step()
        schedule.step()
        progress(step + 1)
        if (step + 1) % config.validate_every and step + 1 < config.steps:
            continue
        with torch.no_grad():
            found = float(
                np.mean([loss_of(validation[[i]]).item() for i in range(len(validation))])
            )
        losses.append((step + 1, found))
        if found < best_loss:
            best, best_loss, best_step = copy.deepcopy(decoder.state_dict()), found, step + 1
        elif step + 1 - best_step >= config.patience * config.validate_every:
            break
    decoder.load_state_dict(best)
    return TrainedDecoder(decoder.eval(), best_step, tuple(losses))


def _coarser(scene: EncodedScene) -> Int64[Tensor, "height width"]:
    """The label map at no more than four pixels a patch's side: finer ones hardly teach more."""
    rows, cols = scene.tokens.shape[:2]
    height, width = scene.label.shape
    size = min(height, _FINER * rows), min(width, _FINER * cols)
    i = ((np.arange(size[0]) + 0.5) * height / size[0]).astype(int)
    j = ((np.arange(size[1]) + 0.5) * width / size[1]).astype(int)
    return torch.from_numpy(scene.label[np.ix_(i, j)].astype(np.int64))


def _statistics(tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    n = sum(x.shape[0] * x.shape[1] for x in tokens)
    total = sum(x.double().sum((0, 1)) for x in tokens)
    assert isinstance(total, Tensor)
    mean = total / n
    variance = sum((x.double() - mean).square().sum((0, 1)) for x in tokens)
    assert isinstance(variance, Tensor)
    std = (variance / n).sqrt()
    return mean.float(), torch.where(std < 1e-6, 1.0, std).float()


def _loss(
    decoder: Decoder, tokens: Sequence[Tensor], labels: Sequence[Tensor], ignore: int
) -> Tensor:
    """Mean over labelled pixels; scenes of one shape go through the decoder together."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for i, (x, y) in enumerate(zip(tokens, labels, strict=True)):
        shapes.setdefault((*x.shape, *y.shape), []).append(i)
    device = decoder.mean.device
    total, count = torch.zeros((), device=device), 0
    for rows in shapes.values():
        y = torch.stack([labels[i] for i in rows])
        logits = decoder(torch.stack([tokens[i] for i in rows]).to(device), y.shape[1:])
        loss = F.cross_entropy(logits, y.to(device), ignore_index=ignore, reduction="sum")
        total, count = total + loss, count + int((y != ignore).sum())
    return total / max(count, 1)


def _drawn(seed: int, step: int, scenes: int, batch: int) -> Int64[np.ndarray, " batch"]:
    """Scenes of a step: every pass in an order of its own."""
    places = step * batch + np.arange(batch)
    found = np.empty(batch, np.int64)
    for turn in np.unique(places // scenes):
        words = rng.words(seed, "decoder", np.array([turn]), 0, scenes)
        here = places // scenes == turn
        found[here] = rng.permutation(words)[0][places[here] % scenes]
    return found


class Backbone(nn.Module):
    """An encoder's features at several resolutions, as detection and segmentation heads take them.

    Tokens of the blocks that end each of `levels` equal parts of the encoder, as maps; the earliest
    is the finest. Resampling has no parameters, so heads learn what they need of it. Gradients flow
    into the encoder.

    Parameters
    ----------
    levels
        Maps; with three, of strides half the patch, the patch and twice the patch.

    Attributes
    ----------
    out_channels
        Channels of every map.
    """

    def __init__(self, encoder: ImageEncoder, levels: int = 3) -> None:
        super().__init__()
        self.encoder = encoder
        self.layers = pyramid_layers(len(encoder.blocks), levels)
        self.out_channels = encoder.config.dim

    def forward(
        self, image: Float[Tensor, "batch channels height width"]
    ) -> dict[str, Float[Tensor, "batch dim _ _"]]:
        """Maps by name, "0" the finest; sides that are no multiples of the patch are padded."""
        patch = self.encoder.config.patch
        below, right = (-side % patch for side in image.shape[2:])
        image = F.pad(image, (0, right, 0, below))
        rows, cols = image.shape[2] // patch, image.shape[3] // patch
        found = {}
        for level, tokens in enumerate(self.encoder.features(image, self.layers)):
            x = tokens.transpose(1, 2).unflatten(2, (rows, cols))
            finer = len(self.layers) // 2 - level
            if finer > 0:
                x = F.interpolate(x, scale_factor=2**finer, mode="bilinear", align_corners=False)
            elif finer < 0:
                x = F.max_pool2d(x, 2**-finer, ceil_mode=True)
            found[str(level)] = x
        return found


def pyramid_layers(depth: int, levels: int = 3) -> tuple[int, ...]:
    """Numbers of the blocks, from 1, that end each of `levels` equal parts of an encoder.

    Raises
    ------
    ConfigError
        More levels than blocks.
    """
    if not 1 <= levels <= depth:
        raise ConfigError(f"{levels} levels of an encoder of {depth} blocks")
    return tuple(round(depth * (i + 1) / levels) for i in range(levels))

"""Multi-block masks by step: the sound ones, or the official program's index for index.

The official sampler (I-JEPA's program, inherited by DMT-JEPA's) draws height and width of a batch's
targets and contexts from a generator seeded with the step, and the places from torch's global one.
What follows from how it does so, and is repeated by `compat="official"` alone:

- one uniform number gives both area and aspect: small targets are wide, large ones are tall;
- the largest place is left out, so that no block reaches the last row or the last column: 27 of
  14 x 14 patches are never context and never target. The context is 13 x 13 at the same corner;
- every context is cut to the length of the batch's shortest by dropping its last patches, those at
  the bottom: of 82 patches on average at 14 x 14, 60 are left in batches of 16 and 48 in batches of
  256, so that the batch size decides how much of an image is seen;
- a context of `min_keep` patches or fewer is drawn again, and after every 20 failures one target
  more, from the last on, is left in it: only on small grids, and nothing tells.

The sound masks are those of `jepa_core.masking.multiblock`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from jepa_core import rng
from jepa_core.masking.blocks import Size, block_area, block_size
from jepa_core.masking.multiblock import (
    ROUNDS,
    MultiBlockSampler,
    rectangle_cells,
    rectangles,
)
from jepa_core.tokens import IndexSet
from jepa_vision.presets import MaskConfig, check_blocks

Sizes = tuple[Size, Size]
Masks = tuple[list[Int64[Tensor, "batch kept"]], list[Int64[Tensor, "batch area"]]]


def official_sizes(step: int, grid: Size, config: MaskConfig) -> Sizes:
    """Height and width of targets and contexts: torch's generator starts at `step`, on any rank."""
    generator = torch.Generator().manual_seed(step)
    limits = grid[0] - 1, grid[1] - 1
    sizes = []
    for scale, aspect in (
        (config.target_scale, config.target_aspect),
        (config.context_scale, (1.0, 1.0)),
    ):
        u = torch.rand(1, generator=generator).item()
        share, shape = (low + u * (high - low) for low, high in (scale, aspect))
        sizes.append(block_size(block_area(grid, share), shape, limits))
    return sizes[0], sizes[1]


def official_masks(
    batch: int,
    grid: Size,
    config: MaskConfig,
    sizes: Sizes,
    generator: torch.Generator | None = None,
) -> Masks:
    """Masks of one batch, index for index those of the official program.

    Parameters
    ----------
    batch
        Images, at least 1.
    sizes
        Height and width of targets and contexts.
    generator
        The stream of places; None is torch's global one. It is left where the official program
        leaves it.

    Returns
    -------
    A tensor [batch, kept] for each context and a tensor [batch, height * width] for each target.
    """
    target, context = sizes
    targets, blocks = config.targets, config.targets + config.contexts
    # Places of each block, without the last row and column that would fit.
    room = np.array(grid) - np.array([target] * targets + [context] * config.contexts)
    first = np.empty((blocks, batch), np.int64)
    visible = np.empty((config.contexts, batch, grid[0] * grid[1]), np.bool_)
    stream = _Stream(generator)
    done = 0
    while True:
        draws = stream.peek((batch - done) * blocks).reshape(-1, blocks)
        first[:, done:] = _first_cells(draws, room, grid).T
        visible[:, done:] = rectangles(first[targets:, done:], context, grid)
        if not config.overlap:
            visible[:, done:] &= ~rectangles(first[:targets, done:], target, grid).any(axis=0)
        lengths = visible.sum(axis=2)
        short = np.flatnonzero((lengths[:, done:] <= config.min_keep).any(axis=0))
        if not len(short):
            break
        # This image's contexts draw again, and what was drawn behind them is for other blocks.
        stream.skip(int(short[0]) * blocks + targets)
        done += int(short[0])
        hidden = rectangles(first[:targets, done], target, grid)
        for number in range(config.contexts):
            visible[number, done] = _enough(stream, hidden, context, grid, config)
        done += 1
    cells = torch.from_numpy(rectangle_cells(first[:targets], target, grid))
    return list(torch.from_numpy(_first(visible, lengths))), list(cells)


class _Stream:
    """Draws of torch's generator, one of 64 bits for both coordinates of a place.

    A bounded draw on the CPU is 32 random bits modulo the bound, and a draw of 64 bits is two of
    those, the first one high: bounds can be applied later, to all draws at once.
    """

    def __init__(self, generator: torch.Generator | None) -> None:
        self._generator = generator
        self._drawn = np.empty(0, np.int64)

    def peek(self, count: int) -> Int64[np.ndarray, "count"]:
        """The next `count` draws, which stay the next."""
        missing = torch.empty(max(count - len(self._drawn), 0), dtype=torch.int64)
        missing.random_(-(2**63), None, generator=self._generator)
        self._drawn = np.concatenate((self._drawn, missing.numpy()))
        return self._drawn[:count]

    def skip(self, count: int) -> None:
        self._drawn = self._drawn[count:]


def _first_cells(
    draws: Int64[np.ndarray, "*batch blocks"], room: Int64[np.ndarray, "blocks 2"], grid: Size
) -> Int64[np.ndarray, "*batch blocks"]:
    """First cell of each block."""
    top = (draws >> 32 & 0xFFFFFFFF) % room[:, 0]
    left = (draws & 0xFFFFFFFF) % room[:, 1]
    return top * grid[1] + left


def _enough(
    stream: _Stream,
    hidden: Bool[np.ndarray, "targets cells"],
    context: Size,
    grid: Size,
    config: MaskConfig,
) -> Bool[np.ndarray, "cells"]:
    """One context of one image, drawn until it holds enough."""
    room = np.array([grid]) - np.array([context])
    failures = 0
    while True:
        visible = rectangles(_first_cells(stream.peek(1), room, grid), context, grid)[0]
        stream.skip(1)
        if not config.overlap:
            visible &= ~hidden[: max(config.targets - failures // ROUNDS, 0)].any(axis=0)
        if visible.sum() > config.min_keep:
            return visible
        failures += 1


def _first(
    visible: Bool[np.ndarray, "contexts batch cells"], lengths: Int64[np.ndarray, "contexts batch"]
) -> Int64[np.ndarray, "contexts batch kept"]:
    """The first patches of every context, as many as the shortest of all holds."""
    contexts, batch, cells = visible.shape
    starts = np.cumsum(lengths) - lengths.ravel()
    own = np.flatnonzero(visible)[starts[:, None] + np.arange(lengths.min())]
    own -= np.arange(0, contexts * batch * cells, cells)[:, None]
    return own.reshape(contexts, batch, -1)


@dataclass(frozen=True)
class MultiBlockMasks:
    """Stackable masks of a batch, by step.

    Parameters
    ----------
    grid
        Rows and columns of patches.
    config
        Scales, aspects and the form: the sound one, or the official program's.

    Raises
    ------
    ConfigError
        Blocks that can be too small for `min_keep`.
    """

    grid: Size
    config: MaskConfig = MaskConfig()

    def __post_init__(self) -> None:
        check_blocks(self.config, self.grid)

    @cached_property
    def sampler(self) -> MultiBlockSampler:
        """The sound sampler: contexts of every length, each image's masks by its own number."""
        config = self.config
        return MultiBlockSampler(
            self.grid,
            contexts=config.contexts,
            targets=config.targets,
            context_scale=config.context_scale,
            target_scale=config.target_scale,
            target_aspect=config.target_aspect,
            min_keep=config.min_keep,
            overlap=config.overlap,
        )

    def block_sizes(self, step: int) -> Sizes:
        """Height and width of every target, then of every context, of this step (0, 1, ...)."""
        if self.config.compat == "official":
            return official_sizes(step, self.grid, self.config)
        return self.sampler.sizes(step=step, seed=0)

    def sample(self, batch: int, step: int, generator: torch.Generator | None = None) -> Masks:
        """Patch indices: a tensor [batch, kept] for each context, [batch, area] for each target.

        Sound contexts are cut to the batch's shortest here as well, by a random choice of patches;
        `sampler` does not cut them.

        Parameters
        ----------
        batch
            Images, at least 1.
        step
            Number of the batch, which gives the sizes.
        generator
            Where places come from; None is torch's global generator.
        """
        sizes = self.block_sizes(step)
        if self.config.compat == "official":
            return official_masks(batch, self.grid, self.config, sizes, generator)
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        contexts, targets = self.sampler.draw(np.arange(batch), step, *sizes, seed=seed)
        kept = min(int(context.lengths.min()) for context in contexts)
        return [
            _some(context, kept, step, seed, number) for number, context in enumerate(contexts)
        ], list(targets)


def _some(
    context: IndexSet, kept: int, step: int, seed: int, number: int
) -> Int64[Tensor, "batch kept"]:
    """A uniform subset of each row's patches, ascending."""
    batch, longest = context.indices.shape
    words = rng.words(seed, "mask/subset", np.arange(batch), step, longest, number * longest)
    keys = words.astype(np.int64)
    keys[~context.key_padding().numpy()] = 2**32  # behind every word
    chosen = np.sort(np.argsort(keys, axis=1, kind="stable")[:, :kept], axis=1)
    return context.indices.long().gather(1, torch.from_numpy(chosen))

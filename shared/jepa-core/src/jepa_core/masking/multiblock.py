"""Rectangles on a grid of patches: a large context block and the targets cut out of it.

The multi-block masks of I-JEPA (Assran et al., arXiv 2301.08243, section 3), for a whole batch at
once and without the bias of the authors' program: places include the last row and column, area and
aspect are drawn apart, and no context is cut to the batch's shortest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from jepa_core import rng
from jepa_core.errors import ConfigError
from jepa_core.masking.blocks import Size, Span, block_area, block_size, block_sizes
from jepa_core.tokens import IndexSet

# Draws of an image's blocks before one more target is left in its contexts.
ROUNDS = 20
_LONGEST_SIDE = 1 << 16


def rectangles(
    first: Int64[np.ndarray, "*batch"], size: Size, grid: Size
) -> Bool[np.ndarray, "*batch cells"]:
    """True in the cells of rectangles.

    Parameters
    ----------
    first
        Flat index of each rectangle's first cell, row * columns + column; it must fit.
    size
        Height and width of all.
    """
    return _masks(size, grid)[first]


def rectangle_cells(
    first: Int64[np.ndarray, "*batch"], size: Size, grid: Size
) -> Int64[np.ndarray, "*batch area"]:
    """Flat indices of the cells of rectangles, ascending; arguments as of `rectangles`."""
    return first[..., None] + _inside(size, grid)


# A run has few sizes, and in a small batch these tables are most of the work.
@lru_cache(maxsize=1024)
def _masks(size: Size, grid: Size) -> Bool[np.ndarray, "cells cells"]:
    """The mask of a rectangle by its first cell; 2 * cells bytes."""
    # In flat indices a rectangle is one pattern behind its first cell: each mask is a window of it.
    cells = grid[0] * grid[1]
    step = np.arange(1 - cells, cells)
    row, column = np.divmod(step, grid[1])
    pattern = (step >= 0) & (row < size[0]) & (column < size[1])
    return sliding_window_view(pattern, cells)[::-1]


@lru_cache(maxsize=1024)
def _inside(size: Size, grid: Size) -> Int64[np.ndarray, "area"]:
    """Cells of the rectangle that starts at cell 0."""
    return (np.arange(size[0])[:, None] * grid[1] + np.arange(size[1])).ravel()


@dataclass(frozen=True)
class MultiBlockSampler:
    """Target blocks anywhere on the grid, and context blocks without the targets' patches.

    Height and width are shared by the targets of a batch, and by its contexts: area =
    floor(cells * scale) and aspect uniform and independent, height = round(sqrt(area * aspect)),
    width = round(sqrt(area / aspect)), neither beyond the grid's. The context has the grid's own
    aspect. Each place is uniform among those that fit, so that every patch can be in a target and
    in a context, though unevenly: on 14 x 14 patches at I-JEPA's setting some target holds the
    centre about 18 times as often as a corner.

    An image of which a context keeps no more than `min_keep` patches draws all its blocks again.
    After every 20 such rounds one more target, from the last on, is left in the contexts, and
    overlaps them then. At I-JEPA's setting hardly any image draws twice: it would take four targets
    side by side.

    Parameters
    ----------
    grid
        Rows and columns of patches.
    contexts, targets
        Blocks of an image, placed independently of each other.
    context_scale, target_scale
        Least and largest area of a block, as a share of the grid.
    target_aspect
        Least and largest height over width of a target.
    min_keep
        Every target and every context holds more patches than this.
    overlap
        Leave the targets in the contexts.

    Raises
    ------
    ConfigError
        A setting out of range, or blocks that could be too small; names the largest `min_keep`.
    """

    grid: Size
    contexts: int = 1
    targets: int = 4
    context_scale: Span = (0.85, 1.0)
    target_scale: Span = (0.15, 0.2)
    target_aspect: Span = (0.75, 1.5)
    min_keep: int = 10
    overlap: bool = False

    def __post_init__(self) -> None:
        if not all(1 <= side < _LONGEST_SIDE for side in self.grid):
            raise ConfigError(f"a grid of {self.grid[0]} x {self.grid[1]} patches", where="grid")
        for name in ("contexts", "targets", "min_keep"):
            if getattr(self, name) < (name != "min_keep"):
                raise ConfigError(f"{name} is {getattr(self, name)}", where=name)
        for name in ("context_scale", "target_scale", "target_aspect"):
            low, high = getattr(self, name)
            if not 0 < low <= high or (high > 1 and name != "target_aspect"):
                raise ConfigError(
                    f"{name} is {[low, high]}",
                    where=name,
                    remedy="allowed: a positive number and one not smaller; shares are up to 1",
                )
        # Neither side shrinks where the area grows.
        smallest = block_sizes(
            block_area(self.grid, self.target_scale[0]), self.target_aspect, self.grid
        )
        smallest.add(self._context_size(self.context_scale[0]))
        least = min(height * width for height, width in smallest)
        if least <= self.min_keep:
            raise ConfigError(
                f"a block on {self.grid[0]} x {self.grid[1]} patches can be as small as {least}, "
                f"and min_keep is {self.min_keep}",
                where="min_keep",
                remedy=f"allowed: up to {least - 1}" if least else "take a larger grid",
            )

    def _context_size(self, share: float) -> Size:
        rows, columns = self.grid
        return block_size(block_area(self.grid, share), rows / columns, self.grid)

    def sizes(self, *, step: int, seed: int) -> tuple[Size, Size]:
        """Height and width of every target, then of every context block, of this step."""
        words = rng.words(seed, "sizes", np.array([step]), 0, 6)
        uniform: list[float] = rng.uniform64(words)[0].tolist()
        share, aspect, context = (
            low + (high - low) * u
            for (low, high), u in zip(
                (self.target_scale, self.target_aspect, self.context_scale), uniform, strict=True
            )
        )
        target = block_size(block_area(self.grid, share), aspect, self.grid)
        return target, self._context_size(context)

    def __call__(
        self,
        samples: Int[np.ndarray, "batch"] | Int[Tensor, "batch"],
        counters: int | Int[np.ndarray, "batch"] | Int[Tensor, "batch"],
        *,
        step: int,
        seed: int,
    ) -> tuple[list[IndexSet], Int64[Tensor, "targets batch cells"]]:
        """One `IndexSet` a context block, and all targets; arguments: see `jepa_core.masking`."""
        return self.draw(samples, counters, *self.sizes(step=step, seed=seed), seed=seed)

    def draw(
        self,
        samples: Int[np.ndarray, "batch"] | Int[Tensor, "batch"],
        counters: int | Int[np.ndarray, "batch"] | Int[Tensor, "batch"],
        target: Size,
        context: Size,
        *,
        seed: int,
    ) -> tuple[list[IndexSet], Int64[Tensor, "targets batch cells"]]:
        """As a call, with sizes that are given."""
        samples = np.asarray(samples)
        counters = np.broadcast_to(np.asarray(counters), samples.shape)
        first = self._first_cells(samples, counters, 0, target, context, seed)
        visible = self._visible(first, self.targets, target, context)
        lengths = visible.sum(axis=2)
        pending = self._short(lengths)
        attempt = 1
        while len(pending):
            kept_out = max(self.targets - attempt // ROUNDS, 0)
            again = self._first_cells(
                samples[pending], counters[pending], attempt, target, context, seed
            )
            first[:, pending] = again
            visible[:, pending] = drawn = self._visible(again, kept_out, target, context)
            lengths[:, pending] = counted = drawn.sum(axis=2)
            pending = pending[self._short(counted)]
            attempt += 1
        contexts = [_index_set(*pair) for pair in zip(visible, lengths, strict=True)]
        cells = rectangle_cells(first[: self.targets], target, self.grid)
        return contexts, torch.from_numpy(cells)

    def _first_cells(
        self,
        samples: Int[np.ndarray, "batch"],
        counters: Int[np.ndarray, "batch"],
        attempt: int,
        target: Size,
        context: Size,
        seed: int,
    ) -> Int64[np.ndarray, "blocks batch"]:
        """First cell of each block, targets before contexts, of one round."""
        blocks = self.targets + self.contexts
        words = rng.words(seed, "mask", samples, counters, 2 * blocks, 2 * blocks * attempt)
        sizes = np.array([target] * self.targets + [context] * self.contexts)
        places = (np.array(self.grid) - sizes + 1).ravel()
        corner = rng.bounded(words, places).reshape(len(samples), blocks, 2)
        return np.ascontiguousarray((corner[..., 0] * self.grid[1] + corner[..., 1]).T)

    def _visible(
        self, first: Int64[np.ndarray, "blocks batch"], kept_out: int, target: Size, context: Size
    ) -> Bool[np.ndarray, "contexts batch cells"]:
        """Patches of each context block, without those of the first `kept_out` targets."""
        visible = rectangles(first[self.targets :], context, self.grid)
        if not self.overlap and kept_out:
            visible &= ~rectangles(first[:kept_out], target, self.grid).any(axis=0)
        return visible

    def _short(self, lengths: Int64[np.ndarray, "contexts batch"]) -> Int64[np.ndarray, "short"]:
        """Images with a context of `min_keep` patches or fewer."""
        return np.flatnonzero((lengths <= self.min_keep).any(axis=0))


def _index_set(
    mask: Bool[np.ndarray, "batch cells"], lengths: Int64[np.ndarray, "batch"]
) -> IndexSet:
    """As `IndexSet.from_mask`, which takes twice as long on the CPU."""
    batch, cells = mask.shape
    # Row b's entries are at starts[b]; less b * cells they are indices of its own.
    flat = np.flatnonzero(mask).astype(np.int32)
    starts = np.cumsum(lengths) - lengths
    place = np.arange(lengths.max(initial=0))
    own = flat.take(starts[:, None] + place, mode="clip")
    own -= np.arange(0, batch * cells, cells, dtype=np.int32)[:, None]
    own *= place < lengths[:, None]
    return IndexSet(torch.from_numpy(own), torch.from_numpy(lengths.astype(np.int32)))

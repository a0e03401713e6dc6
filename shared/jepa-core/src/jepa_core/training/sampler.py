"""Who sees which sample when: the batch of a step is a pure function of (seed, step).

So there is nothing to replay on resume, and neither loader workers nor the number of processes
change what is seen: rank r of W takes the slots [r G/W, (r+1) G/W) of the global batch of G, and
accumulated parts divide those in turn.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Int64

from jepa_core import rng
from jepa_core.errors import ConfigError

# How far weights may be from summing to 1 (0.33 three times is); more is a forgotten source.
_WEIGHT_TOLERANCE = 0.011


@dataclass(frozen=True)
class Draw:
    """What one process fetches at once: a part of the batch of one step."""

    step: int
    """0-based optimiser step."""
    ids: Int64[np.ndarray, " batch"]
    """Record in the source; with several sources the offset of the source plus the index in it."""
    keys: Int64[np.ndarray, " batch"]
    """Sample id for `rng`: the same in every process and worker."""
    counters: Int64[np.ndarray, " batch"]
    """Counter for `rng`: (key, counter) never comes twice in a run."""


class Sampler(Protocol):
    """Anything that draws the batch of a step as a pure function of its own fields."""

    @property
    def batch(self) -> int:
        """Samples in an optimiser step, over all processes and accumulated parts."""

    def draw(
        self, step: int, rank: int = 0, world: int = 1, micro: int = 0, accumulation: int = 1
    ) -> Draw:
        """Part `micro` of the share of process `rank` in the batch of `step`."""


@dataclass(frozen=True)
class Epochs:
    """Every record once an epoch, each epoch in an order of its own.

    Parameters
    ----------
    size
        Records in the source.
    batch
        Samples in an optimiser step.
    seed
        Of the orders: that of epoch e is the argsort of 64-bit words of stream "order", counter e.
    drop_last
        End an epoch at its last full batch; otherwise batches run on across the border.

    Raises
    ------
    ConfigError
        An empty source, an empty batch, or `drop_last` with a batch larger than the source.
    """

    size: int
    batch: int
    seed: int
    drop_last: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError("the source holds no record", remedy="check the data")
        if self.batch < 1:
            raise ConfigError(f"batch is {self.batch}", remedy="allowed: >= 1")
        if self.drop_last and self.batch > self.size:
            raise ConfigError(
                f"batch is {self.batch}, more than the {self.size} records",
                remedy="take a smaller batch or drop_last=False",
            )

    def draw(
        self, step: int, rank: int = 0, world: int = 1, micro: int = 0, accumulation: int = 1
    ) -> Draw:
        """Keys are the record ids, counters the epochs."""
        first, part = _part(self.batch, rank, world, micro, accumulation)
        length = self.size // self.batch * self.batch if self.drop_last else self.size
        at, end = step * self.batch + first, step * self.batch + first + part
        ids, counters = [], []
        while at < end:
            epoch, place = divmod(at, length)
            count = min(end - at, length - place)
            ids.append(_order(self.seed, self.size, epoch)[place : place + count])
            counters.append(np.full(count, epoch, dtype=np.int64))
            at += count
        records = np.concatenate(ids)
        return Draw(step=step, ids=records, keys=records, counters=np.concatenate(counters))


@dataclass(frozen=True)
class Mixture:
    """Draws with replacement: a source by its weight, then a record of it uniformly.

    Parameters
    ----------
    sizes
        Records of each source.
    weights
        Probability of each source; they may miss a sum of 1 by 0.01 and are normalised.
    batch
        Samples in an optimiser step.
    seed
        Of the draws: slot j of step k draws for sample k * batch + j of stream "mixture".

    Raises
    ------
    ConfigError
        Sizes and weights of different number, a negative weight, weights that do not sum to 1, or
        a source with weight and no records.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    batch: int
    seed: int

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ConfigError(f"batch is {self.batch}", remedy="allowed: >= 1")
        if len(self.sizes) != len(self.weights) or not self.sizes:
            raise ConfigError(
                f"{len(self.weights)} weights for {len(self.sizes)} sources",
                remedy="give one weight for each source",
            )
        if not all(np.isfinite(self.weights)) or min(self.weights) < 0:
            raise ConfigError(f"weights are {list(self.weights)}", remedy="allowed: >= 0")
        if abs(sum(self.weights) - 1) > _WEIGHT_TOLERANCE:
            raise ConfigError(
                f"weights {list(self.weights)} sum to {sum(self.weights):g}",
                remedy="they must sum to 1",
            )
        for i, (size, weight) in enumerate(zip(self.sizes, self.weights, strict=True)):
            if size < 0 or (weight > 0 and size == 0):
                raise ConfigError(
                    f"source {i} has weight {weight:g} and {size} records",
                    remedy="give it weight 0 or leave it out",
                )

    def draw(
        self, step: int, rank: int = 0, world: int = 1, micro: int = 0, accumulation: int = 1
    ) -> Draw:
        """Keys are step * batch + slot, counters 0."""
        first, part = _part(self.batch, rank, world, micro, accumulation)
        keys = step * self.batch + np.arange(first, first + part, dtype=np.int64)
        words = rng.words(self.seed, "mixture", keys, 0, 4)
        edges = np.cumsum(self.weights) / np.sum(self.weights)
        # Rounding must leave no chance to what follows the last source that has a weight.
        edges[np.flatnonzero(self.weights)[-1] :] = 1.0
        source = np.searchsorted(edges, rng.uniform64(words[:, :2])[:, 0], side="right")
        sizes = np.asarray(self.sizes, dtype=np.int64)
        index = rng.bounded_large(words[:, 2:], sizes[source][:, None])[:, 0]
        ids = (np.cumsum(sizes) - sizes)[source] + index
        return Draw(step=step, ids=ids, keys=keys, counters=np.zeros_like(keys))


def _part(batch: int, rank: int, world: int, micro: int, accumulation: int) -> tuple[int, int]:
    """First slot and number of slots of a part of the global batch."""
    part, rest = divmod(batch, world * accumulation)
    if rest:
        raise ConfigError(
            f"batch is {batch}",
            remedy=f"allowed: a multiple of {world} processes times {accumulation} accumulated "
            "parts",
        )
    return (rank * accumulation + micro) * part, part


@functools.lru_cache(maxsize=4)
def _order(seed: int, size: int, epoch: int) -> Int64[np.ndarray, " size"]:
    words = rng.words(seed, "order", np.zeros(1, dtype=np.int64), epoch, 2 * size)[0]
    keys = words[0::2].astype(np.uint64) << np.uint64(32) | words[1::2]
    order = np.argsort(keys, kind="stable")
    order.setflags(write=False)
    return order

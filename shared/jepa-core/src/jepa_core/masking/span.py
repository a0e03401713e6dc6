"""Runs along a sequence: a few long hidden runs leave a shared number of visible tokens.

The block sampler of ECG-JEPA (Weimann and Conrad, arXiv 2410.13867), for a whole batch at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64, UInt32
from torch import Tensor

from jepa_core import rng
from jepa_core.errors import ConfigError
from jepa_core.tokens import IndexSet

# Rounds between two looks at which samples are finished; at the paper's setting all but one in 200
# are after eight. Masks do not depend on it: a round's words have a fixed place in the draw.
_ROUNDS = 8


@dataclass(frozen=True)
class RunSampler:
    """Hide runs of at least `min_block` tokens until the batch's keep count is left.

    Each round picks a visible run with probability proportional to its length and hides a block
    in it, of a length uniform between `min_block` and everything still to hide. The first block
    is therefore half of everything on average, and the ends of the sequence stay visible far more
    often than its middle (78 % against 9 % at 200 tokens, keep 0.2, min_block 10).

    Parameters
    ----------
    tokens
        Length N of the sequence, at most 2**16.
    keep
        Range of the visible share r, uniform, one draw per batch: K = ceil(r N) tokens are
        context, the other N - K are targets.
    min_block
        Shortest hidden run, in tokens. When fewer than this are to be hidden in all, they are one
        block at a uniform place.
    circular
        Rotate each mask by a uniform offset: every position is then visible equally often. A
        visible or hidden run may cross the seam.

    Raises
    ------
    ConfigError
        A keep count outside [1, N - 1] would be possible, or another setting is out of range.
    """

    tokens: int
    keep: tuple[float, float]
    min_block: int
    circular: bool = False

    def __post_init__(self) -> None:
        low, high = self.keep
        if not 2 <= self.tokens <= 1 << 16:
            raise ConfigError(f"tokens {self.tokens} is not in [2, 2**16]", where="tokens")
        if self.min_block < 1:
            raise ConfigError(f"min_block {self.min_block} is below 1", where="min_block")
        if not 0 < low <= high < 1 or self._count(high) >= self.tokens:
            raise ConfigError(
                f"keep {low} to {high} of {self.tokens} tokens must leave at least one token "
                "visible and one hidden",
                where="keep",
                remedy="give 0 < low <= high < 1 with ceil(high * tokens) < tokens",
            )

    def _count(self, share: float) -> int:
        # 0.07 * 100 is 7.000000000000001 in floating point, and 7 tokens are meant.
        return max(1, math.ceil(share * self.tokens - 1e-9))

    def keep_count(self, *, step: int, seed: int) -> int:
        """Context tokens of every sample in the batch of this step."""
        low, high = self.keep
        uniform = float(rng.uniform64(rng.words(seed, "sizes", np.array([step]), 0, 2))[0, 0])
        return self._count(low + (high - low) * uniform)

    def __call__(
        self,
        samples: Int[np.ndarray, "batch"] | Int[Tensor, "batch"],
        counters: int | Int[np.ndarray, "batch"] | Int[Tensor, "batch"],
        *,
        step: int,
        seed: int,
    ) -> tuple[IndexSet, IndexSet]:
        """Context [batch, K] and targets [batch, N - K] of one batch; see `jepa_core.masking`."""
        samples = np.asarray(samples)
        counters = np.broadcast_to(np.asarray(counters), samples.shape)
        keep = self.keep_count(step=step, seed=seed)
        visible = self._visible(samples, counters, keep, seed)
        if self.circular:
            words = rng.words(seed, "mask/rotation", samples, counters, 1)
            shift = rng.bounded(words, self.tokens)
            source = (np.arange(self.tokens) - shift) % self.tokens
            visible = np.take_along_axis(visible, source, axis=1)
        return _index_set(visible, keep), _index_set(~visible, self.tokens - keep)

    def _visible(
        self,
        samples: Int[np.ndarray, "batch"],
        counters: Int[np.ndarray, "batch"],
        keep: int,
        seed: int,
    ) -> Bool[np.ndarray, "batch tokens"]:
        """Masks with `keep` true in each row, before any rotation."""
        rows = np.arange(len(samples))
        start = np.zeros((1, len(rows)), np.int64)
        length = np.full((1, len(rows)), self.tokens, np.int64)
        rest = np.full(len(rows), self.tokens - keep, np.int64)
        # +1 where a visible run starts and -1 behind its end, all samples on one line.
        edges = np.zeros(len(rows) * self.tokens + 1, np.int8)
        first = 0
        while len(rows):
            words = rng.words(seed, "mask", samples[rows], counters[rows], 4 * _ROUNDS, first)
            for draw in words.T.reshape(_ROUNDS, 4, -1):
                if not rest.any():
                    break
                start, length, rest = self._hide_block(start, length, rest, keep, draw)
            done, pending = np.flatnonzero(rest == 0), np.flatnonzero(rest)
            begin = start.take(done, axis=1) + rows[done] * self.tokens
            size = length.take(done, axis=1)
            begin, size = begin[size > 0], size[size > 0]
            edges[begin] += 1
            edges[begin + size] -= 1
            rows, rest = rows[pending], rest[pending]
            start, length = start.take(pending, axis=1), length.take(pending, axis=1)
            first += 4 * _ROUNDS
        visible = np.cumsum(edges[:-1], dtype=np.int8).view(np.bool_)
        return visible.reshape(len(samples), self.tokens)

    def _hide_block(
        self,
        start: Int64[np.ndarray, "runs rows"],
        length: Int64[np.ndarray, "runs rows"],
        rest: Int64[np.ndarray, "rows"],
        keep: int,
        draw: UInt32[np.ndarray, "4 rows"],
    ) -> tuple[
        Int64[np.ndarray, "runs_plus_1 rows"],
        Int64[np.ndarray, "runs_plus_1 rows"],
        Int64[np.ndarray, "rows"],
    ]:
        """One round: hide a block, of which `rest` tokens are left, in a visible run.

        The runs of a sample are a column, in no order. The picked run becomes the piece before the
        block, the piece behind it is appended; empty pieces stay and are never picked. A sample
        with rest 0 hides an empty block, which changes nothing.
        """
        columns = np.arange(len(rest))
        # A uniform visible token picks its run with probability proportional to the length.
        token = rng.bounded(draw[0], keep + rest)
        picked = (np.cumsum(length, axis=0) <= token).sum(axis=0)
        run_start, run_length = start[picked, columns], length[picked, columns]

        spare = rest - self.min_block
        size = self.min_block + rng.bounded(draw[1], np.maximum(spare, 0) + 1)
        # At most `rest`, when too little is left for a block; at most the whole run.
        size = np.minimum(np.minimum(size, rest), run_length)

        after = run_length - size
        before = rng.bounded(draw[2], after + 1)
        # A last block below min_block joins a hidden neighbour, so that no hidden run is shorter.
        left, right = run_start > 0, run_start + run_length < self.tokens
        to_right = right & (~left | (rng.bounded(draw[3], 2) == 1))
        before = np.where((spare < 0) & (left | right), np.where(to_right, after, 0), before)
        after -= before

        length[picked, columns] = before
        start = np.concatenate((start, (run_start + before + size)[None]))
        length = np.concatenate((length, after[None]))
        return start, length, rest - size


def _index_set(mask: Bool[np.ndarray, "batch tokens"], count: int) -> IndexSet:
    """The true positions of a mask with `count` of them in every row."""
    batch, tokens = mask.shape
    flat = np.flatnonzero(mask).reshape(batch, count)
    indices = (flat - np.arange(batch)[:, None] * tokens).astype(np.int32)
    return IndexSet(torch.from_numpy(indices), torch.full((batch,), count, dtype=torch.int32))

"""Random subsets of a set without geometry, such as the columns of a table.

The sampler of T-JEPA (Thimonier et al., arXiv 2410.05016), for a whole batch at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, Int32, UInt32
from torch import Tensor

from jepa_core import rng
from jepa_core.errors import ConfigError
from jepa_core.tokens import IndexSet


def rounded(tokens: int, share: float) -> int:
    """Tokens in a share, halves to even."""
    return round(tokens * share)


@dataclass(frozen=True)
class SubsetSampler:
    """A random subset is context; each target is a random subset of what is left.

    Both sizes are drawn once a batch, so that a batch has one shape: n = least + round((most -
    least) u) with u uniform, both again until they fit. The two ends are therefore drawn half as
    often as the sizes between.

    Parameters
    ----------
    tokens
        Members N of the set, at most 2**16.
    context, target
        Smallest and largest share of N in the context and in a target; rounded, halves to even.
    targets
        Target subsets P of a sample, drawn independently: they overlap each other, not the context.
    kept
        Tokens before the set (registers) that belong to every context and to no target; they take
        the indices 0 .. kept-1, the set those behind.
    buckets
        Sizes that each of the two numbers may take, equally spaced between its ends: few shapes
        for compiled or recorded steps. 0 allows every size.

    Raises
    ------
    ConfigError
        Shares that round to an empty context or target, or that never fit together.
    """

    tokens: int
    context: tuple[float, float]
    target: tuple[float, float]
    targets: int = 1
    kept: int = 0
    buckets: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.tokens <= 1 << 16:
            raise ConfigError(f"{self.tokens} tokens to draw from", remedy="allowed: 2 to 2**16")
        for name in ("targets", "kept", "buckets"):
            if getattr(self, name) < (name == "targets"):
                raise ConfigError(f"{name} is {getattr(self, name)}")
        least, most, target_least, target_most = self.bounds
        for name, low, high in (("context", least, most), ("target", target_least, target_most)):
            if not 1 <= low <= high:
                raise ConfigError(
                    f"{name} {list(getattr(self, name))} of {self.tokens} tokens rounds to "
                    f"{low} to {high} tokens",
                    where=name,
                    remedy="give a smaller share and then a larger one, of a token at least",
                )
        if least + target_least > self.tokens:
            raise ConfigError(
                f"the smallest context ({least}) and target ({target_least}) exceed the "
                f"{self.tokens} tokens",
                where="context",
                remedy="lower the smaller share of context or target",
            )

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """Least and most tokens of the context, then of a target."""
        least, most, target_least, target_most = (
            rounded(self.tokens, share) for share in (*self.context, *self.target)
        )
        return least, most, target_least, target_most

    def sizes(self, *, step: int, seed: int) -> tuple[int, int]:
        """Tokens of every context (without the kept ones) and of every target of this step."""
        least, most, target_least, target_most = self.bounds
        attempt = 0
        while True:
            words = rng.words(seed, "sizes", np.array([step]), 0, 4, first=4 * attempt)
            u, v = rng.uniform64(words)[0].tolist()
            n_context = self._size(least, most, u)
            n_target = self._size(target_least, target_most, v)
            if n_context + n_target <= self.tokens:
                return n_context, n_target
            attempt += 1

    def _size(self, least: int, most: int, u: float) -> int:
        if self.buckets:
            # The ends of the range are always among the sizes, so that something always fits.
            gaps = max(1, self.buckets - 1)
            u = round(u * gaps) / gaps
        return least + round((most - least) * u)

    def __call__(
        self,
        samples: Int[np.ndarray, "batch"] | Int[Tensor, "batch"],
        counters: int | Int[np.ndarray, "batch"] | Int[Tensor, "batch"],
        *,
        step: int,
        seed: int,
    ) -> tuple[IndexSet, IndexSet]:
        """Context [batch, kept + n] and targets [targets * batch, m]; see `jepa_core.masking`."""
        n_context, n_target = self.sizes(step=step, seed=seed)
        return self.draw(samples, counters, n_context, n_target, seed=seed)

    def draw(
        self,
        samples: Int[np.ndarray, "batch"] | Int[Tensor, "batch"],
        counters: int | Int[np.ndarray, "batch"] | Int[Tensor, "batch"],
        n_context: int,
        n_target: int,
        *,
        seed: int,
    ) -> tuple[IndexSet, IndexSet]:
        """As a call, with sizes that are given."""
        samples = np.asarray(samples)
        counters = np.broadcast_to(np.asarray(counters), samples.shape)
        rows, rest, more = len(samples), self.tokens - n_context, self.targets - 1
        words = rng.words(seed, "mask", samples, counters, self.tokens + more * rest)
        order = rng.shuffled(self._members(), words[:, : self.tokens])
        context = np.empty((rows, self.kept + n_context), np.int32)
        context[:, : self.kept] = np.arange(self.kept)
        context[:, self.kept :] = np.sort(order[:, :n_context], axis=1)
        # One order serves the context and the first target; each further target is a new one of
        # what is left.
        left = order[:, n_context:]
        target = np.empty((self.targets, rows, n_target), np.int32)
        target[0] = left[:, :n_target]
        if more:
            fresh = words[:, self.tokens :].reshape(rows, more, rest)
            found = rng.shuffled(left[:, None], fresh)[..., :n_target]
            target[1:] = np.moveaxis(found, 1, 0)
        target.sort(axis=-1)
        return _index_set(context), _index_set(target.reshape(-1, n_target))

    def _members(self) -> UInt32[np.ndarray, "tokens"]:
        return np.arange(self.kept, self.kept + self.tokens, dtype=np.uint32)


def _index_set(indices: Int32[np.ndarray, "rows size"]) -> IndexSet:
    rows, size = indices.shape
    return IndexSet(torch.from_numpy(indices), torch.full((rows,), size, dtype=torch.int32))

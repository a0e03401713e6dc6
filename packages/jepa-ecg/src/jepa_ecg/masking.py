"""The official mask sampler of ECG-JEPA, draw for draw, on numpy's legacy generator.

For exact comparison with runs of the official program. Training uses
`jepa_core.masking.span.RunSampler`: the same distribution, a batch at once, resumable.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool

from jepa_core.errors import ConfigError
from jepa_core.tokens import IndexSet


def sample_mask(
    rng: np.random.RandomState, keep: int, n: int, min_block: int
) -> Bool[np.ndarray, " n"]:
    """Visible tokens of one record; `keep` of `n` are true.

    Weimann and Conrad, arXiv 2410.13867. Where the official program fails, with fewer than
    `min_block` tokens to hide, they are one block at a uniform place.

    Raises
    ------
    ConfigError
        `keep` outside [1, n - 1].
    """
    if not 1 <= keep < n:
        raise ConfigError(f"{keep} of {n} tokens cannot be kept", remedy="keep 1 to n - 1")
    visible = np.ones(n, np.bool_)
    runs = [(0, n)]
    rest = n - keep
    while rest > 0:
        lengths = np.array([end - start for start, end in runs])
        start, end = runs.pop(rng.choice(len(runs), p=lengths / lengths.sum()))
        size = rng.randint(min_block, rest + 1) if rest >= min_block else rest
        if end - start <= size:
            visible[start:end] = False
            rest -= end - start
            continue
        before_hidden, behind_hidden = start > 0, end < n
        if rest >= min_block or not (before_hidden or behind_hidden):
            block = rng.randint(start, end - size + 1)
        elif before_hidden and behind_hidden:
            block = rng.choice([start, end - size])
        else:
            block = start if before_hidden else end - size
        visible[block : block + size] = False
        rest -= size
        runs += [(start, block), (block + size, end)]
    return visible


def sample_masks(
    rng: np.random.RandomState, batch: int, keep: tuple[float, float], n: int, min_block: int
) -> tuple[IndexSet, IndexSet]:
    """Context [batch, K] and targets [batch, n - K], with one K = ceil(r n), r uniform in `keep`.

    Raises
    ------
    ConfigError
        K outside [1, n - 1].
    """
    count = math.ceil(rng.uniform(*keep) * n)
    visible = torch.from_numpy(
        np.stack([sample_mask(rng, count, n, min_block) for _ in range(batch)])
    )
    return IndexSet.from_mask(visible), IndexSet.from_mask(~visible)

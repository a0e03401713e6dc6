"""Means and covariances of pairs of rows in one pass over any number of them, in float64."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Num

# Rows converted to float64 at a time.
_CHUNK = 16_384


@dataclass(frozen=True)
class Moments:
    """What is kept of pairs of rows.

    Parameters
    ----------
    n, dropped
        Pairs that count, and pairs with a value that is not finite.
    Sxx, Syx, Syy
        Centred second moments, divided by n; Syx = E[y x'], rows are y's features. Syx and Syy are
        None where there is no y.
    constant
        Features of x without variance.
    """

    n: int
    dropped: int
    Sxx: Float[np.ndarray, "d d"]
    Syx: Float[np.ndarray, "d d"] | None
    Syy: Float[np.ndarray, "d d"] | None
    constant: Bool[np.ndarray, " d"]


Pair = tuple[Num[np.ndarray, "rows d"], Num[np.ndarray, "rows d"] | None]


def moments(chunks: Iterable[Pair], d: int) -> Moments:
    """Second moments over chunks of rows (x, y); rows that are not finite are left out.

    Partial sums are centred on their own means and merged (Chan, Golub, LeVeque 1983), so that a
    mean far from zero costs no digits. Integers are converted before they are multiplied.

    Parameters
    ----------
    chunks
        x and y of some rows each; y None throughout for one table alone.
    d
        Features.
    """
    n = dropped = 0
    mean: np.ndarray = np.zeros(0)
    total: np.ndarray = np.zeros((0, 0))
    low, high = np.full(d, np.inf), np.full(d, -np.inf)
    for x, y in chunks:
        both = x if y is None else np.concatenate((x, y), axis=1)
        both = both.astype(np.float64, copy=False)
        good = both[np.isfinite(both).all(axis=1)]
        dropped += len(both) - len(good)
        if not len(good):
            continue
        low = np.minimum(low, good[:, :d].min(axis=0))
        high = np.maximum(high, good[:, :d].max(axis=0))
        here = good.mean(axis=0)
        centred = good - here
        scatter = centred.T @ centred
        if n == 0:
            mean, total = here, scatter
        else:
            step = here - mean
            total = total + scatter + np.outer(step, step) * (n * len(good) / (n + len(good)))
            mean = mean + step * (len(good) / (n + len(good)))
        n += len(good)
    if n == 0:
        mean, total = np.zeros(d), np.zeros((d, d))
    total = total / max(n, 1)
    paired = len(mean) == 2 * d
    return Moments(
        n,
        dropped,
        total[:d, :d],
        total[d:, :d] if paired else None,
        total[d:, d:] if paired else None,
        ~(low < high),
    )


def slices(
    x: Num[np.ndarray, "n d"], y: Num[np.ndarray, "n d"] | None, rows: int = _CHUNK
) -> Iterable[Pair]:
    """Arrays in memory as chunks for `moments`."""
    for first in range(0, len(x), rows):
        part = slice(first, first + rows)
        yield x[part], None if y is None else y[part]

"""How sure a score is: over records (bootstrap), over counts (Wilson), over seeds (paired t)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from jepa_core import rng
from jepa_core.errors import DataError
from jepa_core.evaluation.metrics import Counts, Statistic

_BLOCK = 64  # resamples computed at once: their running sums should stay in the cache


@dataclass(frozen=True)
class Interval:
    """A bootstrap interval and what had to be done for it.

    `parts` (classes, mostly) are defined on the full sample. A resample that lost one was drawn
    again, `redrawn` times in all; `partial` resamples still lacked some at the last try and are
    means over what they had, `fewest` parts in the poorest.
    """

    estimate: float
    low: float
    high: float
    level: float
    resamples: int
    parts: int
    redrawn: int
    partial: int
    fewest: int

    def __str__(self) -> str:
        return f"{self.estimate:.4f} [{self.low:.4f}, {self.high:.4f}]"


def bootstrap(
    statistic: Statistic,
    n: int,
    *,
    groups: Shaped[np.ndarray, "n"] | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    redraws: int = 20,
) -> Interval:
    """Percentile interval of the mean over a statistic's parts; never NaN.

    Parameters
    ----------
    statistic
        How often each record was drawn to one value a part, NaN where undefined: see
        `jepa_core.evaluation.metrics`. The difference of two such functions gives the interval of
        a paired difference.
    n
        Records.
    groups
        Whom each record belongs to (a patient, a site). Whole groups are drawn then; records of
        one group are not independent, and an interval that takes them so is too narrow.
    resamples, level, seed
        Resample b, try a, is stream "bootstrap", sample b, counter a.
    redraws
        How often a resample that lost a part is drawn again.

    Raises
    ------
    DataError
        No records, a group label for other than each of them, or a statistic undefined on the
        full sample.
    """
    if n < 1:
        raise DataError("no records to resample")
    member = np.arange(n)
    if groups is not None:
        if len(groups) != n:
            raise DataError(f"{len(groups)} group labels for {n} records")
        member = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
    full = statistic(np.ones((1, n), np.int64))[0]
    defined = ~np.isnan(full)
    if not defined.any():
        raise DataError("the score is undefined on the whole sample", remedy="use more records")

    means, redrawn, partial, fewest = [], 0, 0, int(defined.sum())
    for first in range(0, resamples, _BLOCK):
        numbers = np.arange(first, min(first + _BLOCK, resamples))
        values = np.full((len(numbers), int(defined.sum())), np.nan)
        pending = np.arange(len(numbers))
        for attempt in range(1 + redraws):
            counts = _draw(seed, numbers[pending], attempt, member)
            values[pending] = statistic(counts)[:, defined]
            pending = pending[np.isnan(values[pending]).any(axis=1)]
            if not len(pending):
                break
            redrawn += len(pending) if attempt < redraws else 0
        present = (~np.isnan(values)).sum(axis=1)
        partial += int((present < values.shape[1]).sum())
        values, present = values[present > 0], present[present > 0]
        fewest = min([fewest, *present.tolist()])
        means.append(np.nansum(values, axis=1) / present)
    distribution = np.concatenate(means)
    if not len(distribution):
        raise DataError("the score is undefined on every resample", remedy="use more records")
    tail = (1 - level) / 2
    low, high = np.quantile(distribution, [tail, 1 - tail])
    estimate = float(full[defined].mean())
    parts = int(defined.sum())
    return Interval(
        estimate, float(low), float(high), level, len(distribution), parts, redrawn, partial, fewest
    )


def _draw(seed: int, numbers: np.ndarray, attempt: int, member: np.ndarray) -> Counts:
    """How often each record is drawn in the numbered resamples."""
    groups = int(member.max()) + 1
    if groups <= 1 << 16:
        drawn = rng.bounded(rng.words(seed, "bootstrap", numbers, attempt, groups), groups)
    else:
        words = rng.words(seed, "bootstrap", numbers, attempt, 2 * groups)
        drawn = rng.bounded_large(words, groups)
    flat = drawn + groups * np.arange(len(numbers))[:, None]
    counts = np.bincount(flat.ravel(), minlength=groups * len(numbers))
    return counts.reshape(len(numbers), groups)[:, member]


def wilson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion; (0, 1) without trials (Wilson 1927)."""
    if not 0 <= successes <= trials:
        raise DataError(f"{successes} successes in {trials} trials")
    if trials == 0:
        return 0.0, 1.0
    from scipy.stats import norm

    z2 = float(norm.ppf((1 + level) / 2)) ** 2
    share = successes / trials
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    root = math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    half = math.sqrt(z2) * root / (1 + z2 / trials)
    low = 0.0 if successes == 0 else centre - half
    return low, 1.0 if successes == trials else centre + half


@dataclass(frozen=True)
class Paired:
    """Differences over equal seeds; no interval with fewer than three."""

    differences: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None
    same_sign: bool

    def __str__(self) -> str:
        text = f"{self.mean:+.4f}"
        if self.low is not None:
            text += f" [{self.low:+.4f}, {self.high:+.4f}]"
        signs = "".join("+" if d > 0 else "-" if d < 0 else "0" for d in self.differences)
        return f"{text} ({signs})"


def paired(
    a: Sequence[float] | Float[np.ndarray, "seeds"],
    b: Sequence[float] | Float[np.ndarray, "seeds"],
    level: float = 0.95,
) -> Paired:
    """a minus b on equal seeds and splits: mean, t interval, and whether all signs agree.

    Raises
    ------
    DataError
        Differing numbers of seeds, none, or a score that is not finite.
    """
    if len(a) != len(b) or len(a) == 0:
        raise DataError(f"{len(a)} and {len(b)} scores cannot be paired")
    differences = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    if not np.isfinite(differences).all():
        raise DataError("a score is not finite, so nothing can be said of the difference")
    mean, n = float(differences.mean()), len(differences)
    low = high = None
    if n >= 3:
        from scipy.stats import t

        half = float(t.ppf((1 + level) / 2, n - 1)) * float(differences.std(ddof=1)) / math.sqrt(n)
        low, high = mean - half, mean + half
    same = bool((differences > 0).all() or (differences < 0).all())
    return Paired(tuple(differences.tolist()), mean, low, high, same)

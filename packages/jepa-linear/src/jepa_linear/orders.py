"""The order in which each objective learns the directions at one depth, and how the two compare."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import kendalltau

from jepa_linear.parameters import Objective
from jepa_linear.presets import AnalysisConfig
from jepa_linear.times import (
    Status,
    critical_time,
    default_level,
    order,
    ranks,
    sensitivity,
    status,
)
from jepa_linear.uncertainty import SURE, Chance, Drawn, draws, percentiles, variances

OBJECTIVES: tuple[Objective, Objective] = ("jepa", "mae")

# Directions whose pairs are compared one by one; what comes later in both orders is not.
_COMPARED = 40
# Relative difference of two times below which directions come together for any practical purpose.
_TOGETHER = 0.01


class Inversion(NamedTuple):
    """Two directions of which each objective learns another one first.

    Attributes
    ----------
    first, second
        The JEPA learns `first` before `second`, reconstruction the other way round.
    probability
        That both hold, as far as chance goes; NaN where nothing is known about chance.
    """

    first: int
    second: int
    probability: float


@dataclass(frozen=True)
class Side:
    """One objective at one depth; every array has one entry a direction.

    Attributes
    ----------
    status
        `Status` at the paper's level, p of its own plateau.
    time, rank
        Paper time and rank at the level asked for; rank is NaN for directions without variance.
    plateau_time, plateau_rank
        The same at the paper's level.
    eta
        d ln t / d ln rho at the level asked for.
    order
        Directions as they come.
    next_probability
        That a direction comes before the one that follows it in `order`; NaN where unknown.
    low, high
        95 % interval of the time.
    never
        Probability that a direction does not get there; NaN where unknown.
    needed
        Pairs that would make each step between the first five sure to 95 %; NaN where unknown.
    """

    objective: Objective
    reached: float
    status: Int[np.ndarray, " modes"]
    time: Float[np.ndarray, " modes"]
    rank: Float[np.ndarray, " modes"]
    plateau_time: Float[np.ndarray, " modes"]
    plateau_rank: Float[np.ndarray, " modes"]
    eta: Float[np.ndarray, " modes"]
    order: Int[np.ndarray, " modes"]
    next_probability: Float[np.ndarray, " modes"]
    low: Float[np.ndarray, " modes"]
    high: Float[np.ndarray, " modes"]
    never: Float[np.ndarray, " modes"]
    needed: float

    @property
    def grows(self) -> Bool[np.ndarray, " modes"]:
        """Directions that are learned at the level asked for, in finite time."""
        return np.isfinite(self.time) & (self.time > 0)

    def count(self, code: Status) -> int:
        """Directions of a status."""
        return int((self.status == code).sum())


@dataclass(frozen=True)
class Order:
    """Both objectives at one depth, and how their orders compare.

    Attributes
    ----------
    tau, plateau_tau
        Kendall's tau-b over directions that grow under both; NaN below three of them.
    inversions
        Pairs that are learned in opposite order, those surest and earliest first.
    moved
        Direction with the largest change of rank; -1 where nothing grows under both.
    """

    depth: int
    layer_scale: float
    jepa: Side
    mae: Side
    tau: float
    plateau_tau: float
    inversions: tuple[Inversion, ...]
    moved: int

    def sides(self) -> tuple[Side, Side]:
        """JEPA and masked autoencoder."""
        return self.jepa, self.mae


def compare(
    depth: int,
    lam: Float[np.ndarray, " modes"],
    rho: Float[np.ndarray, " modes"],
    sigma2: Float[np.ndarray, " modes"],
    config: AnalysisConfig,
    chance: Chance | None,
    n: int | None,
) -> Order:
    """Both objectives at one depth.

    Parameters
    ----------
    chance
        lambda and rho of the directions in resamples; None where nothing is known.
    n
        Pairs that lam and rho were measured on.
    """
    sides = [_side(one, depth, lam, rho, sigma2, config, chance, n) for one in OBJECTIVES]
    jepa, mae = sides
    both = jepa.grows & mae.grows
    plateau_both = (jepa.status == Status.GROWS) & (mae.status == Status.GROWS)
    moved = -1
    if both.any():
        # Among directions that grow under both, as tau is.
        shift = np.abs(_rank_within(jepa.time, both) - _rank_within(mae.time, both))
        moved = int(np.flatnonzero(both)[int(np.argmax(shift[both]))])
    return Order(
        depth,
        config.scale(depth),
        jepa,
        mae,
        _tau(jepa.time, mae.time, both),
        _tau(jepa.plateau_time, mae.plateau_time, plateau_both),
        _inversions(depth, jepa, mae, both, config, chance),
        moved,
    )


def _setting(
    objective: Objective, depth: int, config: AnalysisConfig, reached: float | None
) -> dict[str, object]:
    setting: dict[str, object] = {"layer_scale": config.scale(depth), "objective": objective}
    if reached is None:
        return setting | {"p": config.p}
    return setting | {"level": "absolute", "w1": reached**depth}


def level_of(
    objective: Objective, depth: int, rho: Float[np.ndarray, " modes"], config: AnalysisConfig
) -> float | None:
    """Layer scale that counts as learned; None for a share of each direction's own plateau."""
    if config.level == "plateau":
        return None
    if config.reached is not None:
        return config.reached
    known = rho[np.isfinite(rho)]
    w1 = default_level(known, depth, layer_scale=config.scale(depth), objective=objective)
    return float(w1 ** (1 / depth))


def _side(
    objective: Objective,
    depth: int,
    lam: Float[np.ndarray, " modes"],
    rho: Float[np.ndarray, " modes"],
    sigma2: Float[np.ndarray, " modes"],
    config: AnalysisConfig,
    chance: Chance | None,
    n: int | None,
) -> Side:
    reached = level_of(objective, depth, rho, config)
    own = _setting(objective, depth, config, None)
    asked = _setting(objective, depth, config, reached)
    known = {"sigma2": sigma2}
    time = critical_time(lam, rho, depth, **known, **asked)  # type: ignore[arg-type]
    come = np.asarray(order(lam, rho, depth, **known, **asked))
    eta = sensitivity(lam, rho, depth, **asked)  # type: ignore[arg-type]
    next_probability = np.full(len(lam), np.nan)
    low = high = never = np.full(len(lam), np.nan)
    needed = np.nan
    grows = np.isfinite(time) & (time > 0)
    row = [int(i) for i in come if grows[i]]
    if chance is not None and n is not None:
        drawn = draws(chance, depth, asked)
        with np.errstate(over="ignore"):
            low, high = (np.exp(bound) for bound in percentiles(drawn.log_time, len(lam)))
        low, high = np.where(grows, low, np.nan), np.where(grows, high, np.nan)
        never = (drawn.log_time == np.inf).mean(axis=0)
        for before, after in pairwise(row):
            next_probability[before] = drawn.before(before, after)
        needed = _needed(drawn, row[:5], np.log(np.where(grows, time, 1.0)), n)
    return Side(
        objective,
        np.nan if reached is None else reached,
        np.asarray(status(lam, rho, depth, **known, **own)).astype(np.int64),  # type: ignore[arg-type]
        time,
        ranks(lam, rho, depth, **known, **asked),  # type: ignore[arg-type]
        critical_time(lam, rho, depth, **known, **own),  # type: ignore[arg-type]
        ranks(lam, rho, depth, **known, **own),  # type: ignore[arg-type]
        eta,
        come,
        next_probability,
        low,
        high,
        never,
        float(needed),
    )


def _needed(drawn: Drawn, first: list[int], log_time: Float[np.ndarray, " modes"], n: int) -> float:
    """Pairs that make every step between these directions sure; NaN without a step that counts."""
    steps = [(a, b, log_time[b] - log_time[a]) for a, b in pairwise(first)]
    pairs = [
        variances(drawn, a, b, n) * SURE**2 / step**2 for a, b, step in steps if step >= _TOGETHER
    ]
    return float(np.nanmax(pairs)) if np.isfinite(pairs).any() else float("nan")


def _rank_within(
    time: Float[np.ndarray, " modes"], chosen: Bool[np.ndarray, " modes"]
) -> Float[np.ndarray, " modes"]:
    rank = np.full(len(time), np.nan)
    inside = np.flatnonzero(chosen)
    rank[inside[np.argsort(time[inside], kind="stable")]] = np.arange(1, len(inside) + 1)
    return rank


def _tau(
    a: Float[np.ndarray, " modes"],
    b: Float[np.ndarray, " modes"],
    both: Bool[np.ndarray, " modes"],
) -> float:
    if both.sum() < 3:
        return float("nan")
    return float(kendalltau(a[both], b[both]).statistic)


def _inversions(
    depth: int,
    jepa: Side,
    mae: Side,
    both: Bool[np.ndarray, " modes"],
    config: AnalysisConfig,
    chance: Chance | None,
) -> tuple[Inversion, ...]:
    early = np.flatnonzero(both)
    position = np.minimum(_rank_within(jepa.time, both), _rank_within(mae.time, both))
    early = early[np.argsort(position[early], kind="stable")][:_COMPARED]
    drawn = None
    if chance is not None:
        level = [None if np.isnan(side.reached) else side.reached for side in (jepa, mae)]
        drawn = [
            draws(chance, depth, _setting(side.objective, depth, config, one))
            for side, one in zip((jepa, mae), level, strict=True)
        ]
    found = []
    row = early.tolist()
    for k, i in enumerate(row):
        for j in row[k + 1 :]:
            if (jepa.time[i] - jepa.time[j]) * (mae.time[i] - mae.time[j]) >= 0:
                continue
            a, b = (i, j) if jepa.time[i] < jepa.time[j] else (j, i)
            probability = float("nan") if drawn is None else drawn[0].inverted(drawn[1], a, b)
            found.append((position[[i, j]].min(), Inversion(int(a), int(b), probability)))
    found.sort(key=lambda one: (not one[1].probability > 0.95, one[0]))
    return tuple(inversion for _, inversion in found)

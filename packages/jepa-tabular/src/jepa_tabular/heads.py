"""A linear head on representations: chosen and fitted in float64, kept as four arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64

from jepa_core import rng
from jepa_core.evaluation.linear import PENALTIES, logistic, ridge

# Standard deviations at which features are cut, so that no single row bends the map.
CLIP = 6.0

# What varies by a millionth of its mean is rounding, not to be blown up to unit variance.
_DEAD = 1e-6

_HELD_OUT, _FEWEST = 0.2, 50


class Scale(NamedTuple):
    """Standardised and cut: clip((z - mean) / std, -6, 6).

    Parameters
    ----------
    mean, std
        Of each feature; an infinite `std` where it does not vary.
    """

    mean: Float64[np.ndarray, " dim"]
    std: Float64[np.ndarray, " dim"]

    @classmethod
    def of(cls, z: Float[np.ndarray, "rows dim"]) -> Scale:
        """The scale of these rows."""
        mean, std = z.mean(0, dtype=np.float64), z.std(0, dtype=np.float64)
        return cls(mean, np.where(std > _DEAD * np.abs(mean) + 1e-12, std, np.inf))

    def __call__(self, z: Float[np.ndarray, "rows dim"]) -> Float64[np.ndarray, "rows dim"]:
        return ((np.asarray(z, np.float64) - self.mean) / self.std).clip(-CLIP, CLIP)


@dataclass(frozen=True)
class LinearHead:
    """Standardised, cut and mapped: scores = clip((z - mean) / std, -6, 6) weight + intercept.

    Parameters
    ----------
    mean, std
        Of the training rows.
    weight, intercept
        To one output a class (log-odds), or to the value.
    """

    mean: Float64[np.ndarray, " dim"]
    std: Float64[np.ndarray, " dim"]
    weight: Float64[np.ndarray, "dim outputs"]
    intercept: Float64[np.ndarray, " outputs"]

    def scores(self, z: Float[np.ndarray, "rows dim"]) -> Float64[np.ndarray, "rows outputs"]:
        """Log-odds of the classes, or values."""
        return Scale(self.mean, self.std)(z) @ self.weight + self.intercept

    def arrays(self) -> dict[str, Float64[np.ndarray, "..."]]:
        """To be saved."""
        return {
            "mean": self.mean,
            "std": self.std,
            "weight": self.weight,
            "intercept": self.intercept,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> LinearHead:
        """What `arrays` gave."""
        return cls(*(arrays[name] for name in ("mean", "std", "weight", "intercept")))


def fit_classifier(
    z: Float[np.ndarray, "rows dim"],
    y: Int64[np.ndarray, " rows"],
    classes: int,
    *,
    seed: int = 0,
) -> LinearHead:
    """Logistic regression; its penalty by log loss on a fifth of the rows held out.

    Below 50 rows the penalty is 1: what so few held-out rows say is chance.
    """
    scale = Scale.of(z)
    features = scale(z)
    strength = _penalty(features, y, classes, seed) if len(y) >= _FEWEST else 1.0
    probe = logistic(features, y, classes=classes, C=strength, standardise=False)
    # The probe centres once more what clipping has moved.
    return LinearHead(*scale, probe.weight, probe.intercept - probe.mean @ probe.weight)


def fit_regressor(z: Float[np.ndarray, "rows dim"], y: Float64[np.ndarray, " rows"]) -> LinearHead:
    """Ridge regression; its penalty by generalised cross-validation."""
    scale = Scale.of(z)
    probe = ridge(scale(z), y[:, None], standardise=False)
    return LinearHead(*scale, probe.weight, probe.intercept - probe.mean @ probe.weight)


def held_out(rows: int, seed: int, share: float = _HELD_OUT) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to choose by, at least one of each."""
    order = rng.permutation(rng.words(seed, "held out", np.zeros(1, np.int64), 0, rows))[0]
    count = min(max(1, round(rows * share)), rows - 1)
    return np.sort(order[count:]), np.sort(order[:count])


def log_loss(scores: Float[np.ndarray, "rows classes"], y: Int64[np.ndarray, " rows"]) -> float:
    """Mean negative log probability of the labels."""
    highest = scores.max(1, keepdims=True)
    total = highest[:, 0] + np.log(np.exp(scores - highest).sum(1))
    return float((total - scores[np.arange(len(y)), y]).mean())


def _penalty(features: np.ndarray, y: np.ndarray, classes: int, seed: int) -> float:
    inside, outside = held_out(len(y), seed)
    best, found, worse = np.inf, PENALTIES[0], 0
    # From strong to weak; once two in a row are worse, the weaker ones, which also take longest
    # to fit, are left out.
    for candidate in PENALTIES:
        probe = logistic(
            features[inside], y[inside], classes=classes, C=candidate, standardise=False
        )
        loss = log_loss(probe.scores(features[outside]), y[outside])
        if loss < best:
            best, found, worse = loss, candidate, 0
        elif (worse := worse + 1) == 2:
            break
    return found

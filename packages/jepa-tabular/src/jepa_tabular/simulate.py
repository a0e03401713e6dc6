"""A mixed table with known structure: twelve numbers and six categories that follow four causes.

A row is a pure function of (seed, row number). For demonstrations and tests: what a representation
should recover is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64

from jepa_core import rng
from jepa_core.config import Range, check
from jepa_core.errors import ConfigError

LABEL = "outcome"
LATENT, NUMERIC, CATEGORICAL = 4, 12, 6
_LEVELS = (3, 4, 5, 6, 8, 12)
_NO, _YES = "no", "yes"


@dataclass(frozen=True)
class SimulationConfig:
    """What a generated table is like."""

    noise: Annotated[float, Range(ge=0)] = 0.7
    """Standard deviation of each column's own noise; its share of the causes has 1."""
    temperature: Annotated[float, Range(gt=0)] = 0.5
    """How much chance there is in the categories."""
    missing: Annotated[float, Range(ge=0, lt=1)] = 0.0
    """Share of the numbers that are missing."""
    seed: Annotated[int, Range(ge=0)] = 0
    """Of the columns' makeup and of the rows."""

    def __post_init__(self) -> None:
        check(self)


class Simulated(NamedTuple):
    """A generated table.

    Attributes
    ----------
    frame
        Columns n0 to n11 and c0 to c5.
    label
        "yes" or "no": a nonlinear function of the causes, which no column shows.
    latent
        The causes, which a person with such a table does not have.
    """

    frame: pd.DataFrame
    label: pd.Series
    latent: Float64[np.ndarray, "rows 4"]


def simulate(rows: Int64[np.ndarray, " rows"], config: SimulationConfig | None = None) -> Simulated:
    """The rows of these numbers.

    Numbers are functions of one direction among the causes or of two, in units of their own:
    linear, exponential, between 0 and 1, whole, squared, a product. Categories are the level whose
    direction the causes are nearest to, up to chance.
    """
    config = config or SimulationConfig()
    rows = np.asarray(rows, np.int64)
    latent = _normal(config.seed, "causes", rows, LATENT)
    noise = config.noise * _normal(config.seed, "noise", rows, NUMERIC)
    columns: dict[str, np.ndarray | pd.Series] = {}
    directions = _directions(config.seed, "numbers", 2 * NUMERIC).reshape(NUMERIC, 2, LATENT)
    for j in range(NUMERIC):
        first, second = directions[j] @ latent.T
        columns[f"n{j}"] = _number(j, first + noise[:, j], second)
    if config.missing:
        lost = rng.uniform32(rng.words(config.seed, "missing", rows, 0, NUMERIC)) < config.missing
        for j in range(NUMERIC):
            columns[f"n{j}"] = np.where(lost[:, j], np.nan, columns[f"n{j}"])
    for j, levels in enumerate(_LEVELS):
        words = rng.words(config.seed, f"category {j}", rows, 0, 2 * levels)
        chance = -np.log(-np.log(rng.uniform64(words).clip(1e-12, 1 - 1e-12)))
        nearness = latent @ _directions(config.seed, f"levels {j}", levels).T
        called = (nearness + config.temperature * chance).argmax(axis=1)
        columns[f"c{j}"] = np.array([f"level {chr(ord('a') + i)}" for i in range(levels)])[called]
    # Its own threshold is the median of the function, so that both classes are as frequent.
    score = latent[:, 0] * latent[:, 1] + np.sin(2 * latent[:, 2]) + latent[:, 3]
    label = pd.Series(np.where(score > 0, _YES, _NO), name=LABEL)
    return Simulated(pd.DataFrame(columns), label, latent)


def write_csv(
    path: str | Path, rows: int = 5000, config: SimulationConfig | None = None, *, labels: int = -1
) -> Path:
    """Write a generated table with its label as the last column.

    Parameters
    ----------
    labels
        How many rows have a label, the first ones; -1 is all of them.
    """
    if rows < 1:
        raise ConfigError(f"rows is {rows}", remedy="allowed: >= 1")
    found = simulate(np.arange(rows), config)
    label = found.label
    if labels >= 0:
        label = label.where(np.arange(rows) < labels)
    frame = found.frame.assign(**{LABEL: label})
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Nine digits bring back the same float32, which is what the encoder sees.
    frame.to_csv(path, index=False, float_format="%.9g")
    return path


def _number(j: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Column j of one direction with its noise, and of a second one."""
    shapes = (
        20 + 5 * u,
        np.exp(0.8 * u + 3),
        1 / (1 + np.exp(-2 * u)),
        np.floor(10 + 3 * u),
        np.square(u),
        100 * u * v,
    )
    return shapes[j % len(shapes)]


def _directions(seed: int, stream: str, n: int) -> Float64[np.ndarray, "n 4"]:
    """Unit vectors."""
    found = _normal(seed, stream, np.arange(n), LATENT)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def _normal(
    seed: int, stream: str, rows: Int64[np.ndarray, " rows"], n: int
) -> Float64[np.ndarray, "rows n"]:
    return rng.normal(rng.words(seed, stream, rows, 0, 2 * n))

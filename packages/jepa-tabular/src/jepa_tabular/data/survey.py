"""What a preprocessor must know of a table that does not fit in memory, from one pass over it.

Lowest and highest values, means, deviations, shares of missing values and categories are exact.
Medians and quantiles come from a uniform sample of the rows, drawn from the seed and the rows'
numbers alone; where the sample is the whole table, the result is that of fitting in memory.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64

from jepa_core.rng import uniform64, words
from jepa_tabular.columns import Kind, numbers
from jepa_tabular.preprocess import TablePreprocessor
from jepa_tabular.presets import ColumnsConfig
from jepa_tabular.scaling import describe


class Survey:
    """Fit a preprocessor to rows that come in pieces.

    Parameters
    ----------
    kinds
        Kind of each feature column by name.
    sample_rows
        Rows kept for medians and quantiles.
    seed
        Decides which.

    Attributes
    ----------
    rows
        Rows seen.
    """

    def __init__(self, kinds: dict[str, Kind], sample_rows: int, seed: int) -> None:
        self.kinds, self.sample_rows, self.seed = kinds, sample_rows, seed
        self.rows = 0
        self.numeric = [name for name, kind in kinds.items() if kind != "categorical"]
        width = len(self.numeric)
        self._count = np.zeros(width)
        self._mean, self._square = np.zeros(width), np.zeros(width)
        self._low, self._high = np.full(width, np.inf), np.full(width, -np.inf)
        self._levels: dict[str, dict[Any, None]] = {
            name: {} for name, kind in kinds.items() if kind == "categorical"
        }
        self._pool: list[pd.DataFrame] = []
        self._keys: list[Float64[np.ndarray, " rows"]] = []
        self._threshold = np.inf

    def add(self, frame: pd.DataFrame) -> None:
        """Take note of some rows; their columns are those of `kinds`."""
        if not len(frame):
            return
        self._describe(self.values(frame))
        for name, levels in self._levels.items():
            levels.update(dict.fromkeys(frame[name].unique()))
        ids = np.arange(self.rows, self.rows + len(frame))
        self.rows += len(frame)
        keys = uniform64(words(self.seed, "survey", ids, 0, 2))[:, 0]
        chosen = keys < self._threshold
        self._pool.append(frame[chosen].set_axis(ids[chosen]))
        self._keys.append(keys[chosen])
        if sum(map(len, self._keys)) > 2 * self.sample_rows:
            self._prune()

    def values(self, frame: pd.DataFrame) -> Float64[np.ndarray, "rows numeric"]:
        """Numerical and datetime columns as numbers."""
        columns = [numbers(frame[name], name, self.kinds[name]) for name in self.numeric]
        return np.stack(columns, 1) if columns else np.empty((len(frame), 0))

    def fit(self, config: ColumnsConfig) -> TablePreprocessor:
        """The preprocessor fitted to all rows seen.

        Raises
        ------
        DataError
            As `TablePreprocessor.fit`.
        """
        self._prune()
        sample = pd.concat(self._pool)[list(self.kinds)].sort_index()
        categorical = [name for name, kind in self.kinds.items() if kind == "categorical"]
        preprocessor = TablePreprocessor(config, categorical_features=categorical)
        if self.rows == len(sample):
            return preprocessor.fit(sample)
        preprocessor.fit(pd.concat([sample, self._exemplars(sample)], ignore_index=True))
        kept = [
            self.numeric.index(name)
            for name, kind in zip(preprocessor.names_, preprocessor.kinds_, strict=True)
            if kind != "categorical"
        ]
        if kept:
            found = [describe(column) for column in self.values(sample)[:, kept].T]
            preprocessor.statistics_ = replace(
                preprocessor.statistics_,
                minimum=self._low[kept],
                maximum=self._high[kept],
                mean=self._mean[kept],
                std=np.sqrt(self._square[kept] / self._count[kept]),
                absent=1 - self._count[kept] / self.rows,
                median=np.stack([each["median"] for each in found]),
                quantiles=np.stack([each["quantiles"] for each in found], 1),
            )
        return preprocessor

    def _describe(self, values: Float64[np.ndarray, "rows numeric"]) -> None:
        there = ~np.isnan(values)
        count = there.sum(0)
        total = self._count + count
        divisor = np.maximum(count, 1)
        mean = np.where(there, values, 0.0).sum(0) / divisor
        square = (np.where(there, values - mean, 0.0) ** 2).sum(0)
        apart = mean - self._mean
        share = count / np.maximum(total, 1)
        self._square += square + apart**2 * self._count * share
        self._mean += apart * share
        self._count = total
        self._low = np.minimum(self._low, np.where(there, values, np.inf).min(0))
        self._high = np.maximum(self._high, np.where(there, values, -np.inf).max(0))

    def _prune(self) -> None:
        """Keep the rows with the smallest keys."""
        keys = np.concatenate(self._keys) if self._keys else np.empty(0)
        if len(keys) <= self.sample_rows:
            return
        order = np.argpartition(keys, self.sample_rows)
        chosen = order[: self.sample_rows]
        self._pool = [pd.concat(self._pool).iloc[chosen]]
        self._keys = [keys[chosen]]
        self._threshold = keys[order[self.sample_rows]]

    def _exemplars(self, sample: pd.DataFrame) -> pd.DataFrame:
        """Rows that have what the sample may lack: extremes, missing values, every category."""
        columns: dict[str, list[Any]] = {name: list(found) for name, found in self._levels.items()}
        for i, name in enumerate(self.numeric):
            series = sample[name]
            missing = [np.nan] if self._count[i] < self.rows else []
            columns[name] = missing
            if self._count[i]:
                columns[name] = [*missing, *_like(series, self._low[i], self._high[i])]
        size = max(map(len, columns.values()))
        rest = sample.iloc[np.arange(size) % len(sample)].reset_index(drop=True)
        for name, found in columns.items():
            values = pd.Series(found, dtype=rest[name].dtype)
            rest[name] = pd.concat([values, rest[name].iloc[len(values) :]])
        return rest


def _like(series: pd.Series, low: float, high: float) -> list[Any]:
    """The lowest and the highest value as the column holds them: numbers, dates or durations."""
    if series.dtype.kind == "M":
        return [pd.Timestamp(value, unit="s") for value in (low, high)]
    if series.dtype.kind == "m":
        return [pd.Timedelta(value, unit="s") for value in (low, high)]
    return [low, high]

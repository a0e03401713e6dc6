"""Statistics of numerical columns, and the scalings that they define."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from jaxtyping import Bool, Float64
from sklearn.preprocessing import QuantileTransformer

from jepa_core.errors import DataError
from jepa_tabular.presets import ColumnsConfig

_QUANTILES = 1000
_QUANTILE_ROWS = 100_000  # rows that the quantiles are taken from

Rows = Float64[np.ndarray, "rows columns"]
PerColumn = Float64[np.ndarray, "columns"]


@dataclass(frozen=True)
class Statistics:
    """Of each numerical column over the training rows, missing values left out."""

    minimum: PerColumn
    maximum: PerColumn
    mean: PerColumn
    std: PerColumn
    """Population form."""
    median: PerColumn
    absent: PerColumn
    """Share of missing values."""
    quantiles: Float64[np.ndarray, "quantiles columns"]
    """At equally spaced ranks from 0 to 1."""

    @classmethod
    def stack(cls, columns: Sequence[dict[str, np.ndarray]]) -> Self:
        """From what `describe` gives of each column."""
        if not columns:
            none = {field.name: np.empty(0) for field in fields(cls)}
            return cls(**{**none, "quantiles": np.empty((1, 0))})
        return cls(
            **{
                field.name: np.stack([column[field.name] for column in columns], axis=-1)
                for field in fields(cls)
            }
        )

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], columns: int) -> Self:
        """From arrays by name.

        Raises
        ------
        DataError
            One is absent, of another number of columns, or not finite.
        """
        found = {}
        for field in fields(cls):
            array = np.asarray(arrays.get(field.name, np.empty(0)), dtype=np.float64)
            if field.name not in arrays or array.shape[-1:] != (columns,):
                raise DataError(
                    f"{field.name} has shape {array.shape} for {columns} numerical columns",
                    where="preprocessor",
                    remedy="save it again",
                )
            found[field.name] = array
        return cls(**found)

    @property
    def constant(self) -> Bool[np.ndarray, "columns"]:
        """Whether a column has one value only."""
        return self.minimum == self.maximum

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def scaled(self, values: Rows, config: ColumnsConfig) -> Rows:
        """Values as the model reads them; NaN stays unless the policy replaces it."""
        if config.missing in ("mean", "median"):
            centre = self.mean if config.missing == "mean" else self.median
            values = np.where(np.isnan(values), centre, values)
        if config.numeric == "minmax":
            spread = self.maximum - self.minimum
            return (values - self.minimum) / np.where(self.constant, np.inf, spread)
        scale = self.ranked if config.numeric == "quantile" else self.standardised
        return np.clip(scale(values), -config.clip, config.clip) if config.clip else scale(values)

    def standardised(self, values: Rows) -> Rows:
        """To zero mean and unit variance; a constant column to 0."""
        # Rounding gives a constant column a spread of its own, which is no measure.
        measurable = ~self.constant & (self.std > 0)
        return (values - self.mean) / np.where(measurable, self.std, np.inf)

    def ranked(self, values: Rows) -> Rows:
        """To normal scores by rank, at most 5.2 in size; a constant column to 0."""
        if not values.size:
            return values
        count = len(self.quantiles)
        transformer = QuantileTransformer(n_quantiles=count, output_distribution="normal")
        transformer.n_features_in_ = values.shape[1]
        transformer.n_quantiles_ = count
        transformer.references_ = np.linspace(0, 1, count)
        transformer.quantiles_ = self.quantiles
        ranked: Rows = transformer.transform(values)
        # Its value is both the lowest and the highest rank.
        ranked[:, self.constant] *= 0.0
        return ranked


def describe(values: Float64[np.ndarray, "rows"]) -> dict[str, np.ndarray]:
    """Statistics of one column with at least one value."""
    observed = values[~np.isnan(values)]
    sample = observed
    if len(observed) > _QUANTILE_ROWS:
        chosen = np.random.RandomState(0).choice(len(observed), _QUANTILE_ROWS, replace=False)
        sample = observed[chosen]
    ranks = np.linspace(0, 1, min(_QUANTILES, len(values)))
    return {
        "minimum": observed.min(),
        "maximum": observed.max(),
        "mean": observed.mean(),
        "std": observed.std(),
        "median": np.median(observed),
        "absent": np.float64(1 - len(observed) / len(values)),
        "quantiles": np.percentile(sample, ranks * 100),
    }

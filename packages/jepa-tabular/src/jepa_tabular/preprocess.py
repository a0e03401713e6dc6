"""How a table becomes the encoded table that the model reads, learned from its training rows.

Source: Thimonier et al. (arXiv 2410.05016) and its official program, whose preprocessing is the
`compat` form; scaling by rank and reserved codes are ours.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Float64, Int64
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from jepa_core.config import from_dict, to_dict
from jepa_core.errors import DataError
from jepa_tabular.columns import Choice, Kind, as_frame, column_names, kinds, numbers
from jepa_tabular.levels import Levels
from jepa_tabular.presets import ColumnsConfig, TableShape
from jepa_tabular.scaling import Statistics, describe

OFFICIAL = ColumnsConfig(numeric="minmax", clip=0.0, unknown="error")

_CHUNK = 65_536  # rows converted at a time
_RAW_CLIP = 3.0


class TablePreprocessor(TransformerMixin, BaseEstimator):
    """Tables to float32 [rows, columns]: scaled numbers, and codes of categories, in file order.

    Statistics and categories come from the rows passed to `fit`. Dates become seconds and are
    scaled like numbers. Missing categories are a category of their own.

    Parameters
    ----------
    config
        Scaling and policies; None is `ColumnsConfig()`, or the official form under `compat`.
    categorical_features
        "auto": text, category and bool columns; or names, positions, a mask over the columns, or a
        function of the frame that gives one of these.
    compat
        The official program's form: scaling to [0, 1], no reserved code, categories that are
        numbers coded by first appearance. A given `config` decides the first two.

    Attributes
    ----------
    n_features_in_, feature_names_in_
        As in scikit-learn; the names only where they are strings.
    names_, kinds_
        Name and kind ("numerical", "datetime", "categorical") of each encoded column.
    shape_ : TableShape
        What a model must know.
    positions_
        Position in the input of each encoded column, ascending; constant ones may be left out.
    levels_ : tuple of Levels
        Categories of each categorical column.
    statistics_ : Statistics
        Of the numerical columns.
    kept_ : bool [rows] or None
        Under missing "drop", which rows of the table last transformed are in the result.
    """

    def __init__(
        self,
        config: ColumnsConfig | None = None,
        *,
        categorical_features: Choice = "auto",
        compat: bool = False,
    ) -> None:
        self.config = config
        self.categorical_features = categorical_features
        self.compat = compat

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self._settings.missing != "error"
        tags.transformer_tags.preserves_dtype = []
        return tags

    @property
    def _settings(self) -> ColumnsConfig:
        return self.config or (OFFICIAL if self.compat else ColumnsConfig())

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn categories and statistics.

        Parameters
        ----------
        X : [rows, columns]
            DataFrame, array or list of rows; at least 2 rows and 2 columns.
        y
            Ignored.

        Raises
        ------
        DataError, TableTypeError
            Naming the column and what to do about it.

        Warns
        -----
        UserWarning
            A column is constant, or has so many categories that it looks like an id.
        """
        frame = as_frame(X)
        _refuse_small(frame.shape)
        names, named = column_names(frame)
        found = kinds(frame, self.categorical_features)
        settings = self._settings
        if settings.missing == "drop":
            frame = frame[_complete(frame, names, found)]
            _refuse_small(frame.shape)
        kept: list[int] = []
        levels: list[Levels] = []
        statistics: list[dict[str, np.ndarray]] = []
        missing: dict[str, int] = {}
        for i, (name, kind) in enumerate(zip(names, found, strict=True)):
            series = frame.iloc[:, i]
            if kind == "categorical":
                learned = Levels.learn(
                    series,
                    name,
                    first=int(settings.unknown == "reserve"),
                    by_appearance=self.compat,
                )
                if not self._leaves_out(name, len(learned.categories) + learned.missing < 2):
                    _warn_id(name, len(learned.categories), len(frame))
                    levels.append(learned)
                    kept.append(i)
                continue
            values = numbers(series, name, kind)
            observed = values[~np.isnan(values)]
            missing[name] = len(values) - len(observed)
            if missing[name] and settings.missing == "error":
                continue  # all such columns are named together below
            indicated = settings.missing == "indicator" and 0 < missing[name] < len(values)
            constant = not len(observed) or observed.min() == observed.max()
            if self._leaves_out(name, bool(constant) and not indicated):
                continue
            if not len(observed):
                raise DataError(
                    "no value in any row", where=f"column {name!r}", remedy="drop the column"
                )
            kept.append(i)
            statistics.append(describe(values))
        self._refuse_missing(missing)
        _refuse_small((len(frame), len(kept)))

        self.n_features_in_ = frame.shape[1]
        if named:
            self.feature_names_in_ = np.asarray(names, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        self._set_columns([names[i] for i in kept], [found[i] for i in kept], kept, levels)
        self.statistics_ = Statistics.stack(statistics)
        self.kept_: Bool[np.ndarray, "rows"] | None = None
        return self

    def _leaves_out(self, name: str, constant: bool) -> bool:
        if constant and not self._settings.drop_constant:
            warnings.warn(
                f"column {name!r}: constant, it tells nothing; drop it, or set drop_constant",
                stacklevel=3,
            )
        return constant and self._settings.drop_constant

    def _set_columns(
        self, names: list[str], found: list[Kind], positions: list[int], levels: list[Levels]
    ) -> None:
        self.names_: tuple[str, ...] = tuple(names)
        self.kinds_: tuple[Kind, ...] = tuple(found)
        self.positions_ = tuple(positions)
        self.levels_ = tuple(levels)
        self.shape_ = TableShape(
            columns=len(names),
            categorical=tuple(i for i, kind in enumerate(found) if kind == "categorical"),
            cardinalities=tuple(learned.cardinality for learned in levels),
            missing=self._settings.missing == "indicator",
        )

    def transform(self, X: Any) -> Float32[np.ndarray, "rows columns"]:
        """Encode a table; categories as codes, missing numbers NaN under missing "indicator".

        Columns of a named table may come in any order. Under missing "drop" the result is shorter,
        and `kept_` says which rows are left.

        Raises
        ------
        DataError, TableTypeError
            Columns other than in `fit`, missing or infinite numbers, text among numbers, or, where
            that is not allowed, a category that training did not see.
        """
        frame, positions = self._aligned(X)
        numeric = list(self.shape_.numeric)
        out = np.empty((len(frame), len(self.names_)), dtype=np.float32)
        rows = 0
        for chunk, values, codes in self._chunks(frame, positions):
            part = out[rows : rows + len(chunk)]
            part[:, numeric] = self.statistics_.scaled(values, self._settings)
            part[:, list(self.shape_.categorical)] = np.maximum(codes, 0)
            rows += len(chunk)
        return out[:rows]

    def raw_features(self, X: Any) -> Float64[np.ndarray, "rows features"]:
        """Design matrix of the raw columns, the baseline of every probe; rows as in `transform`.

        Numbers to zero mean and unit variance, the same to normal scores by rank (clipped at 3), a
        flag of the missing ones where training had any (they are 0 in both forms), and categories
        one-hot (unknown ones all 0).
        """
        frame, positions = self._aligned(X)
        statistics = self.statistics_
        flagged = statistics.absent > 0
        ends = 2 * len(flagged) + int(flagged.sum())
        widths = [len(levels.categories) + levels.missing for levels in self.levels_]
        starts = ends + np.cumsum([0, *widths])[:-1]
        out = np.zeros((len(frame), ends + sum(widths)))
        rows = 0
        for chunk, values, codes in self._chunks(frame, positions):
            part = out[rows : rows + len(chunk)]
            ranked = np.clip(statistics.ranked(values), -_RAW_CLIP, _RAW_CLIP)
            numeric = np.concatenate([statistics.standardised(values), ranked], axis=1)
            absent = np.isnan(values[:, flagged])
            part[:, :ends] = np.concatenate([np.nan_to_num(numeric), absent], axis=1)
            for levels, at, column in zip(self.levels_, starts, codes.T, strict=True):
                known = np.flatnonzero(column >= 0)
                part[known, at + column[known] - levels.first] = 1.0
            rows += len(chunk)
        return out[:rows]

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the encoded columns."""
        check_is_fitted(self)
        given = None if input_features is None else [str(name) for name in input_features]
        expected = list(getattr(self, "feature_names_in_", given or []))
        if given is not None and len(given) != self.n_features_in_:
            raise DataError(
                f"input_features should have length equal to number of features "
                f"({self.n_features_in_}), got {len(given)}"
            )
        if given is not None and given != expected:
            raise DataError("input_features is not equal to feature_names_in_")
        names = [given[i] for i in self.positions_] if given else list(self.names_)
        return np.asarray(names, dtype=object)

    def to_state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What `from_state` needs: a dict that JSON can hold, and arrays."""
        check_is_fitted(self)
        state = {
            "config": to_dict(self._settings),
            "compat": self.compat,
            "names": list(self.names_),
            "kinds": list(self.kinds_),
            "positions": list(self.positions_),
            "columns_in": self.n_features_in_,
            "names_in": list(getattr(self, "feature_names_in_", [])),
            "levels": [
                {"categories": list(levels.categories), "missing": levels.missing}
                for levels in self.levels_
            ],
        }
        return state, self.statistics_.arrays()

    @classmethod
    def from_state(cls, state: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        """A fitted preprocessor that encodes bit for bit as the one `to_state` was called on.

        Raises
        ------
        DataError
            A part is absent or does not fit the others.
        """
        where = "preprocessor"
        try:
            categorical = [
                at
                for at, kind in zip(state["positions"], state["kinds"], strict=True)
                if kind == "categorical"
            ]
            new = cls(
                from_dict(ColumnsConfig, state["config"], where=where),
                categorical_features=categorical,
                compat=state["compat"],
            )
            first = int(new._settings.unknown == "reserve")
            levels = [Levels(tuple(e["categories"]), e["missing"], first) for e in state["levels"]]
            new.n_features_in_ = state["columns_in"]
            if state["names_in"]:
                new.feature_names_in_ = np.asarray(state["names_in"], dtype=object)
            new._set_columns(state["names"], state["kinds"], state["positions"], levels)
            new.kept_ = None
            new.statistics_ = Statistics.from_arrays(arrays, len(new.shape_.numeric))
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{error} is absent or of the wrong type", where=where, remedy="save it again"
            ) from None
        return new

    def _aligned(self, X: Any) -> tuple[pd.DataFrame, tuple[int, ...]]:
        """The table, and where in it the encoded columns are."""
        check_is_fitted(self)
        positions = self.positions_
        frame = as_frame(X)
        own, named = column_names(frame)
        expected: tuple[str, ...] = tuple(getattr(self, "feature_names_in_", ()))
        if named and expected and own != expected:
            unseen, absent = sorted(set(own) - set(expected)), sorted(set(expected) - set(own))
            if unseen or absent:
                differing = [f"{name!r} is new" for name in unseen]
                differing += [f"{name!r} is missing" for name in absent]
                raise DataError(
                    "The feature names should match those that were passed during fit: "
                    + ", ".join(differing[:6]),
                    remedy="pass the same columns",
                )
            positions = tuple(own.index(name) for name in self.names_)
        elif frame.shape[1] != self.n_features_in_ and len(frame):
            raise DataError(
                f"X has {frame.shape[1]} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input"
            )
        if named != bool(expected):
            warnings.warn(
                f"X has feature names, but {type(self).__name__} was fitted without feature names"
                if named
                else f"X does not have valid feature names, but {type(self).__name__} was fitted "
                "with feature names",
                stacklevel=3,
            )
        if not len(frame):
            raise DataError(
                f"Found array with 0 sample(s) (shape={frame.shape}) while a minimum of 1 is "
                "required",
                remedy="pass at least one row",
            )
        return frame, positions

    def _chunks(
        self, frame: pd.DataFrame, positions: tuple[int, ...]
    ) -> Iterator[
        tuple[
            Int64[np.ndarray, "rows"],
            Float64[np.ndarray, "rows numerical"],
            Int64[np.ndarray, "rows categorical"],
        ]
    ]:
        """Rows in bounded pieces: their numbers, their numerical values and their codes."""
        missing = np.zeros(len(self.shape_.numeric), dtype=np.int64)
        kept = np.ones(len(frame), dtype=bool)
        for start in range(0, len(frame), _CHUNK):
            chunk = frame.iloc[start : start + _CHUNK]
            values = np.empty((len(chunk), len(self.shape_.numeric)))
            for column, slot in enumerate(self.shape_.numeric):
                series = chunk.iloc[:, positions[slot]]
                values[:, column] = numbers(series, self.names_[slot], self.kinds_[slot], start)
            codes = np.empty((len(chunk), len(self.levels_)), dtype=np.int64)
            for column, slot in enumerate(self.shape_.categorical):
                series = chunk.iloc[:, positions[slot]]
                codes[:, column] = self._codes(series, column, self.names_[slot], start)
            absent = np.isnan(values)
            missing += absent.sum(0)
            rows = np.arange(start, start + len(chunk))
            if self._settings.missing == "drop":
                complete = ~absent.any(1)
                kept[rows] = complete
                rows, values, codes = rows[complete], values[complete], codes[complete]
            yield rows, values, codes
        if self._settings.missing == "drop":
            self.kept_ = kept
        names = [self.names_[slot] for slot in self.shape_.numeric]
        self._refuse_missing(dict(zip(names, missing.tolist(), strict=True)))

    def _codes(
        self, series: pd.Series, column: int, name: str, start: int
    ) -> Int64[np.ndarray, "rows"]:
        codes = self.levels_[column].codes(series, name)
        unknown = np.flatnonzero(codes < 0)
        if self._settings.unknown == "error" and len(unknown):
            value = series.iloc[unknown[0]]
            text = "a missing value" if pd.isna(value) else repr(value)
            raise DataError(
                f"{text} in row {start + unknown[0]} was not among the categories of the training "
                "rows",
                where=f"column {name!r}",
                remedy="replace it, or set unknown to reserve",
            )
        return codes

    def _refuse_missing(self, counts: dict[str, int]) -> None:
        found = {name: count for name, count in counts.items() if count}
        if self._settings.missing != "error" or not found:
            return
        raise DataError(
            "missing values (NaN) in "
            + ", ".join(f"column {name!r} ({count} rows)" for name, count in found.items()),
            remedy="fill them, or set missing to indicator, mean, median or drop",
        )


def _complete(
    frame: pd.DataFrame, names: tuple[str, ...], found: tuple[Kind, ...]
) -> Bool[np.ndarray, "rows"]:
    complete = np.ones(len(frame), dtype=bool)
    for i, (name, kind) in enumerate(zip(names, found, strict=True)):
        if kind != "categorical":
            complete &= ~np.isnan(numbers(frame.iloc[:, i], name, kind))
    return complete


def _refuse_small(shape: tuple[int, int]) -> None:
    rows, columns = shape
    if rows and columns < 2:
        raise DataError(
            f"Found array with {columns} feature(s) (shape={shape}) while a minimum of 2 is "
            "required",
            remedy="some columns are predicted from the others",
        )
    if rows < 2:
        raise DataError(
            f"Found array with n_samples={rows} (shape={shape}) while a minimum of 2 is required",
            remedy="pass more rows",
        )


def _warn_id(name: str, categories: int, rows: int) -> None:
    if categories > 1000 or categories > rows / 2:
        warnings.warn(
            f"column {name!r}: {categories} categories in {rows} rows, it looks like an id; drop "
            "it or hash it to fewer categories",
            stacklevel=3,
        )

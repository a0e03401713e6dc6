"""Labels: what must be right with them, and columns that give them away."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64, Shaped
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from jepa_core.errors import DataError
from jepa_tabular.columns import as_frame, column_names

Task = Literal["binary", "multiclass", "regression"]

_COPY = 0.9999  # of the correlation of a column with the label


def check_y(y: Any, task: Task) -> Shaped[np.ndarray, "rows"]:
    """Labels as a 1-D array: float64 for regression, as they are for classification.

    Raises
    ------
    DataError
        No labels, several a row, missing or infinite ones, a single class, more than two for
        "binary", or continuous ones for classification.

    Warns
    -----
    DataConversionWarning
        The labels are a column of shape [rows, 1].
    """
    if y is None:
        raise DataError("this estimator requires y to be passed, but the target y is None")
    try:
        labels = column_or_1d(y, warn=True)
    except ValueError as error:
        raise DataError(_line(error), where="y") from None
    if labels.dtype.kind == "c":
        raise DataError("Complex data not supported", where="y")
    missing = np.asarray(pd.isna(labels))
    if missing.any():
        raise DataError(
            f"Input y contains NaN: {missing.sum()} labels are missing, first in row "
            f"{missing.argmax()}",
            remedy="leave these rows out",
        )
    return _check_numbers(labels) if task == "regression" else _check_classes(labels, task)


def _check_numbers(labels: np.ndarray) -> Float64[np.ndarray, "rows"]:
    try:
        values = labels.astype(np.float64)
    except (ValueError, TypeError):
        row = int(pd.to_numeric(pd.Series(labels), errors="coerce").isna().to_numpy().argmax())
        raise DataError(
            f"{labels.tolist()[row]!r} in row {row} is no number",
            where="y",
            remedy="use a classifier, or convert it with pandas.to_numeric",
        ) from None
    if not np.isfinite(values).all():
        raise DataError(
            "Input y contains infinity or a value too large for dtype('float64')",
            remedy="leave these rows out",
        )
    return values


def _check_classes(labels: np.ndarray, task: Task) -> Shaped[np.ndarray, "rows"]:
    try:
        check_classification_targets(labels)
        classes = np.unique(labels)
    except ValueError as error:
        raise DataError(_line(error), where="y") from None
    except TypeError:
        raise DataError(
            "labels are text and numbers mixed", where="y", remedy="use astype(str)"
        ) from None
    if len(classes) < 2:
        raise DataError(
            f"all rows are of one class, {classes.tolist()}",
            where="y",
            remedy="pass rows of two classes or more",
        )
    if task == "binary" and len(classes) > 2:
        raise DataError(
            f"{len(classes)} classes where two are expected", where="y", remedy="use multiclass"
        )
    return labels


def _line(error: ValueError) -> str:
    return " ".join(str(error).split())


def warn_leaks(X: Any, y: Any) -> tuple[str, ...]:
    """Warn of each column that is the label, renamed, recoded or rescaled; give their names.

    A column counts if its correlation with a numerical or two-class label exceeds 0.9999, or if
    its values map one to one onto the classes.
    """
    frame = as_frame(X)
    names, _ = column_names(frame)
    labels = pd.Series(np.asarray(y).ravel())
    codes, classes = pd.factorize(labels, sort=True)
    numeric = labels.dtype.kind in "iufb"
    values = labels.to_numpy(dtype=np.float64) if numeric else codes.astype(np.float64)
    few = len(classes) <= len(labels) / 2
    appearance = pd.factorize(labels)[0]
    leaks = tuple(
        name
        for i, name in enumerate(names)
        if _is_copy(frame.iloc[:, i], values) or (few and _is_recoded(frame.iloc[:, i], appearance))
    )
    for name in leaks:
        warnings.warn(
            f"column {name!r}: a copy of the label; drop it unless it is known at prediction",
            stacklevel=2,
        )
    return leaks


def _is_recoded(series: pd.Series, labels: Int64[np.ndarray, "rows"]) -> bool:
    head = slice(0, 1000)  # most columns differ at once
    if not np.array_equal(pd.factorize(series.iloc[head])[0], labels[head]):
        return False
    return np.array_equal(pd.factorize(series)[0], labels)


def _is_copy(series: pd.Series, labels: Float64[np.ndarray, "rows"]) -> bool:
    if not pd.api.types.is_numeric_dtype(series.dtype):
        return False
    values = series.to_numpy(dtype=np.float64, na_value=np.nan)
    both = np.isfinite(values) & np.isfinite(labels)
    values, labels = values[both], labels[both]
    if len(values) < 3 or np.ptp(values) == 0 or np.ptp(labels) == 0:
        return False
    return bool(abs(np.corrcoef(values, labels)[0, 1]) > _COPY)

"""Columns of a table: what kind each is, and how its values become numbers or codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64
from pandas.api import types
from scipy import sparse

from jepa_core.errors import ConfigError, DataError
from jepa_tabular.errors import TableTypeError

Kind = Literal["numerical", "datetime", "categorical"]
Choice = str | Sequence[str] | Sequence[int] | Sequence[bool] | Callable[[pd.DataFrame], Any]

_LARGEST = float(np.finfo(np.float32).max)
_TO_CATEGORY = "cast the column to 'category' if it holds categories"


def as_frame(X: Any) -> pd.DataFrame:
    """Any table as a pandas DataFrame; a frame itself and numbers in an array are not copied.

    Parameters
    ----------
    X
        DataFrame of pandas, or of any library that speaks Arrow or the interchange protocol, 2-D
        array, or list of rows.

    Raises
    ------
    DataError
        Not two-dimensional, rows of different lengths, or complex numbers.
    TableTypeError
        Sparse, or nothing that has rows and columns.
    """
    if isinstance(X, pd.DataFrame):
        frame = X
    elif sparse.issparse(X):
        raise TableTypeError("sparse data is not supported", remedy="pass X.toarray()")
    elif hasattr(X, "__arrow_c_stream__") and not isinstance(X, pd.Series):
        import pyarrow

        try:
            frame = pyarrow.table(X).to_pandas()
        except (TypeError, ValueError):
            raise TableTypeError(
                f"X is a {type(X).__name__}", remedy="pass a DataFrame or a 2-D array"
            ) from None
    elif hasattr(X, "__dataframe__"):
        from pyarrow.interchange import from_dataframe

        frame = from_dataframe(X).to_pandas()
    elif isinstance(X, (list, tuple)):
        frame = _from_rows(X)
    else:
        frame = _from_array(X)
    for name, dtype in zip(frame.columns, frame.dtypes, strict=True):
        if isinstance(dtype, pd.SparseDtype):
            raise TableTypeError(
                f"column {name!r}: sparse data is not supported", remedy="X.sparse.to_dense()"
            )
        if types.is_complex_dtype(dtype):
            raise DataError("Complex data not supported", where=f"column {name!r}")
    return frame


def _from_rows(rows: Sequence[Any]) -> pd.DataFrame:
    if len(rows) == 0:
        return pd.DataFrame()
    first = rows[0]
    if isinstance(first, dict):
        raise TableTypeError("X is a list of dictionaries", remedy="pass pandas.DataFrame(X)")
    if np.ndim(first) != 1 and not isinstance(first, (list, tuple)):
        raise _not_a_table(np.ndim(first) + 1)
    if len(first) and isinstance(first[0], (list, tuple, np.ndarray)):
        raise _not_a_table(3)
    for row, values in enumerate(rows):
        if np.isscalar(values) or len(values) != len(first):
            length = "no list" if np.isscalar(values) else f"{len(values)} values long"
            raise DataError(
                f"row {row} is {length}, row 0 is {len(first)}",
                remedy="give every row the same columns",
            )
    return pd.DataFrame([list(row) for row in rows])


def _from_array(X: Any) -> pd.DataFrame:
    if isinstance(X, (str, bytes, dict)) or X is None:
        raise TableTypeError(
            f"X is a {type(X).__name__}",
            remedy="pass a DataFrame, a 2-D array or a list of rows; read files with load_table",
        )
    array = np.asarray(X)
    if array.ndim != 2:
        raise _not_a_table(array.ndim)
    if array.dtype.kind == "c":
        raise DataError("Complex data not supported", where="X")
    if array.dtype.kind in "SV":
        raise TableTypeError(f"X holds {array.dtype}", remedy="pass text or numbers")
    return pd.DataFrame(array, copy=False)


def _not_a_table(dimensions: int) -> DataError:
    if dimensions < 2:
        return DataError(
            f"Expected 2D array, got {dimensions}D array instead",
            remedy="Reshape your data with X.reshape(1, -1) if it is one row",
        )
    return DataError(
        f"Found array with dim {dimensions}, while dim <= 2 is required",
        remedy="pass rows x columns",
    )


def column_names(frame: pd.DataFrame) -> tuple[tuple[str, ...], bool]:
    """Names of the columns (x0, x1, ... where they are no strings), and whether they are its own.

    Raises
    ------
    DataError
        A name occurs twice.
    TableTypeError
        Some names are strings and some are not.
    """
    named = [isinstance(name, str) for name in frame.columns]
    if any(named) and not all(named):
        raise TableTypeError(
            f"column name {frame.columns[named.index(False)]!r} is no string while others are",
            remedy="X.columns = X.columns.astype(str)",
        )
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise DataError(f"column {twice!r} occurs more than once", remedy="rename or drop one")
    if any(named):
        return tuple(str(name) for name in frame.columns), True
    return tuple(f"x{i}" for i in range(frame.shape[1])), False


def kinds(frame: pd.DataFrame, categorical_features: Choice = "auto") -> tuple[Kind, ...]:
    """Kind of each column.

    Parameters
    ----------
    categorical_features
        "auto": text, category and bool columns; or names, positions, a mask over the columns, or a
        function of the frame that gives one of these.

    Raises
    ------
    DataError
        A column holds numbers written as text, or values of several types.
    ConfigError
        The choice names no column.
    """
    names, named = column_names(frame)
    chosen = None
    if not (isinstance(categorical_features, str) and categorical_features == "auto"):
        chosen = _mask(frame, names if named else (), categorical_features)
    return tuple(
        _kind(frame.iloc[:, i], name, None if chosen is None else bool(chosen[i]))
        for i, name in enumerate(names)
    )


def kinds_besides(frame: pd.DataFrame, categorical: Sequence[str]) -> tuple[Kind, ...]:
    """Kind of each column: these are categories, the others what their values say.

    A command's way: who names a column of codes has not forgotten that text is no number.

    Raises
    ------
    DataError
        As `kinds`, of the others.
    ConfigError
        A name is no column.
    """
    if unknown := [name for name in categorical if name not in frame.columns]:
        raise ConfigError(f"categorical names {unknown[0]!r}, which is no column of the features")
    others = frame.drop(columns=list(categorical))
    found = dict(zip(others.columns, kinds(others), strict=True))
    return tuple(found.get(name, "categorical") for name in frame.columns)


def _mask(frame: pd.DataFrame, names: tuple[str, ...], choice: Any) -> Bool[np.ndarray, "columns"]:
    if callable(choice):
        choice = choice(frame)
    allowed = "allowed: auto, or names, positions or a mask of columns"
    if choice is None or isinstance(choice, (str, bytes)):
        raise ConfigError(f"categorical_features is {choice!r}", remedy=allowed)
    wanted = np.asarray(choice)
    mask = np.zeros(frame.shape[1], dtype=bool)
    if wanted.size == 0:
        return mask
    if wanted.ndim != 1 or (wanted.dtype.kind == "b" and wanted.size != mask.size):
        raise ConfigError(
            f"categorical_features has shape {wanted.shape} for {mask.size} columns",
            remedy=allowed,
        )
    if wanted.dtype.kind in "iub":
        if wanted.dtype.kind != "b" and not ((wanted >= 0) & (wanted < mask.size)).all():
            raise ConfigError(
                f"categorical_features is {wanted.tolist()}",
                remedy=f"allowed: positions from 0 to {mask.size - 1}",
            )
        mask[wanted] = True
        return mask
    unknown = [name for name in wanted.tolist() if name not in names]
    if unknown:
        raise ConfigError(
            f"categorical_features names {unknown[0]!r}, which is no column of X", remedy=allowed
        )
    return np.isin(np.asarray(names, dtype=object), wanted.astype(object))


def _kind(series: pd.Series, name: str, chosen: bool | None) -> Kind:
    if chosen:
        return "categorical"
    if types.is_datetime64_any_dtype(series.dtype) or types.is_timedelta64_dtype(series.dtype):
        return "datetime"
    automatic = chosen is None
    if automatic and isinstance(series.dtype, pd.CategoricalDtype):
        return "categorical"
    content = content_of(series)
    if content in ("boolean", "string") and automatic:
        if content == "string":
            _refuse_numeric_text(series, name)
        return "categorical"
    if content in ("datetime", "datetime64", "date", "timedelta", "timedelta64"):
        return "datetime"
    return "numerical"


def content_of(series: pd.Series) -> str:
    """What the values are, in pandas' words; a look at each value only where the dtype is mute."""
    dtype = series.dtype
    if types.is_bool_dtype(dtype) and not isinstance(dtype, pd.CategoricalDtype):
        return "boolean"
    if types.is_numeric_dtype(dtype):
        return "floating"
    if isinstance(dtype, pd.StringDtype) or (types.is_string_dtype(dtype) and dtype.kind != "O"):
        return "string"
    content: str = types.infer_dtype(series, skipna=True)
    if content.startswith("mixed") and series.dropna().map(_is_number).all():
        return "floating"  # bools or decimals beside numbers
    return content


NUMBERS = ("integer", "floating", "mixed-integer-float", "decimal", "empty", "boolean")


def _looks_numeric(texts: pd.Index) -> Bool[np.ndarray, "texts"]:
    plain = pd.Series(texts.astype(object)).str.strip().str.replace(",", "", regex=False)
    return pd.to_numeric(plain, errors="coerce").notna().to_numpy()


def _refuse_numeric_text(series: pd.Series, name: str) -> None:
    """Numbers read as text would silently become thousands of categories."""
    texts = pd.Index(series.dropna().unique())
    numeric = _looks_numeric(texts)
    remedy = f"convert it with pandas.to_numeric, or {_TO_CATEGORY}"
    if numeric.all() and len(texts):
        raise DataError(
            f"numbers as text, first {texts[0]!r} in row {_first(series == texts[0])}",
            where=f"column {name!r}",
            remedy=remedy,
        )
    if len(texts) > 20 and numeric.mean() > 0.9:
        odd = texts[~numeric][0]
        raise DataError(
            f"numbers as text, but {odd!r} in row {_first(series == odd)}",
            where=f"column {name!r}",
            remedy=remedy,
        )


def _first(mask: pd.Series | np.ndarray) -> int:
    return int(pd.Series(mask).fillna(False).to_numpy(dtype=bool).argmax())


def numbers(
    series: pd.Series, name: str, kind: Kind = "numerical", first_row: int = 0
) -> Float64[np.ndarray, "rows"]:
    """Values of a numerical or datetime column; missing ones are NaN.

    Parameters
    ----------
    kind
        "datetime" gives seconds since 1970 in UTC, or the seconds of a duration.
    first_row
        Row of the table that the series starts at, for the errors.

    Raises
    ------
    DataError
        Text, infinite, or too large for float32.
    TableTypeError
        A value that is no number at all.
    """
    where = f"column {name!r}"
    if kind == "datetime":
        values = _seconds(series, where)
    elif isinstance(series.dtype, pd.CategoricalDtype):
        categories = pd.Series(series.dtype.categories)
        if content_of(categories) not in NUMBERS:
            series = series.astype(object)
            raise no_number(series, content_of(series), where, first_row)
        table = np.append(_floats(categories, where, None), np.nan)
        values = table[series.cat.codes.to_numpy()]
    elif (content := content_of(series)) in NUMBERS:
        values = _floats(series, where, first_row)
    else:
        raise no_number(series, content, where, first_row)
    large = np.abs(values) > _LARGEST
    if large.any():
        row = _first(large)
        if np.isinf(values[row]):
            what, remedy = f"{np.isinf(values).sum()} infinite values (inf)", "replace them"
        else:
            what, remedy = f"{values[row]:g}, which float32 cannot hold", "rescale the column"
        raise DataError(f"{what}, first in row {first_row + row}", where=where, remedy=remedy)
    return values


def _is_number(value: object) -> bool:
    return isinstance(value, (Real, Decimal))


def _floats(series: pd.Series, where: str, first_row: int | None) -> Float64[np.ndarray, "rows"]:
    if series.dtype != object:
        return series.to_numpy(dtype=np.float64, na_value=np.nan)
    values = np.full(len(series), np.nan)
    present = series.notna().to_numpy()
    try:
        values[present] = series.to_numpy()[present].astype(np.float64)
    except OverflowError:
        raise DataError(
            "an integer that float32 cannot hold", where=where, remedy="rescale the column"
        ) from None
    return values


def _seconds(series: pd.Series, where: str) -> Float64[np.ndarray, "rows"]:
    if types.is_timedelta64_dtype(series.dtype) or "timedelta" in (content := content_of(series)):
        since = pd.to_timedelta(series)
    elif "date" in content or content == "empty":
        since = pd.to_datetime(series, utc=True) - pd.Timestamp(0, tz="UTC")
    else:
        raise DataError(
            f"dates when fitted, {content} now", where=where, remedy="use pandas.to_datetime"
        )
    return since.dt.total_seconds().to_numpy(dtype=np.float64, na_value=np.nan)


def no_number(series: pd.Series, content: str, where: str, first_row: int) -> Exception:
    present = series.dropna()
    is_number = present.map(_is_number)
    odd = present[~is_number].iloc[0] if not is_number.all() else present.iloc[0]
    row = first_row + _first(series.map(lambda value: value is odd))
    at = f"in row {row}"
    if isinstance(odd, str):
        return DataError(
            f"{odd!r} {at} is text where a number is expected",
            where=where,
            remedy=f"convert it with pandas.to_numeric, or {_TO_CATEGORY}",
        )
    if isinstance(odd, complex):
        return DataError("Complex data not supported", where=where)
    if "date" in content or "time" in content:
        return DataError(
            f"{odd!r} {at} is a date where a number is expected",
            where=where,
            remedy="pass what was passed to fit",
        )
    return TableTypeError(
        f"argument must be a string or a real number, not {type(odd).__name__!r}, {at}",
        where=where,
        remedy="convert or drop the column",
    )

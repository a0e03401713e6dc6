"""Categories of a column and their codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int64

from jepa_core.errors import DataError
from jepa_tabular.columns import NUMBERS, content_of, no_number
from jepa_tabular.errors import TableTypeError

MAX_CODES = 2**24  # codes travel in float32, which counts no further


@dataclass(frozen=True)
class Levels:
    """Categories of a column in the order of their codes, from `first`.

    The same number is the same category as an integer, a float, a bool or as text.
    """

    categories: tuple[str, ...] | tuple[int, ...] | tuple[float, ...]
    """All text, or all numbers."""
    missing: bool
    """Whether missing values were seen; they are a category after the others."""
    first: int = 0
    """Code of the first category: 1 where 0 is reserved for unknown ones."""

    @classmethod
    def learn(
        cls, series: pd.Series, name: str, *, first: int = 0, by_appearance: bool = False
    ) -> Levels:
        """Categories of a column.

        Parameters
        ----------
        by_appearance
            Numbers in the order of their first rows instead of ascending, as the official program
            has them; text is sorted either way.

        Raises
        ------
        DataError
            Values of several types, infinite ones, or more than `MAX_CODES` categories.
        """
        codes, categories = _factorize(series, name)
        present = pd.unique(codes)
        values = _canonical(categories, name)[present[present >= 0]]
        if values.dtype.kind == "f":
            if not np.isfinite(values).all():
                raise DataError("infinite values (inf)", where=f"column {name!r}")
            if (np.abs(values) < 2**53).all() and (values == np.trunc(values)).all():
                values = values.astype(np.int64)
        # Two spellings of one number, 1 and 1.0 of a category dtype, are one category.
        ordered = list(dict.fromkeys(values.tolist()))
        if not by_appearance or values.dtype == object:
            ordered.sort()
        if len(ordered) + first + 1 > MAX_CODES:
            raise DataError(
                f"{len(ordered)} categories overflow the {MAX_CODES} codes",
                where=f"column {name!r}",
                remedy="drop or hash the column",
            )
        return cls(tuple(ordered), bool((codes < 0).any()), first)

    @property
    def cardinality(self) -> int:
        """Number of codes, the reserved one included; at least one."""
        return max(self.first + len(self.categories) + self.missing, 1)

    def codes(self, series: pd.Series, name: str) -> Int64[np.ndarray, "rows"]:
        """Code of each row; -1 for a category that was not seen, missing ones among them."""
        codes, categories = _factorize(series, name)
        table = np.append(self._lookup(_canonical(categories, name)), -1)
        table[:-1][table[:-1] >= 0] += self.first
        if self.missing:
            table[-1] = self.first + len(self.categories)
        return table[codes]

    def _lookup(self, values: np.ndarray) -> Int64[np.ndarray, "values"]:
        known = np.asarray(self.categories) if self.categories else np.empty(0, dtype=object)
        if known.dtype.kind == "U":
            known = np.asarray(self.categories, dtype=object)
        if (known.dtype == object) != (values.dtype == object):
            known, values = _text(known), _text(values)
        if known.dtype.kind == "f":
            # A fraction keeps its category when it passes through float32.
            with np.errstate(over="ignore"):
                single, values_single = known.astype(np.float32), values.astype(np.float32)
            if np.isfinite(single).all() and len(np.unique(single)) == len(single):
                known, values = single, values_single
        return np.asarray(pd.Index(known).get_indexer(pd.Index(values)), dtype=np.int64)


def _factorize(series: pd.Series, name: str) -> tuple[Int64[np.ndarray, "rows"], Any]:
    if isinstance(series.dtype, pd.CategoricalDtype):
        return series.cat.codes.to_numpy(dtype=np.int64), series.cat.categories
    try:
        return pd.factorize(series)
    except TypeError:
        raise no_number(series, "mixed", f"column {name!r}", 0) from None


def _canonical(categories: Any, name: str) -> np.ndarray:
    """Categories as int64, uint64, float64, or objects that are all text."""
    series = pd.Series(categories)
    content = content_of(series)
    where = f"column {name!r}"
    if content == "string":
        return series.to_numpy(dtype=object)
    if content == "boolean":
        return series.to_numpy(dtype=np.int64)
    if content in NUMBERS:
        if series.dtype != object:
            plain = series.to_numpy()
            return plain if plain.dtype.kind in "iuf" else plain.astype(np.float64)
        try:
            if content == "integer":
                return series.to_numpy(dtype=np.int64)
            return series.to_numpy(dtype=np.float64)
        except OverflowError:
            raise DataError(
                "an integer beyond 64 bits", where=where, remedy="pass it as text"
            ) from None
    if "date" in content or "time" in content or content in ("period", "interval"):
        return series.astype(str).to_numpy(dtype=object)
    odd = series.map(lambda value: type(value).__name__).unique().tolist()
    raise TableTypeError(
        f"values of several types ({', '.join(odd)})"
        if len(odd) > 1
        else f"argument must be a string or a real number, not {odd[0]!r}",
        where=where,
        remedy="make them all text with astype(str)",
    )


def _text(values: np.ndarray) -> np.ndarray:
    """Numbers as they are written, whole ones without a point."""
    if values.dtype == object:
        return values
    plain = [
        str(int(v)) if isinstance(v, float) and v.is_integer() else str(v) for v in values.tolist()
    ]
    return np.asarray(plain, dtype=object)

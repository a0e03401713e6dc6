"""Labels of a table: classes with codes, or numbers."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import pyarrow
from jaxtyping import Float64, Int32
from pandas.api import types

from jepa_core.errors import DataError

# As scikit-learn has it, more classes than that are hardly classes.
_MOST_CLASSES = 100_000


class Labels:
    """How one column of labels becomes `y`.

    Parameters
    ----------
    first
        Its first values: they decide, under `task` "auto".
    task
        "classes", "numbers", or "auto": classes where they are text, categories, true or false, or
        whole numbers without a point.
    whole
        The values are whole numbers, although missing ones made them floating.

    Attributes
    ----------
    classes
        Names in the order of their codes; None for numbers.
    storage
        The type to read the column as.
    """

    def __init__(
        self,
        first: pd.Series,
        task: Literal["auto", "classes", "numbers"],
        *,
        whole: bool = False,
    ) -> None:
        self.name = str(first.name)
        numeric = types.is_float_dtype(first.dtype) and not whole
        self.classes: list[str] | None = (
            None if task == "numbers" or (task == "auto" and numeric) else []
        )
        self.storage = pyarrow.float64() if self.classes is None else pyarrow.string()
        self._seen: dict[str, None] = {}
        if isinstance(first.dtype, pd.CategoricalDtype):
            self._seen = dict.fromkeys(first.dtype.categories.astype(str))

    def learn(self, values: pd.Series) -> None:
        """Take note of some labels."""
        if self.classes is None:
            return
        self._seen.update(dict.fromkeys(_texts(values.drop_duplicates()).dropna()))
        if len(self._seen) > _MOST_CLASSES:
            raise DataError(
                f"has more than {_MOST_CLASSES} classes",
                where=f"label {self.name!r}",
                remedy="--task numbers, if they are no classes",
            )

    def names(self) -> list[str] | None:
        """The classes seen, sorted: as numbers where all of them are, else as text.

        Raises
        ------
        DataError
            There are fewer than two.
        """
        if self.classes is None:
            return None
        found = list(self._seen)
        if len(found) < 2:
            what = f"has one class only, {found[0]!r}" if found else "is missing throughout"
            raise DataError(what, where=f"label {self.name!r}", remedy="two classes are needed")
        numbers = pd.to_numeric(pd.Series(found), errors="coerce")
        if numbers.notna().all():
            return [name for _, name in sorted(zip(numbers.tolist(), found, strict=True))]
        return sorted(found)

    def encode(
        self, values: pd.Series
    ) -> Int32[np.ndarray, " rows"] | Float64[np.ndarray, " rows"]:
        """Codes (-1 = missing), or numbers (NaN = missing)."""
        if self.classes is None:
            return pd.to_numeric(values).to_numpy(np.float64)
        codes = pd.Index(self.classes).get_indexer(pd.Index(_texts(values)))
        return codes.astype(np.int32)


def _texts(values: pd.Series) -> pd.Series:
    """Labels as text, None where missing; whole numbers without a point."""
    if types.is_float_dtype(values.dtype):
        plain = values.map(
            lambda value: str(int(value)) if value == int(value) else str(value), na_action="ignore"
        )
        return plain.astype(object)
    out = values.astype(object)
    return out.map(str, na_action="ignore")

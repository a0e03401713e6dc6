"""The corpus: the encoded rows of a table on disk, memory-mapped, with labels and ids apart.

A corpus folder (written by `build.build_corpus`) holds

    corpus.json      format, numbers of rows and columns, the label's name and classes, settings,
                     inputs; written last
    x.npy            float32 [rows, columns], as `TablePreprocessor.transform` gives them
    y.npy            labels, where there are any: int32 codes (-1 = missing) or float64 (NaN)
    columns.json     the preprocessor, with columns.npz: names, kinds, categories, statistics
    index.parquet    a row a row: id, file, line (of CSV and TSV; elsewhere the row, from 1)
    skipped.csv      file, line and reason of every row that was left out
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64

from jepa_core.config import read_json
from jepa_core.corpus import mapped, read_column, read_info
from jepa_core.errors import DataError
from jepa_tabular.preprocess import TablePreprocessor
from jepa_tabular.presets import TableShape

FORMAT = 1

Task = Literal["binary", "multiclass", "regression"]


class TableCorpus:
    """Read a corpus; as an array of encoded rows it has a `shape` and rows by number.

    Parameters
    ----------
    path
        The folder.

    Attributes
    ----------
    shape
        Rows and columns.
    label
        Name of the label, None where there is none.
    classes
        Names of the classes in the order of their codes; empty where labels are numbers or absent.

    Raises
    ------
    DataError
        No complete corpus lies there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.info = read_info(self.path, "tabular", FORMAT)
        self.shape: tuple[int, int] = (self.info["rows"], self.info["columns"])
        self.label: str | None = self.info["label"]
        self.classes: tuple[str, ...] = tuple(self.info["classes"] or ())
        self._x: Float32[np.ndarray, "rows columns"] | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getstate__(self) -> dict[str, Any]:
        # Every process maps the file itself, and reads the index if it needs it.
        cached = ("ids", "y", "preprocessor")
        return {**{k: v for k, v in self.__dict__.items() if k not in cached}, "_x": None}

    def __getitem__(self, ids: Int64[np.ndarray, " batch"]) -> Float32[np.ndarray, "batch columns"]:
        return self.rows(ids)

    def rows(self, ids: Int64[np.ndarray, " batch"]) -> Float32[np.ndarray, "batch columns"]:
        """Encoded rows by number, in memory.

        Raises
        ------
        DataError
            A number that no row has.
        """
        ids = np.asarray(ids)
        if len(ids) and not (ids.min() >= 0 and ids.max() < len(self)):
            raise DataError(f"there are rows 0 to {len(self) - 1}", where=self.path)
        return self.x[ids]

    @property
    def x(self) -> Float32[np.ndarray, "rows columns"]:
        """All encoded rows, memory-mapped."""
        if self._x is None:
            x = mapped(self.path / "x.npy")
            if x.shape != self.shape or x.dtype != np.float32:
                raise _damaged(self.path / "x.npy", f"is {x.dtype} {x.shape}, not {self.shape}")
            self._x = x
        return self._x

    @cached_property
    def y(self) -> Int32[np.ndarray, " rows"] | Float64[np.ndarray, " rows"]:
        """Labels: codes of `classes` with -1 for a missing one, or numbers with NaN.

        Raises
        ------
        DataError
            The corpus has none.
        """
        if self.label is None:
            raise DataError(
                "the corpus has no labels", where=self.path, remedy="build it with --label COLUMN"
            )
        y = np.array(mapped(self.path / "y.npy"))
        if y.shape != (len(self),):
            raise _damaged(self.path / "y.npy", f"has shape {y.shape}, not ({len(self)},)")
        return y

    @property
    def task(self) -> Task | None:
        """What the labels make of it; None without labels."""
        if self.label is None:
            return None
        if self.info["classes"] is None:
            return "regression"
        return "binary" if len(self.classes) == 2 else "multiclass"

    @cached_property
    def preprocessor(self) -> TablePreprocessor:
        """What encoded the rows; it encodes others alike."""
        try:
            with np.load(self.path / "columns.npz") as arrays:
                found = {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, EOFError) as error:
            raise _damaged(self.path / "columns.npz", str(error)) from None
        return TablePreprocessor.from_state(read_json(self.path / "columns.json"), found)

    @property
    def table_shape(self) -> TableShape:
        """What the model must know of the table."""
        return self.preprocessor.shape_

    @cached_property
    def ids(self) -> np.ndarray:
        """Ids of the rows: of the column that was chosen, else their lines or numbers."""
        return self.column("id")

    def column(self, name: str) -> np.ndarray:
        """One column of the index, a value a row: id, file or line."""
        return read_column(self.path, name)


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"cannot be read: {what}", where=path, remedy="build the corpus again")

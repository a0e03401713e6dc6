"""The six tables of the paper, as the official program lays them out, and how they are split.

Source: Thimonier et al. (arXiv 2410.05016) and the loaders of its program.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64
from pandas.api import types
from sklearn.model_selection import train_test_split

from jepa_core.errors import ConfigError, DataError
from jepa_tabular.data.files import load_table

Task = Literal["binary", "multiclass", "regression"]


@dataclass(frozen=True)
class Layout:
    """How a table comes, and what the official program makes of it.

    Attributes
    ----------
    files
        Names that the file may have, the official one first; also with `.gz` where it is text.
    rows, columns
        Of the whole table, once rows with missing numbers are left out; feature columns.
    task
        What is predicted.
    label
        Name of the label, or its position.
    categorical
        Positions of the categorical columns among the features.
    dropped
        Columns that are not used.
    classes
        Names of the classes in the order of their codes; empty where they are found in the file.
    cite
        What a user of the table cites.
    """

    files: tuple[str, ...]
    rows: int
    columns: int
    task: Task
    label: str | int
    categorical: tuple[int, ...] = ()
    dropped: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    cite: str = ""


LAYOUTS: dict[str, Layout] = {
    "adult": Layout(
        ("adult.csv",),
        48_842,
        14,
        "binary",
        "income",
        categorical=(1, 3, 5, 6, 7, 8, 9, 13),
        classes=("<=50K", ">50K"),
        cite="Becker and Kohavi, Adult, UCI Machine Learning Repository (1996)",
    ),
    "helena": Layout(
        ("helena.arff",),
        65_196,
        27,
        "multiclass",
        "class",
        cite="Guyon et al., Analysis of the AutoML Challenge Series 2015-2018 (2019)",
    ),
    "jannis": Layout(
        ("jannis.arff", "jannis_28145.npz"),
        83_733,
        54,
        "multiclass",
        "class",
        cite="Guyon et al., Analysis of the AutoML Challenge Series 2015-2018 (2019)",
    ),
    "aloi": Layout(
        ("aloi.csv",),
        108_000,
        128,
        "multiclass",
        -1,
        cite="Geusebroek et al., International Journal of Computer Vision 61, 103-112 (2005)",
    ),
    "california": Layout(
        ("housing.csv",),
        20_433,
        8,
        "regression",
        "median_house_value",
        dropped=("ocean_proximity",),
        cite="Pace and Barry, Statistics & Probability Letters 33, 291-297 (1997)",
    ),
    "higgs": Layout(
        ("higgs.csv", "higgs_7000.csv"),
        98_050,
        28,
        "binary",
        0,
        categorical=(8, 12, 16, 20),
        cite="Baldi, Sadowski and Whiteson, Nature Communications 5, 4308 (2014)",
    ),
}
"""Name to layout."""


class Table(NamedTuple):
    """A table as it was published.

    Attributes
    ----------
    frame
        The features, in the order of the file. Categorical columns are of a category dtype whose
        categories are in the official order of their codes: text sorted, numbers by their first
        rows.
    y
        int64 codes of `classes`, or float64.
    task
        What is predicted.
    classes
        Names of the classes in the order of their codes; empty for numbers.
    dropped
        Rows of the file left out because a number in them is missing.
    """

    frame: pd.DataFrame
    y: Int64[np.ndarray, " rows"] | Float64[np.ndarray, " rows"]
    task: Task
    classes: tuple[str, ...]
    dropped: int

    @property
    def categories(self) -> dict[str, tuple[str, ...] | tuple[float, ...]]:
        """Categories of each categorical column in the order of their official codes."""
        return {
            str(name): tuple(column.cat.categories.tolist())
            for name, column in self.frame.items()
            if isinstance(column.dtype, pd.CategoricalDtype)
        }


class Split(NamedTuple):
    """Row numbers of three parts."""

    train: Int64[np.ndarray, " train"]
    validation: Int64[np.ndarray, " validation"]
    test: Int64[np.ndarray, " test"]


def read(name: str, path: str | os.PathLike[str]) -> Table:
    """Read one of the six tables.

    Rows with a missing number are left out, as the published sizes have it.

    Parameters
    ----------
    name
        A key of `LAYOUTS`.
    path
        The file, or a folder that holds it under one of its names. Jannis may also be an `.npz` of
        pairs X_... and y_....

    Raises
    ------
    ConfigError
        No such table.
    DataError
        The file is not there, cannot be read, or has not the columns of that table.
    """
    layout = _layout(name)
    file = _find(layout, Path(path))
    frame = load_table(file)
    label = _label(frame, layout, file)
    features = frame.drop(columns=[label, *layout.dropped])
    if features.shape[1] != layout.columns:
        what = f"{features.shape[1]} feature columns; {name} has {layout.columns}"
        raise DataError(what, where=file)
    categorical = [str(features.columns[i]) for i in layout.categorical]
    for column in features.columns:
        if column not in categorical and not types.is_numeric_dtype(features[column].dtype):
            what = f"the column {column!r} is text; that of {name} holds numbers"
            raise DataError(what, where=file)
    whole = features.notna().all(axis=1).to_numpy() & frame[label].notna().to_numpy()
    if not whole.any():
        raise DataError("there is a missing value in every row", where=file)
    features = features[whole].reset_index(drop=True)
    for column in categorical:
        features[column] = _categories(features[column])
    y, classes = _target(frame.loc[whole, label], layout, file)
    return Table(features, y, layout.task, classes, int((~whole).sum()))


def official_split(n: int, val_ratio: float = 0.0, seed: int = 42) -> Split:
    """The program's split: a tenth to test, not stratified.

    Parameters
    ----------
    n
        Rows.
    val_ratio
        Share of the rows for validation, taken from those left for training. At 0, which is what
        nearly all published runs have, validation is the test set itself.
    seed
        42 in all published runs.
    """
    train, test = train_test_split(np.arange(n), test_size=int(n * 0.1), random_state=seed)
    if not val_ratio:
        return Split(train, test, test)
    train, validation = train_test_split(train, test_size=int(n * val_ratio), random_state=seed)
    return Split(train, validation, test)


def split(
    rows: int | Int64[np.ndarray, " rows"] | Float64[np.ndarray, " rows"],
    *,
    seed: int,
    validation: float | int = 0.1,
    test: float | int = 0.1,
    stratify: bool = False,
) -> Split:
    """A split into three parts that share no row.

    Parameters
    ----------
    rows
        Their number, or the labels, which `stratify` needs.
    seed
        Decides who is where.
    validation, test
        Share of all rows, or a number of them.
    stratify
        Give each part the same shares of the classes.

    Raises
    ------
    ConfigError
        The parts do not leave a row to train on, or a class has too few rows to be in each.
    """
    n = rows if isinstance(rows, (int, np.integer)) else len(rows)
    y = None if isinstance(rows, (int, np.integer)) or not stratify else np.asarray(rows)
    if stratify and y is None:
        raise ConfigError("a stratified split needs the labels, not their number")
    sizes = {}
    for name, size in (("validation", validation), ("test", test)):
        sizes[name] = size if isinstance(size, int) else round(size * n)
        if sizes[name] < 1:
            raise ConfigError(f"{name} is {size}: no row of {n}", remedy="allowed: one at least")
    if sum(sizes.values()) >= n:
        what = f"validation and test take {sum(sizes.values())} of {n} rows"
        raise ConfigError(what, remedy="leave some to train on")
    try:
        rest, of_test = train_test_split(
            np.arange(n), test_size=sizes["test"], random_state=seed, stratify=y
        )
        train, of_validation = train_test_split(
            rest,
            test_size=sizes["validation"],
            random_state=seed,
            stratify=None if y is None else y[rest],
        )
    except ValueError as error:
        raise ConfigError(f"no stratified split: {' '.join(str(error).split())}") from None
    return Split(np.sort(train), np.sort(of_validation), np.sort(of_test))


def standardised(
    y: Float64[np.ndarray, " rows"], training: Int64[np.ndarray, " train"] | None = None
) -> tuple[Float64[np.ndarray, " rows"], float, float]:
    """A target with the mean and the population deviation of the training rows taken out.

    Parameters
    ----------
    training
        Row numbers; None takes all rows, test rows included, as the official program does.

    Returns
    -------
    The standardised target, the mean and the deviation.
    """
    known = y if training is None else y[training]
    mean, deviation = float(known.mean()), float(known.std())
    return (y - mean) / deviation, mean, deviation


def _layout(name: str) -> Layout:
    if name not in LAYOUTS:
        raise ConfigError(f"no table called {name!r}", remedy=f"allowed: {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def _find(layout: Layout, path: Path) -> Path:
    if not path.is_dir():
        return path
    names = [name for file in layout.files for name in (file, f"{file}.gz")]
    for name in names:
        if (path / name).exists():
            return path / name
    text = ", ".join(layout.files)
    raise DataError(f"none of its files is there: {text}", where=path, remedy="name the file")


def _label(frame: pd.DataFrame, layout: Layout, file: Path) -> str:
    if isinstance(layout.label, int):
        return str(frame.columns[layout.label])
    # Arrays have no names of their own.
    names = (layout.label, "y") if file.suffix == ".npz" else (layout.label,)
    for name in names:
        if name in frame.columns:
            return name
    absent = [name for name in (layout.label, *layout.dropped) if name not in frame.columns]
    raise DataError(f"there is no column {absent[0]!r}", where=file)


def _categories(column: pd.Series) -> pd.Series:
    found = column.unique().tolist()
    if not types.is_numeric_dtype(column.dtype):
        found.sort()
    return column.astype(pd.CategoricalDtype(pd.Index(found)))


def _target(
    label: pd.Series, layout: Layout, file: Path
) -> tuple[Int64[np.ndarray, " rows"] | Float64[np.ndarray, " rows"], tuple[str, ...]]:
    if layout.task == "regression":
        if not types.is_numeric_dtype(label.dtype):
            raise DataError(f"the target {label.name!r} is text, not numbers", where=file)
        return label.to_numpy(np.float64), ()
    if isinstance(label.dtype, pd.CategoricalDtype):
        label = label.astype(label.cat.categories.dtype)
    as_numbers = pd.to_numeric(label, errors="coerce")
    if as_numbers.notna().all():
        whole = as_numbers.astype(np.int64)
        found = np.unique(whole).tolist()
        return np.searchsorted(found, whole).astype(np.int64), tuple(map(str, found))
    classes = layout.classes or tuple(sorted(label.unique().tolist()))
    codes = pd.Index(classes).get_indexer(pd.Index(label))
    if (codes < 0).any():
        odd = label.iloc[int(np.argmax(codes < 0))]
        allowed = f"allowed: {', '.join(classes)}"
        raise DataError(f"{label.name!r} is {odd!r}", where=file, remedy=allowed)
    return codes.astype(np.int64), classes

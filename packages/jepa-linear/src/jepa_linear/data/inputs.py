"""From files to two views: what a file holds decides, flags say what it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num

from jepa_core.errors import ConfigError, DataError
from jepa_linear.data import files
from jepa_linear.data.checks import same_covariance, transposed
from jepa_linear.data.known import from_covariances, from_modes, from_moments
from jepa_linear.data.moments import moments
from jepa_linear.data.views import Masks, Scale, Views, lagged, masked, paired

_VIEWS = ("view_0", "view_1")


@dataclass(frozen=True)
class Choice:
    """What a file alone does not say.

    Parameters
    ----------
    view_columns
        Two columns of vectors in a Parquet file: x and y.
    columns
        Features of a table; empty takes every column but group and order.
    group, order
        Columns of a table, or arrays of an `.npz`.
    lag
        Rows from x to y; 0 is no lag.
    masks
        How features are masked; None masks none.
    """

    view_columns: tuple[str, str] | None = None
    columns: tuple[str, ...] = ()
    group: str | None = None
    order: str | None = None
    lag: int = 0
    masks: Masks | None = None
    scale: Scale = "none"
    ddof: int = 0


def read(*paths: str | Path, choice: Choice | None = None) -> Views:
    """Two views from one file or from two.

    Two files (`.npy`, or tables with the same columns) are x and y. One `.npz` holds `x` and `y`;
    `Sxx`, `Syx` and perhaps `Syy` and `n`; `lam` with `rho` or `sigma2`; or one table. One Parquet
    file with columns of vectors holds two views (`view_0` and `view_1`, or those named). Any other
    file is one table, which needs a lag or masks.

    Raises
    ------
    DataError
        The files are not what they should be.
    ConfigError
        The choice does not fit them.
    """
    choice = choice or Choice()
    places = [Path(path) for path in paths]
    if len(places) not in (1, 2):
        raise ConfigError(f"{len(places)} files", where="data", remedy="give one, or x and y")
    if choice.lag and choice.masks:
        raise ConfigError("both a lag and masks are given", where="lag", remedy="choose one")
    if choice.order and not choice.lag:
        raise ConfigError("an order is for a table in time", where="order", remedy="give --lag too")
    if len(places) == 2:
        return _two(places[0], places[1], choice)
    (path,) = places
    kind = files.suffix(path)
    if kind == ".npz":
        return _archive(path, choice)
    if kind == ".npy":
        _no_columns(choice, path)
        return _one(files.Table((), files.read_npy(path), {}), choice, path)
    if kind in (".parquet", ".pq") and not choice.columns:
        vectors = files.vector_columns(path)
        if choice.view_columns or set(_VIEWS) <= set(vectors):
            return _embeddings(path, choice.view_columns or _VIEWS, choice)
        if vectors and not choice.lag and not choice.masks:
            raise DataError(
                f"holds vectors in {', '.join(vectors)}, and no two of them are view_0 and view_1",
                where=path,
                remedy="name two with --view-columns, or write views (jepa ... embed --views 2)",
            )
    if choice.view_columns:
        raise ConfigError(
            "only a Parquet file has columns of vectors", where=path, remedy="drop --view-columns"
        )
    names = files.column_names(path)
    if "lam" in names and {"rho", "sigma2"} & set(names) and not choice.lag and not choice.masks:
        known = [name for name in ("lam", "rho", "sigma2") if name in names]
        table = files.read_table(path, known)
        return _modes(dict(zip(known, table.values.T, strict=True)), path)
    return _one(_table(path, choice), choice, path)


def _two(first: Path, second: Path, choice: Choice) -> Views:
    if choice.lag or choice.masks or choice.view_columns:
        raise ConfigError(
            "two files are two views already",
            where=second,
            remedy="drop --lag, --keep and --view-columns, or give one file",
        )
    x = _features(first, choice)
    y = _features(second, choice)
    group = x.beside.get(choice.group) if choice.group else None
    if x.names and y.names and x.names != y.names:
        odd = sorted(set(x.names) ^ set(y.names))
        if odd:
            place, other = (first, second) if odd[0] in x.names else (second, first)
            raise DataError(
                f"column {odd[0]!r} of {place.name} is not in {other.name}",
                where=other,
                remedy="give both tables the same columns, or name those to use with --columns",
            )
        # By name, whatever their order.
        y = replace(y, values=y.values[:, [y.names.index(name) for name in x.names]])
    return paired(
        x.values,
        y.values,
        names=x.names or None,
        groups=group,
        scale=choice.scale,
        ddof=choice.ddof,
        where=f"{first} and {second}",
    )


def _features(path: Path, choice: Choice) -> files.Table:
    kind = files.suffix(path)
    if kind == ".npz":
        raise DataError(
            "an .npz is read alone", where=path, remedy="put both views into it, as x and y"
        )
    if kind == ".npy":
        _no_columns(choice, path)
        return files.Table((), files.read_npy(path), {})
    return _table(path, choice)


def _table(path: Path, choice: Choice) -> files.Table:
    beside = [name for name in (choice.group, choice.order) if name]
    return files.read_table(path, choice.columns or None, beside)


def _no_columns(choice: Choice, path: Path) -> None:
    if choice.columns or choice.group or choice.order:
        raise ConfigError(
            "an .npy has no named columns",
            where=path,
            remedy="drop --columns, --group and --order, or write a CSV or Parquet file",
        )


def _one(table: files.Table, choice: Choice, path: Path) -> Views:
    names = table.names or None
    group = table.beside.get(choice.group) if choice.group else None
    if choice.lag:
        return lagged(
            table.values,
            choice.lag,
            names=names,
            groups=group,
            order=table.beside.get(choice.order) if choice.order else None,
            scale=choice.scale,
            ddof=choice.ddof,
            where=path,
        )
    if choice.masks:
        return masked(
            table.values,
            choice.masks,
            names=names,
            groups=group,
            scale=choice.scale,
            ddof=choice.ddof,
            where=path,
        )
    raise DataError(
        "is one table, and two views are needed",
        where=path,
        remedy="give --lag N (a series), --keep Q (random masks), or a second file",
    )


def _archive(path: Path, choice: Choice) -> Views:
    arrays = files.read_npz(path)
    if choice.columns or choice.view_columns:
        raise ConfigError(
            "an .npz has no named columns", where=path, remedy="drop --columns and --view-columns"
        )
    beside = {}
    for name in (choice.group, choice.order):
        if name:
            files.require_column(name, list(arrays), path)
            beside[name] = arrays.pop(name)
    keys = set(arrays)
    if "Sxx" in keys:
        return _covariances(arrays, choice, path)
    if "lam" in keys:
        return _modes(arrays, path)
    if {"x", "y"} <= keys and not choice.lag and not choice.masks:
        return paired(
            files.matrix(arrays["x"], f"{path}, array x"),
            files.matrix(arrays["y"], f"{path}, array y"),
            groups=beside.get(choice.group or ""),
            scale=choice.scale,
            ddof=choice.ddof,
            where=path,
        )
    if len(keys) != 1 and "x" not in keys:
        raise DataError(
            f"holds {', '.join(sorted(keys)) or 'nothing'}",
            where=path,
            remedy="give x and y, or Sxx and Syx (Syy, n), or lam and rho (sigma2), or one table",
        )
    values = arrays["x"] if "x" in keys else next(iter(arrays.values()))
    return _one(files.Table((), files.matrix(values, path), beside), choice, path)


def _covariances(arrays: Mapping[str, Num[np.ndarray, "..."]], choice: Choice, path: Path) -> Views:
    if choice.lag or choice.masks:
        raise ConfigError(
            "covariances have no lag and no masks", where=path, remedy="drop --lag and --keep"
        )
    if "Syx" not in arrays:
        had = "; it holds Sxy = E[x y'], whose transpose is Syx" if "Sxy" in arrays else ""
        raise DataError(f"holds no Syx{had}", where=path, remedy="give Syx = E[y x']")
    if {"x", "y"} <= set(arrays):
        whole = paired(arrays["x"], arrays["y"], where=path)
        if transposed(arrays["Syx"], whole.Syx):
            raise DataError(
                "is E[x y'] of its own x and y",
                where=f"{path}, Syx",
                remedy="give E[y x'], the transpose",
            )
        if not same_covariance(arrays["Syx"], whole.Syx):
            raise DataError(
                "is not E[y x'] of its own x and y",
                where=f"{path}, Syx",
                remedy="leave out x and y, or Sxx and Syx",
            )
    n = _count(arrays.get("n"), path)
    return from_covariances(
        arrays["Sxx"], arrays["Syx"], arrays.get("Syy"), n, scale=choice.scale, where=path
    )


def _count(value: Any, path: Path) -> int | None:
    if value is None:
        return None
    if value.size != 1 or not np.isfinite(value).all() or value.reshape(-1)[0] % 1:
        raise DataError("is no whole number", where=f"{path}, n", remedy="give one number of pairs")
    return int(value.reshape(-1)[0])


def _modes(arrays: Mapping[str, Num[np.ndarray, "..."]], path: Path) -> Views:
    n = _count(arrays.get("n"), path)
    return from_modes(arrays["lam"], arrays.get("rho"), arrays.get("sigma2"), n=n, where=path)


def _embeddings(path: Path, names: tuple[str, str], choice: Choice) -> Views:
    """Two columns of vectors; those too many for memory are only summed up."""
    if choice.lag or choice.masks:
        raise ConfigError(
            f"{names[0]} and {names[1]} are two views already",
            where=path,
            remedy="drop --lag and --keep, or name one table's features with --columns",
        )
    place = f"{path}, columns {names[0]} and {names[1]}"
    if 2 * files.vectors_size(path, names) > files.available_memory() // 2:
        return _streamed(path, names, choice, place)
    chunks = list(files.vector_chunks(path, names))
    if not chunks:
        raise DataError("there are no rows", where=path, remedy="write some")
    x, y = (np.concatenate([chunk[i] for chunk in chunks]) for i in (0, 1))
    groups = None
    if choice.group:
        groups = files.read_table(path, [], [choice.group]).beside[choice.group]
    return paired(x, y, groups=groups, scale=choice.scale, ddof=choice.ddof, where=place)


def _streamed(path: Path, names: tuple[str, str], choice: Choice, place: str) -> Views:
    first = next(files.vector_chunks(path, names, rows=1))
    if first[0].shape[1] != first[1].shape[1]:
        raise DataError("x and y differ in length", where=place, remedy="name two like vectors")
    pairs = ((x, y) for x, y in files.vector_chunks(path, names))
    found = moments(pairs, first[0].shape[1])
    return from_moments(
        "paired views, too many for memory: summed up in one pass",
        found,
        scale=choice.scale,
        ddof=choice.ddof,
        where=place,
    )

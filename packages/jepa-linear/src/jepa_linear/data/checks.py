"""What numbers, groups, orders and covariances must be; each error names field and remedy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num, Shaped

from jepa_core.errors import DataError
from jepa_linear.data.files import matrix, numbers


def to_matrix(data: Any, where: object) -> tuple[Num[np.ndarray, "n d"], tuple[str, ...]]:
    """A matrix, and the names of its columns where it has names."""
    names: tuple[str, ...] = ()
    if hasattr(data, "columns"):
        names = tuple(map(str, data.columns))
        for name in names:
            if names.count(name) > 1:
                raise DataError(
                    f"two columns are called {name!r}", where=where, remedy="rename one of them"
                )
        for name, column in data.items():
            numbers(np.asarray(column), f"{where}, column {name!r}" if where else f"{name!r}")
    array = data if isinstance(data, np.ndarray) else np.asarray(data)
    return matrix(numbers(array, where), where), names


def numbered_names(d: int) -> tuple[str, ...]:
    return tuple(f"x{i}" for i in range(d))


def group_labels(groups: Any) -> Shaped[np.ndarray, " groups"]:
    import pandas as pd

    return np.asarray(pd.unique(np.asarray(groups)))


def group_codes(groups: Any, n: int, where: object) -> Int[np.ndarray, " n"] | None:
    if groups is None:
        return None
    import pandas as pd

    codes, _ = pd.factorize(np.asarray(groups))
    if len(codes) != n:
        raise DataError(f"{len(codes)} groups for {n} rows", where=where, remedy="give one a row")
    if (codes < 0).any():
        raise DataError(
            "the group column has missing values", where=where, remedy="give every row a group"
        )
    return codes


def must_be_in_order(
    order: Shaped[np.ndarray, " n"], members: Sequence[Int[np.ndarray, " rows"]], where: object
) -> None:
    import pandas as pd

    if pd.isna(order).any():
        raise DataError(
            "the order column has missing values", where=where, remedy="give every row a time"
        )
    for rows in members:
        before, after = order[rows[:-1]], order[rows[1:]]
        if (before == after).any():
            value = before[np.flatnonzero(before == after)[0]]
            raise DataError(
                f"the order column has {value!s} twice",
                where=where,
                remedy="name the series with --group, or keep one of the rows",
            )
        if not (after > before).all():
            value = after[np.flatnonzero(~(after > before))[0]]
            raise DataError(
                f"the order column is not sorted: {value!s} comes after a larger value",
                where=where,
                remedy="sort the table by it",
            )


def correlation_block(x: Num[np.ndarray, "n d"], lag: int) -> int:
    """Rows of a series to draw together: twice its longest correlation time, a tenth at most."""
    n = len(x)
    centred = x.astype(np.float64) - x.mean(axis=0)
    variance = (centred**2).mean(axis=0)
    time = np.full(x.shape[1], 0.5)
    alive = variance > 0
    for shift in range(1, n // 4):
        correlation = np.zeros(x.shape[1])
        product = (centred[:-shift] * centred[shift:]).sum(axis=0) / n
        np.divide(product, variance, out=correlation, where=variance > 0)
        alive &= correlation > 0.05
        if not alive.any():
            break
        time += np.where(alive, correlation, 0.0)
    return int(min(max(lag + 1, math.ceil(4 * time.max())), max(1, n // 10)))


def square(S: Any, name: str, where: object) -> Float[np.ndarray, "d d"]:
    place = f"{where}, {name}" if where else name
    array = numbers(np.asarray(S), place).astype(np.float64)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not len(array):
        raise DataError(f"has the shape {array.shape}", where=place, remedy="give a square matrix")
    if not np.isfinite(array).all():
        raise DataError("holds values that are not finite", where=place, remedy="compute it again")
    return array


def vector(values: Any, name: str, where: object) -> Float[np.ndarray, " modes"]:
    place = f"{where}, {name}" if where else name
    array = np.atleast_1d(numbers(np.asarray(values), place)).astype(np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise DataError(
            f"is no list of finite numbers (shape {array.shape})",
            where=place,
            remedy="give one number a mode",
        )
    return array


def must_be_covariance(S: Float[np.ndarray, "d d"], name: str, where: object) -> None:
    place = f"{where}, {name}" if where else name
    size = float(np.linalg.norm(S))
    skew = float(np.linalg.norm(S - S.T)) / max(size, 1e-300)
    if skew > 1e-8:
        raise DataError(
            f"is not symmetric (relative difference {skew:.2g})",
            where=place,
            remedy="give E[x x'], or its symmetric part if rounding did it",
        )
    values = np.linalg.eigvalsh((S + S.T) / 2)
    if values[0] < -1e-10 * max(values[-1], 0.0) or values[-1] <= 0:
        raise DataError(
            f"has the eigenvalue {values[0]:.3g} beside {values[-1]:.3g}",
            where=place,
            remedy="give a covariance: none of its eigenvalues is negative",
        )


def must_be_possible(
    Sxx: Float[np.ndarray, "d d"],
    Syx: Float[np.ndarray, "d d"],
    Syy: Float[np.ndarray, "d d"],
    names: Sequence[str],
    where: object,
) -> None:
    """Refuse covariances that would correlate two variables by more than one."""
    joint = np.block([[Sxx, Syx.T], [Syx, Syy]])
    deviation = np.sqrt(np.clip(np.diag(joint), 0, None))
    inverse = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    correlation = joint * np.outer(inverse, inverse)
    np.fill_diagonal(correlation, 1.0)
    idle = np.flatnonzero((deviation == 0) & (np.abs(joint).sum(axis=0) > 0))
    values, vectors = np.linalg.eigh(correlation)
    if values[0] >= -1e-8 and not idle.size:
        return
    weights = np.abs(vectors[: len(names), 0]) + np.abs(vectors[len(names) :, 0])
    if idle.size:
        weights = np.eye(len(names))[idle[0] % len(names)]
    worst = [names[i] for i in np.argsort(-weights)[:3] if weights[i] > 0.1 * weights.max()]
    raise DataError(
        f"x and y would be correlated by more than 1 along {', '.join(worst)}",
        where=f"{where}, Syx" if where else "Syx",
        remedy="compute Sxx, Syx and Syy from the same rows, all divided by the same n",
    )


def transposed(given: Num[np.ndarray, "d d"], Syx: Float[np.ndarray, "d d"]) -> bool:
    """Whether a cross-covariance is E[x y'] where E[y x'] is asked for."""
    return same_covariance(given.T, Syx) and not same_covariance(given, Syx)


def same_covariance(
    given: Num[np.ndarray, "d d"], other: Float[np.ndarray, "d d"], tolerance: float = 1e-6
) -> bool:
    """Whether two covariances are equal but for rounding and n or n - 1."""
    if given.shape != other.shape:
        return False
    a, b = given.astype(np.float64).reshape(-1), other.reshape(-1)
    factor = float(a @ b) / max(float(b @ b), 1e-300)
    return bool(np.linalg.norm(a - factor * b) <= tolerance * np.linalg.norm(a))

"""What is analysed: two views of the same samples, as rows or as their covariances.

Five ways lead here: pairs of views, one table with a lag, one table with random masks, covariances,
and modal parameters. Each gives a `Views`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Num, Shaped

from jepa_core.errors import ConfigError, DataError
from jepa_linear.data import checks
from jepa_linear.data.moments import Moments, moments, slices
from jepa_linear.generative import masking_model

Scale = Literal["none", "std", "global"]
Target = Literal["full", "complement", "independent"]


@dataclass(frozen=True)
class Masks:
    """Random masking of one table: x keeps each feature with probability `keep`.

    Parameters
    ----------
    noise
        Variance of the noise of each feature, before masking, independent between the views.
    target
        y is the whole row, what x lacks, or the row under a mask of its own.
    """

    keep: float
    noise: float = 0.0
    target: Target = "full"

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ConfigError(
                f"the probability of keeping a feature is {self.keep}",
                where="keep",
                remedy="give one above 0 and at most 1",
            )
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise ConfigError(f"a variance of {self.noise}", where="noise", remedy="give 0 or more")


@dataclass(frozen=True)
class Rows:
    """The samples behind covariances: what can be drawn again or held out.

    Parameters
    ----------
    x, y
        [n, d], finite, neither centred nor scaled; y is None under random masks.
    groups
        Whom each row belongs to, 0, 1, ...; None where rows are on their own.
    block
        Rows of a series that are drawn together, since neighbours are alike.
    """

    x: Num[np.ndarray, "n d"]
    y: Num[np.ndarray, "n d"] | None
    groups: Int[np.ndarray, " n"] | None = None
    block: int = 1

    def take(self, rows: Any) -> Rows:
        """Some of the rows."""
        return Rows(
            self.x[rows],
            None if self.y is None else self.y[rows],
            None if self.groups is None else self.groups[rows],
            self.block,
        )


@dataclass(frozen=True)
class Views:
    """Two views of the same samples.

    Parameters
    ----------
    kind
        Where they come from, in words.
    names
        Of the features, those without variance left out.
    Sxx, Syx, Syy
        Covariances, scaled; Syx = E[y x'].
    n
        Pairs; None where only covariances or modes were given.
    rows
        The pairs themselves; None where they are not there or do not fit into memory.
    scaling
        What was done to the units, in words.
    factors
        What each feature was multiplied by.
    dropped
        Pairs with a value that is not finite.
    constant
        Features without variance, left out.
    masks
        How the two views come about from one table.
    lag
        Rows between x and y of one series.
    """

    kind: str
    names: tuple[str, ...]
    Sxx: Float[np.ndarray, "d d"]
    Syx: Float[np.ndarray, "d d"]
    Syy: Float[np.ndarray, "d d"] | None
    n: int | None = None
    rows: Rows | None = None
    scaling: str = "none"
    factors: Float[np.ndarray, " d"] | None = None
    dropped: int = 0
    constant: tuple[str, ...] = ()
    masks: Masks | None = None
    lag: int = 0
    ddof: int = 0

    def part(self, chosen: Any) -> Views:
        """The same with some of its rows: their covariances, in the units of the whole.

        Raises
        ------
        DataError
            The rows are not there.
        """
        if self.rows is None:
            raise DataError("there are no rows to take some of", where=self.kind)
        rows = self.rows.take(chosen)
        found = moments(slices(rows.x, rows.y), rows.x.shape[1])
        Sxx, Syx, Syy = _covariances(found, self.factors, self.masks, self.ddof)
        return replace(self, Sxx=Sxx, Syx=Syx, Syy=Syy, n=found.n, rows=rows)


def paired(
    x: Any,
    y: Any,
    *,
    names: Sequence[str] | None = None,
    groups: Any = None,
    scale: Scale = "none",
    ddof: int = 0,
    where: object = "",
) -> Views:
    """Two views of the same samples: x predicts y.

    Parameters
    ----------
    x, y
        [n, d] each: arrays or data frames, of any real type. Rows with a value that is not finite
        are left out.
    groups
        Whom each row belongs to; groups are then drawn and held out whole.
    scale
        "none"; "std": each feature of both views divided by the standard deviation of x; "global":
        everything divided by sqrt(trace(Sxx) / d), which changes the unit of time and no order.
    ddof
        0 divides by n, as the loss does; 1 by n - 1.
    where
        The file, for the errors' text.

    Raises
    ------
    DataError
        The shapes differ, there are fewer than two rows, more than half of them are not finite,
        values are complex or no numbers, or no feature has variance.
    """
    x, x_names = checks.to_matrix(x, where)
    y, y_names = checks.to_matrix(y, where)
    if len(x) != len(y):
        raise DataError(
            f"x has {len(x)} rows and y has {len(y)}", where=where, remedy="pair them row by row"
        )
    if x.shape[1] != y.shape[1]:
        raise DataError(
            f"x has {x.shape[1]} features and y has {y.shape[1]}, but a JEPA encodes both with the "
            "same encoder",
            where=where,
            remedy="give both views the same features (reconstruction alone would allow it)",
        )
    if x_names and y_names and x_names != y_names:
        odd = next(a for a, b in zip(x_names, y_names, strict=True) if a != b)
        raise DataError(
            f"column {odd!r} of x is not at its place in y",
            where=where,
            remedy="give both tables the same columns in the same order",
        )
    return _from_rows(
        "paired views",
        Rows(x, y, checks.group_codes(groups, len(x), where)),
        tuple(names or x_names or checks.numbered_names(x.shape[1])),
        scale=scale,
        ddof=ddof,
        where=where,
    )


def lagged(
    table: Any,
    lag: int,
    *,
    names: Sequence[str] | None = None,
    groups: Any = None,
    order: Any = None,
    scale: Scale = "none",
    ddof: int = 0,
    where: object = "",
) -> Views:
    """One table in time: the row now predicts the row `lag` later, never across groups.

    Parameters
    ----------
    table
        [n, d] in the order of time, within each group.
    lag
        At least 1.
    groups
        Which series each row belongs to.
    order
        A time of each row, to check that rows are in order: increasing within each group.

    Raises
    ------
    DataError
        As for `paired`; or the lag is not shorter than the shortest series, the order column has
        duplicates or is not sorted, or nothing is left of a group.
    """
    values, own = checks.to_matrix(table, where)
    codes = checks.group_codes(groups, len(values), where)
    labels = np.zeros(1) if groups is None else checks.group_labels(groups)
    if lag < 1:
        raise ConfigError(f"the lag is {lag}", where="lag", remedy="give 1 or more rows")
    members = (
        [np.arange(len(values))]
        if codes is None
        else [np.flatnonzero(codes == code) for code in range(len(labels))]
    )
    shortest = min(range(len(members)), key=lambda group: len(members[group]))
    if lag >= len(members[shortest]):
        which = "the table" if codes is None else f"group {labels[shortest]!s}"
        raise DataError(
            f"the lag is {lag}, {which} has {len(members[shortest])} rows",
            where=where,
            remedy="give a shorter --lag, or leave the group out",
        )
    if order is not None:
        checks.must_be_in_order(np.asarray(order), members, where)
    first = np.concatenate([rows[:-lag] for rows in members])
    second = np.concatenate([rows[lag:] for rows in members])
    rows = Rows(
        values[first], values[second], None if codes is None else codes[first], block=max(1, lag)
    )
    views = _from_rows(
        f"one table, lag {lag}",
        rows,
        tuple(names or own or checks.numbered_names(values.shape[1])),
        scale=scale,
        ddof=ddof,
        where=where,
        labels=labels,
    )
    kept = views.rows
    if kept is not None and codes is None:
        kept = replace(kept, block=checks.correlation_block(kept.x, lag))
    return replace(views, lag=lag, rows=kept)


def masked(
    table: Any,
    masks: Masks,
    *,
    names: Sequence[str] | None = None,
    groups: Any = None,
    scale: Scale = "none",
    ddof: int = 0,
    where: object = "",
) -> Views:
    """One table whose features are randomly masked: exact covariances, no mask is drawn.

    Parameters
    ----------
    table
        [n, d].
    masks
        How.

    Raises
    ------
    DataError
        As for `paired`.
    """
    values, own = checks.to_matrix(table, where)
    views = _from_rows(
        f"one table, features kept with probability {masks.keep:g}, target {masks.target}",
        Rows(values, None, checks.group_codes(groups, len(values), where)),
        tuple(names or own or checks.numbered_names(values.shape[1])),
        scale=scale,
        ddof=ddof,
        where=where,
        masks=masks,
    )
    return views


def _from_rows(
    kind: str,
    rows: Rows,
    names: tuple[str, ...],
    *,
    scale: Scale,
    ddof: int,
    where: object,
    masks: Masks | None = None,
    labels: Shaped[np.ndarray, " groups"] | None = None,
) -> Views:
    d = rows.x.shape[1]
    if len(names) != d:
        raise DataError(f"{len(names)} names for {d} features", where=where, remedy="name each")
    found = moments(slices(rows.x, rows.y), d)
    must_suffice(found, where)
    if found.dropped:
        good = np.isfinite(rows.x).all(axis=1)
        if rows.y is not None:
            good &= np.isfinite(rows.y).all(axis=1)
        groups = rows.groups
        if groups is not None:
            empty = np.setdiff1d(groups, groups[good])
            if empty.size:
                name = labels[empty[0]] if labels is not None else empty[0]
                raise DataError(
                    f"group {name!s} has no row whose values are all finite",
                    where=where,
                    remedy="leave the group out, or fill its missing values",
                )
        rows = rows.take(good)
    return make_views(
        kind, found, names, n=found.n, scale=scale, ddof=ddof, where=where, rows=rows, masks=masks
    )


def must_suffice(found: Moments, where: object) -> None:
    """Refuse too few rows.

    Raises
    ------
    DataError
        Fewer than two rows, or more than half of them with values that are not finite.
    """
    total = found.n + found.dropped
    if found.dropped > total / 2:
        raise DataError(
            f"{found.dropped} of {total} rows hold a value that is missing or infinite",
            where=where,
            remedy="leave out the features that lack values (--columns), or fill them",
        )
    if found.n < 2:
        raise DataError(
            f"there are {found.n} rows", where=where, remedy="two are needed, hundreds make sense"
        )


def make_views(
    kind: str,
    found: Moments,
    names: tuple[str, ...],
    *,
    n: int | None,
    scale: Scale,
    where: object,
    ddof: int = 0,
    rows: Rows | None = None,
    masks: Masks | None = None,
) -> Views:
    """Leave out what has no variance, and scale."""
    keep: Bool[np.ndarray, " d"] = ~found.constant
    constant = tuple(name for name, kept in zip(names, keep, strict=True) if not kept)
    if not keep.any():
        raise DataError("no feature has variance", where=where, remedy="give features that vary")

    def cut(S: Float[np.ndarray, "d d"] | None) -> Float[np.ndarray, "k k"] | None:
        return None if S is None else S[np.ix_(keep, keep)]

    Sxx = found.Sxx[np.ix_(keep, keep)]
    found = replace(found, Sxx=Sxx, Syx=cut(found.Syx), Syy=cut(found.Syy), constant=keep[keep])
    if rows is not None and constant:
        rows = replace(rows, x=rows.x[:, keep], y=None if rows.y is None else rows.y[:, keep])
    factors, words = _factors(Sxx, scale)
    Sxx, Syx, Syy = _covariances(found, factors, masks, ddof)
    return Views(
        kind,
        tuple(name for name, kept in zip(names, keep, strict=True) if kept),
        Sxx,
        Syx,
        Syy,
        n=n,
        rows=rows,
        scaling=words,
        factors=factors,
        dropped=found.dropped,
        constant=constant,
        masks=masks,
        ddof=ddof,
    )


def _factors(Sxx: Float[np.ndarray, "d d"], scale: Scale) -> tuple[np.ndarray, str]:
    variance = np.diag(Sxx)
    if scale == "std":
        return 1 / np.sqrt(variance), "each feature divided by its standard deviation in x"
    if scale == "global":
        factor = 1 / math.sqrt(variance.mean())
        return np.full(len(variance), factor), f"everything multiplied by {factor:.6g}"
    return np.ones(len(variance)), "none: features are in the units they were given in"


def _covariances(
    found: Moments, factors: Float[np.ndarray, " d"] | None, masks: Masks | None, ddof: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    weight = np.ones_like(found.Sxx) if factors is None else np.outer(factors, factors)
    if ddof:
        weight = weight * (found.n / max(found.n - ddof, 1))
    Sxx = found.Sxx * weight
    if masks is not None:
        return masking_covariances(Sxx, masks)
    assert found.Syx is not None
    return Sxx, found.Syx * weight, None if found.Syy is None else found.Syy * weight


def masking_covariances(
    C: Float[np.ndarray, "d d"], masks: Masks
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sxx, Syx and Syy of a table with covariance C under random masks."""
    model = masking_model(C, masks.keep, noise=masks.noise, target=masks.target)
    return model.Sxx, model.Syx, model.Syy

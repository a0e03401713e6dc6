"""Views of which no rows are there: covariances, running sums, modal parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jepa_core.errors import DataError
from jepa_linear.data import checks
from jepa_linear.data.moments import Moments
from jepa_linear.data.views import Scale, Views, make_views, must_suffice


def from_covariances(
    Sxx: Any,
    Syx: Any,
    Syy: Any = None,
    n: int | None = None,
    *,
    names: Sequence[str] | None = None,
    scale: Scale = "none",
    where: object = "",
) -> Views:
    """Views of which only covariances are known.

    Parameters
    ----------
    Sxx, Syx, Syy
        [d, d]; Syx = E[y x'], its rows are y's features.
    n
        Pairs they were computed from; without it nothing can be said about chance.

    Raises
    ------
    DataError
        Shapes differ, Sxx or Syy is not symmetric or has a negative eigenvalue, or no pair of
        views can have these covariances.
    """
    Sxx, Syx = checks.square(Sxx, "Sxx", where), checks.square(Syx, "Syx", where)
    Syy = None if Syy is None else checks.square(Syy, "Syy", where)
    d = len(Sxx)
    if Syx.shape != Sxx.shape or (Syy is not None and Syy.shape != Sxx.shape):
        raise DataError(
            f"Sxx is {Sxx.shape}, Syx {Syx.shape}",
            where=where,
            remedy="give both views the same features",
        )
    labels = tuple(names or checks.numbered_names(d))
    checks.must_be_covariance(Sxx, "Sxx", where)
    if Syy is not None:
        checks.must_be_covariance(Syy, "Syy", where)
        checks.must_be_possible(Sxx, Syx, Syy, labels, where)
    if n is not None and n < 2:
        raise DataError(f"n is {n}", where=where, remedy="two pairs are needed at least")
    found = Moments(n or 0, 0, Sxx, Syx, Syy, np.diag(Sxx) <= 0)
    return make_views("covariances", found, labels, n=n, scale=scale, where=where)


def from_modes(
    lam: Any, rho: Any = None, sigma2: Any = None, *, n: int | None = None, where: object = ""
) -> Views:
    """Modes that are already known: cross-covariance, and regression coefficient or variance.

    Parameters
    ----------
    lam
        lambda of each mode.
    rho, sigma2
        One of them, or both where lam = rho sigma2.

    Raises
    ------
    DataError
        Shapes differ, lam and rho have opposite signs, a variance is negative, or the three do not
        fit together (relative 1e-8).
    """
    lam = checks.vector(lam, "lam", where)
    rho = None if rho is None else checks.vector(rho, "rho", where)
    sigma2 = None if sigma2 is None else checks.vector(sigma2, "sigma2", where)
    for name, other in (("rho", rho), ("sigma2", sigma2)):
        if other is not None and other.shape != lam.shape:
            raise DataError(
                f"lam has {lam.size} modes and {name} has {other.size}",
                where=where,
                remedy="give one value a mode",
            )
    if rho is not None and (wrong := np.flatnonzero(lam * rho < 0)).size:
        i = int(wrong[0])
        raise DataError(
            f"mode {i} has lam {lam[i]:g} and rho {rho[i]:g}, of opposite sign",
            where=where,
            remedy="rho is lam divided by a variance: give both the same sign",
        )
    if sigma2 is None:
        if rho is None:
            raise DataError("lam alone says nothing", where=where, remedy="give rho or sigma2 too")
        bad = (rho == 0) != (lam == 0)
        if bad.any():
            i = int(np.flatnonzero(bad)[0])
            raise DataError(
                f"mode {i} has lam {lam[i]:g} and rho {rho[i]:g}",
                where=where,
                remedy="both are zero or none is; give sigma2 for a mode that predicts nothing",
            )
        sigma2 = np.divide(lam, rho, out=np.zeros_like(lam), where=rho != 0)
    elif rho is not None:
        off = np.abs(lam - rho * sigma2) > 1e-8 * np.abs(lam)
        if off.any():
            i = int(np.flatnonzero(off)[0])
            raise DataError(
                f"mode {i} has lam {lam[i]:g}, but rho sigma2 is {rho[i] * sigma2[i]:g}",
                where=where,
                remedy="give two of the three",
            )
    if (sigma2 < 0).any() or ((sigma2 == 0) & (lam != 0)).any():
        i = int(np.flatnonzero((sigma2 < 0) | ((sigma2 == 0) & (lam != 0)))[0])
        raise DataError(
            f"mode {i} has lam {lam[i]:g} and variance {sigma2[i]:g}",
            where=where,
            remedy="give a positive variance",
        )
    names = tuple(f"mode {i}" for i in range(len(lam)))
    found = Moments(n or 0, 0, np.diag(sigma2), np.diag(lam), None, sigma2 == 0)
    return make_views("modes", found, names, n=n, scale="none", where=where)


def from_moments(
    kind: str,
    found: Moments,
    *,
    names: Sequence[str] | None = None,
    scale: Scale = "none",
    ddof: int = 0,
    where: object = "",
) -> Views:
    """Views whose rows were only summed up: as `paired`, but nothing can be drawn again.

    Raises
    ------
    DataError
        Too few rows, or no feature with variance.
    """
    must_suffice(found, where)
    labels = tuple(names or checks.numbered_names(len(found.Sxx)))
    return make_views(kind, found, labels, n=found.n, scale=scale, ddof=ddof, where=where)

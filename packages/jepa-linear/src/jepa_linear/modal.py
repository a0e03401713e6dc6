"""Modal parameters of a pair of views: directions, lambda, rho, and how far they can be trusted.

The theory is exact where Sxx and Syx commute. Outside it the generalised eigenvectors of the
symmetric part of Syx against Sxx take the place of the common ones; three measures say how far that
is from the assumption. Nothing here standardises: lambda has the units of the data, rho has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Complex, Float, Int

from jepa_core.errors import ConfigError, DataError
from jepa_linear.arrays import Array, like, to_numpy, together
from jepa_linear.parameters import choice

Basis = Literal["generalised", "pca", "features"]

_SYMMETRIC = 1e-8  # relative asymmetry of a covariance that is taken for rounding
_NEGATIVE = 1e-10  # negative eigenvalue, of the largest, that is taken for rounding
_RANK = 1e-10  # eigenvalue of Sxx, of the largest, below which there is no variance
_DEGENERATE = 1e-8  # difference of rho, of the largest, below which directions are arbitrary
_CORRELATION = 1e-8  # excess of a canonical correlation over 1 that is taken for rounding


@dataclass(frozen=True)
class Covariances:
    """Second moments of a pair of views: Syx = E[y x'], rows are y's features."""

    Sxx: Float[Array, "*batch d d"]
    Syx: Float[Array, "*batch d d"]
    Syy: Float[Array, "*batch d d"]


@dataclass(frozen=True)
class Modes:
    """Modes of a pair of views, rho descending; absent ones (no variance) last with rho = nan.

    Parameters
    ----------
    rho, lam, sigma2
        Regression coefficient, cross-covariance and variance of x along each direction.
    directions
        Unit columns; the entry of largest magnitude is positive.
    asymmetry
        |(Syx - Syx') / 2| / |S|, S = (Syx + Syx') / 2 (Frobenius norms): 0 if the lagged dynamics
        are reversible. Only S is used for the modes.
    commutator
        |Sxx S - S Sxx| / (|Sxx| |S|): 0 if the assumption holds.
    direction_condition
        2-norm condition number of the directions that have variance: 1 if the assumption holds.
        Below 2 the predictions are good to about 10 %, up to 4 the order is fair and the times are
        rough, above they are not to be trusted.
    rank
        Directions with variance.
    off_diagonal
        |off(U' S U)| / |S| in the basis chosen: what a basis other than the generalised leaves out.
    clusters
        Number of the group of each mode; within a group rho differs by less than 1e-8 of the
        largest and directions are arbitrary: compare subspaces, never vectors.
    """

    rho: Float[Array, "*batch d"]
    lam: Float[Array, "*batch d"]
    sigma2: Float[Array, "*batch d"]
    directions: Float[Array, "*batch d d"]
    asymmetry: Float[Array, "*batch"]
    commutator: Float[Array, "*batch"]
    direction_condition: Float[Array, "*batch"]
    rank: Int[Array, "*batch"]
    off_diagonal: Float[Array, "*batch"]
    clusters: Int[Array, "*batch d"]


def modes(
    Sxx: Float[Array, "*batch d d"],
    Syx: Float[Array, "*batch d d"],
    *,
    basis: Basis = "generalised",
    ridge: float = 0.0,
    Syy: Float[Array, "*batch d d"] | None = None,
) -> Modes:
    """Directions v and their sigma^2 = v' Sxx v, lambda = v' S v, rho = lambda / sigma^2.

    Parameters
    ----------
    Sxx, Syx
        Covariance of x, and E[y x'] (rows are y's). Where x and y are exchanged, give the
        transpose: it cannot be told from the matrix.
    basis
        "generalised": S v = rho Sxx v, S = (Syx + Syx') / 2; exact where Sxx and S commute.
        "pca": eigenvectors of Sxx. "features": the columns as they are.
    ridge
        Added to the diagonal of Sxx. Without it a rank-deficient Sxx (eigenvalues below 1e-10 of
        the largest) is projected on its range; the other directions are absent modes.
    Syy
        Only to check that the three are a covariance together.

    Raises
    ------
    ConfigError
        For an unknown basis or a negative ridge.
    DataError
        For shapes that do not fit, values that are not finite, an Sxx or Syy that is not symmetric
        or not positive semi-definite, a Syx that no pair with these variances can have.
    """
    choice(basis, get_args(Basis), "basis")
    if ridge < 0:
        raise ConfigError(f"{ridge} is negative", where="ridge", remedy="give 0 or more")
    sxx, syx = _covariance(Sxx, "Sxx"), _cross(Sxx, Syx)
    if Syy is not None:
        _joint(sxx, syx, _covariance(Syy, "Syy"))
    loaded = sxx + ridge * np.eye(sxx.shape[-1])
    S = (syx + _t(syx)) / 2
    values, vectors = np.linalg.eigh(loaded)
    varied = values > _RANK * values[..., -1:]
    if basis == "generalised":
        directions, keep = _generalised(loaded, S, values, vectors, varied)
    else:
        directions = vectors if basis == "pca" else np.eye(sxx.shape[-1]) + np.zeros_like(loaded)
        keep = _along(directions, loaded) > _RANK * values[..., -1:]
    directions = directions / np.linalg.norm(directions, axis=-2, keepdims=True)
    largest = np.argmax(np.abs(directions), axis=-2)[..., None, :]
    directions = directions * np.sign(np.take_along_axis(directions, largest, axis=-2))
    sigma2 = np.where(keep, _along(directions, loaded), 0.0)
    lam = np.where(keep, _along(directions, S), 0.0)
    rho = np.where(keep, lam / np.where(keep, sigma2, 1.0), np.nan)
    order = np.argsort(np.where(keep, -rho, np.inf), axis=-1, kind="stable")
    rho, lam, sigma2 = (np.take_along_axis(value, order, -1) for value in (rho, lam, sigma2))
    directions = np.take_along_axis(directions, order[..., None, :], -1)
    between = _t(directions) @ S @ directions
    fields = (
        rho,
        lam,
        sigma2,
        directions,
        _share(_norm((syx - _t(syx)) / 2), _norm(S)),
        _share(_norm(sxx @ S - S @ sxx), _norm(sxx) * _norm(S)),
        _condition(directions, sigma2 > 0),
        (sigma2 > 0).sum(-1),
        _share(_norm(between * (1.0 - np.eye(sxx.shape[-1]))), _norm(S)),
        _clusters(rho),
    )
    template = together(Sxx=Sxx, Syx=Syx)[1][0]
    return Modes(*(like(np.asarray(field), template)[()] for field in fields))


def regression_eigenvalues(
    Sxx: Float[Array, "*batch d d"], Syx: Float[Array, "*batch d d"]
) -> Complex[Array, "*batch d"]:
    """Eigenvalues of Syx Sxx^-1, complex where the data rotate, largest real part first.

    A trained JEPA's predictor has these eigenvalues, whether or not Sxx and Syx commute; for
    symmetric Syx they are the rho of `modes`.

    Raises
    ------
    DataError
        As `modes`, and for a singular Sxx.
    """
    sxx, syx = _covariance(Sxx, "Sxx"), _cross(Sxx, Syx)
    values = np.linalg.eigvalsh(sxx)
    if np.any(values[..., 0] <= _RANK * values[..., -1]):
        raise DataError("Sxx is singular", where="Sxx", remedy="use modes(), which projects")
    found = np.linalg.eigvals(np.linalg.solve(sxx, _t(syx)))
    order = np.argsort(-found.real, axis=-1, kind="stable")
    return like(np.take_along_axis(found, order, -1) + 0j, together(Sxx=Sxx, Syx=Syx)[1][0])


def _generalised(
    sxx: np.ndarray, S: np.ndarray, values: np.ndarray, vectors: np.ndarray, varied: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Directions that solve S v = rho Sxx v, and which of them have variance."""
    if varied.all():
        lower = np.linalg.cholesky(sxx)
        half = np.linalg.solve(lower, S)
        whitened = np.linalg.solve(lower, _t(half))
        _, turned = np.linalg.eigh((whitened + _t(whitened)) / 2)
        return np.linalg.solve(_t(lower), turned), varied
    basis = (
        vectors * np.where(varied, 1 / np.sqrt(np.where(varied, values, 1.0)), 1.0)[..., None, :]
    )
    both = varied[..., :, None] & varied[..., None, :]
    whitened = np.where(both, _t(basis) @ S @ basis, 0.0)
    # What has no variance goes to the end of the spectrum, apart from everything else.
    far = -1.0 - 2.0 * _norm(whitened)[..., None]
    whitened = whitened + np.where(varied, 0.0, far)[..., None] * np.eye(sxx.shape[-1])
    _, turned = np.linalg.eigh((whitened + _t(whitened)) / 2)
    absent = sxx.shape[-1] - varied.sum(-1)[..., None]
    return basis @ turned, np.arange(sxx.shape[-1]) >= absent


def _covariance(value: Any, name: str) -> np.ndarray:
    matrix = to_numpy(together(matrix=value)[1][0])
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2] or matrix.shape[-1] == 0:
        raise DataError(f"shape {matrix.shape}; expected square", where=name)
    if not np.isfinite(matrix).all():
        raise DataError("not finite", where=name, remedy="drop rows that are not finite")
    skew = _norm(matrix - _t(matrix)) / 2
    if np.any(skew > _SYMMETRIC * _norm(matrix)):
        raise DataError(
            "not symmetric",
            where=name,
            remedy="a covariance is; check what was saved under this name",
        )
    matrix = (matrix + _t(matrix)) / 2
    values = np.linalg.eigvalsh(matrix)
    if np.any(values[..., 0] < -_NEGATIVE * values[..., -1]) or np.any(values[..., -1] < 0):
        raise DataError(
            f"has a negative variance ({values[..., 0].min():.3g})",
            where=name,
            remedy="a covariance has none; were entries estimated from different rows?",
        )
    if np.any(values[..., -1] == 0):
        raise DataError("nothing varies", where=name)
    return matrix


def _cross(Sxx: Any, Syx: Any) -> np.ndarray:
    xx, yx = (to_numpy(value) for value in together(Sxx=Sxx, Syx=Syx)[1])
    if yx.shape != xx.shape:
        raise DataError(
            f"shape {yx.shape}, but Sxx has {xx.shape}",
            where="Syx",
            remedy="a JEPA has one encoder: both views need the same features",
        )
    if not np.isfinite(yx).all():
        raise DataError("not finite", where="Syx", remedy="drop rows that are not finite")
    return yx


def _joint(sxx: np.ndarray, syx: np.ndarray, syy: np.ndarray) -> None:
    """Refuse cross-covariances above what the variances allow, naming where."""
    if syy.shape != sxx.shape:
        raise DataError(f"shape {syy.shape}, but Sxx has {sxx.shape}", where="Syy")
    joint = np.concatenate(
        [np.concatenate([sxx, _t(syx)], -1), np.concatenate([syx, syy], -1)], axis=-2
    )
    scale = np.sqrt(np.diagonal(joint, axis1=-2, axis2=-1))
    scale = np.where(scale > 0, scale, 1.0)
    values, vectors = np.linalg.eigh(joint / scale[..., None] / scale[..., None, :])
    if np.all(values[..., 0] >= -_CORRELATION):
        return
    at = np.unravel_index(np.argmin(values[..., 0]), values.shape[:-1])
    d = sxx.shape[-1]
    a, b = (vectors[at][:, 0] / scale[at]).reshape(2, d)
    size = np.sqrt(max(a @ sxx[at] @ a, 0.0) * max(b @ syy[at] @ b, 0.0))
    found = abs(b @ syx[at] @ a) / size if size > 0 else np.inf
    raise DataError(
        f"x and y correlate by {found:.6g} along the direction of feature "
        f"{int(np.argmax(np.abs(a * scale[at][:d])))}; no pair can by more than 1",
        where="Syx",
        remedy="Sxx, Syx and Syy must come from the same rows, scaled alike",
    )


def _condition(directions: np.ndarray, varied: np.ndarray) -> np.ndarray:
    found = np.empty(varied.shape[:-1])
    for index in np.ndindex(found.shape):
        found[index] = np.linalg.cond(directions[index][:, varied[index]])
    return found


def _clusters(rho: np.ndarray) -> np.ndarray:
    largest = np.nanmax(np.abs(rho), axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        apart = ~(np.abs(np.diff(rho, axis=-1)) <= _DEGENERATE * largest)
    first = np.zeros((*rho.shape[:-1], 1), np.int64)
    return np.concatenate([first, np.cumsum(apart, axis=-1)], axis=-1)


def _t(matrix: np.ndarray) -> np.ndarray:
    return np.swapaxes(matrix, -1, -2)


def _along(directions: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """v' M v of each column v."""
    return np.einsum("...ik,...ij,...jk->...k", directions, matrix, directions, optimize=True)


def _norm(matrix: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.norm(matrix, axis=(-2, -1)))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; 0 / 0 is 0."""
    return np.where(
        whole > 0, part / np.where(whole > 0, whole, 1.0), np.where(part > 0, np.inf, 0.0)
    )

"""Finite samples: how sure an order of critical times is, and how many pairs it takes.

For Gaussian pairs with c^2 = lambda^2 / (sigma^2 Syy) along a mode, Var ln lambda = (1 + 1/c^2) / n
and Var ln sigma^2 = Cov = 2 / n, so by the delta method, with eta = d ln t* / d ln rho,

    Var ln t* = [(eta - 1)^2 (1 + 1/c^2) + 2 eta^2 - 4 eta (eta - 1)] / n.

For data of unknown law: the paired bootstrap along fixed directions. Neither sees that directions
are chosen on the same rows, which lifts rho where d / n is not small: order by `held_out` modes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.special import ndtr, ndtri

from jepa_core.errors import ConfigError, DataError
from jepa_linear.arrays import Array, like, to_numpy, together
from jepa_linear.flows import covariances
from jepa_linear.modal import Basis, Modes, modes
from jepa_linear.parameters import consistent
from jepa_linear.times import critical_time, ranks, sensitivity

_WEIGHTS = 2**22  # row weights of resamples held at once


def log_time_variance(
    eta: Float[Array, "*batch"], correlation2: Float[Array, "*batch"], n: float = 1.0
) -> Float[Array, "*batch"]:
    """Var ln t* of a mode estimated from n Gaussian pairs (delta method).

    Parameters
    ----------
    eta
        d ln t* / d ln rho, from `sensitivity`.
    correlation2
        c^2, the squared correlation of x and y along the mode.
    """
    return ((eta - 1) ** 2 * (1 + 1 / correlation2) + 2 * eta**2 - 4 * eta * (eta - 1)) / n


def order_probability(
    lam: Float[Array, "*batch modes"],
    rho: Float[Array, "*batch modes"],
    n: float,
    depth: int,
    *,
    syy: Float[Array, "*batch modes"] | None = None,
    **setting: Any,
) -> Float[Array, "*batch modes modes"]:
    """P that n pairs put mode i before mode j: Phi((ln t_j - ln t_i) / sqrt(V_i + V_j)).

    Of independent Gaussian modes; nan where either does not grow. Where i is truly before j this is
    the probability that the order found is right.

    Parameters
    ----------
    n
        Independent pairs; of a series see `effective_samples`.
    syy
        Variance of y along each mode; that of x if not given.
    setting
        As in `critical_time`.
    """
    if n <= 0:
        raise ConfigError(f"{n} is not a number of pairs", where="n", remedy="give more than 0")
    gap, spread = _gaps(lam, rho, depth, syy, setting)
    with np.errstate(divide="ignore", invalid="ignore"):
        score = gap * np.sqrt(n) / spread
    return like(ndtr(np.where(gap == 0, 0.0, score)), together(lam=lam, rho=rho)[1][0])


def samples_needed(
    lam: Float[Array, "*batch modes"],
    rho: Float[Array, "*batch modes"],
    depth: int,
    *,
    confidence: float = 0.95,
    syy: Float[Array, "*batch modes"] | None = None,
    **setting: Any,
) -> Float[Array, "*batch modes modes"]:
    """Pairs of samples that put each two modes in their true order with this probability.

    z^2 n (V_i + V_j) / (ln t_i - ln t_j)^2 with z = Phi^-1(confidence); inf for ties, nan where a
    mode does not grow.
    """
    if not 0.5 < confidence < 1:
        raise ConfigError(f"{confidence} is not in (0.5, 1)", where="confidence")
    gap, spread = _gaps(lam, rho, depth, syy, setting)
    with np.errstate(divide="ignore"):
        found = (ndtri(confidence) * spread / np.abs(gap)) ** 2
    return like(found, together(lam=lam, rho=rho)[1][0])


def effective_samples(n: float, g: Float[Array, "*batch"] | float) -> Any:
    """Independent pairs that n consecutive steps of an autoregressive mode are worth.

    About n (1 - g^2) / (1 + g^2).
    """
    return n * (1 - g**2) / (1 + g**2)


def _gaps(
    lam: Any, rho: Any, depth: int, syy: Any, setting: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """ln t_j - ln t_i and sqrt(n (V_i + V_j)), both [..., i, j]."""
    both = together(lam=lam, rho=rho)[1]
    lam_, rho_ = np.broadcast_arrays(*(to_numpy(value) for value in both))
    consistent(lam_, rho_)
    log_t = critical_time(lam_, rho_, depth, log=True, **setting)
    bare = {key: value for key, value in setting.items() if key not in ("form", "sigma2")}
    eta = sensitivity(lam_, rho_, depth, **bare)
    with np.errstate(divide="ignore", invalid="ignore"):
        other = lam_ / rho_ if syy is None else to_numpy(together(syy=syy)[1][0])
        variance = log_time_variance(eta, lam_ * rho_ / other)
    log_t = np.where(np.isnan(eta), np.nan, log_t)
    gap = log_t[..., None, :] - log_t[..., :, None]
    return gap, np.sqrt(variance[..., None, :] + variance[..., :, None])


@dataclass(frozen=True)
class Resamples:
    """lambda and rho along fixed directions in each bootstrap resample."""

    lam: Float[np.ndarray, "draws modes"]
    rho: Float[np.ndarray, "draws modes"]

    def log_times(self, depth: int, **setting: Any) -> Float[np.ndarray, "draws modes"]:
        """ln t* in each resample; `setting` as in `critical_time`."""
        return np.asarray(critical_time(self.lam, self.rho, depth, log=True, **setting))

    def interval(
        self, depth: int, *, confidence: float = 0.95, **setting: Any
    ) -> Float[np.ndarray, "2 modes"]:
        """Percentile interval of t*; inf where resamples stop growing, nan for absent modes."""
        times = np.exp(self.log_times(depth, **setting))
        tails = [50 * (1 - confidence), 50 * (1 + confidence)]
        # A percentile between two infinities is one, not their difference.
        return np.percentile(times, tails, axis=0, method="inverted_cdf")

    def order_probability(self, depth: int, **setting: Any) -> Float[np.ndarray, "modes modes"]:
        """Share of resamples with mode i before mode j, statuses included; ties count half."""
        place = ranks(self.lam, self.rho, depth, **setting)
        found = np.zeros((place.shape[1],) * 2)
        for one in place:
            found += (one[:, None] < one) + 0.5 * (one[:, None] == one)
        absent = np.isnan(place).all(axis=0)
        found[absent] = found[:, absent] = np.nan
        return found / len(place)


def bootstrap(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "n d"],
    directions: Float[np.ndarray, "d modes"],
    *,
    draws: int = 200,
    groups: Shaped[np.ndarray, "n"] | None = None,
    block: int | None = None,
    seed: int | np.random.Generator = 0,
) -> Resamples:
    """lambda and rho of resampled pairs along given directions.

    Parameters
    ----------
    groups
        Resample whole groups of rows instead of rows.
    block
        Resample blocks of this many consecutive rows (circular), for lagged series.

    Raises
    ------
    ConfigError
        For fewer than 2 draws, or groups and blocks at once.
    DataError
        If x, y, directions and groups do not fit.
    """
    if draws < 2 or (groups is not None and block is not None) or (block is not None and block < 1):
        raise ConfigError("draws >= 2, and either groups or a block of at least 1 row")
    covariances(x, y)  # the checks
    a = np.asarray(x, np.float64) @ directions
    b = np.asarray(y, np.float64) @ directions
    a, b = a - a.mean(0), b - b.mean(0)
    n, rng = len(a), np.random.default_rng(seed)
    codes = None
    if groups is not None:
        if len(groups) != n:
            raise DataError(f"{len(groups)} groups for {n} rows", where="groups")
        codes = np.unique(np.asarray(groups), return_inverse=True)[1]
    lam, sigma2 = np.empty((2, draws, a.shape[1]))
    columns = np.concatenate([a, b, a * a, a * b], axis=1)
    step = max(1, _WEIGHTS // n)
    for start in range(0, draws, step):
        weights = _weights(rng, min(step, draws - start), n, codes, block)
        weights /= weights.sum(axis=1, keepdims=True)
        mean_a, mean_b, square, product = np.split(weights @ columns, 4, axis=1)
        lam[start : start + step] = product - mean_a * mean_b
        sigma2[start : start + step] = square - mean_a**2
    varied = sigma2 > 0
    return Resamples(
        np.where(varied, lam, 0.0), np.where(varied, lam / np.where(varied, sigma2, 1.0), np.nan)
    )


def _weights(
    rng: np.random.Generator, draws: int, n: int, codes: np.ndarray | None, block: int | None
) -> np.ndarray:
    """How often each row is drawn, [draws, n]."""
    if codes is not None:
        count = int(codes.max()) + 1
        each = rng.multinomial(count, np.full(count, 1 / count), size=draws)
        return each[:, codes].astype(np.float64)
    if block is None:
        return rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)
    block = min(block, n)
    starts = rng.integers(0, n, (draws, -(-n // block)))
    found = np.zeros((draws, n))
    for row, chosen in zip(found, starts, strict=True):
        rows = (chosen[:, None] + np.arange(block)) % n
        row += np.bincount(rows.reshape(-1), minlength=n)
    return found


@dataclass(frozen=True)
class HeldOut:
    """Modes of the training rows, and lambda and rho of the same directions on the others."""

    modes: Modes
    lam: Float[np.ndarray, "d"]
    rho: Float[np.ndarray, "d"]
    training: Int[np.ndarray, "rows"]
    held_out: Int[np.ndarray, "rows"]


def held_out(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "n d"],
    *,
    holdout: float = 0.3,
    groups: Shaped[np.ndarray, "n"] | None = None,
    ordered: bool = False,
    basis: Basis = "generalised",
    ridge: float = 0.0,
    seed: int | np.random.Generator = 0,
) -> HeldOut:
    """Directions from some rows, lambda and rho from the others.

    In-sample rho is biased upward unless n is much larger than d: directions of pure noise get a
    positive one from the eigenproblem, and a sort by it puts noise first.

    Parameters
    ----------
    holdout
        Share of the rows (or groups) held out.
    groups
        Rows of one group stay together.
    ordered
        Hold out the last rows instead of random ones, for lagged series.

    Raises
    ------
    ConfigError, DataError
        For a share outside (0, 1), or fewer than 2 rows on either side.
    """
    if not 0 < holdout < 1:
        raise ConfigError(f"{holdout} is not in (0, 1)", where="holdout", remedy="a share of rows")
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    units = np.arange(len(x))
    if groups is not None:
        if len(groups) != len(x):
            raise DataError(f"{len(groups)} groups for {len(x)} rows", where="groups")
        units = np.unique(np.asarray(groups), return_inverse=True)[1]
    count = int(units.max(initial=-1)) + 1
    sequence = np.arange(count) if ordered else np.random.default_rng(seed).permutation(count)
    other = sequence[count - max(1, round(holdout * count)) :]
    out = np.isin(units, other)
    if out.sum() < 2 or (~out).sum() < 2:
        raise DataError(
            f"{(~out).sum()} rows to fit and {out.sum()} held out",
            where="holdout",
            remedy="at least 2 of each; give more rows or groups",
        )
    sxx, syx, _ = covariances(x[~out], y[~out])
    found = modes(sxx, syx, basis=basis, ridge=ridge)
    sxx, syx, _ = covariances(x[out], y[out])
    v = np.where(found.sigma2 > 0, found.directions, 0.0)
    sigma2 = np.einsum("ik,ij,jk->k", v, sxx, v, optimize=True) + ridge * (v * v).sum(0)
    lam = np.einsum("ik,ij,jk->k", v, syx, v, optimize=True)
    varied = sigma2 > 0
    lam = np.where(varied, lam, 0.0)
    rho = np.where(varied, lam / np.where(varied, sigma2, 1.0), np.nan)
    return HeldOut(found, lam, rho, np.flatnonzero(~out), np.flatnonzero(out))

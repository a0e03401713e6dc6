"""How sure an order is: resampled rows where there are rows, a formula where there is only n."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import ndtri

from jepa_linear.data.views import Masks, Rows, Views
from jepa_linear.sampling import Resamples, bootstrap
from jepa_linear.times import ranks

Chance = Resamples

# Standard deviations that leave 5 % on one side.
SURE = float(ndtri(0.95))

# Fewer groups than this cannot be resampled, nor held out.
_FEWEST_GROUPS = 8


@dataclass(frozen=True)
class Drawn:
    """One objective at one depth in every resample.

    Attributes
    ----------
    log_time
        ln t*; inf where a direction does not arrive.
    place
        Rank in the order, statuses included.
    """

    log_time: Float[np.ndarray, "draws modes"]
    place: Float[np.ndarray, "draws modes"]

    def before(self, i: int, j: int) -> float:
        """Share of resamples with direction i before j; ties count half."""
        a, b = self.place[:, i], self.place[:, j]
        return float((a < b).mean() + 0.5 * (a == b).mean())

    def inverted(self, other: Drawn, i: int, j: int) -> float:
        """Share of resamples with i before j here and after it there."""
        here = self.place[:, i] < self.place[:, j]
        return float((here & (other.place[:, j] < other.place[:, i])).mean())


def draws(chance: Chance, depth: int, setting: Mapping[str, Any]) -> Drawn:
    """Times and ranks in every resample; `setting` as in `critical_time`."""
    return Drawn(
        chance.log_times(depth, **setting), ranks(chance.lam, chance.rho, depth, **setting)
    )


def variances(drawn: Drawn, i: int, j: int, n: int) -> float:
    """n Var(ln t_i - ln t_j) over the resamples in which both arrive."""
    both = np.isfinite(drawn.log_time[:, [i, j]]).all(axis=1)
    if both.sum() < 3:
        return float("nan")
    return n * float((drawn.log_time[both, i] - drawn.log_time[both, j]).var())


def percentiles(
    values: Float[np.ndarray, "draws modes"] | None, modes: int
) -> tuple[np.ndarray, np.ndarray]:
    """2.5 and 97.5 % of each direction over the resamples; NaN without any."""
    if values is None:
        return np.full(modes, np.nan), np.full(modes, np.nan)
    values = np.where(np.isnan(values), np.inf, values)
    low, high = np.quantile(values, [0.025, 0.975], axis=0, method="nearest")
    return low, high


def held_out_rows(rows: Rows, share: float, seed: int) -> Bool[np.ndarray, " n"]:
    """Which rows are held out: whole groups, the end of a series, or rows drawn at random."""
    n = len(rows.x)
    if _by_group(rows):
        assert rows.groups is not None
        names = np.unique(rows.groups)
        out = np.random.default_rng(seed).permutation(names)[: max(1, round(share * len(names)))]
        return np.isin(rows.groups, out)
    chosen = np.zeros(n, bool)
    if rows.block > 1:
        chosen[n - round(share * n) :] = True
    else:
        chosen[np.random.default_rng(seed).permutation(n)[: round(share * n)]] = True
    return chosen


def chance_of(
    views: Views,
    directions: Float[np.ndarray, "d modes"],
    present: Bool[np.ndarray, " modes"],
    ridge: float,
    resamples: int,
    seed: int,
) -> tuple[Chance | None, str]:
    """lambda and rho of directions if the sample had fallen out differently, and how that is known.

    Parameters
    ----------
    present
        Directions with variance.
    resamples
        How many; 0 asks for none.
    """
    if resamples < 2 or views.n is None:
        return None, "nothing is known about chance: no rows and no n"
    V = np.where(present, directions, 0.0)
    if views.rows is None:
        found, words = _by_formula(views, V, views.n, resamples, seed)
    elif views.masks is not None:
        found, words = _masked(views, views.rows, views.masks, V, resamples, seed)
    else:
        found, words = _rows(views, views.rows, V, resamples, seed)
    if ridge:
        with np.errstate(invalid="ignore", divide="ignore"):
            loaded = found.lam / (found.lam / found.rho + ridge)
        found = Resamples(found.lam, np.where(found.lam == 0, found.rho, loaded))
    return found, words


def _by_group(rows: Rows) -> bool:
    return rows.groups is not None and len(np.unique(rows.groups)) >= _FEWEST_GROUPS


def _rows(
    views: Views, rows: Rows, V: Float[np.ndarray, "d modes"], resamples: int, seed: int
) -> tuple[Resamples, str]:
    factors = np.ones(len(V)) if views.factors is None else views.factors
    assert rows.y is not None
    by_group = _by_group(rows)
    block = rows.block if rows.block > 1 and not by_group else None
    found = bootstrap(
        rows.x * factors,
        rows.y * factors,
        V,
        draws=resamples,
        groups=rows.groups if by_group else None,
        block=block,
        seed=seed,
    )
    what = "groups" if by_group else f"blocks of {block} rows" if block else "rows"
    return found, f"{resamples} resamples of {what}{_too_few(rows)}"


def _masked(
    views: Views,
    rows: Rows,
    masks: Masks,
    V: Float[np.ndarray, "d modes"],
    resamples: int,
    seed: int,
) -> tuple[Resamples, str]:
    """Random masks need two moments of a direction v: v' C v and v' diag(C) v."""
    factors = np.ones(len(V)) if views.factors is None else views.factors
    x = (rows.x - rows.x.mean(axis=0)) * factors
    along, squares = x @ V, V**2
    rng = np.random.default_rng(seed)
    by_group = _by_group(rows)
    units = rows.groups if by_group and rows.groups is not None else np.arange(len(x))
    count = int(units.max()) + 1
    lam = np.empty((resamples, V.shape[1]))
    sigma2 = np.empty_like(lam)
    q, noise = masks.keep, masks.noise * (V**2).sum(axis=0)
    for i in range(resamples):
        weight = rng.multinomial(count, np.full(count, 1 / count))[units].astype(np.float64)
        weight /= weight.sum()
        whole = weight @ along**2 - (weight @ along) ** 2
        own = (weight @ x**2 - (weight @ x) ** 2) @ squares
        if masks.target == "full":
            lam[i] = q * whole
        elif masks.target == "complement":
            lam[i] = q * (1 - q) * (whole - own)
        else:
            lam[i] = q * q * whole
        sigma2[i] = q * q * whole + q * (1 - q) * own + q * noise
    rho = np.full_like(lam, np.nan)
    np.divide(lam, sigma2, out=rho, where=sigma2 > 0)
    what = "groups" if by_group else "rows"
    return Resamples(np.where(sigma2 > 0, lam, 0.0), rho), f"{resamples} resamples of {what}"


def _by_formula(
    views: Views, V: Float[np.ndarray, "d modes"], n: int, resamples: int, seed: int
) -> tuple[Resamples, str]:
    """lambda and sigma^2 of Gaussian pairs to first order in 1 / n, directions independent."""
    sigma2 = np.einsum("ik,ik->k", V, views.Sxx @ V)
    lam = np.einsum("ik,ik->k", V, views.Syx @ V)
    other = sigma2 if views.Syy is None else np.einsum("ik,ik->k", V, views.Syy @ V)
    first, second = np.random.default_rng(seed).standard_normal((2, resamples, len(lam)))
    # Var sigma2 = 2 sigma2^2 / n, Cov = 2 lam sigma2 / n, Var lam = (lam^2 + sigma2 Syy) / n.
    spread = np.sqrt(2 / n)
    rest = np.sqrt(np.maximum(sigma2 * other - lam**2, 0.0) / n)
    drawn_sigma2 = sigma2 * np.maximum(1 + spread * first, 1e-3)
    drawn_lam = lam * (1 + spread * first) + rest * second
    rho = np.full_like(drawn_lam, np.nan)
    np.divide(drawn_lam, drawn_sigma2, out=rho, where=drawn_sigma2 > 0)
    taken = "" if views.Syy is not None else ", Syy taken to be Sxx"
    return (
        Resamples(np.where(drawn_sigma2 > 0, drawn_lam, 0.0), rho),
        f"the formula for Gaussian pairs, n = {n:,}{taken}",
    )


def _too_few(rows: Rows) -> str:
    if rows.groups is None or _by_group(rows):
        return ""
    found = len(np.unique(rows.groups))
    return f" (only {found} groups, too few to resample: intervals may be too narrow)"

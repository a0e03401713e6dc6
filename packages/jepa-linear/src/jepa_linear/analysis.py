"""What a JEPA and what a masked autoencoder would learn first from two views.

views = jepa_linear.paired(x, y)
found = jepa_linear.analyse(views, AnalysisConfig(depth=(2, 4)))
print(found.verdict)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from jepa_core.errors import DataError
from jepa_linear.data.views import Views
from jepa_linear.modal import Modes, modes
from jepa_linear.orders import Order, compare
from jepa_linear.presets import AnalysisConfig
from jepa_linear.uncertainty import chance_of, held_out_rows, percentiles


@dataclass(frozen=True)
class Analysis:
    """What was found.

    Attributes
    ----------
    views
        What was analysed.
    modes
        Directions, and their parameters on the rows they were computed from.
    lam, rho, sigma2
        Parameters the orders are by: of rows that were held out, where there are some.
    held_out
        Rows held out; 0 for none.
    rho_low, rho_high
        95 % interval of rho; NaN where nothing is known about chance.
    share, correlation
        Of each direction: its variance over the trace of Sxx; correlation of the views along it.
    orders
        One a depth.
    warnings
        What a reader must know before believing any of it.
    """

    views: Views
    config: AnalysisConfig
    modes: Modes
    lam: Float[np.ndarray, " modes"]
    rho: Float[np.ndarray, " modes"]
    sigma2: Float[np.ndarray, " modes"]
    held_out: int
    rho_low: Float[np.ndarray, " modes"]
    rho_high: Float[np.ndarray, " modes"]
    share: Float[np.ndarray, " modes"]
    correlation: Float[np.ndarray, " modes"]
    orders: tuple[Order, ...]
    chance: str
    warnings: tuple[str, ...] = field(default=())

    @property
    def names(self) -> tuple[str, ...]:
        """A short name a direction: its number and the features that weigh most in it."""
        return tuple(
            f"#{i + 1} ({', '.join(self.loadings(i, 2, signed=False))})"
            for i in range(len(self.lam))
        )

    def loadings(self, mode: int, most: int = 3, *, signed: bool = True) -> list[str]:
        """Features that weigh most in a direction, with their weights."""
        v = self.modes.directions[:, mode]
        top = [i for i in np.argsort(-np.abs(v), kind="stable")[:most] if abs(v[i]) > 0.05]
        names = self.views.names
        return [f"{v[i]:+.2f} {names[i]}" if signed else names[i] for i in top]

    @property
    def verdict(self) -> str:
        """What the orders say, in words, depth by depth."""
        from jepa_linear.verdict import verdict

        return verdict(self)

    @property
    def trust(self) -> str:
        """How far the prediction can be believed on this data, in words."""
        from jepa_linear.verdict import trust

        return trust(self.modes)


def analyse(
    views: Views,
    config: AnalysisConfig | None = None,
    *,
    holdout: float = 0.3,
    resamples: int = 200,
    seed: int = 0,
) -> Analysis:
    """Directions of two views, and in which order each objective learns them.

    Parameters
    ----------
    views
        From `paired`, `lagged`, `masked`, `from_covariances` or `from_modes`.
    holdout
        Share of the rows on which lambda and rho of the directions are measured, the others serving
        to find them: rho of the rows it was fitted to is too large. 0 uses all rows for both.
    resamples
        Bootstrap draws for probabilities and intervals; without rows a formula for Gaussian data
        takes their place.
    seed
        Of what is held out and drawn.

    Raises
    ------
    DataError
        No direction has variance, or there are too few rows to hold some out.
    """
    config = config or AnalysisConfig()
    warnings: list[str] = []
    fit, measured = views, views
    held = 0
    if views.rows is not None and holdout > 0:
        out = held_out_rows(views.rows, holdout, seed)
        held = int(out.sum())
        if min(held, len(out) - held) < 2:
            raise DataError(
                f"{len(out)} rows are too few to hold out a share of {holdout:g}",
                where="--holdout",
                remedy="give 0, or more rows",
            )
        fit, measured = views.part(~out), views.part(out)
    d = len(views.names)
    if fit.n is not None and fit.n < d + 1 and not config.ridge:
        warnings.append(
            f"{fit.n} pairs for {d} features: only directions within their span are seen, and rho "
            "of the fitted rows is close to 1 for chance alone. More pairs, fewer features or "
            "--ridge would help."
        )
    ridge = config.ridge * float(np.trace(fit.Sxx)) / d
    found = modes(fit.Sxx, fit.Syx, basis=config.basis, ridge=ridge)
    if int(found.rank) < d and config.basis == "generalised":
        warnings.append(
            f"x has variance along {int(found.rank)} of {d} directions; the others are absent."
        )
    lam, rho, sigma2 = along(measured, found, ridge)
    if not (sigma2 > 0).any():
        raise DataError("no direction has variance", where=views.kind)
    if held:
        flipped = int(((found.lam > 0) & (lam <= 0) & (sigma2 > 0)).sum())
        if flipped:
            warnings.append(
                f"{flipped} directions have positive lambda on the rows they were found on and "
                "none on rows held out: they are chance."
            )
    chance, words = chance_of(measured, found.directions, sigma2 > 0, ridge, resamples, seed)
    orders = tuple(
        compare(depth, lam, rho, sigma2, config, chance, measured.n) for depth in config.depth
    )
    low, high = percentiles(chance.rho if chance else None, len(lam))
    syy = None if measured.Syy is None else _quadratic(found.directions, measured.Syy)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = lam / np.sqrt(sigma2 * syy) if syy is not None else np.full(d, np.nan)
    return Analysis(
        views,
        config,
        found,
        lam,
        rho,
        sigma2,
        held,
        low,
        high,
        sigma2 / float(np.trace(measured.Sxx)),
        correlation,
        orders,
        words,
        tuple(warnings),
    )


def along(
    views: Views, found: Modes, ridge: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """lambda, rho and sigma^2 of these views along directions found elsewhere."""
    present = found.sigma2 > 0
    V = found.directions
    sigma2 = np.where(present, _quadratic(V, views.Sxx) + ridge, 0.0)
    lam = np.where(present & (sigma2 > 0), _quadratic(V, views.Syx), 0.0)
    rho = np.full(len(lam), np.nan)
    np.divide(lam, sigma2, out=rho, where=sigma2 > 0)
    return lam, rho, sigma2


def _quadratic(V: Float[np.ndarray, "d k"], S: Float[np.ndarray, "d d"]) -> np.ndarray:
    return np.einsum("ik,ik->k", V, S @ V)

"""Learning curves of aligned, balanced modes: w, the encoder's strength on a mode, against time.

Littwin et al. (arXiv 2407.03475), equations 7 and 8, with the factor L that gradient flow of every
layer has (t = L tau). Curves that grow come from the explicit inverse, without an integrator; those
that decay from SciPy.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.integrate import solve_ivp

from jepa_core.errors import ConfigError
from jepa_linear.arrays import Array, elementwise, float64, like, to_numpy, together
from jepa_linear.brackets import order_of, progress, scaled_bracket
from jepa_linear.parameters import (
    Objective,
    Sign,
    choice,
    consistent,
    depths,
    fractions,
    layer_scales,
    objective_of,
    seen,
)
from jepa_linear.times import plateau_scale

# Of the decaying curves; LSODA's own bookkeeping costs the last digits.
_RTOL, _ATOL = 1e-12, 1e-13


def rate(
    w: Float[Array, "*batch"],
    lam: Float[Array, "*batch"],
    rho: Float[Array, "*batch"],
    depth: Int[Array, "*batch"] | int,
    objective: Objective = "jepa",
) -> Float[Array, "*batch"]:
    """dw/dt in paper time, for w > 0 (equations 7 and 8).

    JEPA  lambda (w^(3 - 1/L) - w^3 / rho)
    MAE   lambda (w^(2 - 1/L) - w^3 / rho)
    """
    objective_of(objective)
    xp, (w_, lam_, rho_) = together(w=w, lam=lam, rho=rho)
    consistent(lam_, rho_)
    power = 3.0 if objective == "jepa" else 2.0

    def slope(L: int, w: Array, lam: Array, rho: Array) -> tuple[Array]:
        return (lam * (w ** (power - 1.0 / L) - w**3 / rho),)

    return elementwise(slope, xp, depths(depth), w_, lam_, rho_)[0][()]


def curve(
    lam: Float[Array, "*batch"],
    rho: Float[Array, "*batch"],
    depth: Int[Array, "*batch"] | int,
    *,
    layer_scale: Float[Array, "*batch"] | float | None = None,
    eps: Float[Array, "*batch"] | float | None = None,
    objective: Objective = "jepa",
    points: int = 400,
    until: float = 16.0,
) -> tuple[Float[Array, "*batch points"], Float[Array, "*batch points"]]:
    """Exact points (t, w) of growing modes, close together where the curve bends.

    Knots uniform in q = logit(a / a_inf), from the start to `until`; no integrator and no
    iteration: the time is explicit in w.

    Raises
    ------
    ConfigError
        If a mode does not grow: rho <= 0, or a layer scale that is not below its plateau.
    """
    objective_of(objective)
    xp, (lam_, rho_) = together(lam=lam, rho=rho)
    consistent(lam_, rho_)
    each = depths(depth)
    scale = layer_scales(each, layer_scale, eps, lam_)
    shape = np.broadcast_shapes(each.shape, *(tuple(a.shape) for a in (lam_, rho_, scale)))
    knots = float64(np.linspace(0.0, 1.0, points), "points", None if xp is np else lam_)
    slots = tuple(value.reshape((*value.shape, 1)) for value in (lam_, rho_, scale))

    def sampled(L: int, lam: Array, rho: Array, scale: Array, share: Array) -> tuple[Array, Array]:
        limit = plateau_scale(L, objective, xp.where(rho > 0, rho, 1.0))
        s0 = scale / limit
        if not bool(((rho > 0) & (s0 < 1)).all()):
            raise ConfigError(
                "a mode does not grow: rho <= 0, or the layer scale is not below its plateau",
                where="layer_scale",
                remedy="use trajectory(), which follows modes that decay too",
            )
        first = xp.log(s0 / (1.0 - s0))
        q = first + (until - first) * share
        s = xp.where(share > 0, 1.0 / (1.0 + xp.exp(-q)), s0 + 0.0 * q)
        rest = xp.where(share > 0, 1.0 / (1.0 + xp.exp(q)), 1.0 - s0 + 0.0 * q)
        s = xp.where(s < s0, s0 + 0.0 * s, s)
        passed = scaled_bracket(L, objective, s0 + 0.0 * s, s, rest)
        time = passed * (L / lam) * scale ** -order_of(L, objective)
        return time, (s * limit) ** L

    times, w = elementwise(sampled, xp, each[..., None], *slots, knots)
    return times.reshape((*shape, points)), w.reshape((*shape, points))


def trajectory(
    lam: Float[Array, "*batch"],
    rho: Float[Array, "*batch"],
    depth: Int[Array, "*batch"] | int,
    *,
    layer_scale: Float[Array, "*batch"] | float | None = None,
    eps: Float[Array, "*batch"] | float | None = None,
    times: Float[Array, "*batch times"],
    objective: Objective = "jepa",
    origin: Literal["start", "critical"] = "start",
    p: Float[Array, "*batch"] | float = 0.5,
    predictor_sign: Sign = 1,
    sigma2: Float[Array, "*batch"] | None = None,
) -> Float[Array, "*batch times"]:
    """w of each mode at given paper times.

    Growing modes: the inverse of F(s) - F(s0) = t (lambda / L) a_inf^m, see `jepa_linear.brackets`.
    Suppressed and dead modes: SciPy on ln a, relative tolerance 1e-12. Absent modes: nan.

    Parameters
    ----------
    times
        At least 0 and ascending, in the last axis; the other axes broadcast against the modes.
    origin
        "critical": times are t - t*(p), of either sign. Near 1e14 the doubles are as far apart as a
        mode takes to be learned, so at great depth only times from t* can show the jump. Before
        the start w stays at eps; modes that do not grow have no t* and give nan.
    sigma2
        Variance, needed only by dead modes with lambda = rho = 0 (absent without it).

    Raises
    ------
    ConfigError, DataError
        For parameters outside their range, times that are negative or not sorted.
    """
    objective_of(objective)
    choice(origin, ("start", "critical"), "origin")
    xp, (lam_, rho_, times_) = together(lam=lam, rho=rho, times=times)
    known = None if sigma2 is None else float64(sigma2, "sigma2", None if xp is np else lam_)
    consistent(lam_, rho_, known)
    variance = lam_ / xp.where(rho_ == 0, float("nan"), rho_) if known is None else known
    _check_times(times_, origin)
    each = depths(depth)
    scale = layer_scales(each, layer_scale, eps, lam_)
    fraction = fractions(p, lam_)
    lam_, rho_ = seen(lam_, rho_, predictor_sign)
    slots = [value.reshape((*value.shape, 1)) for value in (lam_, rho_, scale, fraction)]

    def grown(L: int, lam: Array, rho: Array, scale: Array, p: Array, time: Array) -> tuple[Array]:
        lam, rho, scale, p, time = (value + 0.0 * time for value in (lam, rho, scale, p, time))
        growing = (lam > 0) & (scale < plateau_scale(L, objective, xp.where(rho > 0, rho, 1.0)))
        lam, rho = (xp.where(growing, value, 1.0) for value in (lam, rho))
        limit = plateau_scale(L, objective, rho)
        s0 = xp.where(growing, scale / limit, 0.5)
        y = time * (lam / L) * limit ** order_of(L, objective)
        reference = s0 if origin == "start" else p ** (1.0 / L)
        s, _ = progress(L, objective, reference, y)
        s = xp.where(s > s0, s, s0)
        return (xp.where(growing, (s * limit) ** L, float("nan")),)

    w = elementwise(grown, xp, each[..., None], *slots, times_)[0]
    if origin == "critical" or not bool(xp.isnan(w).any()):
        return w
    decaying = map(to_numpy, (lam_, variance, scale, times_))
    return like(_decays(to_numpy(w), each, objective, *decaying), w)


def _check_times(times: Array, origin: str) -> None:
    if times.ndim == 0:
        raise ConfigError("times is a number", where="times", remedy="give an array of times")
    if not bool((times == times).all()):
        raise ConfigError("times holds nan", where="times")
    if bool((times[..., 1:] < times[..., :-1]).any()):
        raise ConfigError("times is not sorted", where="times", remedy="sort it")
    if origin == "start" and bool((times < 0).any()):
        raise ConfigError("a time is negative", where="times", remedy="the flow starts at 0")


def _decays(
    w: np.ndarray,
    depth: np.ndarray,
    objective: Objective,
    lam: np.ndarray,
    sigma2: np.ndarray,
    scale: np.ndarray,
    times: np.ndarray,
) -> np.ndarray:
    """w with the rows that are nan integrated; those of absent modes stay nan."""
    w, batch = w.copy(), w.shape[:-1]
    slots = [np.broadcast_to(value, batch) for value in (depth, lam, sigma2, scale)]
    moments = np.broadcast_to(times, w.shape)
    for index in np.ndindex(batch):
        L, one_lam, variance, a0 = (float(value[index]) for value in slots)
        if variance > 0 and np.isnan(w[index]).any():
            w[index] = _decay(int(L), objective, one_lam, variance, a0, moments[index])
    return w


def _decay(
    depth: int, objective: Objective, lam: float, sigma2: float, a0: float, times: np.ndarray
) -> np.ndarray:
    def slope(_: float, u: np.ndarray) -> np.ndarray:
        a = np.exp(u)
        if objective == "jepa":  # du/dt = a^(2L-1) (lambda - a sigma^2) / L
            return a ** (2 * depth - 1) * (lam - a * sigma2) / depth
        return a ** (depth - 1) * (lam - a ** (depth + 1) * sigma2) / depth

    end = float(times[-1])
    if end == 0.0:  # SciPy would divide by the length of the interval
        return np.full(len(times), a0**depth)
    found: Any = solve_ivp(
        slope, (0.0, end), [math.log(a0)], "LSODA", times, rtol=_RTOL, atol=_ATOL
    )
    return np.exp(depth * found.y[0])

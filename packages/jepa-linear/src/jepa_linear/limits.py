"""Limits and boundaries of critical times: what depth and scale do to the order of two modes."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float

from jepa_linear.arrays import Array, together
from jepa_linear.parameters import Objective, positive
from jepa_linear.times import critical_time


def inversion_boundary(
    rho_a: Float[Array, "*batch"],
    rho_b: Float[Array, "*batch"],
    depth: int,
    *,
    objective: Objective = "jepa",
    **setting: Any,
) -> Float[Array, "*batch"]:
    """lambda_B / lambda_A at which modes A and B are learned at the same time.

    t* is proportional to 1 / lambda, so this is t*(1, rho_b) / t*(1, rho_a); B is first above it.
    Between the boundaries of JEPA and MAE the two orders are inverted. `setting`: as in
    `critical_time`.
    """
    xp, (a, b) = together(rho_a=rho_a, rho_b=rho_b)
    one = xp.ones_like(a * b)
    first = critical_time(one, a + 0.0 * b, depth, objective=objective, **setting)
    return critical_time(one, b + 0.0 * a, depth, objective=objective, **setting) / first


def deep_ratio(
    rho1: Float[Array, "*batch"], rho2: Float[Array, "*batch"], layer_scale: float
) -> Float[Array, "*batch"]:
    """lim t*(rho2) / t*(rho1) as L grows at fixed layer scale a0 and equal lambda (JEPA).

    (1 - a0/rho1) / (1 - a0/rho2), because t* -> (L/lambda) a0^-(2L-1) / ((2L-1) (1 - a0/rho)):
    finite. MAE's ratio tends to 1.
    """
    _, (first, second) = together(rho1=rho1, rho2=rho2)
    return (1.0 - layer_scale / first) / (1.0 - layer_scale / second)


def suppression_depth(
    rho: Float[Array, "*batch"], eps: Float[Array, "*batch"] | float
) -> Float[Array, "*batch"]:
    """Depth from which a JEPA suppresses a mode at fixed eps: L_c = ln eps / ln rho (rho < 1).

    The layer scale eps^(1/L) has then risen to the plateau rho. inf where rho >= 1 > eps.
    """
    xp, (rho_,) = together(rho=rho)
    scale = positive(eps, "eps", rho_)
    below = (rho_ > 0) & (rho_ < 1)
    depth = xp.log(scale) / xp.log(xp.where(below, rho_, 0.5))
    return xp.where(below, depth, float("inf"))[()]


def small_scale_gap(
    rho1: Float[Array, "*batch"], rho2: Float[Array, "*batch"], depth: int, eps: float
) -> Float[Array, "*batch"]:
    """t*(rho2) / t*(rho1) - 1 to first order as eps -> 0 at fixed L >= 2, equal lambda (JEPA).

    ((2L-1) / (2L-2)) eps^(1/L) (1/rho2 - 1/rho1): the bias vanishes with the scale, relatively.
    """
    _, (first, second) = together(rho1=rho1, rho2=rho2)
    return (2 * depth - 1) / (2 * depth - 2) * eps ** (1 / depth) * (1.0 / second - 1.0 / first)

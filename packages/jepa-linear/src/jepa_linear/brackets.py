"""The integrals behind every time: how long a layer scale takes from one value to another.

With s = a / a_inf, the layer scale over its plateau, both objectives separate:

    JEPA  ds/dt = (lambda / L) a_inf^(2L-1) s^(2L) (1 - s)          a_inf = rho
    MAE   ds/dt = (lambda / L) a_inf^(L-1)  s^L (1 - s^(L+1))       a_inf = rho^(1/(L+1))

so that t = (L / lambda) a_inf^-m [F(s) - F(s0)] with m = 2L-1 (JEPA), L-1 (MAE) and

    JEPA  F(s) = -sum_{n=1}^{2L-1} s^-n / n + ln(s / (1-s))
    MAE   F(s) = -s^-(L-1) / (L-1) + G(s),   G(s) = integral_0^s r / (1 - r^(L+1)) dr
          (L = 1: ln s + G(s)).

F(s1) - F(s0) spans as many decades as s0^-m does. `scaled_bracket` is the difference times s0^m: of
order one, a sum of positive terms, no power of s. Hence a0^-m alone carries the size of a time,
times have a logarithm that never overflows, and nothing cancels.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float

from jepa_linear.arrays import Array, namespace
from jepa_linear.parameters import Objective

_TABLE_TOP = 40.0  # logit of s where s is 1 in float64
_NEWTON = 3  # the table is good to 1e-2 / m, each step squares that


def order_of(depth: int, objective: Objective) -> int:
    """m, the power of 1/a0 in the time: 2L - 1 (JEPA), L - 1 (MAE)."""
    return 2 * depth - 1 if objective == "jepa" else depth - 1


def scaled_bracket(
    depth: int,
    objective: Objective,
    s0: Float[Array, "*n"],
    s1: Float[Array, "*n"],
    rest1: Float[Array, "*n"],
) -> Float[Array, "*n"]:
    """s0^m [F(s1) - F(s0)] for 0 < s0 <= s1 < 1.

    `rest1` is 1 - s1, passed because s1 may be nearer to 1 than float64 can tell.
    """
    xp = namespace(s0, s1, rest1)
    q = s0 / s1
    gap = (s1 - s0) / s1  # 1 - q
    rise = -xp.log(q)
    if objective == "jepa":
        logits = rise + xp.log1p((s1 - s0) / rest1)
        return _powers(2 * depth - 1, s0, q, gap) + s0 ** (2 * depth - 1) * logits
    tail = _g_difference(depth + 1, s0, s1, rest1)
    if depth == 1:
        return rise + tail
    return gap * _geometric(depth - 1, q) / (depth - 1) + s0 ** (depth - 1) * tail


def _powers(m: int, s0: Array, q: Array, gap: Array) -> Array:
    """s0^m sum_{n=1}^m (s0^-n - s1^-n) / n = sum_n s0^(m-n) (1 - q^n) / n, by Horner's rule."""
    run = 1.0  # 1 + q + ... + q^(n-1), so that 1 - q^n = gap * run
    total = 0.0
    for n in range(1, m + 1):
        total = total * s0 + run / n
        run = run * q + 1.0
    return gap * total


def _geometric(n: int, q: Array) -> Array:
    run = 1.0
    for _ in range(n - 1):
        run = run * q + 1.0
    return run


def _g_difference(N: int, s0: Array, s1: Array, rest1: Array) -> Array:
    """G(s1) - G(s0), G(s) = integral_0^s r / (1 - r^N) dr, by the N-th roots of unity.

    G(s) = -(1/N) Re sum_k e^(2i theta_k) log(1 - s e^(-i theta_k)), theta_k = 2 pi k / N; the terms
    k and N - k are equal. Each difference of logarithms is one of a ratio.
    """
    xp = namespace(s0, s1)
    step = s1 - s0
    total = -xp.log1p(step / rest1)  # k = 0: ln(1 - s1) - ln(1 - s0)
    if N % 2 == 0:
        total = total + xp.log1p(step / (1.0 + s0))
    for k in range(1, (N + 1) // 2):
        theta = 2.0 * math.pi * k / N
        c, d = math.cos(theta), math.sin(theta)
        x0, x1 = 1.0 - s0 * c, 1.0 - s1 * c
        square = x0 * x0 + (s0 * d) * (s0 * d)  # |1 - s0 e^(-i theta)|^2
        ratio = xp.log1p(step * (s1 + s0 - 2.0 * c) / square)
        angle = xp.arctan2(d * step, x0 * x1 + (s0 * d) * (s1 * d))
        total = total + math.cos(2.0 * theta) * ratio - 2.0 * math.sin(2.0 * theta) * angle
    return total * (-1.0 / N)


def progress(
    depth: int, objective: Objective, start: Float[Array, "*n"], y: Float[Array, "*n"]
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """(s, 1 - s) with F(s) - F(start) = y: the growth curve as a function of time, inverted.

    F is one function for all modes of a depth, so one table of F over q = logit(s) gives the first
    guess of all of them; Newton's steps on q do the rest (dF/dq = s^-m for JEPA). They are exact up
    to what y can resolve: where y is near s0^-m, one rounding of y moves s visibly.
    """
    xp = namespace(start, y)
    m = order_of(depth, objective)
    q = _interpolate(xp, _f(depth, objective, start, 1.0 - start) + y, *_table(depth, objective))
    for _ in range(_NEWTON):
        s, rest = _sigmoid(xp, q)
        up = s > start
        lower, upper = xp.where(up, start, s), xp.where(up, s, start)
        passed = scaled_bracket(depth, objective, lower, upper, xp.where(up, rest, 1.0 - start))
        # F(s) - F(start) - y, times s^m: below the start nothing overflows.
        miss = xp.where(up, passed * (s / lower) ** m, -passed) - y * s**m
        if objective == "mae":
            miss = miss * _geometric(depth + 1, s)  # dF/dq = s^-m / (1 + s + ... + s^L)
        q = q - xp.clip(miss, -1.0, 1.0)
    return _sigmoid(xp, q)


def _f(depth: int, objective: Objective, s: Array, rest: Array) -> Array:
    """F(s) itself; `rest` is 1 - s."""
    xp = namespace(s)
    if objective == "jepa":
        inverse = 1.0 / s
        total = inverse * 0.0
        for n in range(2 * depth - 1, 0, -1):
            total = (total + 1.0 / n) * inverse
        return xp.log(s / rest) - total
    tail = _g_difference(depth + 1, s * 0.0, s, rest)
    return xp.log(s) + tail if depth == 1 else tail - s ** (1.0 - depth) / (depth - 1)


@lru_cache(maxsize=64)
def _table(depth: int, objective: Objective) -> tuple[np.ndarray, np.ndarray]:
    """F and q = logit(s) at knots from where s^-m is about to overflow to where s is 1."""
    m = max(order_of(depth, objective), 1)
    lowest = -690.0 / m
    knots = np.linspace(lowest, _TABLE_TOP, math.ceil((_TABLE_TOP - lowest) * m / 0.3))
    return _f(depth, objective, *_sigmoid(np, knots)), knots


def _sigmoid(xp: Any, q: Array) -> tuple[Array, Array]:
    """s = 1 / (1 + e^-q) and 1 - s, each to full relative precision."""
    small = xp.exp(-abs(q))
    near, far = 1.0 / (1.0 + small), small / (1.0 + small)
    return xp.where(q > 0, near, far), xp.where(q > 0, far, near)


def _interpolate(xp: Any, x: Array, xs: np.ndarray, ys: np.ndarray) -> Array:
    """Linear interpolation in a table, the ends held."""
    if xp is np:
        return np.interp(x, xs, ys)
    known, values = (xp.as_tensor(a, device=x.device) for a in (xs, ys))
    right = xp.searchsorted(known, x.contiguous()).clip(1, len(xs) - 1)
    x0, x1 = known[right - 1], known[right]
    share = ((x - x0) / (x1 - x0)).clip(0.0, 1.0)
    return values[right - 1] + share * (values[right] - values[right - 1])

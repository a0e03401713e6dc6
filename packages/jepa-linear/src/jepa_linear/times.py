"""Critical times: when a mode is learned, whether it is, and in which order.

Littwin et al. (arXiv 2407.03475), Section 4 and Theorem 4.5, without the O(log eps) remainder.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Int, Int8

from jepa_core.errors import ConfigError
from jepa_linear.arrays import Array, elementwise, float64, like, namespace, to_numpy, together
from jepa_linear.brackets import order_of, scaled_bracket
from jepa_linear.parameters import (
    Objective,
    Sign,
    choice,
    consistent,
    depths,
    fractions,
    layer_scales,
    objective_of,
    positive,
    seen,
)

Form = Literal["exact", "power", "leading"]
Level = Literal["plateau", "absolute"]


class Status(IntEnum):
    """What becomes of a mode, in the order in which modes are reported."""

    GROWS = 0
    """lambda > 0 and the layer scale is below the level: reaches it at t*."""
    STARTS_PAST = 1
    """lambda > 0, already above the level and below the plateau: t* = 0, and it hardly grows."""
    SUPPRESSED = 2
    """lambda > 0 but the layer scale is above the plateau: it decays towards it, t* = inf."""
    DEAD = 3
    """lambda <= 0: decays to zero, t* = inf."""
    ABSENT = 4
    """No variance: there is no such mode, t* = nan."""

    @property
    def label(self) -> str:
        """The status in words."""
        return self.name.lower().replace("_", " ")


def fixed_point(
    rho: Float[Array, "*batch"], depth: Int[Array, "*batch"] | int, objective: Objective = "jepa"
) -> Float[Array, "*batch"]:
    """Plateau of the encoder on a mode: w = rho^L (JEPA), rho^(L/(L+1)) (MAE).

    The predictor (decoder) ends at rho (JEPA), rho^(1/(L+1)) (MAE). Zero where rho <= 0: from an
    aligned positive start such a mode decays. rho and depth broadcast.
    """
    objective_of(objective)
    xp, (rho_,) = together(rho=rho)

    def plateau(L: int, r: Array) -> tuple[Array]:
        return (xp.where(r > 0, plateau_scale(L, objective, xp.where(r > 0, r, 1.0)) ** L, 0.0),)

    return elementwise(plateau, xp, depths(depth), rho_)[0][()]


def plateau_scale(depth: int, objective: Objective, rho: Array) -> Array:
    """a_inf, the layer scale at the plateau: rho (JEPA), rho^(1/(L+1)) (MAE), for rho > 0."""
    return rho if objective == "jepa" else rho ** (1.0 / (depth + 1))


def critical_time(
    lam: Float[Array, "*batch"],
    rho: Float[Array, "*batch"],
    depth: Int[Array, "*batch"] | int,
    *,
    layer_scale: Float[Array, "*batch"] | float | None = None,
    eps: Float[Array, "*batch"] | float | None = None,
    p: Float[Array, "*batch"] | float = 0.5,
    objective: Objective = "jepa",
    form: Form = "exact",
    level: Level = "plateau",
    w1: Float[Array, "*batch"] | float | None = None,
    predictor_sign: Sign = 1,
    sigma2: Float[Array, "*batch"] | None = None,
    log: bool = False,
) -> Float[Array, "*batch"]:
    """Paper time t* = L x flow time at which a mode is learned (Theorem 4.5, exact).

    With s = a / a_inf, s0 = a0 / a_inf, s1 = p^(1/L), and F of `jepa_linear.brackets`:

        JEPA  t* = (L / lambda) rho^-(2L-1) [F(s1) - F(s0)]
        MAE   t* = (L / lambda) rho^-((L-1)/(L+1)) [F(s1) - F(s0)]

    Parameters
    ----------
    lam, rho
        Cross-covariance and regression coefficient of the modes. rho = nan: no such mode.
    depth
        Encoder layers L.
    layer_scale, eps
        Initial scale a0 of every layer and the predictor, or the encoder's, eps = a0^L. One.
    p
        Fraction of the mode's own plateau that counts as learned.
    form
        "power": the sum of Theorem 4.5 alone, (L / lambda) sum_{n=1}^{2L-1} eps^(-n/L) /
        (n rho^(2L-1-n)); "leading": its largest term, (L / lambda) eps^-(2L-1)/L / (2L-1). For MAE
        both are (L / lambda) eps^-(L-1)/L / (L-1), or ln(1/a0) / lambda at L = 1. Neither knows p
        nor plateaus: they answer for every lambda > 0.
    level
        "plateau": learned is w = p w_inf. "absolute": learned is w = `w1`, the same for all modes;
        a mode whose plateau is not above w1 never gets there, t* = inf.
    predictor_sign
        Sign of the predictor's start relative to the layers'; see `jepa_linear.parameters.seen`.
    sigma2
        Variance, only to tell a dead mode with lambda = rho = 0 from an absent one.
    log
        ln t* instead: finite where t* is beyond float64 (-inf where t* = 0).

    Returns
    -------
    0 for modes that start past the level, inf for suppressed and dead ones, nan for absent ones;
    all arguments broadcast. Divide by L times the learning rate for steps of gradient descent.

    Raises
    ------
    ConfigError, DataError
        For parameters outside their range, see `jepa_linear.parameters`.
    """
    choice(form, ("exact", "power", "leading"), "form")
    given = _Given(
        lam, rho, depth, layer_scale, eps, p, objective, level, w1, predictor_sign, sigma2
    )

    def time(L: int, *values: Array) -> tuple[Array]:
        mode = given.mode(L, *values)
        return (mode.time(log) if form == "exact" else mode.approximate(form, log),)

    return elementwise(time, given.xp, given.depth, *given.values)[0][()]


def status(
    lam: Float[Array, "*batch"],
    rho: Float[Array, "*batch"],
    depth: Int[Array, "*batch"] | int,
    *,
    layer_scale: Float[Array, "*batch"] | float | None = None,
    eps: Float[Array, "*batch"] | float | None = None,
    p: Float[Array, "*batch"] | float = 0.5,
    objective: Objective = "jepa",
    level: Level = "plateau",
    w1: Float[Array, "*batch"] | float | None = None,
    predictor_sign: Sign = 1,
    sigma2: Float[Array, "*batch"] | None = None,
) -> Int8[Array, "*batch"]:
    """`Status` of each mode; arguments as in `critical_time`.

    A JEPA of layer scale a0 never grows a mode with rho < a0, however large its lambda; a masked
    autoencoder only suppresses rho < a0^(L+1). At an absolute level a mode below its plateau that
    cannot reach w1 still grows (its t* is inf).
    """
    given = _Given(
        lam, rho, depth, layer_scale, eps, p, objective, level, w1, predictor_sign, sigma2
    )

    def code(L: int, *values: Array) -> tuple[Array]:
        return (given.mode(L, *values).status(),)

    return elementwise(code, given.xp, given.depth, *given.values)[0][()]


def sensitivity(
    lam: Float[Array, "*batch"],
    rho: Float[Array, "*batch"],
    depth: Int[Array, "*batch"] | int,
    *,
    layer_scale: Float[Array, "*batch"] | float | None = None,
    eps: Float[Array, "*batch"] | float | None = None,
    p: Float[Array, "*batch"] | float = 0.5,
    objective: Objective = "jepa",
    level: Level = "plateau",
    w1: Float[Array, "*batch"] | float | None = None,
    predictor_sign: Sign = 1,
) -> Float[Array, "*batch"]:
    """eta = d ln t* / d ln rho at fixed lambda, a0 and level; nan where the mode does not grow.

        JEPA  eta = -(2L-1) + s0^-(2L-1) / ((1 - s0) [F(s1) - F(s0)])
        MAE   eta = {-(L-1) + s0^-(L-1) / ((1 - s0^(L+1)) [F(s1) - F(s0)])} / (L+1)

    At an absolute level s1 moves with rho too, which takes off the same term at s1. (The
    sensitivity to lambda at fixed rho is -1 for both objectives.)
    """
    given = _Given(lam, rho, depth, layer_scale, eps, p, objective, level, w1, predictor_sign, None)

    def eta(L: int, *values: Array) -> tuple[Array]:
        return (given.mode(L, *values).sensitivity(),)

    return elementwise(eta, given.xp, given.depth, *given.values)[0][()]


def order(
    lam: Float[Array, "*batch modes"],
    rho: Float[Array, "*batch modes"],
    depth: int,
    *,
    sigma2: Float[Array, "*batch modes"] | None = None,
    **setting: Any,
) -> Int[Array, "*batch modes"]:
    """Indices of the modes in the order in which they are learned.

    Those that grow by t*, then those that start past the level, suppressed, dead and absent ones;
    within a status by rho, largest first. `setting`: as in `critical_time`.
    """
    keys = _keys(lam, rho, depth, sigma2, setting)
    return like(np.lexsort(keys[::-1], axis=-1), _template(lam, rho))


def ranks(
    lam: Float[Array, "*batch modes"],
    rho: Float[Array, "*batch modes"],
    depth: int,
    *,
    sigma2: Float[Array, "*batch modes"] | None = None,
    tie: float = 1e-9,
    **setting: Any,
) -> Float[Array, "*batch modes"]:
    """Rank of each mode in `order`, from 1; nan for absent modes.

    Modes of one status whose t* differ by less than `tie` (relatively) share their average rank;
    so do those that do not grow and have the same rho.
    """
    keys = _keys(lam, rho, depth, sigma2, setting)
    code, log_time, minus_rho = (np.atleast_2d(key.reshape(-1, key.shape[-1])) for key in keys)
    found = np.empty(code.shape)
    for row, indices in enumerate(np.lexsort(keys[::-1], axis=-1).reshape(code.shape)):
        c, t, r = code[row][indices], log_time[row][indices], minus_rho[row][indices]
        with np.errstate(invalid="ignore"):  # inf - inf
            same_time = (t[1:] == t[:-1]) | (t[1:] - t[:-1] < tie)
        same = (c[1:] == c[:-1]) & np.where(np.isfinite(t[1:]), same_time, r[1:] == r[:-1])
        group = np.concatenate([[0], np.cumsum(~same)])
        position = np.arange(1.0, len(indices) + 1)
        mean = np.bincount(group, position) / np.bincount(group)
        found[row, indices] = np.where(c == Status.ABSENT, np.nan, mean[group])
    return like(found.reshape(keys[0].shape), _template(lam, rho))


def default_level(
    rho: Float[Array, "*batch modes"],
    depth: int,
    *,
    layer_scale: float | None = None,
    eps: float | None = None,
    objective: Objective = "jepa",
) -> Float[Array, "*batch"]:
    """Absolute level w1 that separates learned from not: a1^L, a1 half the largest plateau a_inf.

    At least 1.05 a0, so that nothing starts at it.
    """
    xp, (rho_,) = together(rho=rho)
    scale = layer_scales(depths(depth), layer_scale, eps, rho_)
    largest = xp.amax(xp.where(rho_ > 0, rho_, 0.0), -1)
    a1 = plateau_scale(depth, objective_of(objective), largest) / 2.0
    return xp.maximum(a1, 1.05 * scale + 0.0 * a1) ** depth


def _template(lam: Any, rho: Any) -> Array:
    return together(lam=lam, rho=rho)[1][0]


def _keys(
    lam: Any, rho: Any, depth: int, sigma2: Any, setting: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Status, ln t* (-inf where the mode does not grow) and -rho: the keys of the order."""
    code = to_numpy(status(lam, rho, depth, sigma2=sigma2, **_without_form(setting)))
    time = to_numpy(critical_time(lam, rho, depth, sigma2=sigma2, log=True, **setting))
    log_time = np.where(code == Status.GROWS, time, -np.inf)
    influence = np.broadcast_to(to_numpy(_template(rho, rho)), code.shape)
    if code.ndim == 0:
        raise ConfigError(
            "a single mode has no order", where="lam", remedy="give an array of modes"
        )
    return code, log_time, np.where(np.isnan(influence), np.inf, -influence)


def _without_form(setting: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in setting.items() if key != "form"}


class _Given:
    """The arguments of a public function, checked, as float64 of one kind."""

    def __init__(
        self,
        lam: Any,
        rho: Any,
        depth: Any,
        layer_scale: Any,
        eps: Any,
        p: Any,
        objective: Objective,
        level: Level,
        w1: Any,
        sign: Sign,
        sigma2: Any,
    ) -> None:
        objective_of(objective)
        choice(level, ("plateau", "absolute"), "level")
        if (w1 is None) == (level == "absolute"):
            raise ConfigError(
                "w1 belongs to level='absolute', and that level needs it",
                where="w1",
                remedy="give both or neither",
            )
        choice(sign, get_args(Sign), "predictor_sign")
        self.xp, (lam_, rho_) = together(lam=lam, rho=rho)
        self.depth = depths(depth)
        scale = layer_scales(self.depth, layer_scale, eps, lam_)
        aim = fractions(p, lam_) if level == "plateau" else positive(w1, "w1", lam_)
        self.values = [lam_, rho_, scale, aim]
        if sigma2 is not None:
            self.values.append(float64(sigma2, "sigma2", _tensor(lam_)))
        self.choices = (self.xp, objective, level, sign)

    def mode(self, depth: int, *values: Array) -> _Mode:
        """Some of the modes, all of one depth."""
        return _Mode(*self.choices, depth, *values)


def _tensor(value: Array) -> Array:
    return None if namespace(value) is np else value


class _Mode:
    """Modes of one depth: the formulas in terms of s0 and s1."""

    def __init__(
        self,
        xp: Any,
        objective: Objective,
        level: Level,
        sign: Sign,
        depth: int,
        lam: Array,
        rho: Array,
        scale: Array,
        aim: Array,
        sigma2: Array | None = None,
    ) -> None:
        self.xp, self.depth, self.objective, self.level = xp, depth, objective, level
        consistent(lam, rho, sigma2)
        no_variance = (lam == 0) & (rho == 0) if sigma2 is None else sigma2 == 0
        self.absent = xp.isnan(rho) | no_variance
        lam, rho = seen(lam, rho, sign)
        self.alive = (lam > 0) & ~self.absent
        self.lam = xp.where(self.alive, lam, 1.0)
        self.rho = xp.where(self.alive, rho, 1.0)
        self.scale = scale
        limit = plateau_scale(depth, objective, self.rho)
        self.s0 = scale / limit
        if level == "plateau":
            self.s1, self.rest = aim ** (1.0 / depth), -xp.expm1(xp.log(aim) / depth)
        else:
            self.s1 = aim ** (1.0 / depth) / limit
            self.rest = 1.0 - self.s1
        self.grows = self.alive & (self.s0 < 1) & (self.s0 < self.s1)
        self.arrives = self.grows & (self.s1 < 1)

    def status(self) -> Array:
        xp = self.xp
        code = xp.where(self.alive, xp.where(self.s0 < 1, 1, 2), 3)
        code = xp.where(self.grows, 0, xp.where(self.absent, 4, code))
        return code.astype(np.int8) if xp is np else code.to(xp.int8)

    def inside(self) -> tuple[Array, Array, Array]:
        """s0, s1 and 1 - s1, and some others where the mode does not arrive."""
        xp = self.xp
        pairs = ((self.s0, 0.25), (self.s1, 0.5), (self.rest, 0.5))
        s0, s1, rest = (xp.where(self.arrives, value, other) for value, other in pairs)
        return s0, s1, rest

    def bracket(self) -> Array:
        """s0^m [F(s1) - F(s0)]."""
        return scaled_bracket(self.depth, self.objective, *self.inside())

    def time(self, log: bool) -> Array:
        xp, m = self.xp, order_of(self.depth, self.objective)
        if log:
            time = xp.log(self.bracket() * (self.depth / self.lam)) - m * xp.log(self.scale)
            return self._filled(time, float("-inf"))
        with np.errstate(over="ignore"):  # inf is the answer; log=True has the size
            time = self.bracket() * (self.depth / self.lam) * self.scale**-m
        return self._filled(time, 0.0)

    def _filled(self, time: Array, past: float) -> Array:
        xp = self.xp
        starts_past = self.alive & ~self.grows & (self.s0 < 1)
        time = xp.where(self.arrives, time, xp.where(starts_past, past, float("inf")))
        return xp.where(self.absent, float("nan"), time)

    def approximate(self, form: Form, log: bool) -> Array:
        xp, m = self.xp, order_of(self.depth, self.objective)
        if m == 0:
            scaled = -xp.log(self.scale) + 0.0 * self.lam
        elif form == "leading" or self.objective == "mae":
            scaled = 1.0 / m + 0.0 * self.lam
        else:
            ratio = self.scale / self.rho
            scaled = 0.0 * ratio
            for n in range(1, m + 1):
                scaled = scaled * ratio + 1.0 / n
        if log:
            time = xp.log(scaled * (self.depth / self.lam)) - m * xp.log(self.scale)
        else:
            with np.errstate(over="ignore"):
                time = scaled * (self.depth / self.lam) * self.scale**-m
        time = xp.where(self.alive, time, float("inf"))
        return xp.where(self.absent, float("nan"), time)

    def sensitivity(self) -> Array:
        L, m = self.depth, order_of(self.depth, self.objective)
        n = 1 if self.objective == "jepa" else L + 1
        s0, s1, _ = self.inside()
        bracket = self.bracket()
        eta = 1.0 / ((1.0 - s0**n) * bracket) - m
        if self.level == "absolute":
            eta = eta - (s0 / s1) ** m / ((1.0 - s1**n) * bracket)
        return self.xp.where(self.arrives, eta / n, float("nan"))

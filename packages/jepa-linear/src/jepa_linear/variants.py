"""Modes outside the closed forms: EMA target, no StopGrad, fixed predictor, unequal scales.

Scalar equations of one mode in flow time tau, with layer scale a, w = a^L, predictor v and, for an
EMA target, its layer scale b:

    JEPA            da/dtau = -(w/a) v E      dv/dtau = -w E      E = v w sigma^2 - T lambda
    MAE             the same                                      E = v w sigma^2 - lambda
    no StopGrad     da/dtau = -(w^2/a) (v^2 sigma^2 - 2 v lambda + Syy), v as JEPA

with T = w (JEPA), b^L (EMA, db/dtau = kappa (a - b), kappa = (1 - momentum) / learning rate). A
fixed predictor has v = 1 throughout: da/dtau = (w^2/a) (lambda - sigma^2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float
from scipy.integrate import solve_ivp
from scipy.special import wrightomega

from jepa_core.errors import ConfigError, DataError
from jepa_linear.parameters import Objective, choice, consistent, depths, objective_of, positive
from jepa_linear.times import critical_time

Target = Literal["stopgrad", "ema", "none"]
Predictor = Literal["trained", "fixed"]

_RTOL, _ATOL = 1e-11, 1e-30  # collapse runs through many decades: no absolute tolerance
_STIFF = 3e4  # rate times time


@dataclass(frozen=True)
class ModalFlow:
    """Modes over flow time: encoder layers a, predictor v, target layers b (a without EMA)."""

    times: Float[np.ndarray, "times"]
    a: Float[np.ndarray, "*batch times"]
    v: Float[np.ndarray, "*batch times"]
    b: Float[np.ndarray, "*batch times"]
    depth: int

    @property
    def w(self) -> Float[np.ndarray, "*batch times"]:
        """The encoder's strength a^L."""
        return self.a**self.depth


def modal_flow(
    lam: Float[np.ndarray, "*batch"] | float,
    rho: Float[np.ndarray, "*batch"] | float,
    depth: int,
    *,
    layer_scale: Float[np.ndarray, "*batch"] | float,
    times: Float[np.ndarray, "times"],
    objective: Objective = "jepa",
    target: Target = "stopgrad",
    predictor: Predictor = "trained",
    predictor_scale: Float[np.ndarray, "*batch"] | float | None = None,
    kappa: float | None = None,
    syy: Float[np.ndarray, "*batch"] | float | None = None,
) -> ModalFlow:
    """Integrate modes, one after the other, in flow time (DOP853; Radau where that would be stiff).

    Parameters
    ----------
    times
        Flow times, ascending from 0 or later.
    predictor_scale
        Where v starts, of either sign; the layer scale if not given. 1 for a fixed predictor.
    kappa
        Rate of the EMA target, which starts as a copy of the encoder; 0: a frozen target.
    syy
        Variance of y along the mode, for target="none".

    Raises
    ------
    ConfigError, DataError
        For parameters outside their range, or missing for the target chosen.
    """
    system = _System(depth, objective, target, predictor, kappa, syy)
    moments = np.asarray(times, np.float64)
    if moments.ndim != 1 or not len(moments) or moments[0] < 0 or np.any(np.diff(moments) < 0):
        raise ConfigError("times is empty, negative or not sorted", where="times")
    start = layer_scale if predictor_scale is None else predictor_scale
    given = [np.asarray(x, np.float64) for x in (lam, rho, layer_scale, start, system.syy)]
    consistent(given[0], given[1])
    positive(given[2], "layer_scale", given[0])
    batch = np.broadcast_shapes(*(x.shape for x in given))
    slots = [np.broadcast_to(x, batch) for x in given]
    a, v, b = (np.empty((*batch, len(moments))) for _ in range(3))
    for index in np.ndindex(batch):
        one_lam, one_rho, a0, v0, one_syy = (float(x[index]) for x in slots)
        v0 = 1.0 if predictor == "fixed" else v0
        slope = system.slope(one_lam, one_lam / one_rho, one_syy)
        solver = system.solver(one_lam, one_rho, moments[-1])
        found: Any = solve_ivp(
            slope, (0.0, moments[-1]), [a0, v0, a0], solver, moments, rtol=_RTOL, atol=_ATOL
        )
        if not found.success:
            raise DataError(
                f"the flow leaves every bound near {found.t[-1] if len(found.t) else 0:g}",
                where="times",
                remedy="end earlier: this mode grows without bound",
            )
        a[index], v[index], b[index] = found.y
    return ModalFlow(moments, a, v, b if target == "ema" else a, depth)


def crossing_time(
    lam: float,
    rho: float,
    depth: int,
    *,
    layer_scale: float,
    p: float = 0.5,
    objective: Objective = "jepa",
    kappa: float | None = None,
) -> float:
    """Flow time at which w reaches p times its plateau, with an EMA target where kappa is given.

    The fixed points are the same with and without EMA, and stable for every kappa > 0: EMA only
    delays.

    Raises
    ------
    ConfigError
        If the mode does not grow.
    """
    exact = float(critical_time(lam, rho, depth, layer_scale=layer_scale, p=p, objective=objective))
    if not np.isfinite(exact):
        raise ConfigError("the mode does not grow", where="rho", remedy="give lam > 0, rho > a0")
    if kappa is None or exact == 0:
        return exact / depth
    system = _System(depth, objective, "ema", "trained", kappa, None)
    if objective == "mae" or kappa == 0:
        raise ConfigError("only a JEPA has an EMA target, and a moving one", where="kappa")
    level = p ** (1 / depth) * rho

    def arrival(_: float, state: Any) -> float:
        return float(state[0] - level)

    arrival.terminal = True  # type: ignore[attr-defined]
    # About what the encoder alone needs, and the target after it.
    expected = exact / depth + depth * (np.log(rho / layer_scale) + 1.0) / kappa
    found: Any = solve_ivp(
        system.slope(lam, lam / rho, 0.0),
        (0.0, 1e3 * expected),
        [layer_scale] * 3,
        system.solver(lam, rho, expected),
        events=arrival,
        rtol=_RTOL,
        atol=_ATOL,
    )
    if not len(found.t_events[0]):
        raise DataError("no arrival within a thousand times the expected delay", where="kappa")
    return float(found.t_events[0][0])


def ema_jacobian(
    lam: Float[np.ndarray, "*batch"] | float,
    rho: Float[np.ndarray, "*batch"] | float,
    depth: int,
    kappa: float,
) -> Float[np.ndarray, "*batch 2 2"]:
    """Linearisation of (a, b) at the plateau a = b = rho, with D = lambda rho^(2L-1).

    [[-(L+1) D, L D], [kappa, -kappa]]: determinant kappa D > 0 and trace < 0, so stable.
    """
    rate = np.asarray(lam, np.float64) * np.asarray(rho, np.float64) ** (2 * depth - 1)
    ones = np.ones_like(rate)
    rows = [
        np.stack([-(depth + 1) * rate, depth * rate], -1),
        np.stack([kappa * ones, -kappa * ones], -1),
    ]
    return np.stack(rows, -2)


def frozen_target_plateau(
    rho: Float[np.ndarray, "*batch"] | float, depth: int, target_scale: float
) -> Float[np.ndarray, "*batch"]:
    """Layer scale that a frozen target of layer scale b0 leads to: a^(L+1) = rho b0^L."""
    return (np.asarray(rho, np.float64) * target_scale**depth) ** (1 / (depth + 1))


def collapse_invariant(
    a: Float[np.ndarray, "*batch"] | float,
    v: Float[np.ndarray, "*batch"] | float,
    lam: float,
    rho: float,
    syy: float,
) -> Float[np.ndarray, "*batch"]:
    """What a mode without StopGrad conserves: I = a^2 - (v - rho)^2 - (2c / sigma^2) ln|v - rho|.

    c = Syy - lambda^2 / sigma^2 >= 0 is the part of y that x does not predict.
    """
    c, sigma2 = _unpredicted(lam, rho, syy), lam / rho
    distance = np.asarray(v, np.float64) - rho
    invariant = np.asarray(a, np.float64) ** 2 - distance**2
    return invariant - 2 * c / sigma2 * np.log(np.abs(distance)) if c > 0 else invariant


def collapse_end(
    lam: float, rho: float, syy: float, *, layer_scale: float, predictor_scale: float
) -> tuple[float, float]:
    """Where a mode without StopGrad ends: (a, v).

    c > 0: the encoder collapses, a = 0, and v stops where the invariant says, z + (c / sigma^2) ln
    z = (v0 - rho)^2 + (c / sigma^2) ln (v0 - rho)^2 - a0^2 with z = (v - rho)^2. c = 0 (y perfectly
    predictable): a^2 = a0^2 - (v0 - rho)^2 and v = rho where that is positive, else collapse.
    """
    start = (predictor_scale - rho) ** 2
    share = _unpredicted(lam, rho, syy) / (lam / rho)
    if share == 0:
        left = layer_scale**2 - start
        if left > 0:
            return left**0.5, rho
        return 0.0, rho + np.sign(predictor_scale - rho) * (-left) ** 0.5
    if start == 0:
        return 0.0, rho
    # y + ln y = k has the solution y = omega(k); here y = z / share.
    k = (start - layer_scale**2) / share + np.log(start / share)
    z = share * float(np.real(wrightomega(k)))
    return 0.0, float(rho + np.sign(predictor_scale - rho) * z**0.5)


def _unpredicted(lam: float, rho: float, syy: float) -> float:
    """c = Syy - lambda^2 / sigma^2, with what is rounding of zero as zero."""
    c = syy - lam * rho
    if c < -1e-8 * syy:
        raise DataError(
            f"Syy = {syy:g} is below lambda^2 / sigma^2 = {lam * rho:g}",
            where="syy",
            remedy="no pair of views correlates by more than 1",
        )
    return c if c > 1e-12 * syy else 0.0


class _System:
    """The right-hand side for one choice of objective, target and predictor."""

    def __init__(
        self,
        depth: int,
        objective: Objective,
        target: Target,
        predictor: Predictor,
        kappa: float | None,
        syy: Any,
    ) -> None:
        self.depth = int(depths(depth).reshape(()))
        self.objective = objective_of(objective)
        self.target = choice(target, get_args(Target), "target")
        self.trained = choice(predictor, get_args(Predictor), "predictor") == "trained"
        if objective == "mae" and target != "stopgrad":
            raise ConfigError("a masked autoencoder has no target encoder", where="target")
        if (kappa is None) == (target == "ema") or (kappa is not None and kappa < 0):
            raise ConfigError("kappa >= 0 belongs to target='ema'", where="kappa")
        if (syy is None) == (target == "none"):
            raise ConfigError("syy belongs to target='none'", where="syy")
        self.kappa = kappa or 0.0
        self.syy = 0.0 if syy is None else syy

    def solver(self, lam: float, rho: float, end: float) -> Literal["DOP853", "Radau"]:
        """Explicit unless the target's or the plateau's rate would take it too many steps."""
        rate = max(self.kappa, (self.depth + 1) * abs(lam) * abs(rho) ** (2 * self.depth - 1))
        return "Radau" if self.target == "ema" and rate * end > _STIFF else "DOP853"

    def slope(self, lam: float, sigma2: float, syy: float) -> Callable[..., list[float]]:
        L, mae, target, kappa = self.depth, self.objective == "mae", self.target, self.kappa

        def right(_: float, state: Any) -> list[float]:
            a, v, b = state.tolist()
            per_layer = a ** (L - 1)
            w = per_layer * a
            seen = 1.0 if mae else b**L if target == "ema" else w
            miss = v * w * sigma2 - seen * lam
            pull = w * (v * v * sigma2 - 2 * v * lam + syy) if target == "none" else v * miss
            return [
                -per_layer * pull,
                -w * miss if self.trained else 0.0,
                kappa * (a - b) if target == "ema" else 0.0,
            ]

        return right

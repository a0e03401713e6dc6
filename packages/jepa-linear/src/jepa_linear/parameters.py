"""What the parameters of a mode may be, and the conventions of scale and time.

lambda: cross-covariance of the views along the mode; sigma^2: variance of x; rho = lambda /
sigma^2: regression coefficient. L: number of encoder layers. Every layer and the predictor start at
the layer scale a0, so the encoder starts at eps = a0^L (paper, Assumption 4.1). Flow time tau is
learning rate times steps; the paper's time is t = L tau.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from jepa_core.errors import ConfigError, DataError
from jepa_linear.arrays import Array, float64, namespace, to_numpy

Objective = Literal["jepa", "mae"]
Sign = Literal[1, -1, "oracle"]

_CONSISTENT = 1e-8  # relative difference allowed between redundant inputs


def objective_of(objective: Objective) -> Objective:
    """The objective, or a ConfigError that names the two there are."""
    return choice(objective, get_args(Objective), "objective")


def choice(value: Any, allowed: tuple[Any, ...], name: str) -> Any:
    """The value if it is one of those allowed."""
    if value not in allowed:
        raise ConfigError(
            f"{value!r} is not allowed",
            where=name,
            remedy=f"choose from {', '.join(map(str, allowed))}",
        )
    return value


def depths(depth: Any) -> np.ndarray:
    """The depth L as int64 (on the CPU): integers of at least 1."""
    array = to_numpy(depth)
    if array.dtype.kind not in "iuf" or not np.all(array == np.floor(array)):
        raise ConfigError(
            f"{_first(depth)} is not an integer", where="depth", remedy="count layers"
        )
    if array.size == 0 or np.any(array < 1):
        raise ConfigError("an encoder has at least one layer", where="depth", remedy="give L >= 1")
    return array.astype(np.int64)


def layer_scales(depth: np.ndarray, layer_scale: Any, eps: Any, template: Array) -> Array:
    """The layer scale a0, given as itself or as eps = a0^L.

    Raises
    ------
    ConfigError
        If neither is given, if one is not positive, or if both are given and disagree.
    """
    if layer_scale is None and eps is None:
        raise ConfigError(
            "no initial scale", where="layer_scale", remedy="give layer_scale (a0) or eps (a0^L)"
        )
    scale = None
    if layer_scale is not None:
        scale = positive(layer_scale, "layer_scale", template)
    if eps is None:
        return scale
    product = positive(eps, "eps", template)
    xp = namespace(template)
    exponent = depth if xp is np else xp.as_tensor(depth, device=template.device)
    from_eps = product ** (1.0 / exponent)
    if scale is None:
        return from_eps
    if bool((abs(scale - from_eps) > _CONSISTENT * from_eps).any()):
        raise ConfigError(
            "layer_scale and eps are both given and eps is not layer_scale^depth",
            where="eps",
            remedy="give one of the two",
        )
    return scale


def positive(value: Any, name: str, template: Array) -> Array:
    """The value as float64 if it is positive and finite throughout."""
    array = float64(value, name, None if namespace(template) is np else template)
    if not bool(((array > 0) & (array < float("inf"))).all()):
        raise ConfigError(
            f"{_first(array)} is not a positive number", where=name, remedy="give > 0"
        )
    return array


def fractions(p: Any, template: Array) -> Array:
    """The fraction p of the plateau as float64, inside (0, 1)."""
    array = float64(p, "p", None if namespace(template) is np else template)
    if not bool(((array > 0) & (array < 1)).all()):
        raise ConfigError(f"{_first(array)} is not a fraction", where="p", remedy="give 0 < p < 1")
    return array


def consistent(lam: Array, rho: Array, sigma2: Array | None = None) -> None:
    """Refuse lambda and rho of opposite sign, and lambda that is not rho sigma^2.

    A mode without variance has lambda = 0 and rho = nan (or 0).
    """
    xp = namespace(lam)
    if sigma2 is None and bool(((lam > 0) & (rho > 0) & (lam + rho < float("inf"))).all()):
        return
    if bool(xp.isnan(lam).any()) or bool(xp.isinf(lam).any()) or bool(xp.isinf(rho).any()):
        raise DataError("not finite", where="lam, rho", remedy="leave such modes out")
    product = lam * rho  # nan where rho is
    wrong = (product < 0) | ((lam != 0) & ~(abs(rho) > 0)) | ((lam == 0) & (abs(rho) > 0))
    if bool(wrong.any()):
        raise DataError(
            "lambda and rho differ in sign, or one of them is zero",
            where="lam, rho",
            remedy="rho is lambda divided by a positive variance",
        )
    if sigma2 is None:
        return
    if bool((sigma2 < 0).any()):
        raise DataError("a variance is negative", where="sigma2")
    if bool((abs(lam - rho * sigma2) > _CONSISTENT * abs(lam)).any()):
        raise DataError(
            "lambda is not rho times sigma2", where="sigma2", remedy="give lam and one of the two"
        )


def seen(lam: Array, rho: Array, sign: Sign) -> tuple[Array, Array]:
    """lambda and rho as a predictor that starts at `sign` times a0 sees them.

    The flow of (lambda, rho) from v0 = -a0 is the mirror image of that of (-lambda, -rho) from +a0.
    "oracle" starts every mode with the sign of its lambda.
    """
    choice(sign, get_args(Sign), "predictor_sign")
    if sign == "oracle":
        return abs(lam), abs(rho)
    return sign * lam, sign * rho


def _first(value: Any) -> str:
    array = to_numpy(value)
    return (
        f"{array.reshape(-1)[0]:g}" if array.size == 1 and array.dtype.kind in "iuf" else "a value"
    )

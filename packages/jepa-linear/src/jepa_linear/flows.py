"""Whole matrices: gradient flow and gradient descent of deep linear JEPAs and autoencoders.

Wbar = W_L ... W_1 is the encoder, V the predictor (JEPA) or decoder (MAE). Losses are expectations
of a squared error summed over dimensions, times 1/2, so they need the covariances only:

    JEPA           1/2 E|V Wbar x - StopGrad(T y)|^2     T = Wbar, or the EMA of the layers
    MAE            1/2 E|V Wbar x - y|^2
    no StopGrad    1/2 E|V Wbar x - Wbar y|^2

Gradients, with E = V Wbar Sxx - T Syx (MAE: T = 1): dV = E Wbar', dWbar = V'E (without StopGrad
minus V Wbar Syx' - Wbar Syy), dW_l = (W_L ... W_(l+1))' dWbar (W_(l-1) ... W_1)'. By prefix and
suffix products a step costs O(L) products of matrices, whatever the number of samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from jaxtyping import Float
from scipy.integrate import solve_ivp

from jepa_core.errors import ConfigError, DataError, RunError
from jepa_linear.arrays import Array, float64, namespace
from jepa_linear.parameters import Objective, choice, objective_of
from jepa_linear.variants import Predictor, Target

_CHECK_EVERY = 100  # steps between looks at whether the weights are finite


@dataclass(frozen=True)
class MatrixPath:
    """Weights along a flow or a descent; times in flow time, or in steps.

    `layers[l]` has the time axis first, then the batch; `target` is the EMA encoder's product, or
    Wbar where there is none.
    """

    times: Float[np.ndarray, "times"]
    Wbar: Float[Array, "times *batch k d"]
    V: Float[Array, "times *batch e k"]
    layers: tuple[Float[Array, "times *batch _ _"], ...]
    target: Float[Array, "times *batch k d"]


@dataclass(frozen=True)
class _Setting:
    """Covariances and the choices that fix the right-hand side."""

    Sxx: Array
    Syx: Array
    Syy: Array | None
    objective: Objective
    target: Target
    predictor: Predictor


def gradients(
    layers: Sequence[Float[Array, "*batch _ _"]],
    V: Float[Array, "*batch e k"],
    Sxx: Float[Array, "*batch d d"],
    Syx: Float[Array, "*batch d d"],
    *,
    objective: Objective = "jepa",
    target: Target = "stopgrad",
    Syy: Float[Array, "*batch d d"] | None = None,
    target_layers: Sequence[Float[Array, "*batch _ _"]] | None = None,
) -> tuple[list[Float[Array, "*batch _ _"]], Float[Array, "*batch e k"]]:
    """Gradients of the loss for (each layer, V); `layers[0]` acts first.

    Raises
    ------
    ConfigError
        If Syy is not given for target="none", or the target's layers for target="ema".
    """
    setting = _setting(Sxx, Syx, Syy, objective, target, "trained")
    if (target_layers is None) == (target == "ema"):
        raise ConfigError("target_layers belong to target='ema'", where="target_layers")
    return _gradients(layers, V, setting, target_layers)


def loss(
    Wbar: Float[Array, "*batch k d"],
    V: Float[Array, "*batch e k"],
    Sxx: Float[Array, "*batch d d"],
    Syx: Float[Array, "*batch d d"],
    Syy: Float[Array, "*batch d d"],
    *,
    objective: Objective = "jepa",
    target: Float[Array, "*batch k d"] | None = None,
) -> Float[Array, "*batch"]:
    """1/2 tr(V Wbar Sxx Wbar' V' - 2 V Wbar Syx' T' + T Syy T'), T = Wbar, `target`, or 1 (MAE).

    A JEPA's loss is no measure of progress: its target moves, and it grows from eps^2.
    """
    xp = namespace(Wbar)
    out = V @ Wbar
    if objective_of(objective) == "mae":
        parts = (_inner(xp, out @ Sxx, out), _inner(xp, out, Syx), xp.einsum("...ii->...", Syy))
    else:
        aim = Wbar if target is None else target
        parts = (_inner(xp, out @ Sxx, out), _inner(xp, out, aim @ Syx), _inner(xp, aim @ Syy, aim))
    return 0.5 * (parts[0] - 2.0 * parts[1] + parts[2])


def flow(
    W0: Float[np.ndarray, "L d d"] | Sequence[Float[np.ndarray, "_ _"]],
    V0: Float[np.ndarray, "e k"],
    Sxx: Float[np.ndarray, "d d"],
    Syx: Float[np.ndarray, "d d"],
    times: Float[np.ndarray, "times"],
    *,
    objective: Objective = "jepa",
    target: Target = "stopgrad",
    predictor: Predictor = "trained",
    Syy: Float[np.ndarray, "d d"] | None = None,
    kappa: float | None = None,
    rtol: float = 1e-11,
) -> MatrixPath:
    """Gradient flow in flow time, by DOP853; one problem, NumPy.

    Parameters
    ----------
    W0
        The layers; W0[0] acts first. Square ones as one array, others as a sequence.
    times
        Flow times (paper time / L), ascending from 0 or later.
    predictor
        "fixed": V stays as it is.
    Syy
        Covariance of y, for target="none".
    kappa
        Rate (1 - momentum) / learning rate of an EMA target, which starts as a copy of W0.

    Raises
    ------
    ConfigError, DataError
        For shapes and settings that do not fit.
    RunError
        If the weights leave every bound.
    """
    setting = _setting(Sxx, Syx, Syy, objective, target, predictor)
    if (kappa is None) == (target == "ema"):
        raise ConfigError("kappa belongs to target='ema'", where="kappa")
    layers, V = _weights(W0, V0, setting)
    moments = np.asarray(times, np.float64)
    if moments.ndim != 1 or not len(moments) or moments[0] < 0 or np.any(np.diff(moments) < 0):
        raise ConfigError("times is empty, negative or not sorted", where="times")
    parts = [*layers, V] + (layers if target == "ema" else [])
    ends = np.cumsum([part.size for part in parts])
    shapes = [part.shape for part in parts]

    def unpack(state: np.ndarray) -> list[np.ndarray]:
        flat = np.split(state, ends[:-1])
        return [piece.reshape(shape) for piece, shape in zip(flat, shapes, strict=True)]

    L = len(layers)

    def slope(_: float, state: np.ndarray) -> np.ndarray:
        values = unpack(state)
        now, ema = values[:L], values[L + 1 :] or None
        dW, dV = _gradients(now, values[L], setting, ema)
        change = [-d for d in dW] + [-dV if predictor == "trained" else 0.0 * dV]
        if ema is not None:
            change += [(kappa or 0.0) * (w - t) for w, t in zip(now, ema, strict=True)]
        return np.concatenate([d.reshape(-1) for d in change])

    start = np.concatenate([part.reshape(-1) for part in parts])
    found: Any = solve_ivp(
        slope, (0.0, moments[-1]), start, "DOP853", moments, rtol=rtol, atol=1e-3 * rtol
    )
    if not found.success:
        raise RunError(f"the flow stops before {moments[-1]:g}: {found.message}")
    states = [unpack(state) for state in found.y.T]
    stacked = [np.stack(column) for column in zip(*states, strict=True)]
    Wbar = _product(stacked[:L])
    ema_product = _product(stacked[L + 1 :]) if target == "ema" else Wbar
    return MatrixPath(moments, Wbar, stacked[L], tuple(stacked[:L]), ema_product)


def descend(
    W0: Float[Array, "*batch L d d"] | Sequence[Float[Array, "*batch _ _"]],
    V0: Float[Array, "*batch e k"],
    Sxx: Float[Array, "*batch d d"],
    Syx: Float[Array, "*batch d d"],
    *,
    lr: float,
    steps: int,
    objective: Objective = "jepa",
    target: Target = "stopgrad",
    predictor: Predictor = "trained",
    Syy: Float[Array, "*batch d d"] | None = None,
    momentum: float | None = None,
    record_every: int = 1,
) -> MatrixPath:
    """Full-batch gradient descent, batched: all layers and V at once from their old values.

    Then, with an EMA target, T <- momentum T + (1 - momentum) W(new), layer by layer. NumPy or
    torch float64. `stable_rate` gives a learning rate that is safe for plateaus up to 1.

    Parameters
    ----------
    W0
        Layers; W0[..., 0, :, :] acts first. Not square ones as a sequence.
    Sxx, Syx
        Of the training rows, divided by their number: see `covariances`.
    record_every
        Steps between the weights that are returned; step 0 is the start.

    Raises
    ------
    ConfigError, DataError
        For shapes and settings that do not fit.
    RunError
        If the weights are no longer finite, looked at every 100 steps.
    """
    setting = _setting(Sxx, Syx, Syy, objective, target, predictor)
    if (momentum is None) == (target == "ema") or not 0 <= (momentum or 0.0) <= 1:
        raise ConfigError("momentum in [0, 1] belongs to target='ema'", where="momentum")
    if lr <= 0 or steps < 0 or record_every < 1:
        raise ConfigError("lr > 0, steps >= 0 and record_every >= 1", where="lr, steps")
    layers, V = _weights(W0, V0, setting)
    xp = namespace(V)
    ema = list(layers) if target == "ema" else None
    recorded = [[*layers, V, *(ema or ())]]
    for step in range(1, steps + 1):
        dW, dV = _gradients(layers, V, setting, ema)
        layers = [w - lr * d for w, d in zip(layers, dW, strict=True)]
        if predictor == "trained":
            V = V - lr * dV
        if ema is not None and momentum is not None:
            ema = [momentum * t + (1 - momentum) * w for t, w in zip(ema, layers, strict=True)]
        if step % record_every == 0:
            recorded.append([*layers, V, *(ema or ())])
        looked_at = step % _CHECK_EVERY == 0 or step == steps
        if looked_at and not all(bool(xp.isfinite(value).all()) for value in (V, *layers)):
            raise RunError(
                f"the weights are not finite at step {step}",
                remedy=f"lower the learning rate, to {0.5 * lr:g} say",
            )
    stacked = [xp.stack(column) for column in zip(*recorded, strict=True)]
    L = len(layers)
    Wbar = _product(stacked[:L])
    ema_product = _product(stacked[L + 1 :]) if ema is not None else Wbar
    times = np.arange(len(recorded)) * record_every * 1.0
    return MatrixPath(times, Wbar, stacked[L], tuple(stacked[:L]), ema_product)


def stable_rate(Sxx: Float[Array, "*batch d d"]) -> float:
    """0.2 / the largest variance: a learning rate that is stable for plateaus up to 1."""
    xp = namespace(Sxx)
    return 0.2 / float(xp.amax(xp.linalg.eigvalsh(float64(Sxx, "Sxx"))))


def covariances(
    x: Float[Array, "n d"], y: Float[Array, "n d"], *, ddof: int = 0
) -> tuple[Float[Array, "d d"], Float[Array, "d d"], Float[Array, "d d"]]:
    """Sxx, Syx, Syy of paired rows, each view centred on its own mean, divided by n - ddof.

    Syx = Y'X / n: rows are y's features. The losses are averages over the batch, hence ddof = 0.

    Raises
    ------
    DataError
        If x and y are not of one shape, or there are fewer than 2 rows.
    """
    x, y = float64(x, "x"), float64(y, "y")
    if x.shape != y.shape or x.ndim != 2:
        raise DataError(
            f"x is {tuple(x.shape)}, y is {tuple(y.shape)}; expected two tables of one shape",
            where="x, y",
            remedy="a JEPA has one encoder: both views need the same features",
        )
    n = x.shape[0] - ddof
    if x.shape[0] < 2:
        raise DataError(f"{x.shape[0]} rows", where="x", remedy="give at least 2")
    x, y = x - x.mean(0), y - y.mean(0)
    return x.T @ x / n, y.T @ x / n, y.T @ y / n


def _setting(
    Sxx: Any, Syx: Any, Syy: Any, objective: Objective, target: Target, predictor: Predictor
) -> _Setting:
    objective_of(objective)
    choice(target, get_args(Target), "target")
    choice(predictor, get_args(Predictor), "predictor")
    if objective == "mae" and target != "stopgrad":
        raise ConfigError("a masked autoencoder has no target encoder", where="target")
    if target == "none" and Syy is None:
        raise ConfigError("without StopGrad the loss depends on Syy", where="Syy", remedy="give it")
    sxx, syx = float64(Sxx, "Sxx"), float64(Syx, "Syx")
    if sxx.shape[-2:] != syx.shape[-2:] or sxx.shape[-1] != sxx.shape[-2]:
        raise DataError(f"Sxx {tuple(sxx.shape)} and Syx {tuple(syx.shape)} differ", where="Syx")
    syy = None if Syy is None else float64(Syy, "Syy")
    return _Setting(sxx, syx, syy, objective, target, predictor)


def _weights(W0: Any, V0: Any, setting: _Setting) -> tuple[list[Array], Array]:
    """The layers, first first, and V, with shapes that fit each other and the data."""
    if isinstance(W0, (list, tuple)):
        layers = [float64(w, "W0") for w in W0]
    else:
        stack = float64(W0, "W0")
        if stack.ndim < 3:
            raise ConfigError("W0 is a matrix", where="W0", remedy="stack the layers: [L, d, d]")
        layers = [stack[..., layer, :, :] for layer in range(stack.shape[-3])]
    V = float64(V0, "V0")
    d = setting.Sxx.shape[-1]
    sizes = [d, *(w.shape[-2] for w in layers)]
    ends = d if setting.objective == "mae" else sizes[-1]
    fits = all(w.shape[-1] == size for w, size in zip(layers, sizes, strict=False))
    if not layers or not fits or tuple(V.shape[-2:]) != (ends, sizes[-1]):
        raise DataError(
            f"layers {[tuple(w.shape[-2:]) for w in layers]} and V {tuple(V.shape[-2:])} do not "
            f"chain from {d} features to {ends}",
            where="W0, V0",
        )
    return layers, V


def _gradients(
    layers: Sequence[Array], V: Array, setting: _Setting, ema: Sequence[Array] | None
) -> tuple[list[Array], Array]:
    L = len(layers)
    before: list[Array] = []  # before[l] = W_l ... W_1, the product up to and with layer l
    for w in layers:
        before.append(w @ before[-1] if before else w)
    Wbar = before[-1]
    target = None if setting.objective == "mae" else _product(ema) if ema else Wbar
    out = V @ Wbar
    miss = out @ setting.Sxx - (setting.Syx if target is None else target @ setting.Syx)
    dWbar = _t(V) @ miss
    if setting.target == "none":
        dWbar = dWbar - out @ _t(setting.Syx) + Wbar @ setting.Syy
    found: list[Array] = [None] * L
    back = dWbar  # (W_L ... W_(l+1))' dWbar
    for layer in range(L - 1, -1, -1):
        found[layer] = back @ _t(before[layer - 1]) if layer else back
        if layer:
            back = _t(layers[layer]) @ back
    return found, miss @ _t(Wbar)


def _product(layers: Sequence[Array]) -> Array:
    found = layers[0]
    for w in layers[1:]:
        found = w @ found
    return found


def _t(matrix: Array) -> Array:
    return matrix.swapaxes(-1, -2)


def _inner(xp: Any, a: Array, b: Array) -> Array:
    return xp.einsum("...ij,...ij->...", a, b)

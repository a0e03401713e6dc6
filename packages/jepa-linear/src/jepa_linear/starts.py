"""How the weights of a deep linear network start, and what gradient flow keeps of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from jepa_core.errors import ConfigError
from jepa_linear.arrays import Array
from jepa_linear.parameters import Objective, choice, objective_of

Init = Literal["aligned", "orthogonal", "gaussian"]
Determinants = Literal["positive", "free"]


def initial_weights(
    d: int,
    depth: int,
    *,
    layer_scale: float,
    objective: Objective = "jepa",
    init: Init = "aligned",
    rotate: bool = True,
    det: Determinants = "positive",
    seed: int | np.random.Generator = 0,
) -> tuple[Float[np.ndarray, "L d d"], Float[np.ndarray, "d d"]]:
    """Layers W0 (W0[0] acts first) and predictor V0 (paper, Assumption 4.1: balanced).

    Parameters
    ----------
    init
        "aligned": layers a0 Q_l; V0 = a0 1 (JEPA), a0 (Wbar0 / eps)' (MAE): the modal theory is
        exact. "orthogonal": V0 = a0 Q too, balanced but not aligned: V must first rotate to the
        positive identity, and the theory is only qualitative. "gaussian": entries of variance
        a0^2 / d, unbalanced, a control.
    rotate
        Q_l drawn uniformly from the orthogonal group; False: identities.
    det
        Of init="orthogonal". "positive": det Wbar0 > 0 and det V0 > 0. In a balanced flow singular
        values do not cross zero, so determinants keep their sign, while every mode learned needs a
        positive one: "free" draws leave a mode unlearned half of the time.

    Raises
    ------
    ConfigError
        For sizes below 1, a scale that is not positive, an unknown choice.
    """
    objective_of(objective)
    choice(init, get_args(Init), "init")
    choice(det, get_args(Determinants), "det")
    if d < 1 or depth < 1 or layer_scale <= 0:
        raise ConfigError("d >= 1, depth >= 1 and layer_scale > 0", where="d, depth, layer_scale")
    rng = np.random.default_rng(seed)
    if init == "gaussian":
        draws = rng.standard_normal((depth + 1, d, d)) * (layer_scale / d**0.5)
        return draws[:-1], draws[-1]
    turns = [random_rotation(d, rng) if rotate else np.eye(d) for _ in range(depth + 1)]
    if init == "orthogonal" and det == "positive":
        if np.linalg.det(turns[-1]) < 0:
            turns[-1][:, 0] *= -1
        if np.prod([np.linalg.det(turn) for turn in turns[:-1]]) < 0:
            turns[0][:, 0] *= -1
    layers = layer_scale * np.stack(turns[:-1])
    if init == "orthogonal":
        return layers, layer_scale * turns[-1]
    if objective == "jepa":
        return layers, layer_scale * np.eye(d)
    product = np.eye(d)
    for turn in turns[:-1]:
        product = turn @ product
    return layers, layer_scale * product.T


def random_rotation(d: int, rng: np.random.Generator) -> Float[np.ndarray, "d d"]:
    """Uniform (Haar) on the orthogonal group, determinants of both signs.

    The Q of a QR decomposition alone is not: LAPACK fixes its determinant at (-1)^(d-1). The signs
    of R's diagonal make it uniform.
    """
    q, r = np.linalg.qr(rng.standard_normal((d, d)))
    return q * np.where(np.diagonal(r) < 0, -1.0, 1.0)


def modal_amplitudes(
    Wbar: Float[Array, "*batch d d"],
    Wbar0: Float[Array, "d d"],
    directions: Float[Array, "d modes"],
) -> Float[Array, "*batch modes"]:
    """w of each mode along a run: (Q' Wbar U)_ii, where Wbar0 = eps Q for rotated starts.

    For directions U that are not orthogonal the left ones are the dual basis (the inverse of U).
    """
    q = Wbar0 / np.linalg.norm(Wbar0, 2)
    dual = np.linalg.pinv(directions)
    return np.einsum("id,...de,ei->...i", dual, q.T @ Wbar, directions)


def balancedness(
    layers: Sequence[Float[Array, "*batch _ _"]], V: Float[Array, "*batch e k"]
) -> list[Float[Array, "*batch _ _"]]:
    """W_(l+1)' W_(l+1) - W_l W_l' for each layer, the last with V: constant under gradient flow.

    Gradient descent moves them by O(lr^2) a step; without StopGrad the last is not constant.
    """
    following = [*layers[1:], V]
    return [
        after.swapaxes(-1, -2) @ after - w @ w.swapaxes(-1, -2)
        for w, after in zip(layers, following, strict=True)
    ]

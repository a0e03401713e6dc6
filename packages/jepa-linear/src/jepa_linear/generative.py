"""Views whose covariances are known: temporal and masking models, and what does not commute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from jepa_core.errors import ConfigError, DataError
from jepa_linear.arrays import Array, like, to_numpy, together
from jepa_linear.flows import flow
from jepa_linear.modal import Covariances
from jepa_linear.parameters import Objective, choice
from jepa_linear.starts import initial_weights

MaskTarget = Literal["full", "complement", "independent"]


@dataclass(frozen=True)
class Temporal:
    """The temporal model's modes and covariances."""

    lam: Float[Array, "*batch d"]
    rho: Float[Array, "*batch d"]
    sigma2: Float[Array, "*batch d"]
    Sxx: Float[Array, "*batch d d"]
    Syx: Float[Array, "*batch d d"]
    Syy: Float[Array, "*batch d d"]


def temporal_model(
    g: Float[Array, "*batch d"],
    S: Float[Array, "*batch d"],
    N: Float[Array, "*batch d"],
    lag: int = 1,
    *,
    basis: Float[Array, "d d"] | None = None,
) -> Temporal:
    """Pairs (x_t, x_(t+lag)) of x = U z + noise, z_i autoregressive of order 1.

    z(t+1) = g z(t) + sqrt(1 - g^2) sqrt(S) n; the noise has variance N and is white in time. Then
    lambda = g^lag S, sigma^2 = S + N, rho = g^lag S / (S + N): slow and clean modes are
    influential, fast or noisy ones are not.

    Parameters
    ----------
    g, S, N
        Autocorrelation at lag 1 in [-1, 1], variance of the signal, variance of the noise;
        broadcast.
    basis
        U, orthogonal; the identity if not given.

    Raises
    ------
    ConfigError, DataError
        For parameters outside their range.
    """
    xp, (g_, s_, n_) = together(g=g, S=S, N=N)
    if int(lag) != lag or lag < 1:
        raise ConfigError(
            f"{lag} is not a lag", where="lag", remedy="give an integer of at least 1"
        )
    if not bool((abs(g_) <= 1).all()) or not bool((s_ >= 0).all()) or not bool((n_ >= 0).all()):
        raise DataError("expected |g| <= 1, S >= 0 and N >= 0", where="g, S, N")
    lam = g_ ** int(lag) * s_ + 0.0 * n_
    sigma2 = s_ + n_ + 0.0 * g_
    rho = xp.where(sigma2 > 0, lam / xp.where(sigma2 > 0, sigma2, 1.0), float("nan"))
    if basis is None:
        turn = xp.eye(lam.shape[-1]) if xp is np else xp.eye(lam.shape[-1]).to(lam)
    else:
        turn = together(basis=basis, like=lam)[1][0]
    Sxx = (turn * sigma2[..., None, :]) @ turn.swapaxes(-1, -2)
    Syx = (turn * lam[..., None, :]) @ turn.swapaxes(-1, -2)
    return Temporal(lam, rho, sigma2, Sxx, Syx, Sxx)


def temporal_pairs(
    g: Float[np.ndarray, "d"],
    S: Float[np.ndarray, "d"],
    N: Float[np.ndarray, "d"],
    n: int,
    lag: int = 1,
    *,
    basis: Float[np.ndarray, "d d"] | None = None,
    seed: int | np.random.Generator = 0,
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]]:
    """n independent pairs (x_t, x_(t+lag)) of the temporal model."""
    model = temporal_model(g, S, N, lag, basis=basis)
    rng = np.random.default_rng(seed)
    g, S, N = np.broadcast_arrays(*(np.asarray(value, np.float64) for value in (g, S, N)))
    first, fresh, noise_x, noise_y = rng.standard_normal((4, n, model.lam.shape[-1]))
    kept = g**lag
    z = np.sqrt(S) * first
    later = kept * z + np.sqrt((1 - kept**2) * S) * fresh
    turn = np.eye(model.lam.shape[-1]) if basis is None else np.asarray(basis)
    return (z + np.sqrt(N) * noise_x) @ turn.T, (later + np.sqrt(N) * noise_y) @ turn.T


def temporal_series(
    g: Float[np.ndarray, "d"],
    S: Float[np.ndarray, "d"],
    N: Float[np.ndarray, "d"],
    steps: int,
    *,
    basis: Float[np.ndarray, "d d"] | None = None,
    seed: int | np.random.Generator = 0,
) -> Float[np.ndarray, "steps d"]:
    """One stationary series of the temporal model."""
    d = temporal_model(g, S, N, basis=basis).lam.shape[-1]
    rng = np.random.default_rng(seed)
    g, S, N = np.broadcast_arrays(*(np.asarray(value, np.float64) for value in (g, S, N)))
    drive, noise = rng.standard_normal((2, steps, d))
    drive[1:] *= np.sqrt(1 - g**2)
    z = np.empty((steps, d))
    state = np.zeros(d)
    for t in range(steps):
        state = g * state + drive[t]
        z[t] = state
    turn = np.eye(d) if basis is None else np.asarray(basis)
    return (np.sqrt(S) * z + np.sqrt(N) * noise) @ turn.T


def masking_model(
    C: Float[Array, "*batch d d"], keep: float, *, noise: float = 0.0, target: MaskTarget = "full"
) -> Covariances:
    """Exact covariances of randomly masked views of a signal with covariance C.

    x = M u, where M keeps each feature with probability q, and u has noise of variance nu added
    before masking, independent between the views. With D = diag(C):

        Sxx = q^2 C + q (1-q) D + q nu 1
        full         y = u                 Syx = q C             Syy = C + nu 1
        complement   y = (1 - M) u         Syx = q (1-q) (C - D)
                                           Syy = (1-q)^2 C + q (1-q) D + (1-q) nu 1
        independent  y = M' u              Syx = q^2 C           Syy = Sxx

    Where D is c0 1 all commute with C. A complement target makes every mode of less than average
    power dead; no rho exceeds 1/q.

    Raises
    ------
    ConfigError
        For a keep probability outside (0, 1], negative noise, an unknown target.
    """
    choice(target, get_args(MaskTarget), "target")
    q = float(keep)
    if not 0 < q <= 1:
        raise ConfigError(
            f"{keep} is not in (0, 1]", where="keep", remedy="a share of the features"
        )
    if not 0 <= noise < np.inf:
        raise ConfigError(f"{noise} is not a variance", where="noise", remedy="give 0 or more")
    (c,) = together(C=C)[1]
    full = to_numpy(c)
    if full.ndim < 2 or full.shape[-1] != full.shape[-2]:
        raise DataError(f"shape {full.shape}; expected square", where="C")
    eye = np.eye(full.shape[-1])
    D = full * eye
    Sxx = q**2 * full + q * (1 - q) * D + q * noise * eye
    if target == "full":
        Syx, Syy = q * full, full + noise * eye
    elif target == "complement":
        Syx = q * (1 - q) * (full - D)
        Syy = (1 - q) ** 2 * full + q * (1 - q) * D + (1 - q) * noise * eye
    else:
        Syx, Syy = q**2 * full, Sxx
    return Covariances(*(like(value, c) for value in (Sxx, Syx, Syy)))


def masked_pairs(
    C: Float[np.ndarray, "d d"],
    keep: float,
    n: int,
    *,
    noise: float = 0.0,
    target: MaskTarget = "full",
    seed: int | np.random.Generator = 0,
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]]:
    """n pairs of the masking model, the signal Gaussian."""
    masking_model(C, keep, noise=noise, target=target)  # the checks
    rng = np.random.default_rng(seed)
    values, vectors = np.linalg.eigh(np.asarray(C, np.float64))
    half = vectors * np.sqrt(np.maximum(values, 0.0))
    u = rng.standard_normal((n, len(half))) @ half.T
    seen, other = (u + np.sqrt(noise) * rng.standard_normal(u.shape) for _ in range(2))
    mask = rng.random(u.shape) < keep
    if target == "full":
        return mask * seen, other
    if target == "complement":
        return mask * seen, ~mask * other
    return mask * seen, (rng.random(u.shape) < keep) * other


def leakage(Wbar: Float[Array, "*batch d d"]) -> Float[Array, "*batch"]:
    """|off-diagonal Wbar| / |Wbar| (Frobenius): the share of the encoder that mixes modes.

    Wbar in the modes' basis: 0 where the assumption holds and the start was aligned.
    """
    xp, (w,) = together(Wbar=Wbar)
    squares = (w * w).sum(-1).sum(-1)
    own = xp.einsum("...ii->...i", w)
    return xp.sqrt(xp.clip(squares - (own * own).sum(-1), 0.0, None) / squares)


def leakage_path(
    lam: Float[np.ndarray, "d"],
    rho: Float[np.ndarray, "d"],
    mixing: Float[np.ndarray, "d d"],
    depth: int,
    *,
    layer_scale: float,
    times: Float[np.ndarray, "times"],
    objective: Objective = "jepa",
) -> Float[np.ndarray, "times"]:
    """Leakage along the matrix flow of Sxx = diag(lam / rho), Syx = diag(lam) + mixing.

    From identities, over flow times. The largest is linear in the size of `mixing`, and grows with
    depth.
    """
    lam, rho = np.asarray(lam, np.float64), np.asarray(rho, np.float64)
    W0, V0 = initial_weights(
        len(lam), depth, layer_scale=layer_scale, objective=objective, rotate=False
    )
    Syx = np.diag(lam) + np.asarray(mixing)
    path = flow(W0, V0, np.diag(lam / rho), Syx, times, objective=objective)
    return np.asarray(leakage(path.Wbar))

"""Multinomial logistic regression on as many rows as images have patches.

The minimum is that of any other program; the way there is short, because the search runs in
coordinates in which the loss curves about alike in all directions. Neighbouring pixels and patch
tokens are so correlated that plain L-BFGS takes a hundred times as many steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from jepa_core.errors import DataError
from jepa_core.evaluation.linear import PENALTIES, LinearProbe

_STEPS = 300


def fit_logistic(
    x: Float[np.ndarray, "n dim"], y: Int[np.ndarray, " n"], *, classes: int, C: float
) -> LinearProbe:
    """L2-penalised logistic regression on standardised features, one softmax over the classes.

    Minimises the sum of log losses plus |W|^2 / 2C; the intercept is not penalised, and classes
    that do not occur get the odds of half a row.

    Raises
    ------
    DataError
        Rows and labels differ in number, or features are not finite.
    """
    return next(_path(x, y, classes, (C,)))


def choose_penalty(
    x: Float[np.ndarray, "n dim"],
    y: Int[np.ndarray, " n"],
    outside: Bool[np.ndarray, " n"],
    *,
    classes: int,
) -> float:
    """Inverse penalty of 10^-4..10^2 with the least log loss on the rows `outside`.

    Tried from the strongest penalty on until the loss rises. Without a row on either side it is 1.
    """
    if outside.all() or not outside.any():
        return 1.0
    best, least = 1.0, math.inf
    for probe in _path(x[~outside], y[~outside], classes, PENALTIES):
        scores = probe.scores(x[outside])
        loss = float((_log_sum(scores) - scores[np.arange(len(scores)), y[outside]]).mean())
        if loss > least:
            break
        best, least = probe.strength, loss
    return best


def _path(
    x: np.ndarray, y: np.ndarray, classes: int, strengths: Sequence[float]
) -> Iterator[LinearProbe]:
    """Fits of several C, each begun where the last one ended."""
    x, y = np.asarray(x, np.float64), np.asarray(y)
    if len(x) != len(y) or not len(x):
        raise DataError(f"{len(x)} rows of features and {len(y)} labels")
    if not np.isfinite(x).all():
        raise DataError("features are not all finite", remedy="look for NaN in the encoder's input")
    mean, std = x.mean(axis=0), x.std(axis=0)
    std = np.where(std < 1e-12, 1.0, std)
    z = (x - mean) / std
    seen, label = np.unique(y, return_inverse=True)
    n = len(z)
    curvature, axes = np.linalg.eigh(z.T @ z / n)
    shares = np.bincount(label) / n
    # Of the log loss at the prior: what the penalty has to be compared with.
    curvature = curvature.clip(0) * float((shares * (1 - shares)).mean())
    weight, intercept = np.zeros((z.shape[1], len(seen))), np.log(shares)
    for C in strengths:
        notes: tuple[str, ...] = ()
        if len(seen) > 1:
            turned = axes / np.sqrt(curvature + 1 / (n * C))
            weight, intercept, done = _minimum(z, label, C, turned, weight, intercept)
            notes = () if done else (f"a fit stopped after {_STEPS} steps",)
        every = np.zeros((z.shape[1], classes))
        odds = np.full(classes, math.log(0.5 / (n + 1)))
        every[:, seen], odds[seen] = weight, intercept
        yield LinearProbe(mean, std, every, odds, C, notes)


def _minimum(
    z: Float64[np.ndarray, "n dim"],
    label: Int[np.ndarray, " n"],
    C: float,
    turned: Float64[np.ndarray, "dim dim"],
    weight: Float64[np.ndarray, "dim seen"],
    intercept: Float64[np.ndarray, " seen"],
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Weights, intercepts and whether the search ended by itself."""
    from scipy.optimize import fmin_l_bfgs_b

    n, rows = len(z), np.arange(len(z))
    dim, seen = weight.shape

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        u = flat.reshape(dim + 1, seen)
        w = turned @ u[:-1]
        scores = z @ w + u[-1]
        log_sum = _log_sum(scores)
        value = (log_sum - scores[rows, label]).mean() + np.square(w).sum() / (2 * n * C)
        error = np.exp(scores - log_sum[:, None])
        error[rows, label] -= 1
        error /= n
        slope = turned.T @ (z.T @ error + w / (n * C))
        return float(value), np.concatenate((slope, error.sum(0)[None])).ravel()

    start = np.concatenate((np.linalg.solve(turned, weight), intercept[None])).ravel()
    found, _, end = fmin_l_bfgs_b(
        loss, start, maxiter=_STEPS, maxfun=2 * _STEPS, pgtol=1e-5, factr=1e7
    )
    u = found.reshape(dim + 1, seen)
    return turned @ u[:-1], u[-1] - u[-1].mean(), end["warnflag"] == 0


def _log_sum(scores: Float64[np.ndarray, "n classes"]) -> Float64[np.ndarray, " n"]:
    most = scores.max(axis=1)
    total: np.ndarray = np.log(np.exp(scores - most[:, None]).sum(axis=1)) + most
    return total

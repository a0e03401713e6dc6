"""Nearest neighbours: the probe without anything to train."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, Shaped

from jepa_core.errors import DataError


def neighbours(
    train: Float[np.ndarray, "n dim"],
    test: Float[np.ndarray, "m dim"],
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 512,
) -> tuple[Int[np.ndarray, "m k"], Float[np.ndarray, "m k"]]:
    """The k most similar training rows by cosine, nearest first, and their weights.

    Weights are exp(cosine / temperature), as in DINO (Caron et al. 2021). Rows of zeros stay zero
    and are as near to everything; equally near rows come in the order of the training set.

    Raises
    ------
    DataError
        k outside [1, n].
    """
    if not 1 <= k <= len(train):
        raise DataError(f"k is {k}, but there are {len(train)} training rows")
    train, test = _unit(train), _unit(test)
    index = np.empty((len(test), k), np.int64)
    weight = np.empty((len(test), k))
    for first in range(0, len(test), chunk):
        cosine = test[first : first + chunk] @ train.T
        nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
        index[first : first + chunk] = nearest
        weight[first : first + chunk] = np.take_along_axis(cosine, nearest, axis=1)
    return index, np.exp(weight / temperature)


def knn_votes(
    train: Float[np.ndarray, "n dim"],
    y: Int[np.ndarray, "n"],
    test: Float[np.ndarray, "m dim"],
    *,
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Float[np.ndarray, "m classes"]:
    """Sum of the neighbours' weights by class; argmax (the lowest class on ties) is the answer."""
    index, weight = neighbours(train, test, k, temperature)
    y = np.asarray(y)
    if not 0 <= y.min() <= y.max() < classes:
        raise DataError(f"classes go from {y.min()} to {y.max()}, not 0..{classes - 1}")
    flat = y[index] + classes * np.arange(len(test))[:, None]
    votes = np.bincount(flat.ravel(), weight.ravel(), minlength=classes * len(test))
    return votes.reshape(len(test), classes)


def knn_shares(
    train: Float[np.ndarray, "n dim"],
    y: Shaped[np.ndarray, "n classes"],
    test: Float[np.ndarray, "m dim"],
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> Float[np.ndarray, "m classes"]:
    """Weighted share of the neighbours that carry each of several labels, in [0, 1].

    Unlike votes, shares of different rows compare: an AUC needs that.
    """
    index, weight = neighbours(train, test, k, temperature)
    weight = weight / weight.sum(axis=1, keepdims=True)
    y = np.asarray(y, np.float64)
    shares = np.zeros((len(test), y.shape[1]))
    for nth in range(k):  # one neighbour at a time: [m, k, classes] at once may not fit
        shares += weight[:, nth, None] * y[index[:, nth]]
    return shares


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)

"""Linear probes: ridge in closed form and logistic regression, tuned inside the training part."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from jepa_core import rng
from jepa_core.errors import DataError
from jepa_core.evaluation.metrics import one_hot

ALPHAS = tuple(10.0**power for power in range(-3, 7))
PENALTIES = tuple(10.0**power for power in range(-4, 3))


@dataclass(frozen=True)
class LinearProbe:
    """A fitted linear map of features to one score a class.

    `strength` is the chosen alpha or C; `notes` says what a reader of the scores should know.
    """

    mean: Float[np.ndarray, "dim"]
    std: Float[np.ndarray, "dim"]
    weight: Float[np.ndarray, "dim classes"]
    intercept: Float[np.ndarray, "classes"]
    strength: float
    notes: tuple[str, ...] = ()

    def scores(self, x: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n classes"]:
        """Scores in float64: of ridge near 0 and 1, of logistic regression log-odds."""
        return (np.asarray(x, np.float64) - self.mean) / self.std @ self.weight + self.intercept


def ridge(
    x: Float[np.ndarray, "n dim"],
    targets: Float[np.ndarray, "n outputs"],
    *,
    alpha: float | None = None,
    groups: Shaped[np.ndarray, "n"] | None = None,
    standardise: bool = True,
    seed: int = 0,
) -> LinearProbe:
    """Ridge regression on 0/1 columns (`one_hot` of single labels) or on any numbers.

    W = (Z'Z + alpha I)^-1 Z'Y with standardised Z and centred Y; the intercept is not penalised.

    Parameters
    ----------
    alpha
        None chooses one of 10^-3..10^6 for all outputs by squared error: generalised
        cross-validation, or 5-fold cross-validation by `groups` where there are any (records of
        one patient predict each other). One decomposition serves all.
    standardise
        Divide by the standard deviations of the training part. Without, a collapse of scale
        shows: standardised features of a dying encoder still read well.
    seed
        Of the folds.
    """
    x, targets = _checked(x, targets)
    parts = _decompose(x, targets, standardise)
    if alpha is None:
        if groups is None:
            errors = _generalised_errors(parts, len(x))
        else:
            errors = _fold_errors(x, targets, groups, standardise, seed).tolist()
        alpha = ALPHAS[int(np.argmin(errors))]
    return LinearProbe(parts.mean, parts.std, parts.weight(alpha), parts.centre, alpha)


@dataclass(frozen=True)
class _Parts:
    """Of Z = U diag(s) V' and Y: everything that every alpha shares."""

    mean: np.ndarray
    std: np.ndarray
    squares: np.ndarray
    """s^2 of the directions that vary."""
    right: np.ndarray
    """V."""
    projected: np.ndarray
    """U'Y."""
    outside: float
    """Squares of Y outside of U."""
    centre: np.ndarray

    def weight(self, alpha: float) -> np.ndarray:
        shrunk = np.sqrt(self.squares) / (self.squares + alpha)
        weight: np.ndarray = self.right @ (shrunk[:, None] * self.projected)
        return weight


def _decompose(x: np.ndarray, targets: np.ndarray, standardise: bool) -> _Parts:
    """By the smaller of Z'Z and ZZ', 5 to 20 times as fast as the singular values of Z.

    Squaring costs digits where s^2 is below 10^-13 of the largest; an alpha of 10^-3 is far above
    that, and such directions are left out.
    """
    mean, std = _scale(x, standardise)
    z = (x - mean) / std
    centre = targets.mean(axis=0)
    y = targets - centre
    tall = len(z) >= z.shape[1]
    squares, vectors = np.linalg.eigh(z.T @ z if tall else z @ z.T)
    kept = squares > 1e-13 * max(squares.max(initial=0), 1e-300)
    squares, vectors = squares[kept], vectors[:, kept]
    if tall:
        right, projected = vectors, vectors.T @ (z.T @ y) / np.sqrt(squares)[:, None]
    else:
        right, projected = z.T @ vectors / np.sqrt(squares), vectors.T @ y
    outside = max(0.0, np.square(y).sum() - np.square(projected).sum())
    return _Parts(mean, std, squares, right, projected, outside, centre)


def _generalised_errors(parts: _Parts, n: int) -> list[float]:
    """GCV of each alpha: squared residual over squared residual degrees of freedom."""
    energy = np.square(parts.projected).sum(axis=1)
    errors = []
    for alpha in ALPHAS:
        left_over = alpha / (parts.squares + alpha)
        # One degree for the intercept, and those of U that alpha takes.
        freedom = n - 1 - len(left_over) + left_over.sum()
        residual = parts.outside + np.square(left_over) @ energy
        # With few degrees left, both sides of the ratio vanish and it prefers to interpolate.
        errors.append(residual / freedom**2 if freedom > 0.1 * n else math.inf)
    return errors


def _fold_errors(
    x: np.ndarray, targets: np.ndarray, groups: np.ndarray, standardise: bool, seed: int
) -> np.ndarray:
    errors = np.zeros(len(ALPHAS))
    for inside, outside in _folds(len(x), groups, seed):
        parts = _decompose(x[inside], targets[inside], standardise)
        z = (x[outside] - parts.mean) / parts.std
        for i, alpha in enumerate(ALPHAS):
            predicted = z @ parts.weight(alpha) + parts.centre
            errors[i] += np.square(targets[outside] - predicted).sum()
    return errors


def logistic(
    x: Float[np.ndarray, "n dim"],
    y: Shaped[np.ndarray, "n"] | Shaped[np.ndarray, "n classes"],
    *,
    classes: int | None = None,
    C: float | None = None,
    groups: Shaped[np.ndarray, "n"] | None = None,
    standardise: bool = True,
    max_iter: int = 1000,
    seed: int = 0,
) -> LinearProbe:
    """L2-penalised logistic regression through scikit-learn.

    Parameters
    ----------
    y
        Class numbers [n] (one softmax over `classes`), or 0/1 columns [n, classes] (one
        regression a column, all with the same C). A column without both labels gets its prior.
    C
        Inverse penalty; None chooses one of 10^-4..10^2 by log loss in 5-fold cross-validation
        inside x, by `groups` where given.
    max_iter
        Fits that stop there are counted in the probe's notes.

    Raises
    ------
    DataError
        Features that are not finite, fewer than two records, or labels of another length.
    """
    x, columns = _checked(x, y)
    single = np.ndim(y) == 1
    if single:
        columns = one_hot(np.asarray(y), int(np.max(y)) + 1 if classes is None else classes)
    if C is None:
        losses = np.zeros(len(PENALTIES))
        for inside, outside in _folds(len(x), groups, seed):
            for i, candidate in enumerate(PENALTIES):
                probe = _fit(x[inside], columns[inside], single, candidate, standardise, max_iter)
                losses[i] += _log_loss(columns[outside], probe.scores(x[outside]), single)
        C = PENALTIES[int(np.argmin(losses))]
    return _fit(x, columns, single, C, standardise, max_iter)


def _fit(
    x: np.ndarray, columns: np.ndarray, single: bool, C: float, standardise: bool, max_iter: int
) -> LinearProbe:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, std = _scale(x, standardise)
    z = (x - mean) / std
    weight = np.zeros((x.shape[1], columns.shape[1]))
    # Absent labels get the odds of half a record, not an infinity.
    prior = (columns.sum(axis=0) + 0.5) / (len(x) + 1)
    intercept = np.log(prior) if single else np.log(prior / (1 - prior))
    unfinished = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said in the notes instead
        if single:
            label = columns.argmax(axis=1)
            seen = np.unique(label)
            if len(seen) > 1:
                model = LogisticRegression(C=C, max_iter=max_iter).fit(z, label)
                unfinished = int((model.n_iter_ >= max_iter).sum())
                if len(seen) == 2:  # scikit-learn keeps the log-odds of the second only
                    weight[:, seen[1]], intercept[seen] = model.coef_[0], (0, model.intercept_[0])
                else:
                    weight[:, seen], intercept[seen] = model.coef_.T, model.intercept_
        else:
            for i, label in enumerate(columns.T):
                if 0 < label.sum() < len(label):
                    model = LogisticRegression(C=C, max_iter=max_iter).fit(z, label)
                    unfinished += int((model.n_iter_ >= max_iter).sum())
                    weight[:, i], intercept[i] = model.coef_[0], model.intercept_[0]
    notes = (f"{unfinished} fits stopped at max_iter {max_iter}",) if unfinished else ()
    return LinearProbe(mean, std, weight, intercept, C, notes)


def _log_loss(columns: np.ndarray, scores: np.ndarray, single: bool) -> float:
    if single:
        shifted = scores - scores.max(axis=1, keepdims=True)
        return float((np.log(np.exp(shifted).sum(axis=1)) - (shifted * columns).sum(axis=1)).sum())
    return float((np.logaddexp(0, scores) - scores * columns).sum())


def _folds(
    n: int, groups: np.ndarray | None, seed: int, folds: int = 5
) -> Iterator[tuple[Int[np.ndarray, "inside"], Int[np.ndarray, "outside"]]]:
    """Rows inside and outside of each fold; no group is on both sides."""
    member = np.arange(n)
    if groups is not None:
        member = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
        if len(member) != n:
            raise DataError(f"{len(member)} group labels for {n} records")
    count = int(member.max()) + 1
    if count < 2:
        raise DataError("cross-validation needs two groups at least", remedy="give alpha or C")
    order = rng.permutation(rng.words(seed, "folds", np.zeros(1, np.int64), 0, count))[0]
    fold = np.empty(count, np.int64)
    fold[order] = np.arange(count) % min(folds, count)
    for number in range(min(folds, count)):
        out = fold[member] == number
        yield np.flatnonzero(~out), np.flatnonzero(out)


def _scale(x: np.ndarray, standardise: bool) -> tuple[np.ndarray, np.ndarray]:
    std = x.std(axis=0) if standardise else np.ones(x.shape[1])
    return x.mean(axis=0), np.where(std < 1e-12, 1.0, std)


def _checked(x: np.ndarray, y: np.ndarray | Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) != len(y) or len(x) < 2:
        raise DataError(f"{len(x)} rows of features and {len(y)} of labels, two at least needed")
    if not np.isfinite(x).all() or not np.isfinite(y).all():
        raise DataError(
            "features or labels are not all finite", remedy="look for NaN in the encoder's input"
        )
    return x, y

"""Scores of predictions: each with a stated definition, and undefined cases named, not hidden.

Statistics to be bootstrapped take how often each record was drawn, so that scores are sorted once
and not once a resample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Shaped

from jepa_core.errors import DataError

Counts = Int[np.ndarray, "resamples n"]
Parts = Float[np.ndarray, "resamples parts"]
# Counts of records to one value a part (a class, say); NaN where a part is undefined.
Statistic = Callable[[Counts], Parts]


@dataclass(frozen=True)
class AUC:
    """Area under the ROC curve of each class against the rest.

    `macro` is the unweighted mean over the classes that have both labels; `skipped` names the
    others, whose `per_class` is NaN.
    """

    macro: float
    per_class: Float[np.ndarray, "classes"]
    positives: Int[np.ndarray, "classes"]
    records: int
    skipped: tuple[str, ...]

    def __str__(self) -> str:
        defined = len(self.per_class) - len(self.skipped)
        over = f" over {defined} of {len(self.per_class)} classes" if self.skipped else ""
        return f"{self.macro:.4f}{over}"


def macro_auc(
    y: Shaped[np.ndarray, "n classes"],
    score: Float[np.ndarray, "n classes"],
    *,
    undefined: Literal["skip", "nan", "error"] = "skip",
    classes: Sequence[str] | None = None,
) -> AUC:
    """Macro-averaged ROC-AUC: P(positive scores above negative), ties counting one half.

    Parameters
    ----------
    y
        0 or 1 (or bool), one column a class.
    score
        Higher = more likely. Not rounded: float16 scores tie.
    undefined
        What a class without positives or without negatives does to `macro`: nothing, NaN, or an
        error that names it.
    classes
        Names of the columns; their numbers by default.

    Raises
    ------
    DataError
        Labels other than 0 and 1, NaN scores, differing shapes, no class with both labels, or
        any class without them under `undefined="error"`.
    """
    names = [str(i) for i in range(y.shape[1])] if classes is None else list(classes)
    if len(names) != y.shape[1]:
        raise DataError(f"{len(names)} class names for {y.shape[1]} columns of labels")
    per_class = auc_statistic(y, score)(np.ones((1, len(y)), np.int64))[0]
    missing = np.isnan(per_class)
    skipped = tuple(name for name, out in zip(names, missing, strict=True) if out)
    if skipped and (undefined == "error" or len(skipped) == len(names)):
        raise DataError(
            f"no AUC for {', '.join(skipped)}: positives and negatives are both needed",
            remedy="use more records" + ("" if missing.all() else " or skip these classes"),
        )
    macro = np.nan if skipped and undefined == "nan" else float(per_class[~missing].mean())
    return AUC(macro, per_class, np.asarray(y).astype(bool).sum(0), len(y), skipped)


def auc_statistic(
    y: Shaped[np.ndarray, "n classes"], score: Float[np.ndarray, "n classes"]
) -> Statistic:
    """The AUC of each class as a function of how often each record was drawn.

    Scores are sorted here, once. NaN where a class has no positive or no negative left.
    """
    labels, scores = np.asarray(y), np.asarray(score)
    if labels.shape != scores.shape or labels.ndim != 2:
        raise DataError(
            f"labels are {labels.shape} and scores {scores.shape}, not two alike tables"
        )
    if not np.isin(labels, (0, 1)).all():
        raise DataError("labels are not all 0 or 1")
    if np.isnan(scores).any():
        column = int(np.isnan(scores).any(axis=0).argmax())
        raise DataError(f"scores of class {column} are not numbers")
    columns = []
    for label, value in zip(labels.T.astype(bool), scores.T, strict=True):
        order = np.argsort(value, kind="stable")
        positive, negative = order[label[order]], order[~label[order]]
        below = np.searchsorted(value[negative], value[positive], side="left")
        up_to = np.searchsorted(value[negative], value[positive], side="right")
        columns.append((positive, negative, below, up_to))

    def statistic(counts: Counts) -> Parts:
        # 32-bit running sums take a third of the time of float64 ones; they end at n.
        drawn = np.ascontiguousarray(counts.T, dtype=np.int32)
        values = np.full((len(counts), len(columns)), np.nan)
        passed = np.zeros((len(labels) + 1, len(counts)), np.int32)
        for i, (positive, negative, below, up_to) in enumerate(columns):
            # passed[j]: negatives drawn among the j lowest; half of both sides counts a tie 1/2.
            np.cumsum(drawn[negative], axis=0, out=passed[1 : len(negative) + 1])
            chosen = drawn[positive].astype(np.float64)
            wins = (chosen * (passed[below] + passed[up_to])).sum(axis=0) / 2
            pairs = chosen.sum(axis=0) * passed[len(negative)]
            np.divide(wins, pairs, out=values[:, i], where=pairs > 0)
        return values

    return statistic


def mean_statistic(values: Float[np.ndarray, "n"]) -> Statistic:
    """The mean of one value a record (1 for a hit gives the accuracy), for the bootstrap."""
    numbers = np.asarray(values, dtype=np.float64)

    def statistic(counts: Counts) -> Parts:
        return ((counts @ numbers) / counts.sum(axis=1))[:, None]

    return statistic


def average_precision(
    y: Shaped[np.ndarray, "n classes"], score: Float[np.ndarray, "n classes"]
) -> Float[np.ndarray, "classes"]:
    """Average precision of each class: the sum over thresholds of precision times recall gained.

    A step function, not interpolated, tied scores being one threshold; NaN without positives.
    """
    values = np.full(y.shape[1], np.nan)
    for i, (label, value) in enumerate(zip(np.asarray(y).T, np.asarray(score).T, strict=True)):
        order = np.argsort(-value, kind="stable")
        hits = np.cumsum(label[order] != 0)
        if len(hits) == 0 or hits[-1] == 0:
            continue
        last = np.append(np.flatnonzero(np.diff(value[order])), len(value) - 1)
        gained = np.diff(hits[last], prepend=0) / hits[-1]
        values[i] = gained @ (hits[last] / (last + 1))
    return values


@dataclass(frozen=True)
class IoU:
    """Intersection over union of each class, NaN where the class occurs nowhere.

    The two means differ by the classes that are predicted only, which count 0 in the first.
    """

    per_class: Float[np.ndarray, "classes"]
    mean_present_or_predicted: float
    mean_present_in_truth: float


def mean_iou(
    true: Int[np.ndarray, "..."], predicted: Int[np.ndarray, "..."], classes: int, ignore: int = 255
) -> IoU:
    """Mean intersection over union; elements labelled `ignore` in either array are left out.

    Raises
    ------
    DataError
        Differing shapes, or a label that is neither `ignore` nor in [0, classes).
    """
    if true.shape != predicted.shape:
        raise DataError(f"labels are {true.shape} and predictions {predicted.shape}")
    kept = (true != ignore) & (predicted != ignore)
    t, p = true[kept].astype(np.int64), predicted[kept].astype(np.int64)
    for name, labels in (("labels", t), ("predictions", p)):
        if labels.size and not 0 <= labels.min() <= labels.max() < classes:
            raise DataError(
                f"{name} go from {labels.min()} to {labels.max()}, not 0..{classes - 1}"
            )
    confusion = np.bincount(t * classes + p, minlength=classes**2).reshape(classes, classes)
    truth, union = confusion.sum(1), confusion.sum(1) + confusion.sum(0) - confusion.diagonal()
    per_class = np.full(classes, np.nan)
    np.divide(confusion.diagonal(), union, out=per_class, where=union > 0)
    return IoU(per_class, _mean(per_class[union > 0]), _mean(per_class[truth > 0]))


@dataclass(frozen=True)
class R2:
    """Coefficient of determination, by both definitions in use; NaN where the truth is constant.

    `mean_over_outputs` weighs every output alike, so one with hardly any variance can decide it;
    `pooled` is 1 - SSE / SST with both sums over all outputs.
    """

    mean_over_outputs: float
    pooled: float
    per_output: Float[np.ndarray, "outputs"]


def r2(true: Float[np.ndarray, "n outputs"], predicted: Float[np.ndarray, "n outputs"]) -> R2:
    """R2 of each output and of all; the mean is over the outputs whose truth varies."""
    true, predicted = np.asarray(true, np.float64), np.asarray(predicted, np.float64)
    if true.shape != predicted.shape or true.ndim != 2:
        raise DataError(f"truth is {true.shape} and prediction {predicted.shape}, not two tables")
    error = np.square(true - predicted).sum(axis=0)
    spread = np.square(true - true.mean(axis=0)).sum(axis=0)
    varies = _varies(true)
    per_output = np.full(true.shape[1], np.nan)
    np.divide(error, spread, out=per_output, where=varies)
    per_output = 1 - per_output
    pooled = 1 - error.sum() / spread.sum() if varies.any() else np.nan
    return R2(_mean(per_output[varies]), float(pooled), per_output)


def squared_correlation(
    true: Float[np.ndarray, "n outputs"], predicted: Float[np.ndarray, "n outputs"]
) -> Float[np.ndarray, "outputs"]:
    """Squared Pearson correlation of each output, NaN where either side is constant.

    Blind to scale and offset, and not R2.
    """
    true, predicted = np.asarray(true, np.float64), np.asarray(predicted, np.float64)
    t, p = true - true.mean(axis=0), predicted - predicted.mean(axis=0)
    product = np.square(t).sum(axis=0) * np.square(p).sum(axis=0)
    values = np.full(t.shape[1], np.nan)
    both_vary = _varies(true) & _varies(predicted)
    np.divide(np.square((t * p).sum(axis=0)), product, out=values, where=both_vary)
    return values


def ranks(
    scores: Float[np.ndarray, "n candidates"],
    target: Int[np.ndarray, "n"],
    ties: Literal["average", "optimistic", "pessimistic"] = "average",
) -> Float[np.ndarray, "n"]:
    """Rank of the true candidate among all, 1 = best.

    Ties take their middle place by default: a scorer that says the same of all must not win.
    A true candidate whose score is NaN comes last, other NaN scores count as the lowest.
    """
    own = np.take_along_axis(scores, target[:, None], axis=1)
    filled = np.where(np.isnan(scores), -np.inf, scores)
    greater = (filled > own).sum(axis=1)
    equal = (filled == own).sum(axis=1)  # with itself
    places = {"average": (equal - 1) / 2, "optimistic": 0 * equal, "pessimistic": equal - 1}
    return np.where(np.isnan(own[:, 0]), scores.shape[1], 1 + greater + places[ties])


def mean_reciprocal_rank(ranks: Float[np.ndarray, "n"]) -> float:
    """Mean of 1 / rank."""
    return float(np.mean(1 / ranks))


def hits_at(ranks: Float[np.ndarray, "n"], k: int) -> float:
    """Share of the ranks that are k or better."""
    return float(np.mean(ranks <= k))


def accuracy(y: Int[np.ndarray, "n"], score: Float[np.ndarray, "n classes"]) -> float:
    """Share of records whose highest score (the first, if several) is their class."""
    return float(np.mean(np.argmax(score, axis=1) == y))


def one_hot(y: Int[np.ndarray, "n"], classes: int) -> Float[np.ndarray, "n classes"]:
    """Class numbers as rows of 0 and 1.

    Raises
    ------
    DataError
        A number outside [0, classes).
    """
    if len(y) and not 0 <= y.min() <= y.max() < classes:
        raise DataError(f"classes go from {y.min()} to {y.max()}, not 0..{classes - 1}")
    return np.eye(classes)[y]


def _varies(x: np.ndarray) -> np.ndarray:
    # Exact, unlike the sum of squares around a rounded mean.
    return x.max(axis=0) > x.min(axis=0)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")

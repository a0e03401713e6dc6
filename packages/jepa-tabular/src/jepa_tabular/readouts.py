"""What is read out of features: labels as numbers, label budgets, readouts and their scores."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float, Float64, Int64, Shaped

from jepa_core import rng
from jepa_core.errors import ConfigError, DataError
from jepa_core.evaluation.linear import LinearProbe, logistic, ridge
from jepa_core.evaluation.metrics import accuracy, macro_auc, one_hot, r2
from jepa_tabular.downstream import Task
from jepa_tabular.heads import Scale
from jepa_tabular.presets import TableShape

Budget = int | Literal["all"]

FEW, MANY_DRAWS, DRAWS = 300, 12, 4  # up to FEW labels take many draws, more of them some

# More distinct whole numbers than this are taken for quantities unless each is frequent.
_CLASSES, _MOST_CLASSES, _OF_EACH = 20, 100, 50


@dataclass(frozen=True)
class Target:
    """Labels as numbers.

    Parameters
    ----------
    task
        What they are.
    y
        Class numbers int64, or quantities float64.
    classes
        Names of the classes; none for a regression.
    """

    task: Task
    y: Shaped[np.ndarray, " rows"]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.y)

    def columns(self) -> Float64[np.ndarray, "rows outputs"]:
        """0/1 columns of the classes, or the quantities as one column."""
        if self.task == "regression":
            return np.asarray(self.y, np.float64)[:, None]
        return one_hot(self.y, len(self.classes))

    def nearest(
        self, scores: Float[np.ndarray, "rows outputs"]
    ) -> Float[np.ndarray, "rows outputs"]:
        """What scores say of `columns`: those of classes cut to 0 and 1, beyond which none is."""
        return scores if self.task == "regression" else scores.clip(0, 1)

    def take(self, rows: Int64[np.ndarray, " taken"]) -> Target:
        """The labels of these rows."""
        return Target(self.task, self.y[rows], self.classes)

    def standardised(self, rows: Int64[np.ndarray, " training"]) -> Target:
        """Quantities in standard deviations of these rows around their mean; classes as they are.

        Raises
        ------
        DataError
            The quantity is constant on these rows.
        """
        if self.task != "regression":
            return self
        mean, std = self.y[rows].mean(), self.y[rows].std()
        if std == 0:
            raise DataError("the label is constant on the training rows")
        return Target(self.task, (self.y - mean) / std)


def as_target(y: Any, task: Task | Literal["auto"] = "auto") -> Target:
    """Labels of any kind as numbers.

    Parameters
    ----------
    y
        One label a row: numbers, texts, booleans, categories.
    task
        "auto" takes texts, booleans and few distinct whole numbers for classes, other numbers for
        a regression.

    Raises
    ------
    DataError
        Missing labels, a single one for all rows, or texts for a regression.
    ConfigError
        An unknown task, or "binary" with other than two classes.
    """
    import pandas as pd

    if task not in ("auto", *get_args(Task)):
        raise ConfigError(
            f"task is {task!r}", remedy="allowed: auto, binary, multiclass, regression"
        )
    labels = pd.Series(np.asarray(y).ravel() if not isinstance(y, pd.Series) else y.array)
    if missing := int(labels.isna().sum()):
        raise DataError(
            f"{missing} of {len(labels)} labels are missing",
            remedy="leave those rows out, or give them as unlabelled",
        )
    if labels.nunique() < 2:
        raise DataError(
            f"all {len(labels)} rows have one label", remedy="give at least two classes or values"
        )
    numeric = pd.api.types.is_numeric_dtype(labels) and not pd.api.types.is_bool_dtype(labels)
    if task == "regression" or (task == "auto" and numeric and _is_quantity(labels)):
        if not numeric:
            raise DataError("labels are no numbers", remedy="set task to multiclass")
        values = labels.to_numpy(np.float64)
        if not np.isfinite(values).all():
            raise DataError("labels are not all finite")
        return Target("regression", values)
    codes, names = pd.factorize(labels, sort=True)
    kind: Task = "binary" if len(names) == 2 else "multiclass"
    if task == "binary" and kind != "binary":
        raise ConfigError(f"task is binary with {len(names)} classes", remedy="set multiclass")
    return Target(kind, codes.astype(np.int64), tuple(map(str, names)))


def _is_quantity(labels: Any) -> bool:
    values = labels.to_numpy(np.float64)
    if not np.isfinite(values).all() or (values != np.round(values)).any():
        return True
    distinct = len(np.unique(values))
    often = distinct <= _MOST_CLASSES and distinct * _OF_EACH <= len(values)
    return not (distinct <= _CLASSES or often)


class Split(NamedTuple):
    """Places of three parts without common rows."""

    train: Int64[np.ndarray, " train"]
    validation: Int64[np.ndarray, " validation"]
    test: Int64[np.ndarray, " test"]


def splits(target: Target, count: int, *, seed: int = 0) -> Iterator[Split]:
    """`count` splits into 60 % training, 20 % validation and 20 % test rows.

    Classes are spread evenly over the parts. Up to five splits have no test row in common; then
    the rows are dealt anew.

    Raises
    ------
    DataError
        Fewer than ten rows.
    """
    rows = len(target)
    if rows < 10:
        raise DataError(f"{rows} labelled rows", remedy="give ten at least")
    for number in range(count):
        deal, turn = divmod(number, 5)
        words = rng.words(seed, "evaluation split", np.arange(rows), deal, 1)[:, 0]
        order = np.argsort(words, kind="stable")
        if target.task != "regression":
            # Dealt class by class, every part gets its share of each.
            order = order[np.argsort(target.y[order], kind="stable")]
        fold = np.empty(rows, np.int64)
        fold[order] = np.arange(rows) % 5
        test, validation = fold == turn, fold == (turn + 1) % 5
        yield Split(
            np.flatnonzero(~test & ~validation), np.flatnonzero(validation), np.flatnonzero(test)
        )


def label_draws(
    rows: Int64[np.ndarray, " train"], budget: Budget, *, seed: int
) -> list[Int64[np.ndarray, " drawn"]]:
    """Training rows whose labels are used: 12 draws of up to 300 labels, 4 of more, or all.

    A pure function of seed and row: the first rows of a larger draw are the smaller one.
    """
    if budget == "all" or budget >= len(rows):
        return [rows]
    found = []
    for draw in range(draws_of(budget)):
        words = rng.words(seed, "labels", rows, draw, 1)[:, 0]
        found.append(rows[np.argsort(words, kind="stable")[:budget]])
    return found


def draws_of(labels: int) -> int:
    """How many draws of that many labels a score is the mean of."""
    return MANY_DRAWS if labels <= FEW else DRAWS


Readout = Callable[
    [Float[np.ndarray, "n dim"], Target, Float[np.ndarray, "m dim"]],
    Float[np.ndarray, "m outputs"],
]


def linear(
    x: Float[np.ndarray, "n dim"], y: Target, test: Float[np.ndarray, "m dim"]
) -> Float64[np.ndarray, "m outputs"]:
    """Ridge on 0/1 columns or quantities; its strength by generalised cross-validation.

    Features are standardised and cut by these rows. Quantities are cut to the range of the labels
    of these rows: features that hardly vary and hang together get large weights of both signs, and
    a few outlying rows, where these do not cancel, would outweigh all others (an R2 of -5.4 on
    california where it is .70).
    """
    return linear_probe(x, y)(test)


def linear_as_it_is(
    x: Float[np.ndarray, "n dim"], y: Target, test: Float[np.ndarray, "m dim"]
) -> Float64[np.ndarray, "m outputs"]:
    """`linear` on features whose scale means something: these are neither divided nor cut."""
    probe: LinearProbe = ridge(x, y.columns(), standardise=False)
    return _within(y, probe.scores(test))


def linear_probe(
    x: Float[np.ndarray, "n dim"], y: Target
) -> Callable[[Float[np.ndarray, "m dim"]], Float64[np.ndarray, "m outputs"]]:
    """`linear`, fitted: a function of features."""
    scale = Scale.of(x)
    probe: LinearProbe = ridge(scale(x), y.columns())
    return lambda test: _within(y, probe.scores(scale(test)))


def _within(
    y: Target, scores: Float64[np.ndarray, "rows outputs"]
) -> Float64[np.ndarray, "rows outputs"]:
    """Quantities cut to the range of these labels; classes as they are, their order matters."""
    return scores.clip(y.y.min(), y.y.max()) if y.task == "regression" else scores


def logistic_regression(*, seed: int = 0) -> Readout:
    """Logistic regression, its strength by cross-validation; ridge for quantities."""

    def readout(x: np.ndarray, y: Target, test: np.ndarray) -> np.ndarray:
        if y.task == "regression":
            return linear(x, y, test)
        scale = Scale.of(x)
        probe = logistic(scale(x), y.y, classes=len(y.classes), seed=seed)
        logits = probe.scores(scale(test))
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)

    return readout


def multilayer(*, seed: int = 0) -> Readout:
    """A network of 128 and 64 hidden units, stopped early on a tenth of the training rows."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    def readout(x: np.ndarray, y: Target, test: np.ndarray) -> np.ndarray:
        scale = Scale.of(x)
        counts = [len(y)] if y.task == "regression" else np.bincount(y.y)
        stop = len(y) >= 100 and min(c for c in counts if c) >= 2
        kind = MLPRegressor if y.task == "regression" else MLPClassifier
        model = kind(
            hidden_layer_sizes=(128, 64), early_stopping=stop, max_iter=200, random_state=seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return _fitted_scores(model, scale(x), y, scale(test))

    return readout


def boosted_trees(shape: TableShape, *, seed: int = 0) -> Readout:
    """scikit-learn's histogram gradient boosting, untuned, on the encoded table `shape`."""

    def readout(x: np.ndarray, y: Target, test: np.ndarray) -> np.ndarray:
        from jepa_tabular.downstream.trees import gbdt

        return _fitted_scores(gbdt("hist", y.task, seed, shape=shape), x, y, test)

    return readout


def _fitted_scores(model: Any, x: np.ndarray, y: Target, test: np.ndarray) -> np.ndarray:
    """Predictions [m, 1], or probabilities of all classes, those not among the labels 0."""
    if y.task == "regression":
        return model.fit(x, y.y).predict(test)[:, None]
    scores = np.zeros((len(test), len(y.classes)))
    seen = np.unique(y.y)
    if len(seen) == 1:
        scores[:, seen[0]] = 1
    else:
        model.fit(x, y.y)
        scores[:, model.classes_] = model.predict_proba(test)
    return scores


# Readouts whose scores are probabilities.
PROBABILITIES = frozenset({"logistic", "mlp", "trees"})


def score(
    y: Target, scores: Float[np.ndarray, "rows outputs"], *, probabilities: bool = False
) -> dict[str, float]:
    """Every score of predictions for rows, over all of them at once.

    Returns
    -------
    dict
        Regression: rmse, in units of y, and r2. Classes: accuracy, balanced_accuracy, auc (one
        against the rest, mean over the classes that are defined; NaN where none is), r2 of the 0/1
        columns (pooled: 1 - SSE / SST; scores beyond 0 and 1 count as these) and, of
        probabilities, log_loss.
    """
    columns = y.columns()
    found = {"r2": r2(columns, y.nearest(scores)).pooled}
    if y.task == "regression":
        return {"rmse": float(np.sqrt(np.mean((columns - scores) ** 2))), **found}
    called = scores.argmax(axis=1)
    hits = [float((called[y.y == c] == c).mean()) for c in np.unique(y.y)]
    found |= {
        "accuracy": accuracy(y.y, scores),
        "balanced_accuracy": float(np.mean(hits)),
        "auc": _auc(columns, scores),
    }
    if probabilities:
        own = scores[np.arange(len(scores)), y.y]
        found["log_loss"] = float(-np.log(own.clip(1e-15)).mean())
    return found


def _auc(columns: np.ndarray, scores: np.ndarray) -> float:
    defined = (columns.min(axis=0) == 0) & (columns.max(axis=0) == 1)
    if not defined.any():
        return math.nan
    return macro_auc(columns[:, defined], scores[:, defined]).macro


def mean_scores(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each score over the draws of labels."""
    return {key: float(np.mean([one[key] for one in found])) for key in found[0]}

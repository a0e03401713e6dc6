"""An honest word on whether pre-training helps on a table: the encoder beside its controls.

Every number stands beside the raw columns, the untrained twin (same recipe, same seed), PCA and
random features of the same width, and boosted trees on the columns themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float, Float32, Int64

from jepa_core import rng
from jepa_core.errors import ConfigError, DataError
from jepa_tabular import readouts as read
from jepa_tabular.analysis import (
    Relevance,
    collapse_report,
    column_relevance,
    compare_relevance,
    token_relevance,
)
from jepa_tabular.columns import as_frame
from jepa_tabular.downstream import Task
from jepa_tabular.inference import encode
from jepa_tabular.model import TabularEncoder
from jepa_tabular.preprocess import TablePreprocessor
from jepa_tabular.presets import PretrainConfig, TableShape
from jepa_tabular.pretrain import untrained as untrained_module
from jepa_tabular.readouts import Budget, Readout, Target
from jepa_tabular.results import (
    PCA,
    RANDOM,
    RAW,
    RAW_TJEPA,
    RAW_TWIN,
    TJEPA,
    TREES,
    TWIN,
    Evaluation,
    Score,
)
from jepa_tabular.targets import warn_leaks

if TYPE_CHECKING:
    from jepa_tabular.transformer import TJEPATransformer

# Readouts cheap enough for every number of labels.
_EVERY_BUDGET = ("linear", "trees")
_ALL: list[Budget] = ["all"]

ReadoutName = Literal["linear", "logistic", "mlp"]


@dataclass(frozen=True)
class Input:
    """Features of every row, and what reads them.

    Parameters
    ----------
    name
        What the table calls them.
    x
        One row a labelled row.
    readouts
        By name; None takes those that were asked for.
    """

    name: str
    x: Float[np.ndarray, "rows dim"]
    readouts: Mapping[str, Readout] | None = None


@dataclass(frozen=True)
class Representation:
    """One seed's encoder and twin, ready to be evaluated: matrices, one row a labelled row.

    Parameters
    ----------
    raw
        The columns as a linear readout takes them: standardised numbers, one-hot categories.
    encoded
        The columns as the encoder takes them.
    shape
        Of `encoded`.
    untrained, trained
        Tokens [rows, tokens, dim].
    """

    raw: Float[np.ndarray, "rows _"]
    encoded: Float[np.ndarray, "rows columns"]
    shape: TableShape
    untrained: Float32[np.ndarray, "rows tokens dim"]
    trained: Float32[np.ndarray, "rows tokens dim"]


def evaluate(
    X: Any,
    y: Any,
    estimator: TJEPATransformer | None = None,
    *,
    seeds: int = 3,
    labels: Sequence[Budget] = ("all", 1000, 100),
    task: Task | Literal["auto"] = "auto",
    unlabelled: Any = None,
    readouts: Sequence[ReadoutName] = ("linear",),
    part: Literal["validation", "test"] = "test",
    max_rows: int = 20_000,
    represent: Callable[[pd.DataFrame, pd.DataFrame, int], Representation] | None = None,
) -> Evaluation:
    """Does pre-training help on this table? The encoder beside all its controls, seed by seed.

    Each seed splits the rows anew (60 % training, 20 % validation, 20 % test; up to five seeds have
    no test row in common), pre-trains on the columns of training and validation rows, and fits
    every readout on labels of training rows.

    Parameters
    ----------
    X
        A DataFrame or array of feature columns.
    y
        One label a row.
    estimator
        Not fitted; None takes `TJEPATransformer()`. Each seed fits a clone with that random_state.
    labels
        How many labels the readouts get; "all" is every training row.
    unlabelled
        More rows of the same columns, for pre-training only.
    readouts
        "linear" (ridge), "logistic", "mlp"; the last two with all labels only, for their cost.
    part
        Which rows are scored; choose settings on "validation".
    max_rows
        Labelled rows used, drawn at random; the others are pre-trained on without their labels.
    represent
        (rows to pre-train on, labelled rows, seed) to matrices; None asks the estimator.

    Raises
    ------
    DataError, ConfigError
        Labels or columns that cannot be used, or an unknown readout.

    Warns
    -----
    UserWarning
        A column is a copy of the label.
    """
    check_readouts(readouts)
    if seeds < 1:
        raise ConfigError(f"seeds is {seeds}", remedy="allowed: >= 1")
    frame, target = as_frame(X), read.as_target(y, task)
    if len(frame) != len(target):
        raise DataError(f"{len(frame)} rows and {len(target)} labels")
    chosen, rest = _choose(len(target), max_rows)
    labelled, target = frame.iloc[chosen], target.take(chosen)
    warn_leaks(labelled, target.y)
    extra = [frame.iloc[rest]] if len(rest) else []
    extra += [as_frame(unlabelled)] if unlabelled is not None else []
    if represent is None:
        represent = estimator_features(estimator)
    scores: list[Score] = []
    collapse = []
    for seed, split in enumerate(read.splits(target, seeds)):
        seen = np.sort(np.concatenate((split.train, split.validation)))
        seen_rows = pd.concat([labelled.iloc[seen], *extra], ignore_index=True)
        found = represent(seen_rows, labelled, seed)
        scored = split.validation if part == "validation" else split.test
        scores += compare_features(
            controls(found, split.train, seed=seed),
            target.standardised(split.train),
            split.train,
            scored,
            readouts=readouts,
            labels=labels,
            seed=seed,
        )
        collapse.append(
            (collapse_report(found.untrained[scored]), collapse_report(found.trained[scored]))
        )
        sizes = len(split.train), len(split.validation), len(split.test)
    return Evaluation(target.task, tuple(scores), tuple(collapse), sizes, part)


def estimator_features(
    estimator: TJEPATransformer | None = None,
) -> Callable[[pd.DataFrame, pd.DataFrame, int], Representation]:
    """What `evaluate` does for each seed: fit a clone of the estimator, and make its twin."""

    def represent(fit_rows: pd.DataFrame, rows: pd.DataFrame, seed: int) -> Representation:
        from sklearn.base import clone

        from jepa_tabular.transformer import TJEPATransformer

        model = clone(estimator) if estimator is not None else TJEPATransformer()
        model.set_params(random_state=seed).fit(fit_rows)
        return represented(model.encoder_, model.preprocessor_, rows, seed=seed)

    return represent


def represented(
    encoder: TabularEncoder,
    preprocessor: TablePreprocessor,
    rows: pd.DataFrame,
    *,
    seed: int,
    device: str = "auto",
) -> Representation:
    """Rows as an encoder, its untrained twin and the controls see them.

    Raises
    ------
    DataError
        Rows that the preprocessing leaves out.
    """
    encoded = preprocessor.transform(rows)
    if len(encoded) < len(rows):
        raise DataError(
            f"{len(rows) - len(encoded)} of {len(rows)} rows have missing numbers and are left out",
            remedy="drop them first, or set missing to indicator, mean or median",
        )
    both = (twin(encoder, seed), encoder)
    untrained, trained = (encode(one, encoded, device=device) for one in both)
    raw = preprocessor.raw_features(rows)
    return Representation(raw, encoded, preprocessor.shape_, untrained, trained)


def twin(encoder: TabularEncoder, seed: int) -> TabularEncoder:
    """The encoder as pre-training with this seed found it."""
    recipe = PretrainConfig(model=encoder.config)
    return untrained_module(recipe, encoder.shape, seed).encoder.eval()


def controls(
    found: Representation, train: Int64[np.ndarray, " train"], *, seed: int = 0
) -> list[Input]:
    """T-JEPA and everything that stands beside it.

    Parameters
    ----------
    train
        The rows that PCA and random features are fitted on.
    """
    raw = np.asarray(found.raw, np.float64)
    untrained, trained = _flat(found.untrained), _flat(found.trained)
    width = trained.shape[1]
    trees = read.boosted_trees(found.shape, seed=seed)
    return [
        Input(RAW, raw),
        Input(TWIN, untrained),
        Input(TJEPA, trained),
        Input(RAW_TJEPA, np.concatenate((raw, trained), 1)),
        Input(RAW_TWIN, np.concatenate((raw, untrained), 1)),
        # Standardised, components that hardly vary would count as much as the first.
        Input(PCA, _pca(raw, train, width), {"linear": read.linear_as_it_is}),
        Input(RANDOM, _random_features(raw, train, width, seed)),
        Input(TREES, found.encoded, {"trees": trees}),
    ]


def compare_features(
    inputs: Sequence[Input],
    target: Target,
    train: Int64[np.ndarray, " train"],
    scored: Int64[np.ndarray, " scored"],
    *,
    readouts: Sequence[ReadoutName] = ("linear",),
    labels: Sequence[Budget] = ("all", 1000, 100),
    seed: int = 0,
) -> list[Score]:
    """Scores of every input under every readout with every number of labels.

    A number of labels that the training rows do not exceed is left out. Logistic regression and
    the network are read with all labels only.

    Parameters
    ----------
    train, scored
        Places of rows without overlap.
    """
    asked = make_readouts(readouts, seed=seed)
    budgets: list[Budget] = [n for n in dict.fromkeys(labels) if n == "all" or n < len(train)]
    budgets = budgets or ["all"]
    truth = target.take(scored)
    scores = []
    for one in inputs:
        for name, readout in (one.readouts or asked).items():
            for budget in budgets if name in _EVERY_BUDGET else _ALL:
                found = [
                    read.score(
                        truth,
                        readout(one.x[rows], target.take(rows), one.x[scored]),
                        probabilities=name in read.PROBABILITIES,
                    )
                    for rows in read.label_draws(train, budget, seed=seed)
                ]
                values = read.mean_scores(found)
                scores.append(Score(one.name, name, one.x.shape[1], budget, seed, values))
    return scores


def make_readouts(names: Sequence[ReadoutName], *, seed: int) -> dict[str, Readout]:
    """Readouts by their names."""
    made: dict[str, Readout] = {}
    for name in names:
        if name == "linear":
            made[name] = read.linear
        elif name == "logistic":
            made[name] = read.logistic_regression(seed=seed)
        else:
            made[name] = read.multilayer(seed=seed)
    return made


def check_readouts(names: Sequence[str]) -> None:
    """Refuse names that are no readout."""
    allowed = get_args(ReadoutName)
    if unknown := [name for name in names if name not in allowed]:
        raise ConfigError(f"no readout {unknown[0]!r}", remedy=f"allowed: {', '.join(allowed)}")


def relevance_of(
    found: Representation,
    target: Target,
    train: Int64[np.ndarray, " train"],
    test: Int64[np.ndarray, " test"],
    *,
    names: tuple[str, ...],
    registers: int,
    seed: int = 0,
) -> Relevance:
    """Drop of a linear readout without each token, beside the trees' permutation importance.

    Both fitted on `train` and scored by R2 on `test`.
    """
    from sklearn.inspection import permutation_importance

    from jepa_tabular.downstream.trees import gbdt

    tokens = found.trained
    probe = read.linear_probe(_flat(tokens[train]), target.take(train))
    truth = target.take(test)

    def score(X: Float[np.ndarray, "n tokens dim"]) -> float:
        return read.score(truth, probe(_flat(X)))["r2"]

    drops = token_relevance(score, tokens[test], tokens[train].mean(axis=0))
    trees = gbdt("hist", target.task, seed, shape=found.shape, classes=len(target.classes) or None)
    trees.fit(found.encoded[train], target.y[train])

    def trees_score(model: Any, x: Float[np.ndarray, "n columns"], y: object) -> float:
        if target.task == "regression":
            return read.score(truth, model.predict(x)[:, None])["r2"]
        return read.score(truth, model.predict_proba(x))["r2"]

    importance = permutation_importance(
        trees, found.encoded[test], truth.y, scoring=trees_score, n_repeats=5, random_state=seed
    )
    columns = column_relevance(drops, found.shape.order, registers)
    return compare_relevance(names, columns, importance.importances_mean)


def _flat(tokens: np.ndarray) -> np.ndarray:
    return tokens.reshape(len(tokens), -1)


def _pca(raw: np.ndarray, train: np.ndarray, width: int) -> np.ndarray:
    from sklearn import decomposition

    most = min(width, raw.shape[1], len(train))
    # No more directions than vary: a linear readout of the rest reads rounding.
    found = decomposition.PCA(most, svd_solver="full").fit(raw[train])
    kept = max(1, int((found.explained_variance_ > 1e-12).sum()))
    return found.transform(raw)[:, :kept]


def _random_features(raw: np.ndarray, train: np.ndarray, width: int, seed: int) -> np.ndarray:
    """Random Fourier features (Rahimi & Recht 2007)."""
    from sklearn.kernel_approximation import RBFSampler

    found = RBFSampler(gamma="scale", n_components=width, random_state=seed).fit(raw[train])
    return found.transform(raw)


def _choose(rows: int, most: int) -> tuple[Int64[np.ndarray, " a"], Int64[np.ndarray, " b"]]:
    words = rng.words(0, "labelled rows", np.arange(rows), 0, 1)[:, 0]
    order = np.argsort(words, kind="stable")
    return np.sort(order[:most]), np.sort(order[most:])

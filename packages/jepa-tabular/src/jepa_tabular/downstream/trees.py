"""Gradient-boosted trees on the encoded table: what a representation is measured against."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64, Shaped
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from jepa_core.errors import ConfigError, DataError, require
from jepa_tabular.downstream import Task
from jepa_tabular.presets import TableShape

Kind = Literal["hist", "xgboost", "catboost"]

# scikit-learn's histograms have a bin a category, and 255 bins.
_MOST_CATEGORIES = 255


def gbdt(
    kind: Kind,
    task: Task,
    seed: int,
    *,
    shape: TableShape | None = None,
    classes: int | None = None,
) -> TreeClassifier | TreeRegressor:
    """Boosted trees that read the encoded table [rows, columns].

    hist is scikit-learn's with its defaults; xgboost has the settings of the T-JEPA paper's
    program: 1,000 trees of depth 5 at learning rate 0.1; catboost has its defaults. None is tuned.

    Parameters
    ----------
    seed
        Of whatever is drawn.
    shape
        Says which columns hold codes of categories; without, all are numbers. NaN is missing.
    classes
        Number of classes; by default as many as the labels have, counted from 0.

    Raises
    ------
    ConfigError
        An unknown kind.
    MissingExtra
        The library is not installed.
    """
    if kind not in ("hist", "xgboost", "catboost"):
        raise ConfigError(f"no trees {kind!r}", remedy="choose hist, xgboost or catboost")
    if kind != "hist":
        require(kind, package="jepa-tabular", extra="gbdt")
    if task == "regression":
        return TreeRegressor(kind, seed, shape)
    return TreeClassifier(kind, seed, shape, 2 if task == "binary" else classes)


class TreeClassifier(ClassifierMixin, BaseEstimator):
    """As `gbdt`; classes are numbers from 0, and one that no training row has gets no chance."""

    def __init__(
        self,
        kind: Kind = "hist",
        seed: int = 0,
        shape: TableShape | None = None,
        n_classes: int | None = None,
    ) -> None:
        self.kind, self.seed, self.shape, self.n_classes = kind, seed, shape, n_classes

    def fit(self, X: Float[np.ndarray, "n columns"], y: Shaped[np.ndarray, "n"]) -> TreeClassifier:
        """Fit on an encoded table and class numbers.

        Raises
        ------
        DataError
            All rows are of one class.
        """
        # The libraries want the classes that occur, numbered without gaps.
        there, numbers = np.unique(np.asarray(y).astype(np.int64), return_inverse=True)
        if len(there) < 2:
            raise DataError(f"all {len(y)} labels are of one class")
        self.there_ = there
        self.classes_ = np.arange(self.n_classes or int(there[-1]) + 1)
        self.trees_ = _trees(self.kind, "Classifier", self.seed, self.shape)
        self.trees_.fit(_table(X, self.kind, self.shape), numbers)
        return self

    def predict_proba(self, X: Float[np.ndarray, "n columns"]) -> Float64[np.ndarray, "n classes"]:
        """Probabilities of all classes."""
        known = self.trees_.predict_proba(_table(X, self.kind, self.shape))
        scores = np.zeros((len(known), len(self.classes_)))
        # XGBoost's are float32 and sum to 1 within that.
        scores[:, self.there_] = known / known.sum(1, keepdims=True, dtype=np.float64)
        return scores

    def predict(self, X: Float[np.ndarray, "n columns"]) -> Shaped[np.ndarray, "n"]:
        """The likeliest class."""
        return self.predict_proba(X).argmax(1)


class TreeRegressor(RegressorMixin, BaseEstimator):
    """As `gbdt`."""

    def __init__(self, kind: Kind = "hist", seed: int = 0, shape: TableShape | None = None) -> None:
        self.kind, self.seed, self.shape = kind, seed, shape

    def fit(self, X: Float[np.ndarray, "n columns"], y: Float[np.ndarray, "n"]) -> TreeRegressor:
        """Fit on an encoded table and values."""
        self.trees_ = _trees(self.kind, "Regressor", self.seed, self.shape)
        self.trees_.fit(_table(X, self.kind, self.shape), y)
        return self

    def predict(self, X: Float[np.ndarray, "n columns"]) -> Float64[np.ndarray, "n"]:
        """Values in the target's units."""
        return np.asarray(self.trees_.predict(_table(X, self.kind, self.shape)), np.float64)


def _trees(kind: Kind, what: str, seed: int, shape: TableShape | None) -> Any:
    """The library's own estimator."""
    categorical = list(shape.categorical) if shape else []
    if kind == "hist":
        few = [
            column
            for column, codes in zip(categorical, shape.cardinalities if shape else (), strict=True)
            if codes <= _MOST_CATEGORIES
        ]
        hist = {
            "Classifier": HistGradientBoostingClassifier,
            "Regressor": HistGradientBoostingRegressor,
        }
        return hist[what](categorical_features=few or None, random_state=seed)
    library = require(kind, package="jepa-tabular", extra="gbdt")
    if kind == "xgboost":
        types = None
        if shape:
            types = ["c" if column in categorical else "q" for column in range(shape.columns)]
        return getattr(library, f"XGB{what}")(
            n_estimators=1000,
            max_depth=5,
            learning_rate=0.1,
            tree_method="hist",
            enable_categorical=bool(categorical),
            feature_types=types,
            random_state=seed,
        )
    return getattr(library, f"CatBoost{what}")(
        cat_features=categorical or None,
        random_seed=seed,
        verbose=False,
        # Left to itself it writes a folder of logs where the program was started.
        allow_writing_files=False,
    )


def _table(
    X: Float[np.ndarray, "n columns"], kind: Kind, shape: TableShape | None
) -> Float[np.ndarray, "n columns"] | pd.DataFrame:
    if kind != "catboost" or not shape or not shape.categorical:
        return X
    # CatBoost takes codes as whole numbers only, and so not from an array of floats.
    return pd.DataFrame(X).astype(dict.fromkeys(shape.categorical, np.int64))

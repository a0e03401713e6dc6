"""T-JEPA as scikit-learn estimators: pre-train without labels, then transform or predict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64, Shaped
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import _safe_indexing, check_consistent_length
from sklearn.utils.validation import _num_samples, check_is_fitted

from jepa_core.errors import ConfigError, DataError
from jepa_core.progress import Progress
from jepa_tabular.columns import as_frame, column_names
from jepa_tabular.downstream import (
    NetConfig,
    Task,
    TrainingConfig,
)
from jepa_tabular.downstream.nets import build
from jepa_tabular.downstream.train import FittedHead, fit_head
from jepa_tabular.finetune import Labelled, fit_frozen, tune
from jepa_tabular.heads import LinearHead, fit_classifier, fit_regressor
from jepa_tabular.inference import PretrainedTable, load, parts, save
from jepa_tabular.saved import NETS, head_state, load_head
from jepa_tabular.targets import check_y, warn_leaks
from jepa_tabular.transformer import (
    TJEPATransformer,
    allows_nan,
    estimator_record,
    saved_parameters,
    seed_of,
    silence,
    threads,
)

__all__ = ["TJEPAClassifier", "TJEPARegressor", "TJEPATransformer"]

_SHARED = frozenset(TJEPATransformer._get_param_names()) - {"output"}


class _Predictor(BaseEstimator):
    """A `TJEPATransformer` and a head on it, which two classes know the labels of."""

    classes_: np.ndarray
    head_: LinearHead | FittedHead
    _net: NetConfig | None

    def __init__(
        self,
        *,
        head: str = "linear",
        freeze: bool = True,
        tune_epochs: int = 60,
        raw: bool = True,
        pretrained: str | Path | None = None,
        preset: str = "nano",
        dim: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        max_epochs: int = 100,
        max_steps: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        context: tuple[float, float] | None = None,
        target: tuple[float, float] | None = None,
        targets: int | None = None,
        categorical_features: Any = "auto",
        numeric: str | None = None,
        missing: str | None = None,
        unknown: str | None = None,
        random_state: Any = None,
        device: str = "auto",
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.head = head
        self.freeze = freeze
        self.tune_epochs = tune_epochs
        self.raw = raw
        self.pretrained = pretrained
        self.preset = preset
        self.dim = dim
        self.depth = depth
        self.heads = heads
        self.max_epochs = max_epochs
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.context = context
        self.target = target
        self.targets = targets
        self.categorical_features = categorical_features
        self.numeric = numeric
        self.missing = missing
        self.unknown = unknown
        self.random_state = random_state
        self.device = device
        self.n_jobs = n_jobs
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = allows_nan(self.missing)
        return tags

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write encoder, preprocessing, head and parameters as safetensors and JSON."""
        check_is_fitted(self)
        kind, arrays = head_state(self.head_, self._net)
        record = estimator_record(self, head=kind, labels=self._labels())
        transformer = self.transformer_
        return save(folder, transformer.encoder_, transformer.preprocessor_, record, head=arrays)

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path, **parameters: Any) -> Self:
        """A fitted estimator: of `save_pretrained`, of a fine-tuning run, or from the hub.

        Parameters
        ----------
        parameters
            Of the constructor, such as `device`.

        Raises
        ------
        DataError
            There is none of this class.
        """
        table = load(path_or_id)
        saved = table.config.get("estimator", {})
        if saved.get("class") != cls.__name__:
            raise DataError(
                f"holds {saved.get('class') or 'an encoder'} and no {cls.__name__}",
                where=path_or_id,
                remedy="load it as what it is, or train one with jepa tabular finetune",
            )
        new = cls(**{**saved_parameters(cls, table.config), **parameters})
        new._adopt(TJEPATransformer._of(table, **new._shared()))
        new._set_labels(saved["labels"])
        new.head_, new._net = load_head(saved["head"], table)
        return new

    def _fit(self, X: Any, y: Any, unlabelled: Any, task: Task) -> Self:
        if self.head not in ("linear", *NETS):
            raise ConfigError(
                f"head is {self.head!r}", remedy=f"allowed: linear, {', '.join(NETS)}"
            )
        if not self.freeze and self.head != "linear":
            raise ConfigError(f"freeze=False with head {self.head!r}", remedy="take head='linear'")
        if self.tune_epochs < 1:
            raise ConfigError(f"tune_epochs is {self.tune_epochs}", remedy="allowed: 1 and more")
        if self.pretrained is not None and unlabelled is not None:
            raise ConfigError(
                "unlabelled rows are for pre-training, and pretrained is given",
                remedy="leave one of them out",
            )
        seed = seed_of(self.random_state)
        transformer, x = self._represented(X, unlabelled)
        labels = check_y(y, task)
        check_consistent_length(X, labels)
        warn_leaks(X, labels)
        # Rows that missing="drop" leaves out; what follows those with labels has none.
        left = transformer.preprocessor_.kept_
        kept = np.arange(len(labels)) if left is None else np.flatnonzero(left)
        kept = kept[kept < len(labels)]
        if len(kept) < len(labels):
            X = _safe_indexing(X, kept)
            labels = check_y(labels[kept], task)
        targets, task = self._targets(labels)
        if self.pretrained is None:
            transformer._pretrain(x, seed)
        self._adopt(transformer)
        raw = np.empty((len(kept), 0))
        if self.raw and self.head == "linear":
            raw = self._table().raw(X)
        self._fit_head(Labelled(x[: len(kept)], raw, targets), task, seed)
        return self

    def _represented(self, X: Any, unlabelled: Any) -> tuple[TJEPATransformer, Any]:
        """A transformer that knows the columns, and the encoded rows."""
        if self.pretrained is None:
            transformer = TJEPATransformer(**self._shared())
            return transformer, transformer._preprocess(_stacked(X, unlabelled))
        transformer = TJEPATransformer.from_pretrained(self.pretrained, **self._places())
        return transformer, transformer.preprocessor_.transform(X)

    def _fit_head(self, rows: Labelled, task: Task, seed: int) -> None:
        table = self._table()
        with threads(self.n_jobs), silence(self.verbose):
            if self.head != "linear":
                z = table.encode(rows.x)
                self._net = config = NETS[self.head]()
                net = build(config, z.shape[1:], self._outputs(task), seed=seed)
                training = TrainingConfig(seed=seed, device=self.device)  # type: ignore[arg-type]
                self.head_ = fit_head(net, z, rows.y, task, training)
                self.head_.net.cpu()
                return
            fit: Callable[..., LinearHead] = fit_regressor
            if task != "regression":
                fit = partial(fit_classifier, classes=len(self.classes_), seed=seed)
            encoder = table.encoder
            if self.freeze:
                head = fit_frozen(encoder, fit, rows, device=self.device)
            else:
                recipe = TJEPATransformer(**self._shared())._recipe(*rows.x.shape)
                encoder, head = tune(
                    encoder,
                    fit,
                    rows,
                    recipe,
                    epochs=self.tune_epochs,
                    outputs=1 if task == "regression" else len(self.classes_),
                    seed=seed,
                    device=self.device,
                )
            self.transformer_.encoder_, self.head_, self._net = encoder, head, None

    def _scores(self, X: Any) -> Float64[np.ndarray, "rows outputs"]:
        """Log-odds, or standardised values; a table of any length, in bounded memory."""
        check_is_fitted(self)
        table, rows, found = self._table(), _num_samples(X), []
        with (
            threads(self.n_jobs),
            Progress("rows", rows, quiet=not self.verbose) as bar,
        ):
            for first, part in parts(X):
                x = table.encoded(part, again=first > 0)
                if isinstance(self.head_, FittedHead):
                    found.append(self.head_.outputs(table.encode(x)))
                else:
                    features = [table.encode(x, output="flatten")]
                    if self.raw:
                        features.append(table.raw(part))
                    found.append(self.head_.scores(np.concatenate(features, 1)))
                bar.update(first + len(x))
        return np.concatenate(found)

    def _table(self) -> PretrainedTable:
        transformer = self.transformer_
        return PretrainedTable(transformer.encoder_, transformer.preprocessor_, device=self.device)

    def _adopt(self, transformer: TJEPATransformer) -> None:
        self.transformer_ = transformer
        self.n_features_in_ = transformer.n_features_in_
        if hasattr(transformer, "feature_names_in_"):
            self.feature_names_in_ = transformer.feature_names_in_
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def _shared(self) -> dict[str, Any]:
        """The parameters of the transformer."""
        return {name: getattr(self, name) for name in _SHARED}

    def _places(self) -> dict[str, Any]:
        """Those of them that say how, and not what."""
        return {name: getattr(self, name) for name in ("device", "n_jobs", "verbose")}


class TJEPAClassifier(ClassifierMixin, _Predictor):
    """Classes of rows: pre-trains on all rows, then fits a head on those with labels.

    Rows without labels go to `fit(X, y, unlabelled=...)`, not into y: -1 is a class like any other.

    Parameters
    ----------
    head
        "linear" (logistic regression), or a network of `jepa_tabular.downstream` on the tokens:
        "mlp", "resnet", "dcnv2", "autoint", "fttransformer".
    freeze
        Leave the encoder as pre-training made it. False trains it on with a linear head; a fifth
        of the rows says when to stop, and whether that beats a head on the frozen encoder.
    tune_epochs
        Passes over the labelled rows, at most, where the encoder is trained on.
    raw
        Give a linear head the columns themselves beside the features: standardised, by rank and
        one-hot. It costs little and rarely hurts.
    pretrained
        Folder or hub id of an encoder to take instead of pre-training one; what concerns columns
        and pre-training then has no effect.
    preset, dim, depth, heads, max_epochs, max_steps, batch_size, learning_rate, context, target, \
targets, categorical_features, numeric, missing, unknown, random_state, device, n_jobs, verbose
        As in `TJEPATransformer`; batch size and learning rate are those of fine-tuning too.

    Attributes
    ----------
    classes_
        Labels, sorted.
    transformer_
        The fitted `TJEPATransformer`.
    head_
        `LinearHead`, or a network.
    """

    def fit(self, X: Any, y: Any, unlabelled: Any = None) -> Self:
        """Pre-train, then fit the head.

        Parameters
        ----------
        X
            Frame or array [rows, columns].
        y
            Labels [rows]: texts, numbers or booleans.
        unlabelled
            More rows with the same columns; pre-training and preprocessing see them too.

        Raises
        ------
        DataError, ConfigError
            (both are ValueErrors) Rows, labels or parameters that cannot be used.
        """
        return self._fit(X, y, unlabelled, "multiclass")

    def decision_function(self, X: Any) -> Float64[np.ndarray, "rows *classes"]:
        """Log-odds of the second of two classes [rows], or of each class, up to a constant."""
        scores = self._scores(X)
        if len(self.classes_) > 2:
            return scores
        return scores[:, 0] if scores.shape[1] == 1 else scores[:, 1] - scores[:, 0]

    def predict_proba(self, X: Any) -> Float64[np.ndarray, "rows classes"]:
        """Probabilities in the order of `classes_`."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return expit(np.stack((-scores, scores), 1))
        return softmax(scores, 1)

    def predict(self, X: Any) -> Shaped[np.ndarray, " rows"]:
        """The likeliest class."""
        scores = self.decision_function(X)
        return self.classes_[scores.argmax(1) if scores.ndim == 2 else (scores > 0).astype(int)]

    def _targets(self, labels: np.ndarray) -> tuple[Int64[np.ndarray, " rows"], Task]:
        self.classes_, codes = np.unique(labels, return_inverse=True)
        return codes.astype(np.int64), "binary" if len(self.classes_) == 2 else "multiclass"

    def _outputs(self, task: Task) -> int:
        return 1 if task == "binary" else len(self.classes_)

    def _labels(self) -> dict[str, Any]:
        return {"classes": self.classes_.tolist(), "dtype": self.classes_.dtype.str}

    def _set_labels(self, labels: Mapping[str, Any]) -> None:
        self.classes_ = np.array(labels["classes"], dtype=np.dtype(labels["dtype"]))


class TJEPARegressor(RegressorMixin, _Predictor):
    """Values of rows: pre-trains on all rows, then fits a head on those with values.

    Parameters
    ----------
    head
        "linear" (ridge regression), or a network as in `TJEPAClassifier`.
    freeze, tune_epochs, raw, pretrained
        As in `TJEPAClassifier`.
    preset, dim, depth, heads, max_epochs, max_steps, batch_size, learning_rate, context, target, \
targets, categorical_features, numeric, missing, unknown, random_state, device, n_jobs, verbose
        As in `TJEPATransformer`.

    Attributes
    ----------
    centre_, scale_
        Mean and standard deviation of the training values; the head predicts in these units.
    transformer_
        The fitted `TJEPATransformer`.
    head_
        `LinearHead`, or a network.
    """

    def fit(self, X: Any, y: Any, unlabelled: Any = None) -> Self:
        """Pre-train, then fit the head; as in `TJEPAClassifier`, with numbers for labels."""
        return self._fit(X, y, unlabelled, "regression")

    def predict(self, X: Any) -> Float64[np.ndarray, " rows"]:
        """Values in the units of y."""
        values = self._scores(X)[:, 0]
        if isinstance(self.head_, FittedHead):
            values = self.head_.centre + self.head_.scale * values
        return self.centre_ + self.scale_ * values

    def _targets(self, labels: np.ndarray) -> tuple[Float64[np.ndarray, " rows"], Task]:
        self.centre_, self.scale_ = float(labels.mean()), float(labels.std()) or 1.0
        return (labels - self.centre_) / self.scale_, "regression"

    def _outputs(self, task: Task) -> int:
        return 1

    def _labels(self) -> dict[str, Any]:
        return {"centre": self.centre_, "scale": self.scale_}

    def _set_labels(self, labels: Mapping[str, Any]) -> None:
        self.centre_, self.scale_ = labels["centre"], labels["scale"]


def _stacked(X: Any, unlabelled: Any) -> Any:
    """Labelled rows, then unlabelled ones."""
    if unlabelled is None:
        return X
    frame, more = as_frame(X), as_frame(unlabelled)
    (own, named), (others, _) = column_names(frame), column_names(more)
    if len(own) != len(others) or (named and set(own) != set(others)):
        raise DataError(
            f"unlabelled rows have the columns {', '.join(others)}, labelled ones {', '.join(own)}",
            remedy="give both the same columns",
        )
    if named:
        more = more[list(frame.columns)]
    return pd.concat([frame, more], ignore_index=True)

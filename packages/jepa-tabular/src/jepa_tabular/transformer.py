"""`TJEPATransformer`: rows of a table to representations, as a scikit-learn transformer."""

from __future__ import annotations

import contextlib
import io
import math
import numbers
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import joblib
import numpy as np
import torch
from jaxtyping import Float32
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted

from jepa_core.domain import Machine
from jepa_core.errors import ConfigError, DataError
from jepa_tabular.inference import PretrainedTable, load, output_shape, save, token_names
from jepa_tabular.preprocess import TablePreprocessor
from jepa_tabular.presets import PRETRAIN, ColumnsConfig, ModelConfig, PretrainConfig
from jepa_tabular.pretrain import pretrain, untrained

# Of its random start the target encoder keeps about exp(-4), a fiftieth, at most: in a short run
# the preset's momentum would keep most of it.
_FORGET = 8.0

# Looks at the health of a training.
_LOOKS = 10

# The trainer keeps what it knows of the device once a process.
_ONE_AT_A_TIME = threading.Lock()


class TJEPATransformer(TransformerMixin, BaseEstimator):
    """Representations of rows, learned without labels (T-JEPA, arXiv 2410.05016).

    `fit` trains an encoder: from some columns of a row it predicts the features that a moving
    average of itself gives to others. `transform` gives each row's features under that average.
    They need not beat the columns themselves: `jepa_tabular.evaluate` says whether they do.

    Parameters
    ----------
    preset
        Recipe whose numbers the parameters that are not None override; see
        `jepa_tabular.presets.PRETRAIN`.
    dim, depth, heads
        Width, layers and attention heads of the encoder; heads divide dim, and dim is even.
    max_epochs, max_steps
        Training ends after so many passes over the rows or so many steps, whichever is first; a
        tenth is warm-up. `max_steps` None takes the preset's.
    batch_size
        Rows in a step; all of them where there are fewer.
    learning_rate
        Peak learning rate.
    context, target
        Smallest and largest share of the columns that the encoder sees, and that one target mask
        hides. A preset's shares that would round to no column are raised to one.
    targets
        Target masks a row.
    categorical_features
        "auto" (texts, categories, booleans), or names, indices, a mask, or a function of the table.
    numeric
        Scaling of numerical columns: "quantile", "standard" or "minmax".
    missing
        Missing numbers: "error", "indicator" (a learned token), "mean", "median", or "drop" (of
        rows, in `fit` alone).
    unknown
        Categories that `fit` did not see: "reserve" (a learned code of their own) or "error".
    output
        "flatten": all tokens side by side; "blocks": all tokens after every block, not the last
        alone; "reg": the [REG] tokens alone; "mean" of all tokens.
    random_state
        Seed of initial weights, masks and order. With an int, a second fit has the same bits.
    device
        "auto", "cpu", "cuda" or "mps".
    n_jobs
        CPU threads; -1 all, None leaves it to torch.
    verbose
        0 is silent but for warnings; 1 shows progress.

    Attributes
    ----------
    preprocessor_
        Fitted `TablePreprocessor`.
    encoder_
        `TabularEncoder`, in evaluation mode.
    n_features_in_, feature_names_in_
        As in scikit-learn; names where all columns of the table had one.
    n_steps_
        Optimiser steps of the last training.
    history_
        Its metrics, a dict a line.

    Notes
    -----
    A row's features do not depend on the rows transformed with it. They are float32.
    """

    def __init__(
        self,
        *,
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
        output: str = "flatten",
        random_state: Any = None,
        device: str = "auto",
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
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
        self.output = output
        self.random_state = random_state
        self.device = device
        self.n_jobs = n_jobs
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = allows_nan(self.missing)
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def fit(self, X: Any, y: Any = None) -> Self:
        """Pre-train on rows; labels are not looked at.

        Parameters
        ----------
        X
            Frame or array [rows, columns]: numbers, texts, categories, booleans, dates.

        Raises
        ------
        DataError, ConfigError
            (both are ValueErrors) Rows, columns or parameters that cannot be used.
        """
        x = self._preprocess(X)
        self._pretrain(x, seed_of(self.random_state))
        return self

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Train on with more rows; the first call is `fit`.

        The preprocessing stays as first fitted: columns, categories and scales are those of the
        first rows. Each call has a warm-up and a cosine of its own, and its rows alone are seen.
        """
        if not hasattr(self, "encoder_"):
            return self.fit(X)
        x = self.preprocessor_.transform(X)
        if len(x) < 2:
            raise DataError(f"there is nothing to learn from n_samples={len(x)}")
        self._pretrain(x, self._seed + 1, weights=self._weights)
        return self

    def transform(self, X: Any) -> Float32[np.ndarray, "rows features"]:
        """Features of rows, as `output` says; a table of any length, in bounded memory."""
        check_is_fitted(self)
        output_shape(self.encoder_, self.output)  # type: ignore[arg-type]
        return self._table(X, self.output)

    def encode(self, X: Any) -> Float32[np.ndarray, "rows tokens dim"]:
        """Features of rows, token by token, in the order of `token_names_`."""
        check_is_fitted(self)
        return self._table(X, "tokens")

    @property
    def token_names_(self) -> tuple[str, ...]:
        """Names of the tokens: [REG] tokens, numerical columns, categorical columns."""
        check_is_fitted(self)
        return token_names(self.encoder_, self.preprocessor_.names_)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns of `transform`: tjepa_, token and number of the dimension.

        With output="blocks" the block's number, from 1, comes between them.
        """
        check_is_fitted(self)
        _check_feature_names_in(self, input_features, generate_names=False)
        dim = self.encoder_.config.dim
        tokens = list(self.token_names_)
        if self.output == "reg":
            tokens = tokens[: self.encoder_.config.registers]
        elif self.output == "mean":
            tokens = ["mean"]
        elif self.output == "blocks":
            blocks = range(1, len(self.encoder_.blocks) + 1)
            tokens = [f"{token}_block{block}" for token in tokens for block in blocks]
        return np.array([f"tjepa_{token}_{k}" for token in tokens for k in range(dim)], object)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write encoder, preprocessing and parameters as safetensors and JSON, without pickle."""
        check_is_fitted(self)
        return save(folder, self.encoder_, self.preprocessor_, estimator_record(self))

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path, **parameters: Any) -> Self:
        """A fitted transformer: of `save_pretrained`, of a pre-training run, or from the hub.

        Parameters
        ----------
        parameters
            Of the constructor, such as `output` and `device`.
        """
        device = parameters.get("device", "auto")
        return cls._of(load(path_or_id, device=device), **parameters)

    @classmethod
    def _of(cls, table: PretrainedTable, **parameters: Any) -> Self:
        transformer = cls(**{**saved_parameters(cls, table.config), **parameters})
        transformer._adopt(table.preprocessor)
        transformer.encoder_ = table.encoder
        transformer._seed = seed_of(transformer.random_state)
        # Of the encoder alone: a `partial_fit` trains a new predictor.
        transformer._weights = {
            f"{part}.{name}": value
            for part in ("encoder", "target_encoder")
            for name, value in table.encoder.state_dict().items()
        }
        return transformer

    def _table(self, X: Any, output: str) -> Float32[np.ndarray, "rows *features"]:
        table = PretrainedTable(self.encoder_, self.preprocessor_, device=self.device)
        with threads(self.n_jobs):
            return table(
                X,
                output=output,  # type: ignore[arg-type]
                progress="rows" if self.verbose else "",
            )

    def _preprocess(self, X: Any) -> Float32[np.ndarray, "rows columns"]:
        """Fit the preprocessing; gives the encoded rows."""
        preprocessor = TablePreprocessor(
            self._columns(),
            categorical_features=self.categorical_features,
            compat=_preset(self.preset).compat == "official",
        )
        x = preprocessor.fit_transform(X)
        self._adopt(preprocessor)
        return x

    def _adopt(self, preprocessor: TablePreprocessor) -> None:
        self.preprocessor_ = preprocessor
        self.n_features_in_ = preprocessor.n_features_in_
        if hasattr(preprocessor, "feature_names_in_"):
            self.feature_names_in_ = preprocessor.feature_names_in_
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def _pretrain(
        self,
        x: Float32[np.ndarray, "rows columns"],
        seed: int,
        *,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Train on encoded rows; says so where that went wrong."""
        recipe, shape = self._recipe(*x.shape), self.preprocessor_.shape_
        module = untrained(recipe, shape, seed)
        if weights is not None:
            module.load_state_dict({**module.state_dict(), **weights})
        with (
            threads(self.n_jobs),
            _ONE_AT_A_TIME,
            torch.random.fork_rng(devices=[]),
            silence(self.verbose),
        ):
            machine = Machine(seed=seed, device=self.device)  # type: ignore[arg-type]
            # A look costs as much as several steps on a small table.
            looks = -(-recipe.steps // _LOOKS)
            done = pretrain(x, recipe, shape, machine=machine, module=module, health_every=looks)
        alarm = done.result.alarm
        if alarm.reason:
            warnings.warn(
                f"pre-training went wrong by step {alarm.alarm_step} of {recipe.steps} "
                f"({alarm.reason}): {alarm.advice}",
                ConvergenceWarning,
                stacklevel=3,
            )
        self.encoder_ = done.encoder
        self.n_steps_, self.history_ = done.result.step, done.result.history
        self._seed = seed
        self._weights = {name: value.cpu() for name, value in done.module.state_dict().items()}

    def _recipe(self, rows: int, columns: int) -> PretrainConfig:
        """The preset with what the constructor overrides, fitted to the size of the table."""
        given = {name: plain(value) for name, value in self.get_params(deep=False).items()}
        recipe = _preset(self.preset)
        batch = min(given["batch_size"] or recipe.batch_size, rows)
        if self.max_epochs < 1 or (self.max_steps is not None and self.max_steps < 1):
            raise ConfigError(
                f"max_epochs is {self.max_epochs} and max_steps {self.max_steps}",
                remedy="allowed: 1 and more",
            )
        steps = min(
            given["max_steps"] or recipe.steps, given["max_epochs"] * math.ceil(rows / batch)
        )
        momentum = recipe.momentum
        if recipe.compat == "none":
            momentum = min(momentum, max(0.0, 1 - _FORGET / steps))
        return replace(
            recipe,
            model=_model(recipe.model, given["dim"], given["depth"], given["heads"]),
            columns=self._columns(),
            context=_shares(given["context"], recipe.context, columns),
            target=_shares(given["target"], recipe.target, columns),
            targets=given["targets"] or recipe.targets,
            steps=steps,
            warmup_steps=steps // 10,
            batch_size=batch,
            accumulation=recipe.accumulation if batch % recipe.accumulation == 0 else 1,
            learning_rate=given["learning_rate"] or recipe.learning_rate,
            momentum=momentum,
        )

    def _columns(self) -> ColumnsConfig:
        columns = _preset(self.preset).columns
        return replace(
            columns,
            numeric=self.numeric or columns.numeric,  # type: ignore[arg-type]
            missing=self.missing or columns.missing,  # type: ignore[arg-type]
            unknown=self.unknown or columns.unknown,  # type: ignore[arg-type]
        )


def allows_nan(missing: str | None) -> bool:
    """Whether rows with missing numbers can be transformed."""
    return missing in ("indicator", "mean", "median")


def plain(value: Any) -> Any:
    """A parameter in Python's own types; a search gives numpy's numbers."""
    if isinstance(value, np.generic):
        return value.item()
    return tuple(plain(item) for item in value) if isinstance(value, tuple) else value


def seed_of(random_state: Any) -> int:
    """The seed that a scikit-learn `random_state` stands for."""
    if isinstance(random_state, numbers.Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


def estimator_record(estimator: BaseEstimator, **more: Any) -> dict[str, Any]:
    """What config.json keeps of an estimator; parameters that JSON cannot hold are left out."""
    kept = (str, int, float, bool, tuple, list, type(None))
    found = {name: plain(value) for name, value in estimator.get_params(deep=False).items()}
    parameters = {name: value for name, value in found.items() if isinstance(value, kept)}
    return {"estimator": {"class": type(estimator).__name__, "parameters": parameters, **more}}


def saved_parameters(cls: type[BaseEstimator], config: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a saved estimator that `cls` has too."""
    saved = config.get("estimator", {}).get("parameters", {})
    names = cls._get_param_names()
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in saved.items()
        if name in names
    }


@contextlib.contextmanager
def threads(n_jobs: int | None) -> Iterator[None]:
    """Compute with so many CPU threads inside, and with as many as before outside."""
    if n_jobs is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(joblib.effective_n_jobs(n_jobs))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def silence(verbose: int) -> Iterator[None]:
    """The trainer's words inside, or none, as estimators have it."""
    if verbose:
        yield
    else:
        with contextlib.redirect_stderr(io.StringIO()):
            yield


def _preset(name: str) -> PretrainConfig:
    if name not in PRETRAIN:
        raise ConfigError(f"preset is {name!r}", remedy=f"allowed: {', '.join(PRETRAIN)}")
    return PRETRAIN[name]


def _model(
    model: ModelConfig, dim: int | None, depth: int | None, heads: int | None
) -> ModelConfig:
    """With another width the hidden one follows."""
    wanted = dim or model.dim
    return replace(
        model,
        dim=wanted,
        hidden=max(1, round(model.hidden * wanted / model.dim)),
        depth=depth or model.depth,
        heads=heads or model.heads,
    )


def _shares(
    asked: tuple[float, float] | None, preset: tuple[float, float], columns: int
) -> tuple[float, float]:
    """The shares asked for, or the preset's, raised to one column where they round to none."""
    if asked is not None:
        return asked
    low, high = preset
    return max(low, 1 / columns), max(high, 1 / columns)

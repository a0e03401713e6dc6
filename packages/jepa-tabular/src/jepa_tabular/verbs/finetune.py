"""`jepa tabular finetune`: train a classifier or regressor on an encoder."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from jepa_core.config import Range, check, from_dict, to_dict
from jepa_core.domain import Machine
from jepa_core.errors import ConfigError, DataError
from jepa_core.evaluation.compare import compare_scores
from jepa_core.evaluation.metrics import Statistic, mean_statistic
from jepa_core.report.table import Table
from jepa_core.run import Run, run_record
from jepa_core.training.device import find_device, one_process
from jepa_tabular import inference
from jepa_tabular.estimators import TJEPAClassifier, TJEPARegressor
from jepa_tabular.heads import fit_classifier, fit_regressor
from jepa_tabular.inference import PretrainedTable, load
from jepa_tabular.presets import PretrainConfig
from jepa_tabular.pretrain import untrained
from jepa_tabular.readouts import Target, as_target
from jepa_tabular.report import write_report
from jepa_tabular.verbs.pretrain import TEST_SHARE, Rows, read_columns, test_rows
from jepa_tabular.verbs.probe import r2_statistic
from jepa_tabular.verbs.stream import feature_frame

TRAINED, TWIN, RAW = "pre-trained", "untrained twin", "raw columns, linear"


@dataclass(frozen=True)
class Finetune:
    """Train a classifier or regressor on an encoder: a head alone, or encoder and head.

    The rows that `jepa tabular pretrain` set aside are tested once; a part of the others chooses
    penalty, epoch, and whether training the encoder helped. The same from an untrained encoder and
    a linear model of the raw columns stand beside it. The model is `encoder/` in the run folder:
    predict with `jepa tabular predict`, or load it with the estimator's from_pretrained.
    """

    encoder: str
    """A run folder of `jepa tabular pretrain`, an encoder folder or a hub id."""
    data: Path
    """The labelled table, with the columns the encoder was trained on."""
    label: str
    """Its column of labels; rows without one are left out."""
    out: Path
    """The run folder to write."""
    task: Literal["auto", "binary", "multiclass", "regression"] = "auto"
    """What the labels are; auto looks at them."""
    head: Literal["linear", "mlp", "resnet", "dcnv2", "autoint", "fttransformer"] = "linear"
    """What is put on the encoder."""
    freeze: bool = False
    """Train the head alone; every head but linear needs it."""
    raw: bool = True
    """Give a linear head the columns themselves beside the features."""
    epochs: Annotated[int, Range(ge=1)] = 60
    """Passes over the training rows, at most, of encoder and head together."""
    batch_size: Annotated[int, Range(ge=2)] = 256
    """Rows in a step."""
    learning_rate: Annotated[float, Range(gt=0)] = 1e-3
    """Peak rate of encoder and head together."""
    twin: bool = True
    """Also train the same on an untrained encoder."""
    overwrite: bool = False
    """Replace the run in the folder."""
    machine: Machine = Machine()
    """Seed, device, precision, threads."""

    def __post_init__(self) -> None:
        check(self)
        if self.head != "linear" and not self.freeze:
            raise ConfigError(
                f"freeze is False with head {self.head}", remedy="give --freeze or --head linear"
            )
        if self.machine.precision != "float32":
            raise ConfigError("precision is bfloat16", remedy="allowed: float32")

    def __call__(self) -> None:
        one_process("jepa tabular finetune")
        find_device(self.machine.device)
        model = load(self.encoder)
        frame, target, labels = self._labelled(model)
        test = self._test_rows(model, frame)
        run = Run.create(
            self.out, run_record("tabular", "finetune", to_dict(self)), overwrite=self.overwrite
        )
        training, tested = np.flatnonzero(~test), np.flatnonzero(test)
        found = {TRAINED: self._estimator(self.encoder, target.task)}
        found[TRAINED].fit(frame[~test], labels[~test])
        if self.twin:
            found[TWIN] = self._twin(model, frame[~test], labels[~test], target.task)
        known = target.take(tested)
        scores = {name: _scores(one, frame[test], target) for name, one in found.items()}
        scores[RAW] = _raw_scores(model, frame[~test], target.take(training), frame[test])
        for name, table in self._tables(scores, known, len(training)).items():
            table.print()
            run.save_table(f"finetune-{self.label}-{name}", table)
        found[TRAINED].save_pretrained(run.encoder)
        print(f"model: {run.encoder}")
        print(f"report: {write_report(run)}")

    def _labelled(self, model: PretrainedTable) -> tuple[pd.DataFrame, Target, np.ndarray]:
        """Rows with a label, numbered as in the file; labels as numbers, and as they are."""
        columns = read_columns(self.data, label=self.label)
        assert columns.y is not None
        known = columns.y.notna().to_numpy()
        if missing := int((~known).sum()):
            print(f"{missing:,} rows without a label are left out")
        # The row numbers decide which rows are for testing.
        frame = columns.frame.set_axis(np.arange(len(known)), axis=0)[known]
        labels = columns.y[known]
        target = as_target(labels, self.task)
        return feature_frame(frame, model.preprocessor, self.data), target, labels.to_numpy()

    def _test_rows(self, model: PretrainedTable, frame: pd.DataFrame) -> Bool[np.ndarray, " rows"]:
        """Those that pre-training has not seen; of a foreign encoder a fifth."""
        saved = model.config.get("rows")
        seed, share = self.machine.seed, TEST_SHARE
        if saved is not None:
            rows = from_dict(Rows, saved, where="rows of the encoder's config.json")
            seed, share = rows.seed, rows.test_share or TEST_SHARE
        numbers = frame.index.to_numpy()
        test = test_rows(int(numbers.max()) + 1, share, seed)[numbers]
        if min(test.sum(), (~test).sum()) < 2:
            raise DataError(
                f"{(~test).sum()} training and {test.sum()} test rows have labels",
                where=self.data,
                remedy="give more labelled rows",
            )
        return test

    def _estimator(self, encoder: str, task: str) -> TJEPAClassifier | TJEPARegressor:
        kind = TJEPARegressor if task == "regression" else TJEPAClassifier
        return kind(
            pretrained=encoder,
            head=self.head,
            freeze=self.freeze,
            raw=self.raw,
            tune_epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            random_state=self.machine.seed,
            device=self.machine.device,
            n_jobs=self.machine.threads or None,
            verbose=1,
        )

    def _twin(
        self, model: PretrainedTable, frame: pd.DataFrame, labels: np.ndarray, task: str
    ) -> TJEPAClassifier | TJEPARegressor:
        """The same from an encoder at its initial weights."""
        config = PretrainConfig(model=model.encoder.config)
        module = untrained(config, model.encoder.shape, self.machine.seed)
        with tempfile.TemporaryDirectory() as folder:
            place = inference.save(Path(folder) / "twin", module.encoder, model.preprocessor)
            return self._estimator(str(place), task).fit(frame, labels)

    def _tables(
        self, scores: dict[str, Float[np.ndarray, "rows outputs"]], y: Target, training: int
    ) -> dict[str, Table]:
        metrics = {"r2": ("R2", _r2)}
        if y.task != "regression":
            metrics = {"accuracy": ("accuracy", _accuracy), **metrics}
        how = f"head {self.head}{', encoder frozen' if self.freeze else ' and encoder'}"
        tables = {}
        for name, (title, metric) in metrics.items():
            table = compare_scores(
                scores,
                y,  # type: ignore[arg-type]
                metric,  # type: ignore[arg-type]
                title=f"{self.label}: {title} on test rows, {how}, {training:,} training rows",
                reference=RAW,
                seed=self.machine.seed,
            )
            points = {key: _point(metric(y, found), len(y)) for key, found in scores.items()}
            tables[name] = replace(table, notes=(_sentence(title, points), *table.notes))
        return tables


def _point(statistic: Statistic, rows: int) -> float:
    return float(statistic(np.ones((1, rows), np.int64))[0].mean())


def _sentence(title: str, points: dict[str, float]) -> str:
    """What the report's summary says."""
    trained = points[TRAINED]
    others = [
        f"{trained - points[name]:+.3f} against {what}"
        for name, what in ((TWIN, "the same on an untrained encoder"), (RAW, "the columns alone"))
        if name in points
    ]
    return f"{title[0].upper()}{title[1:]} on test rows {trained:.3f}: {', '.join(others)}."


def _accuracy(y: Target, scores: Float[np.ndarray, "rows classes"]) -> Statistic:
    return mean_statistic((scores.argmax(1) == y.y).astype(np.float64))


def _r2(y: Target, scores: Float[np.ndarray, "rows outputs"]) -> Statistic:
    return r2_statistic(y, scores)


def _scores(
    model: TJEPAClassifier | TJEPARegressor, frame: pd.DataFrame, target: Target
) -> Float[np.ndarray, "rows outputs"]:
    """Values, or probabilities of all classes: 0 of those that no training row has."""
    if isinstance(model, TJEPARegressor):
        return model.predict(frame)[:, None]
    shares = np.zeros((len(frame), len(target.classes)))
    columns = [target.classes.index(str(label)) for label in model.classes_.tolist()]
    shares[:, columns] = model.predict_proba(frame)
    return shares


def _raw_scores(
    model: PretrainedTable, frame: pd.DataFrame, y: Target, test: pd.DataFrame
) -> Float[np.ndarray, "rows outputs"]:
    """What the columns give without any encoder."""
    raw, other = (model.preprocessor.raw_features(part) for part in (frame, test))
    if y.task == "regression":
        return fit_regressor(raw, y.y).scores(other)
    scores = fit_classifier(raw, y.y, len(y.classes)).scores(other)
    shares = np.exp(scores - scores.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)

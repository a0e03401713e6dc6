"""`jepa tabular probe`: what an encoder is worth on a labelled table, beside all its controls."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import tyro
from jaxtyping import Float, Float32

from jepa_core.config import Range, check, from_dict
from jepa_core.domain import Machine
from jepa_core.errors import DataError, RunError
from jepa_core.evaluation.intervals import bootstrap
from jepa_core.evaluation.metrics import Counts, Parts, Statistic
from jepa_core.health.alarm import regret
from jepa_core.report.table import Cell, Table, interval
from jepa_core.run import Run
from jepa_core.training import checkpoint
from jepa_core.training.device import one_process
from jepa_core.training.interrupt import saying
from jepa_tabular import readouts as read
from jepa_tabular.analysis import (
    Relevance,
    collapse_report,
    sample_rows,
    similarity,
)
from jepa_tabular.data.files import require_columns
from jepa_tabular.evaluation import (
    ReadoutName,
    Representation,
    compare_features,
    controls,
    relevance_of,
    represented,
)
from jepa_tabular.inference import PretrainedTable, encode, load
from jepa_tabular.pretrain import checkpoint_encoder
from jepa_tabular.readouts import Split, Target
from jepa_tabular.report import save_analysis, write_report
from jepa_tabular.results import RAW, TJEPA, TWIN, Evaluation
from jepa_tabular.targets import warn_leaks
from jepa_tabular.verbs.pretrain import (
    TEST_SHARE,
    Rows,
    read_columns,
    recipe_of,
    said,
    test_rows,
)

_ANALYSED = 2000  # rows that a representation's shape is measured on
_SEEN = "Pre-training has seen the test rows, without their labels."


@dataclass(frozen=True)
class Probe:
    """Evaluate an encoder on a labelled table, beside raw columns, its untrained twin, PCA and
    random features of its width, and boosted trees.

    The rows that `jepa tabular pretrain` set aside are the test rows; of the others a quarter
    validates. Rows without a label are left out. Shown too: whether the representation collapsed,
    what each column is worth, and, of a run, what the choice of its checkpoint without labels cost.
    """

    run: tyro.conf.Positional[Path]
    """A run of `jepa tabular pretrain`, or an encoder's folder."""
    data: Path
    """The labelled table, of the columns the encoder was trained on."""
    label: str
    """Its column of labels."""
    labels: tuple[Annotated[int, Range(ge=0)], ...] = (0, 1000, 100)
    """How many training labels are used; 0 is all of them."""
    readouts: tuple[ReadoutName, ...] = ("linear",)
    """What reads features: ridge, logistic regression, a network."""
    task: Literal["auto", "binary", "multiclass", "regression"] = "auto"
    """What the labels are; auto looks at them."""
    max_rows: Annotated[int, Range(ge=10)] = 20_000
    """Labelled rows used, drawn at random."""
    machine: Machine = Machine()
    """Seed, device, precision, threads. The seed is that of splits and draws of labels."""

    def __post_init__(self) -> None:
        check(self)

    def __call__(self) -> None:
        one_process("jepa tabular probe")
        with saying("tables come at the end: give the same command again"):
            self._evaluate()

    def _evaluate(self) -> None:
        model = load(self.run, device=self.machine.device)
        run = _run(self.run)
        origin = _origin(model)
        frame, target = self._labelled(model)
        split = self._split(frame, origin)
        found = represented(
            model.encoder,
            model.preprocessor,
            frame,
            seed=origin.seed,
            device=self.machine.device,
        )
        target = target.standardised(split.train)
        evaluation = self._scores(found, target, split)
        scores = evaluation.table
        if origin.transductive or (origin.table and not origin.test_share):
            scores = replace(scores, notes=(*scores.notes, _SEEN))
        tables = {
            "scores": scores,
            "gains": gains_over_twin(found, target, split, seed=self.machine.seed),
            "collapse": evaluation.collapse_table,
        }
        relevance = self._relevance(model, found, target, split)
        tables["relevance"] = relevance.table()
        if run is not None:
            tables["regret"] = self._regret(run, model, found, target, split)
        for name, table in tables.items():
            table.print()
            if run is not None:
                run.save_table(f"probe-{self.label}-{name}", table)
        if run is not None:
            self._draw(run, model, found, target, split, evaluation, relevance)
            print(f"report: {write_report(run)}")

    def _labelled(self, model: PretrainedTable) -> tuple[pd.DataFrame, Target]:
        """Rows with a label, numbered as in the file, and their labels."""
        columns = read_columns(self.data, label=self.label)
        assert columns.y is not None
        known = columns.y.notna().to_numpy()
        if not known.any():
            raise DataError(f"column {self.label!r} has no label", where=self.data)
        if missing := int((~known).sum()):
            print(f"{missing:,} rows without a label are left out")
        rows = sample_rows(np.flatnonzero(known), self.max_rows, seed=self.machine.seed)
        # The row numbers decide which rows are for testing.
        frame = columns.frame.set_axis(np.arange(len(known)), axis=0).iloc[rows]
        features = getattr(model.preprocessor, "feature_names_in_", None)
        if features is not None:
            require_columns(list(features), list(frame.columns), self.data)
            frame = frame[list(features)]
        target = read.as_target(columns.y.iloc[rows], self.task)
        with said() as noticed:
            warn_leaks(frame, target.y)
        for line in noticed:
            print(f"note: {line}")
        return frame, target

    def _split(self, frame: pd.DataFrame, origin: Rows) -> Split:
        """Test rows as set aside; of the others a quarter validates."""
        numbers = frame.index.to_numpy()
        share = origin.test_share or TEST_SHARE
        test = test_rows(int(numbers.max()) + 1, share, origin.seed)[numbers]
        rest = np.flatnonzero(~test)
        validates = test_rows(len(rest), 0.25, self.machine.seed + 1)
        split = Split(rest[~validates], rest[validates], np.flatnonzero(test))
        if min(map(len, split)) < 2:
            raise DataError(
                f"{len(split.train)} training, {len(split.validation)} validation and "
                f"{len(split.test)} test rows have labels",
                where=self.data,
                remedy="use more rows",
            )
        return split

    def _scores(self, found: Representation, target: Target, split: Split) -> Evaluation:
        scores = compare_features(
            controls(found, split.train, seed=self.machine.seed),
            target,
            split.train,
            split.test,
            readouts=self.readouts,
            labels=["all" if n == 0 else n for n in self.labels],
            seed=self.machine.seed,
        )
        collapse = (
            collapse_report(found.untrained[split.test]),
            collapse_report(found.trained[split.test]),
        )
        sizes = len(split.train), len(split.validation), len(split.test)
        return Evaluation(target.task, tuple(scores), (collapse,), sizes)

    def _relevance(
        self, model: PretrainedTable, found: Representation, target: Target, split: Split
    ) -> Relevance:
        """What each column is worth to a probe of the tokens and to boosted trees."""
        train = sample_rows(split.train, _ANALYSED, seed=self.machine.seed)
        test = sample_rows(split.test, _ANALYSED, seed=self.machine.seed)
        return relevance_of(
            found,
            target,
            train,
            test,
            names=model.preprocessor.names_,
            registers=model.encoder.config.registers,
            seed=self.machine.seed,
        )

    def _regret(
        self,
        run: Run,
        model: PretrainedTable,
        found: Representation,
        target: Target,
        split: Split,
    ) -> Table:
        """The linear readout of every kept checkpoint, and what the choice without labels cost."""
        chosen, config = int(model.config.get("step", -1)), recipe_of(run)
        scores = {}
        for step in checkpoint.steps(run.checkpoints):
            encoder = checkpoint_encoder(config, found.shape, run, step)
            tokens = encode(encoder, found.encoded, device=self.machine.device)
            scores[step] = _linear_r2(tokens, target, split)
        cost = regret(chosen, scores) if chosen in scores else math.nan
        return Table(
            "linear readout of the kept checkpoints, all labels",
            ("step", "R2", ""),
            [
                [step, score, "chosen without labels" if step == chosen else ""]
                for step, score in scores.items()
            ],
            (f"Regret of the choice: {cost:.4f} R2 over {len(scores)} kept checkpoints.",),
        )

    def _draw(
        self,
        run: Run,
        model: PretrainedTable,
        found: Representation,
        target: Target,
        split: Split,
        evaluation: Evaluation,
        relevance: Relevance,
    ) -> None:
        rows = sample_rows(split.test, _ANALYSED, seed=self.machine.seed)
        features = {
            RAW: found.raw[rows],
            TWIN: found.untrained[rows].reshape(len(rows), -1),
            TJEPA: found.trained[rows].reshape(len(rows), -1),
        }
        labels: Any = target.y[rows]
        if target.classes:
            labels = np.array(target.classes)[labels]
        before, after = evaluation.collapse[0]
        save_analysis(
            run,
            tokens=model.names,
            variance={TWIN: before["token_row_variance"], TJEPA: after["token_row_variance"]},
            similarity=(list(features), similarity(features)),
            relevance=relevance,
            rows=features[TJEPA],
            labels=labels,
        )


def gains_over_twin(
    found: Representation, target: Target, split: Split, *, seed: int = 0, resamples: int = 1000
) -> Table:
    """R2 of the linear readout with all labels, and its differences, with 95 % intervals that
    resample test rows."""
    features = {
        RAW: found.raw,
        TWIN: _flat(found.untrained),
        TJEPA: _flat(found.trained),
    }
    y, train = target.take(split.test), target.take(split.train)
    statistics = {
        name: r2_statistic(y, read.linear(x[split.train], train, x[split.test]))
        for name, x in features.items()
    }
    draw = partial(bootstrap, n=len(y), resamples=resamples, seed=seed)
    rows: list[list[Cell]] = []
    for name, statistic in statistics.items():
        one = draw(statistic)
        gains: list[Cell] = []
        for other in (TWIN, RAW):
            if name in (other, RAW):
                gains.append(None)
                continue
            gained = draw(_difference(statistic, statistics[other]))
            gains.append(interval(gained.estimate, gained.low, gained.high))
        rows.append([name, interval(one.estimate, one.low, one.high), *gains])
    return Table(
        "R2 of the linear readout, all labels",
        ("input", "R2", "gain over the untrained twin", "gain over raw columns"),
        rows,
        ("Intervals resample test rows and know nothing of other splits or other seeds.",),
    )


def r2_statistic(y: Target, scores: Float[np.ndarray, "rows outputs"]) -> Statistic:
    """Pooled R2 for the bootstrap."""
    columns = y.columns()
    error = np.square(columns - y.nearest(scores)).sum(axis=1)
    square = np.square(columns).sum(axis=1)

    def statistic(counts: Counts) -> Parts:
        n = counts.sum(axis=1, keepdims=True)
        mean = counts @ columns / n
        spread = counts @ square - n[:, 0] * np.square(mean).sum(axis=1)
        values = np.full(len(counts), np.nan)
        np.divide(counts @ error, spread, out=values, where=spread > 0)
        return (1 - values)[:, None]

    return statistic


def _difference(first: Statistic, second: Statistic) -> Statistic:
    return lambda counts: first(counts) - second(counts)


def _linear_r2(
    tokens: Float32[np.ndarray, "rows tokens dim"], target: Target, split: Split
) -> float:
    x = _flat(tokens)
    scores = read.linear(x[split.train], target.take(split.train), x[split.test])
    return read.score(target.take(split.test), scores)["r2"]


def _flat(tokens: np.ndarray) -> np.ndarray:
    return tokens.reshape(len(tokens), -1)


def _origin(model: PretrainedTable) -> Rows:
    """Which rows the encoder has seen; a foreign one has seen none of these."""
    found = model.config.get("rows")
    if found is None:
        return Rows()
    return from_dict(Rows, found, where="rows of the encoder's config.json")


def _run(path: Path) -> Run | None:
    try:
        return Run.open(path)
    except RunError:
        return None

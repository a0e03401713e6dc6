"""`jepa tabular pretrain`: train an encoder on rows without labels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Int64

from jepa_core import rng
from jepa_core.config import Range, check, from_dict, to_dict
from jepa_core.corpus import is_corpus
from jepa_core.domain import Machine
from jepa_core.errors import ConfigError, DataError
from jepa_core.report.table import Table
from jepa_core.run import Run, run_record
from jepa_core.training.device import find_device
from jepa_tabular import inference
from jepa_tabular.columns import kinds_besides
from jepa_tabular.data.corpus import TableCorpus
from jepa_tabular.data.files import load_table, require_columns
from jepa_tabular.preprocess import TablePreprocessor
from jepa_tabular.presets import ColumnsConfig, PretrainConfig, TableShape
from jepa_tabular.pretrain import pretrain
from jepa_tabular.report import save_mask_figure, save_training_figure, write_report
from jepa_tabular.source import Rows as Encoded
from jepa_tabular.source import TableSource

TEST_SHARE = 0.2


@dataclass(frozen=True)
class Pretrain:
    """Train an encoder without labels, and write it with its checkpoints, metrics and a report.

    The product is `encoder/` in the run folder: the target encoder of the checkpoint that the
    health of the run speaks for, with the preprocessing of its columns. A part of the rows is set
    aside: `jepa tabular probe` and `finetune` test on them, and neither scaling nor training sees
    them (but a corpus was scaled on all its rows). Continue a stopped run with the same command
    and --resume.
    """

    data: Path
    """A table: CSV, TSV, ARFF, Parquet, NPZ or NPY; or a corpus, whose own columns hold."""
    out: Path
    """The run folder to write."""
    preset: str = "nano"
    """Recipe whose numbers the other flags override; `jepa tabular info` shows them."""
    label: str = ""
    """The column to be predicted later: kept out of the features."""
    ignore: tuple[str, ...] = ()
    """More columns that are no features, such as ids."""
    categorical: tuple[str, ...] = ()
    """Columns of numbers that are categories, in addition to texts, booleans and dictionaries."""
    test_share: Annotated[float, Range(ge=0, lt=1)] = TEST_SHARE
    """Share of the rows set aside for testing."""
    transductive: bool = False
    """Scale and train on the test rows too, without their labels, as the official program does."""
    workers: Annotated[int, Range(ge=0)] = 0
    """Processes that fetch batches ahead."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Where metrics go besides metrics.jsonl."""
    resume: bool = False
    """Continue the run in the folder."""
    overwrite: bool = False
    """Replace the run in the folder."""
    machine: Machine = Machine()
    """Seed, device, precision, threads."""
    config: PretrainConfig = PretrainConfig()
    """The recipe."""

    def __call__(self) -> None:
        check(self)
        prepare = self._from_corpus if is_corpus(self.data) else self._from_file
        found = prepare()
        config = replace(self.config, columns=found.columns)
        shape = found.preprocessor.shape_
        # What cannot run must not leave a folder behind.
        TableSource(found.x, config, shape, seed=self.machine.seed)
        find_device(self.machine.device)
        run = Run.create(
            self.out,
            run_record("tabular", "pretrain", to_dict(replace(self, config=config))),
            resume=self.resume,
            overwrite=self.overwrite,
        )
        done = pretrain(
            found.x,
            config,
            shape,
            machine=self.machine,
            run=run,
            resume=self.resume,
            workers=self.workers,
            trackers=self.trackers,
        )
        if done.result.main:
            extra = {
                "step": done.result.chosen_step,
                "recipe": to_dict(config),
                "label": self.label,
                "rows": to_dict(found.rows),
            }
            inference.save(run.encoder, done.encoder, found.preprocessor, extra)
            run.save_table("pretrain-rows", rows_table(found.rows, shape))
            names = found.preprocessor.names_
            save_mask_figure(run, config, shape, names, found.first, seed=self.machine.seed)
            save_training_figure(run)
            print(f"encoder: {run.encoder}, of step {done.result.chosen_step}")
            print(f"report: {write_report(run)}")

    def _from_file(self) -> Prepared:
        found = read_columns(self.data, label=self.label, ignore=self.ignore)
        rows, seen = self._rows(len(found.frame))
        frame = found.frame.iloc[seen]
        preprocessor = fit_preprocessor(frame, self.config, categorical=self.categorical)
        x = preprocessor.transform(frame)
        first = [frame.iloc[0, position] for position in preprocessor.positions_]
        rows = replace(rows, trained_on=len(x))
        return Prepared(x, preprocessor, self.config.columns, rows, first)

    def _from_corpus(self) -> Prepared:
        for name in ("ignore", "categorical"):
            if getattr(self, name):
                raise ConfigError(
                    f"--{name} is given, and the columns of a corpus are settled",
                    where=self.data,
                    remedy=f"build it with jepa tabular data build --{name}",
                )
        corpus = TableCorpus(self.data)
        if self.label and self.label != corpus.label:
            raise ConfigError(
                f"the label of the corpus is {corpus.label or 'none'}, not {self.label}",
                where=self.data,
                remedy=f"build it with jepa tabular data build --label {self.label}",
            )
        rows, seen = self._rows(len(corpus))
        part = Part(corpus, seen)
        columns = corpus.preprocessor.config or ColumnsConfig()
        rows = replace(rows, scaled_on_all=True)
        first = part[np.zeros(1, np.int64)][0].tolist()
        return Prepared(part, corpus.preprocessor, columns, rows, first)

    def _rows(self, count: int) -> tuple[Rows, Int64[np.ndarray, " seen"]]:
        """What is known of the rows, and the numbers of those to train on."""
        test = test_rows(count, self.test_share, self.machine.seed)
        seen = np.arange(count) if self.transductive else np.flatnonzero(~test)
        if len(seen) < 2:
            raise DataError(
                f"{len(seen)} of {count} rows are left to train on",
                where=self.data,
                remedy="set --test-share lower",
            )
        rows = Rows(
            table=count,
            test=int(test.sum()),
            trained_on=len(seen),
            test_share=self.test_share,
            seed=self.machine.seed,
            transductive=self.transductive,
            scaled_on_all=self.transductive,
        )
        return rows, seen


@dataclass(frozen=True)
class Rows:
    """Which rows of a table an encoder has seen."""

    table: int = 0
    """Rows of the table."""
    test: int = 0
    """Rows set aside."""
    trained_on: int = 0
    """Rows seen in pre-training."""
    test_share: float = TEST_SHARE
    """Share that was to be set aside."""
    seed: int = 0
    """Of the draw, and of the initial weights."""
    transductive: bool = False
    """Whether pre-training has seen the test rows nevertheless."""
    scaled_on_all: bool = False
    """Whether scaling and categories come from the test rows too."""

    @property
    def all_seen(self) -> bool:
        """Whether pre-training has seen every row of the table."""
        return self.transductive or (self.table > 0 and not self.test)


@dataclass(frozen=True)
class Prepared:
    """Rows to train on, and where they come from."""

    x: Encoded
    preprocessor: TablePreprocessor
    columns: ColumnsConfig
    rows: Rows
    first: Sequence[Any]


class Part:
    """Some rows of a corpus, as an array of them."""

    def __init__(self, corpus: TableCorpus, rows: Int64[np.ndarray, " rows"]) -> None:
        self.corpus, self.rows = corpus, rows
        self.shape = (len(rows), corpus.shape[1])

    def __getitem__(self, ids: Int64[np.ndarray, " batch"]) -> Float32[np.ndarray, "batch columns"]:
        return self.corpus[self.rows[ids]]


@dataclass(frozen=True)
class Columns:
    """A table without what is no feature.

    Parameters
    ----------
    frame
        Features.
    y
        The label column; None where there is none.
    """

    frame: pd.DataFrame
    y: pd.Series | None


def read_columns(path: Path, *, label: str = "", ignore: Sequence[str] = ()) -> Columns:
    """A table from a file, its label and what is to be ignored taken out.

    Raises
    ------
    DataError
        The file cannot be read, or lacks a column that is named.
    """
    frame = load_table(path, label=label or None)
    require_columns(ignore, list(frame.columns), path)
    y = frame[label] if label else None
    frame = frame.drop(columns=[name for name in (label, *ignore) if name])
    if not frame.shape[1]:
        raise DataError("no column is left", where=path, remedy="ignore fewer columns")
    return Columns(frame, y)


def fit_preprocessor(
    frame: pd.DataFrame, config: PretrainConfig, *, categorical: Sequence[str] = ()
) -> TablePreprocessor:
    """The recipe's preprocessing, fitted.

    Parameters
    ----------
    categorical
        Names of columns of numbers that are categories, in addition to those of that kind.
    """
    official = config.compat == "official"
    choice = categories(frame, categorical)
    preprocessor = TablePreprocessor(config.columns, categorical_features=choice, compat=official)
    with said() as noticed:
        preprocessor.fit(frame)
    for line in noticed:
        print(f"note: {line}")
    return preprocessor


def categories(frame: pd.DataFrame, named: Sequence[str]) -> list[int] | Literal["auto"]:
    """Places of the named columns and of those that are categories by their kind."""
    if not named:
        return "auto"
    found = kinds_besides(frame, named)
    return [place for place, kind in enumerate(found) if kind == "categorical"]


@contextmanager
def said() -> Iterator[list[str]]:
    """Collects what is warned of inside, for a command's own lines."""
    lines: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield lines
    lines += [str(warning.message) for warning in caught]


def test_rows(rows: int, share: float, seed: int) -> Bool[np.ndarray, " rows"]:
    """Which rows are set aside: a function of their numbers and the seed alone."""
    words = rng.words(seed, "test rows", np.arange(rows), 0, 2)
    return rng.uniform64(words)[:, 0] < share


def rows_table(rows: Rows, shape: TableShape) -> Table:
    """What the encoder has seen, for the report."""
    if not rows.test:
        note = "No rows were set aside: whatever this table tests, pre-training has seen."
    elif rows.transductive:
        note = (
            f"Transductive: the {rows.test:,} test rows were seen, without their labels, in "
            "scaling and in pre-training."
        )
    elif rows.scaled_on_all:
        note = (
            f"The {rows.test:,} test rows were not seen in pre-training; scaling was learned from "
            "all rows when the corpus was built."
        )
    else:
        note = f"The {rows.test:,} test rows were seen neither in scaling nor in pre-training."
    return Table(
        "rows and columns",
        ("what", "how many"),
        [
            ["rows of the table", rows.table],
            ["set aside for testing", rows.test],
            ["trained on", rows.trained_on],
            ["numerical columns", len(shape.numeric)],
            ["categorical columns", len(shape.categorical)],
        ],
        (note,),
    )


def recipe_of(run: Run) -> PretrainConfig:
    """The recipe a run was trained with.

    Raises
    ------
    ConfigError
        It is no run of `jepa tabular pretrain`.
    """
    if (run.record["domain"], run.record["verb"]) != ("tabular", "pretrain"):
        raise ConfigError(
            f"is a run of {run.record['domain']} {run.record['verb']}",
            where=run.path,
            remedy="give a run of jepa tabular pretrain",
        )
    return from_dict(PretrainConfig, run.config["config"], where=run.path / "config.json")

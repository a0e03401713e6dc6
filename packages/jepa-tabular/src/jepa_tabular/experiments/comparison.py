"""What demo, reproduction and study of levers share: who sees which rows, encoders beside their
controls, and results that are kept as they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int64

from jepa_core import rng
from jepa_core.domain import Machine
from jepa_core.run import Run
from jepa_tabular import model as networks
from jepa_tabular.analysis import sample_rows
from jepa_tabular.evaluation import Representation, represented
from jepa_tabular.model import TabularEncoder
from jepa_tabular.preprocess import TablePreprocessor
from jepa_tabular.presets import PRETRAIN, PretrainConfig
from jepa_tabular.pretrain import final_encoder, pretrain
from jepa_tabular.readouts import Target, splits
from jepa_tabular.results import Evaluation, Score
from jepa_tabular.transformer import silence
from jepa_tabular.verbs.pretrain import fit_preprocessor

OFFICIAL = "T-JEPA, official recipe"
TRAIN, SCORED = 6000, 4000  # rows with labels for readouts, and rows that are scored

# Of five equal parts of a table: those that the reproduction alone scores, and those that the study
# of levers chooses on.
_TEST, _VALIDATION = (0, 3, 4), (1, 2)

_LOGGED = (
    "step",
    "loss",
    "health/signal",
    "health/unexplained",
    "health/effective_rank_ev",
    "health/token_rank",
    "health/uniformity",
)
_SIZES = (
    "dim",
    "depth",
    "heads",
    "hidden",
    "registers",
    "predictor_dim",
    "predictor_depth",
    "predictor_heads",
    "predictor_hidden",
)


@dataclass(frozen=True)
class LabelledTable:
    """A table with a label for each row."""

    name: str
    frame: pd.DataFrame
    target: Target


@dataclass(frozen=True)
class Parts:
    """Places of rows in a table.

    Parameters
    ----------
    seen
        Pre-trained on, without labels; scaling is learned from them too.
    train
        Their labels train the readouts.
    scored
        Neither seen nor trained on.
    """

    seen: Int64[np.ndarray, " seen"]
    train: Int64[np.ndarray, " train"]
    scored: Int64[np.ndarray, " scored"]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Rows with labels for readouts, further rows seen, and rows scored."""
        return len(self.train), len(self.seen) - len(self.train), len(self.scored)

    def labelled(
        self,
    ) -> tuple[
        Int64[np.ndarray, " rows"], Int64[np.ndarray, " train"], Int64[np.ndarray, " scored"]
    ]:
        """Rows whose labels are read, and the places among these of those to train on and score."""
        rows = np.concatenate((self.train, self.scored))
        return rows, np.arange(len(self.train)), np.arange(len(self.train), len(rows))


def reproduction_parts(
    target: Target, seed: int, *, train: int = TRAIN, scored: int = SCORED
) -> Parts:
    """Seeds 0, 1 and 2 score rows of a fifth of their own, and see all rows but that fifth."""
    own = _folds(target)[_TEST[seed % len(_TEST)]]
    rest = np.setdiff1d(np.arange(len(target)), own)
    return Parts(rest, sample_rows(rest, train, seed=seed), sample_rows(own, scored, seed=seed))


def study_parts(target: Target, seed: int, *, train: int = TRAIN, scored: int = SCORED) -> Parts:
    """Labels of the two fifths that the reproduction never scores.

    Seeds 0, 1 and 2 score a third of them each; the other two thirds train the readouts. All rows
    but the scored third are pre-trained on, without labels.
    """
    folds = _folds(target)
    pool = np.sort(np.concatenate([folds[i] for i in _VALIDATION]))
    order = np.argsort(rng.words(0, "thirds", pool, 0, 1)[:, 0], kind="stable")
    third = np.sort(pool[order[seed % 3 :: 3]])
    rest = np.setdiff1d(pool, third)
    seen = np.setdiff1d(np.arange(len(target)), third)
    return Parts(seen, sample_rows(rest, train, seed=seed), sample_rows(third, scored, seed=seed))


def _folds(target: Target) -> list[Int64[np.ndarray, " fold"]]:
    return [split.test for split in splits(target, 5)]


@dataclass(frozen=True)
class Arm:
    """An encoder as its last step left it, with the columns it was trained on.

    Parameters
    ----------
    encoder
        The target encoder.
    history
        Loss and health, a line a logged step.
    """

    encoder: TabularEncoder
    preprocessor: TablePreprocessor
    module: networks.TJEPA
    history: list[dict[str, Any]]

    def represented(self, frame: pd.DataFrame, *, seed: int) -> Representation:
        """Rows under the encoder and under its untrained twin."""
        return represented(self.encoder, self.preprocessor, frame, seed=seed, device="cpu")


def trained(
    frame: pd.DataFrame, config: PretrainConfig, seed: int, *, run: Run | None = None
) -> Arm:
    """Pre-train on all rows of a frame, with one thread and without a word."""
    preprocessor = fit_preprocessor(frame, config)
    machine = Machine(seed=seed, device="cpu", threads=1)
    with silence(0):
        done = pretrain(
            preprocessor.transform(frame), config, preprocessor.shape_, machine=machine, run=run
        )
    history = [
        {name: line[name] for name in _LOGGED if name in line} for line in done.result.history
    ]
    return Arm(final_encoder(done.module), preprocessor, done.module, history)


def official_recipe(config: PretrainConfig, table: str = "jannis") -> PretrainConfig:
    """The official masks, columns, positions, targets and start, at another recipe's size, steps,
    rates and averaging.

    One thing is not official: a category that training did not see gets a code of its own, where
    the program would have looked at the test rows.
    """
    official = PRETRAIN[f"official-{table}"]
    sizes = {name: getattr(config.model, name) for name in _SIZES}
    return replace(
        config,
        model=replace(official.model, **sizes),
        columns=replace(official.columns, unknown="reserve"),
        context=official.context,
        target=official.target,
        targets=official.targets,
        unknown_rate=official.unknown_rate,
        compat="official",
    )


def evaluation(
    target: Target, results: Sequence[Mapping[str, Any]], sizes: tuple[int, int, int]
) -> Evaluation:
    """What the results of all seeds of a table say."""
    scores = tuple(Score(**score) for one in results for score in one["scores"])
    collapse = tuple((one["collapse"][0], one["collapse"][1]) for one in results)
    return Evaluation(target.task, scores, collapse, sizes)


def scores_to_json(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """As `evaluation` reads them."""
    return [asdict(score) for score in scores]

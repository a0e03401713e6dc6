"""What each number of the recipe does, on rows that the reproduction never scores.

    python -m jepa_tabular.experiments.levers --markdown LEVERS.md

Every run is one line of a JSON file: stop it at any time, and give the same command again.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from jaxtyping import Float32
from scipy.special import softmax

from jepa_core.config import Range, check, to_dict
from jepa_core.errors import ConfigError, JepaError
from jepa_core.jobs import run_jobs
from jepa_core.run import write_text
from jepa_core.training.interrupt import saying
from jepa_tabular import readouts as read
from jepa_tabular.analysis import collapse_report
from jepa_tabular.evaluation import Input, compare_features, twin
from jepa_tabular.experiments.comparison import (
    Arm,
    LabelledTable,
    Parts,
    study_parts,
    trained,
)
from jepa_tabular.experiments.findings import last_health
from jepa_tabular.experiments.lever_list import BASE, LEVERS
from jepa_tabular.experiments.lever_tables import levers_table, page
from jepa_tabular.experiments.reproduce import LABELS, TableName, data_folder, read_table, recipe
from jepa_tabular.finetune import Labelled, tune
from jepa_tabular.heads import LinearHead, fit_classifier, fit_regressor
from jepa_tabular.inference import encode
from jepa_tabular.model import TabularEncoder
from jepa_tabular.presets import REPRODUCE, PretrainConfig
from jepa_tabular.readouts import Budget, Target

_EPOCHS = 20  # of training end to end, at most


@dataclass(frozen=True)
class Levers:
    """Train the base recipe and each change of it, and write what they do to a linear readout.

    Labels are those of rows that `jepa tabular reproduce` never scores. Takes half a minute to a
    minute of one core a run, four times as long where a lever says so.
    """

    levers: tuple[str, ...] = ()
    """Which; none is all, on jannis those that say most. The base always runs."""
    tables: tuple[TableName, ...] = ("california", "adult", "jannis")
    """Which of the tables."""
    seeds: tuple[Annotated[int, Range(ge=0)], ...] = (0, 1, 2)
    """Seeds; each scores rows of its own."""
    data: Path | None = None
    """Folder of the tables; by default tabular/ in $JEPA_DATA."""
    out: Path = Path("runs/tabular-levers.jsonl")
    """Where the runs are kept."""
    markdown: Path | None = None
    """Where the tables are written."""
    jobs: Annotated[int, Range(ge=0)] = 0
    """Processes; 0 is one a core."""
    config: PretrainConfig = REPRODUCE
    """The base recipe; its steps are those on california: adult gets half, jannis a third."""

    def __call__(self) -> None:
        check(self)
        for name in self.levers:
            if name not in LEVERS:
                raise ConfigError(f"no lever {name}", remedy=f"allowed: {', '.join(LEVERS)}")
        folder = self.data or data_folder()
        tables: dict[str, LabelledTable] = {name: read_table(name, folder) for name in self.tables}
        wanted = [(table, lever) for table in tables for lever in self._levers(table)]
        jobs = [
            self._job(tables[table], lever, seed) for table, lever in wanted for seed in self.seeds
        ]
        with saying("the same command goes on"):
            found = run_jobs(study, jobs, keep=self.out, processes=self.jobs, label="runs")
        results: dict[str, dict[str, list[dict[str, Any]]]] = {table: {} for table in tables}
        each = len(self.seeds)
        for place, (table, lever) in enumerate(wanted):
            results[table][lever] = found[place * each : (place + 1) * each]
        sizes = {
            name: study_parts(table.target, self.seeds[0]).sizes for name, table in tables.items()
        }
        shown = [levers_table(name, one, sizes[name]) for name, one in results.items()]
        for effects in shown:
            effects.print()
        if self.markdown is not None:
            typed = shlex.join([*self._flags(), "--markdown", self.markdown.name])
            write_text(self.markdown, page(shown, results, self.config, typed))

    def _flags(self) -> list[str]:
        """What was asked for beside the defaults."""
        flags: list[str] = []
        for name in ("tables", "levers", "seeds"):
            value = getattr(self, name)
            if value != getattr(Levers, name):
                flags += [f"--{name}", *map(str, value)]
        return flags

    def _levers(self, table: str) -> list[str]:
        if self.levers:
            return list(dict.fromkeys((BASE, *self.levers)))
        return [name for name, one in LEVERS.items() if table != "jannis" or not one.costly]

    def _job(
        self, table: LabelledTable, lever: str, seed: int
    ) -> tuple[dict[str, Any], tuple[Any, ...]]:
        config = LEVERS[lever].change(recipe(self.config, table.name))
        config = replace(config, checkpoint_every=config.steps)
        parts = study_parts(table.target, seed)
        if lever == "rows-labelled":
            parts = replace(parts, seen=parts.train)
        key = {
            "table": table.name,
            "lever": lever,
            "seed": seed,
            "rows": [len(table.frame), *parts.sizes],
            "recipe": to_dict(config),
        }
        return key, (table, parts, config, seed, lever)


def study(
    table: LabelledTable, parts: Parts, config: PretrainConfig, seed: int, lever: str
) -> dict[str, Any]:
    """Train one recipe with one seed; R2 of linear readouts of encoder and untrained twin."""
    arm = trained(table.frame.iloc[parts.seen], config, seed)
    rows, train, scored = parts.labelled()
    frame, target = table.frame.iloc[rows], table.target.take(rows).standardised(train)
    found = arm.represented(frame, seed=seed)
    inputs = {"twin": found.untrained, BASE: found.trained}
    if lever == BASE:
        inputs |= representations(arm, found.encoded)
        raw = np.asarray(found.raw, np.float64)
        inputs |= {
            "raw columns": raw,
            "raw": np.concatenate((raw, _flat(found.trained)), 1),
            "raw of twin": np.concatenate((raw, _flat(found.untrained)), 1),
            "all-blocks of twin": np.concatenate(
                block_outputs(twin(arm.encoder, seed), found.encoded), -1
            ),
        }
    scores = compare_features(
        [Input(name, _flat(x)) for name, x in inputs.items()],
        target,
        train,
        scored,
        labels=LABELS,
        seed=seed,
    )
    by_input: dict[str, dict[str, float]] = {}
    for one in scores:
        by_input.setdefault(one.input, {})[str(one.labels)] = one.values["r2"]
    if lever == BASE:
        for name, encoder in (
            ("finetuned", arm.encoder),
            ("finetuned twin", twin(arm.encoder, seed)),
        ):
            by_input[name] = finetuned(
                encoder, found.encoded, target, train, scored, config, seed=seed
            )
    return {
        "r2": by_input,
        "collapse": [collapse_report(x[scored]) for x in (found.untrained, found.trained)],
        "unexplained": last_health(arm.history)["health/unexplained"],
    }


def representations(
    arm: Arm, x: Float32[np.ndarray, "rows columns"]
) -> dict[str, Float32[np.ndarray, "rows _"]]:
    """What else of an encoder could be read out."""
    blocks = block_outputs(arm.encoder, x)
    registers = arm.encoder.config.registers
    online = TabularEncoder(arm.encoder.config, arm.encoder.shape)
    online.load_state_dict(arm.module.encoder.state_dict())
    return {
        "after-head": encode(arm.encoder, x, layer="head", device="cpu"),
        "first-block": blocks[0],
        "all-blocks": np.concatenate(blocks, -1),
        "mean-blocks": np.mean(blocks, axis=0),
        "reg": blocks[-1][:, :registers],
        "mean-tokens": blocks[-1].mean(1),
        "online": encode(online, x, device="cpu"),
    }


@torch.inference_mode()
def block_outputs(
    encoder: TabularEncoder, x: Float32[np.ndarray, "rows columns"], *, batch: int = 1024
) -> list[Float32[np.ndarray, "rows tokens dim"]]:
    """Tokens after each block."""
    parts: list[list[np.ndarray]] = [[] for _ in encoder.blocks]
    encoder.eval()
    for first in range(0, len(x), batch):
        tokens = encoder.embed(torch.from_numpy(x[first : first + batch]))
        for block, part in zip(encoder.blocks, parts, strict=True):
            tokens = block(tokens)
            part.append(tokens.numpy())
    return [np.concatenate(part) for part in parts]


def finetuned(
    encoder: TabularEncoder,
    x: Float32[np.ndarray, "rows columns"],
    target: Target,
    train: np.ndarray,
    scored: np.ndarray,
    config: PretrainConfig,
    *,
    seed: int,
    labels: Sequence[Budget] = ("all", 1000),
) -> dict[str, float]:
    """R2 of encoder and linear head trained together, one draw of labels each."""
    classes = len(target.classes)
    fit: Callable[..., LinearHead] = fit_regressor
    if classes:
        fit = partial(fit_classifier, classes=classes, seed=seed)
    found = {}
    for budget in labels:
        rows = read.label_draws(train, budget, seed=seed)[0]
        labelled = Labelled(x[rows], np.empty((len(rows), 0)), target.y[rows])
        tuned, head = tune(
            encoder,
            fit,
            labelled,
            config,
            epochs=_EPOCHS,
            outputs=classes or 1,
            seed=seed,
            device="cpu",
        )
        scores = head.scores(encode(tuned, x[scored], output="flatten", device="cpu"))
        if classes:
            if scores.shape[1] == 1:
                scores = np.concatenate((np.zeros_like(scores), scores), 1)
            scores = softmax(scores, axis=1)
        found[str(budget)] = read.score(target.take(scored), scores)["r2"]
    return found


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)


if __name__ == "__main__":
    try:
        tyro.cli(Levers, config=(tyro.conf.OmitArgPrefixes,))()
    except JepaError as error:
        raise SystemExit(f"error: {error}") from None

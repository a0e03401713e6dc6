"""`jepa ecg probe`: what a frozen encoder is worth, beside its untrained twin and raw features."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from jaxtyping import Float32, Int64

from jepa_core.config import Range, check, from_dict, read_json
from jepa_core.domain import Machine
from jepa_core.errors import ConfigError
from jepa_core.evaluation.compare import Features, Labels, compare, compare_scores
from jepa_core.evaluation.knn import knn_shares
from jepa_core.evaluation.metrics import auc_statistic, macro_auc
from jepa_core.health.alarm import regret
from jepa_core.report.table import Table
from jepa_core.run import Run
from jepa_core.training import checkpoint
from jepa_core.training.device import one_process
from jepa_core.training.interrupt import saying
from jepa_ecg.data.corpus import Corpus
from jepa_ecg.evaluation import (
    Task,
    class_table,
    embeddings,
    fraction,
    linear_probe,
    probabilities,
    raw_features,
    split_task,
)
from jepa_ecg.finetune import train_classifier
from jepa_ecg.inference import Pool, PretrainedECG, load
from jepa_ecg.presets import DOWNSTREAM, DownstreamConfig, PretrainConfig
from jepa_ecg.pretrain import checkpoint_encoder, untrained
from jepa_ecg.report import write_report
from jepa_ecg.verbs.embed import prepared_model
from jepa_ecg.verbs.pretrain import must_fit

TWIN, RAW = "untrained twin", "raw features"


_PAPER = DOWNSTREAM["attentive"]


@dataclass(frozen=True)
class Attentive:
    """How the attentive probe is trained; the paper's numbers by default."""

    steps: Annotated[int, Range(ge=1)] = _PAPER.training.steps
    """Optimiser steps, at most."""
    batch: Annotated[int, Range(ge=1)] = _PAPER.training.batch
    """Records in a step; all of them where there are fewer."""
    learning_rate: Annotated[float, Range(gt=0)] = _PAPER.training.learning_rate
    """Constant learning rate."""
    validate_every: Annotated[int, Range(ge=1)] = _PAPER.training.validate_every
    """Steps between two validations."""
    crop_seconds: Annotated[float, Range(gt=0)] = _PAPER.crop_seconds
    """Length of a training crop and of each test window; windows overlap by half."""

    def __post_init__(self) -> None:
        check(self)

    def config(self, machine: Machine) -> DownstreamConfig:
        """The recipe with these numbers."""
        training = replace(
            _PAPER.training,
            steps=self.steps,
            batch=self.batch,
            learning_rate=self.learning_rate,
            final_learning_rate=self.learning_rate,
            validate_every=self.validate_every,
            seed=machine.seed,
            device=machine.device,
            precision=machine.precision,
        )
        return replace(_PAPER, crop_seconds=self.crop_seconds, training=training)


@dataclass(frozen=True)
class Probe:
    """Evaluate a frozen encoder on a label task: folds 1-8 train, 9 validates, 10 tests.

    Every score stands beside that of the untrained twin (same recipe, same seed) and of raw
    features, with intervals that resample patients. `linear` is a logistic regression on what
    `jepa ecg embed` gives, `knn` votes of the nearest records, `attentive` the paper's "linear"
    probe, which trains an attention pooling. Checkpoints of the run are compared too: the regret
    is what the choice without labels cost on these labels.
    """

    run: tyro.conf.Positional[Path]
    """A run of `jepa ecg pretrain`."""
    data: Path
    """The corpus."""
    task: str = "superdiagnostic"
    """all, diagnostic, subdiagnostic, superdiagnostic, form, rhythm or ST-MEM of PTB-XL; dx of the
    Challenge; labels of a list of files."""
    methods: tuple[Literal["linear", "knn", "attentive"], ...] = ("linear", "knn")
    """Probes to run."""
    fractions: tuple[Annotated[float, Range(gt=0, le=1)], ...] = (1.0,)
    """Shares of the training labels for the linear probe."""
    pool: Pool = "mean"
    """How tokens become an embedding."""
    cache: Path | None = None
    """Folder of cached tokens for the attentive probe; the run's by default."""
    machine: Machine = Machine()
    """Seed, device, precision, threads."""
    attentive: Attentive = Attentive()
    """The attentive probe."""

    def __post_init__(self) -> None:
        check(self)

    def __call__(self) -> None:
        one_process("jepa ecg probe")
        run = Run.open(self.run)
        again = "tables come at the end: give the same command again"
        if "attentive" in self.methods:
            again += f"; what the encoders said is kept in {self._cache(run)} and not computed anew"
        with saying(again):
            self._evaluate(run)

    def _cache(self, run: Run) -> Path:
        return self.cache or run.path / "tokens"

    def _evaluate(self, run: Run) -> None:
        corpus = Corpus(self.data)
        config = recipe(run)
        must_fit(corpus, config.model)
        task = split_task(corpus, self.task, seed=self.machine.seed)
        trained = prepared_model(load(run.path), self.machine)
        twin = prepared_model(
            PretrainedECG(
                untrained(config, run_seed(run)).encoder, trained.mean.cpu(), trained.std.cpu()
            ),
            self.machine,
        )
        tables: dict[str, Table] = {}
        if {"linear", "knn"} & set(self.methods):
            tables |= self._on_embeddings(run, config, corpus, task, trained, twin)
        if "attentive" in self.methods:
            tables |= self._attentive(run, corpus, task, trained, twin)
        for name, table in tables.items():
            table.print()
            run.save_table(f"probe-{self.task}-{name}", table)
        print(f"report: {write_report(run)}")

    def _on_embeddings(
        self,
        run: Run,
        config: PretrainConfig,
        corpus: Corpus,
        task: Task,
        trained: PretrainedECG,
        twin: PretrainedECG,
    ) -> dict[str, Table]:
        found = {
            "trained": embeddings(trained, corpus, task.rows, pool=self.pool),
            TWIN: embeddings(twin, corpus, task.rows, pool=self.pool),
            RAW: raw_features(trained, corpus, task.rows),
        }
        patients = task.patients[task.test]
        tables: dict[str, Table] = {}
        if "linear" in self.methods:
            for share in self.fractions:
                train = fraction(task, share, seed=self.machine.seed)
                tables[f"linear-{share:g}"] = compare(
                    _parts(found, train, task.test),
                    Labels(task.y[train], task.y[task.test]),
                    linear_probe(task.patients[train], seed=self.machine.seed),
                    auc_statistic,
                    title=f"{task.name}: linear probe on {len(train)} records, macro-AUC",
                    reference=TWIN,
                    groups=patients,
                    seed=self.machine.seed,
                )
            tables["classes"] = self._classes(task, found["trained"])
            tables["regret"] = self._regret(run, config, corpus, task, trained)
        if "knn" in self.methods:
            neighbours = min(20, len(task.train))
            tables["knn"] = compare(
                _parts(found, task.train, task.test),
                Labels(task.y[task.train], task.y[task.test]),
                partial(_knn, k=neighbours),
                auc_statistic,
                title=f"{task.name}: {neighbours} nearest records, macro-AUC",
                reference=TWIN,
                groups=patients,
                seed=self.machine.seed,
            )
        return tables

    def _classes(self, task: Task, features: Float32[np.ndarray, "records dim"]) -> Table:
        probe = linear_probe(task.patients[task.train], seed=self.machine.seed)
        rows = np.concatenate((task.validation, task.test))
        scores = probe(features[task.train], task.y[task.train], features[rows])
        shares = probabilities(scores, single=False)
        cut = len(task.validation)
        return class_table(task, shares[:cut], shares[cut:], seed=self.machine.seed)

    def _regret(
        self, run: Run, config: PretrainConfig, corpus: Corpus, task: Task, model: PretrainedECG
    ) -> Table:
        """The linear probe of every kept checkpoint, and what the choice without labels cost."""
        chosen = _chosen_step(run)
        probe = linear_probe(task.patients[task.train], seed=self.machine.seed)
        scores = {}
        for step in checkpoint.steps(run.checkpoints):
            encoder = checkpoint_encoder(config, run, step).to(model.mean.device)
            other = PretrainedECG(encoder, model.mean, model.std)
            features = embeddings(other, corpus, task.rows, pool=self.pool)
            score = probe(features[task.train], task.y[task.train], features[task.test])
            scores[step] = macro_auc(task.y[task.test], score).macro
        cost = regret(chosen, scores) if chosen in scores else math.nan
        return Table(
            f"{task.name}: linear probe of the kept checkpoints",
            ("step", "macro-AUC", ""),
            [
                [step, score, "chosen without labels" if step == chosen else ""]
                for step, score in scores.items()
            ],
            (f"Regret of the choice: {cost:.4f} macro-AUC over {len(scores)} kept checkpoints.",),
        )

    def _attentive(
        self,
        run: Run,
        corpus: Corpus,
        task: Task,
        trained: PretrainedECG,
        twin: PretrainedECG,
    ) -> dict[str, Table]:
        mean, std = corpus.measure(task.rows[task.train])
        normalised = corpus.with_statistics(mean, std)
        config = self.attentive.config(self.machine)
        scores = {}
        for name, model in (("trained", trained), (TWIN, twin)):
            done = train_classifier(
                model.encoder,
                normalised,
                task,
                config,
                cache=self._cache(run),
                label=f"attentive probe, {name}",
            )
            scores[name] = probabilities(done.test, single=task.single)
        table = compare_scores(
            scores,
            task.y[task.test],
            auc_statistic,
            title=f"{task.name}: attentive probe on {len(task.train)} records, macro-AUC",
            reference=TWIN,
            groups=task.patients[task.test],
            seed=self.machine.seed,
        )
        return {"attentive": table}


def recipe(run: Run) -> PretrainConfig:
    """The recipe a run was trained with."""
    if run.record["domain"] != "ecg" or run.record["verb"] != "pretrain":
        raise ConfigError(
            f"is a run of {run.record['domain']} {run.record['verb']}",
            where=run.path,
            remedy="give a run of jepa ecg pretrain",
        )
    return from_dict(PretrainConfig, run.config["config"], where=run.path / "config.json")


def run_seed(run: Run) -> int:
    """The seed a run was trained with."""
    return from_dict(Machine, run.config["machine"], where=run.path / "config.json").seed


def _parts(
    features: Mapping[str, Float32[np.ndarray, "records dim"]],
    train: Int64[np.ndarray, " train"],
    test: Int64[np.ndarray, " test"],
) -> dict[str, Features]:
    return {name: Features(x[train], x[test]) for name, x in features.items()}


def _knn(train: np.ndarray, y: np.ndarray, test: np.ndarray, *, k: int) -> np.ndarray:
    return knn_shares(train, y, test, k=k)


def _chosen_step(run: Run) -> int:
    return int(read_json(run.encoder / "config.json").get("step", -1))

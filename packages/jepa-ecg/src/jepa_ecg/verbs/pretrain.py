"""`jepa ecg pretrain`: train an encoder without labels."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Int64

from jepa_core.config import Range, check, to_dict
from jepa_core.domain import Machine
from jepa_core.errors import ConfigError, DataError
from jepa_core.run import Run, run_record
from jepa_core.training.device import find_device
from jepa_ecg import inference
from jepa_ecg.data.corpus import Corpus
from jepa_ecg.presets import ModelConfig, PretrainConfig
from jepa_ecg.pretrain import Pretrained, mixture, pretrain
from jepa_ecg.report import save_mask_figure, write_report
from jepa_ecg.source import Subset


@dataclass(frozen=True)
class Pretrain:
    """Train an encoder without labels, and write it with its checkpoints, metrics and a report.

    The product is `encoder/` in the run folder: the target encoder of the checkpoint that the
    health of the run speaks for. Continue a stopped run with the same command and --resume.
    """

    data: Path
    """The corpus, from `jepa ecg data build`."""
    out: Path
    """The run folder to write."""
    preset: str = "vit-xs"
    """Recipe whose numbers the other flags override; `jepa ecg info` shows them."""
    folds: tuple[Annotated[int, Range(ge=0, le=10)], ...] = (0, 1, 2, 3, 4, 5, 6, 7, 8)
    """Folds whose records are used; 0 means records without a fold. 9 and 10 are for testing."""
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
        corpus = Corpus(self.data)
        config = self.config
        must_fit(corpus, config.model)
        rows = usable(corpus, self.folds, config.model.samples)
        drawn = Counter(corpus.sources[i].name for i in corpus.source[rows])
        sizes = {source.name: drawn[source.name] for source in corpus.sources}
        # What cannot run must not leave a folder behind.
        mixture(config, sizes, seed=self.machine.seed)
        find_device(self.machine.device)
        run = Run.create(
            self.out,
            run_record("ecg", "pretrain", to_dict(self)),
            resume=self.resume,
            overwrite=self.overwrite,
        )
        done = pretrain(
            Subset(corpus, rows),
            config,
            machine=self.machine,
            run=run,
            sizes=sizes,
            resume=self.resume,
            workers=self.workers,
            trackers=self.trackers,
        )
        if done.result.main:
            save_encoder(run, done, corpus, rows)
            crop = corpus.millivolts(rows[:1], np.zeros(1, np.int64), config.model.samples)[0]
            save_mask_figure(run, crop, config, seed=self.machine.seed)
            print(f"encoder: {run.encoder}, of step {done.result.chosen_step}")
            print(f"report: {write_report(run)}")


def must_fit(corpus: Corpus, model: ModelConfig) -> None:
    """Refuse a corpus that a model cannot read.

    Raises
    ------
    ConfigError
        Sampling rate or leads differ.
    """
    if corpus.fs != model.fs:
        raise ConfigError(
            f"the corpus has {corpus.fs:g} Hz and the model {model.fs:g}",
            where=corpus.path,
            remedy=f"build one with jepa ecg data build --fs {model.fs:g}",
        )
    if [lead.casefold() for lead in corpus.leads] != [lead.casefold() for lead in model.leads]:
        raise ConfigError(
            f"the corpus has the leads {' '.join(corpus.leads)}, the model {' '.join(model.leads)}",
            where=corpus.path,
            remedy=f"build one with jepa ecg data build --leads {' '.join(model.leads)}",
        )


def usable(corpus: Corpus, folds: tuple[int, ...], samples: int) -> Int64[np.ndarray, " chosen"]:
    """Records of these folds that are at least one crop long, in the order of the corpus.

    Raises
    ------
    DataError
        There is none.
    """
    in_folds = np.isin(corpus.fold, folds)
    rows = np.flatnonzero(in_folds & (corpus.lengths >= samples))
    if not len(rows):
        raise DataError(
            f"none of {len(corpus)} records is in folds {', '.join(map(str, folds))} "
            f"and at least {samples} samples long",
            where=corpus.path,
            remedy="set --folds, or a lower --samples",
        )
    short = int(in_folds.sum()) - len(rows)
    if short and os.environ.get("RANK", "0") == "0":
        print(f"{short} records are shorter than a crop of {samples} samples and left out")
    return rows


def save_encoder(
    run: Run, done: Pretrained, corpus: Corpus, rows: Int64[np.ndarray, " chosen"]
) -> None:
    """Write the encoder with the statistics of the records it was trained on."""
    counts = np.bincount(corpus.source[rows], minlength=len(corpus.sources))[:, None]
    share = counts / counts.sum()
    mean = (share * corpus.mean).sum(0)
    # Of the mixture: mean of variances plus variance of means.
    std = np.sqrt((share * (corpus.std**2 + (corpus.mean - mean) ** 2)).sum(0))
    model = inference.PretrainedECG(done.encoder, torch.from_numpy(mean), torch.from_numpy(std))
    sources = {source.name: asdict(source) for source in corpus.sources}
    inference.save(run.encoder, model, extra={"step": done.result.chosen_step, "sources": sources})

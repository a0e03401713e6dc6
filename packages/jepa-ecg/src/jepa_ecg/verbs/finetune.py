"""`jepa ecg finetune`: train a classifier on an encoder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from jepa_core.config import Range, check, to_dict
from jepa_core.errors import ConfigError
from jepa_core.evaluation.compare import compare_scores
from jepa_core.evaluation.metrics import auc_statistic
from jepa_core.report import pictures
from jepa_core.run import Run, run_record
from jepa_core.training.device import find_device, one_process
from jepa_core.training.interrupt import saying
from jepa_ecg.data.corpus import Corpus
from jepa_ecg.evaluation import Task, class_table, probabilities, split_task, thresholds
from jepa_ecg.figures import attention_figure
from jepa_ecg.finetune import TrainedOnLabels, train_classifier
from jepa_ecg.inference import TrainedClassifier, load, load_classifier, save_classifier
from jepa_ecg.model import ECGEncoder
from jepa_ecg.presets import DownstreamConfig
from jepa_ecg.report import write_report
from jepa_ecg.verbs.pretrain import must_fit

TRAINED = "pre-trained"


@dataclass(frozen=True)
class Finetune:
    """Train a classifier: the head alone, or encoder and head.

    Folds 1-8 train, fold 9 chooses the step and the thresholds, fold 10 is tested once. The same
    network from random weights is trained beside it, for comparison. Continue a stopped run with
    the same command and --resume.
    """

    encoder: str
    """A run folder, an encoder folder, a hub id or an official checkpoint; or a run of
    `jepa ecg finetune`, whose encoder and head are trained on."""
    data: Path
    """The corpus."""
    out: Path
    """The run folder to write."""
    preset: str = "finetune"
    """attentive (the head alone), finetune-after-attentive (starts from a run of the former) or
    finetune; other flags override its numbers."""
    task: str = "superdiagnostic"
    """Label task; see `jepa ecg probe --help`."""
    twin: bool = True
    """Also train the same network from random weights."""
    resume: bool = False
    """Continue the run in the folder."""
    overwrite: bool = False
    """Replace the run in the folder."""
    threads: Annotated[int, Range(ge=0)] = 0
    """Compute threads; 0 leaves it to the libraries."""
    config: DownstreamConfig = DownstreamConfig()
    """The way of training."""

    def __call__(self) -> None:
        check(self)
        one_process("jepa ecg finetune")
        if self.threads:
            torch.set_num_threads(self.threads)
        seed = self.config.training.seed
        corpus = Corpus(self.data)
        start, head = _start(self.encoder)
        if self.preset == "finetune-after-attentive" and head is None:
            raise ConfigError(
                "there is no attention pooling to start from",
                where=self.encoder,
                remedy="give a run of jepa ecg finetune --preset attentive",
            )
        must_fit(corpus, start.config)
        task = split_task(corpus, self.task, seed=seed)
        find_device(self.config.training.device)
        run = Run.create(
            self.out,
            run_record("ecg", "finetune", to_dict(self)),
            resume=self.resume,
            overwrite=self.overwrite,
        )
        with saying("--resume continues"):
            if (run.path / "classifier").is_dir():
                print(f"{run.path} is trained already")
            else:
                self._train(run, corpus, task, start, head)
            # The classifier is there: what only a resumed run reads is many times its size.
            for place in (run.checkpoints, run.path / "tokens"):
                shutil.rmtree(place, ignore_errors=True)
            print(f"report: {write_report(run)}")

    def _train(
        self,
        run: Run,
        corpus: Corpus,
        task: Task,
        start: ECGEncoder,
        head: dict[str, Tensor] | None,
    ) -> None:
        seed = self.config.training.seed
        mean, std = corpus.measure(task.rows[task.train])
        normalised = corpus.with_statistics(mean, std)
        starts = {TRAINED: (start, head)}
        if self.twin:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                scratch = ECGEncoder(start.config)
            starts["untrained twin" if self.config.freeze else "from scratch"] = (scratch, None)
        found = {
            name: train_classifier(
                encoder,
                normalised,
                task,
                self.config,
                cache=run.path / "tokens",
                head=pooling,
                label=f"classifier, {name}",
                checkpoints=run.checkpoints / name.replace(" ", "-"),
                resume=self.resume,
            )
            for name, (encoder, pooling) in starts.items()
        }
        trained = found[TRAINED]
        validation = probabilities(trained.validation, single=task.single)
        shares = {name: probabilities(one.test, single=task.single) for name, one in found.items()}
        table = compare_scores(
            shares,
            task.y[task.test],
            auc_statistic,
            title=f"{task.name}: {self.preset} on {len(task.train)} records, test macro-AUC",
            reference=list(found)[-1],
            groups=task.patients[task.test],
            seed=seed,
        )
        for name, one in (
            ("test", table),
            ("test-classes", class_table(task, validation, shares[TRAINED], seed=seed)),
        ):
            one.print()
            run.save_table(name, one)
        for name, classifier in found.items():
            best = classifier.result
            print(f"{name}: validation macro-AUC {best.best_score:.4f} at step {best.best_step}")
        if trained.classifier.attn_pool is not None:
            _save_attention(run, trained, normalised, task)
        # Last: a run with a classifier counts as finished.
        save_classifier(
            run.path / "classifier",
            TrainedClassifier(
                trained.classifier.cpu(),
                torch.from_numpy(mean.astype(np.float32)),
                torch.from_numpy(std.astype(np.float32)),
                task.classes,
                _cuts(task, validation),
                trained.crop,
                task.single,
            ),
        )


def _cuts(task: Task, validation: Float64[np.ndarray, "validation classes"]) -> tuple[float, ...]:
    """Thresholds of the validation fold; of a class without positives there, never."""
    found = thresholds(task.y[task.validation], validation)
    # JSON has no infinity, and no probability exceeds 1.
    return tuple(np.where(np.isfinite(found), found, 2.0).tolist())


def _start(place: str) -> tuple[ECGEncoder, dict[str, Tensor] | None]:
    """The encoder to start from, and the pooling where the place holds one."""
    if (Path(place) / "classifier").is_dir():
        classifier = load_classifier(place).model
        pool = classifier.attn_pool
        return classifier.encoder, dict(pool.state_dict()) if pool is not None else None
    return load(place).encoder, None


@torch.no_grad()
def _save_attention(run: Run, trained: TrainedOnLabels, corpus: Corpus, task: Task) -> None:
    """Draw where the pooling looks in the first window of the first test record."""
    classifier, model = trained.classifier, trained.classifier.encoder.config
    assert classifier.attn_pool is not None
    row, first = task.rows[task.test][:1], np.zeros(1, np.int64)
    signal = torch.from_numpy(corpus.crops(row, first, trained.crop))
    signal = signal.to(next(classifier.parameters()).device)
    tokens = classifier.encoder(signal, keep_registers=classifier.use_register)
    weights = classifier.attn_pool.weights(tokens)[0].mean(0).cpu().numpy()
    figure = attention_figure(
        corpus.millivolts(row, first, trained.crop)[0],
        weights[-(trained.crop // model.patch) :],
        fs=model.fs,
        leads=model.leads,
        title=f"record {corpus.ids[row[0]]}",
    )
    caption = "Where the attention pooling looks: mean over heads, darker is more."
    pictures.save(figure, run.figures / "attention.png", caption)

"""`jepa vision finetune`: train a classifier on an encoder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Int64

from jepa_core.config import Range, check, to_dict
from jepa_core.errors import DataError
from jepa_core.evaluation.compare import compare_scores
from jepa_core.evaluation.intervals import wilson
from jepa_core.evaluation.metrics import Statistic, accuracy, mean_statistic
from jepa_core.report.table import Cell, Table, interval
from jepa_core.run import Run, run_record
from jepa_core.training.device import find_device, one_process
from jepa_core.training.interrupt import saying
from jepa_vision.classifier import TrainedClassifier, save_classifier
from jepa_vision.data.images import Images
from jepa_vision.data.transforms import warn_tiny
from jepa_vision.downstream import DownstreamConfig
from jepa_vision.finetune import LabelledCrops, Parts, divide, train_classifier
from jepa_vision.inference import PretrainedImage, load
from jepa_vision.pretrain import untrained
from jepa_vision.report import write_report
from jepa_vision.verbs.pretrain import Reading, noting, splits_of

TRAINED = "pre-trained"


@dataclass(frozen=True)
class Finetune:
    """Train a classifier on an encoder: encoder and output map, or the map alone.

    Images are in folders of their classes. Those of a test split are tested once, those of a
    validation split choose the step; where there are none, a part of every class is drawn. The same
    network from random weights is trained beside it, for comparison. Continue a stopped run with
    the same command and --resume.
    """

    encoder: str
    """A run folder, an encoder folder, a hub id or an official checkpoint."""
    data: Path
    """Labelled images: a corpus, or a folder or zip archive with a folder for each class."""
    out: Path
    """The run folder to write."""
    preset: str = "finetune"
    """finetune (encoder and output map) or frozen (the map alone); other flags override its
    numbers."""
    test_share: Annotated[float, Range(gt=0, lt=1)] = 0.2
    """Share of the images that is tested, where the data have no such split."""
    twin: bool = True
    """Also train the same network from random weights."""
    resume: bool = False
    """Continue the run in the folder."""
    overwrite: bool = False
    """Replace the run in the folder."""
    threads: Annotated[int, Range(ge=0)] = 0
    """Compute threads; 0 leaves it to the libraries."""
    reading: Reading = Reading()
    """How images are read."""
    config: DownstreamConfig = DownstreamConfig()
    """The way of training."""

    def __call__(self) -> None:
        check(self)
        one_process("jepa vision finetune")
        if self.threads:
            torch.set_num_threads(self.threads)
        training = self.config.training
        model = load(self.encoder, device="cpu")
        with noting():
            images = self.reading.open(self.data, jobs=max(1, training.workers))
            warn_tiny(images.sizes, model.model.image)
        try:
            parts = divide(
                images.labels,
                splits_of(images),
                validation_share=self.config.validation_share,
                test_share=self.test_share,
                seed=training.seed,
            )
        except DataError as error:
            raise DataError(error.what, where=self.data, remedy=error.remedy) from None
        LabelledCrops(images, parts.train, model.config, self.config)
        find_device(training.device)
        run = Run.create(
            self.out,
            run_record("vision", "finetune", to_dict(self)),
            resume=self.resume,
            overwrite=self.overwrite,
        )
        with saying("--resume continues"):
            if (run.path / "classifier").is_dir():
                print(f"{run.path} is trained already")
            else:
                self._train(run, images, parts, model)
            # The classifier is there: what only a resumed run reads is many times its size.
            shutil.rmtree(run.checkpoints, ignore_errors=True)
            print(f"report: {write_report(run)}")

    def _train(self, run: Run, images: Images, parts: Parts, model: PretrainedImage) -> None:
        assert images.labels is not None
        seed, y = self.config.training.seed, images.labels[parts.test]
        starts = {TRAINED: model}
        if self.twin:
            scratch = untrained(model.config, seed).encoder
            name = "untrained twin" if self.config.freeze else "from scratch"
            starts[name] = PretrainedImage(scratch, model.config, device="cpu")
        found = {
            name: train_classifier(
                start,
                images,
                parts,
                self.config,
                label=f"classifier, {name}",
                checkpoints=run.checkpoints / name.replace(" ", "-"),
                resume=self.resume,
            )
            for name, start in starts.items()
        }
        table = compare_scores(
            {name: one.test for name, one in found.items()},
            y,
            _top1,
            title=f"{self.preset} on {len(parts.train)} images, test top-1",
            reference=list(found)[-1],
            seed=seed,
        )
        sentence = _sentence({name: accuracy(y, one.test) for name, one in found.items()}, len(y))
        table = replace(table, notes=(sentence, *table.notes))
        for name, one in (
            ("test", table),
            ("test-classes", class_table(images.classes, y, found[TRAINED].test)),
        ):
            one.print()
            run.save_table(name, one)
        for name, classifier in found.items():
            best = classifier.result
            print(f"{name}: validation top-1 {best.best_score:.4f} at step {best.best_step}")
        # Last: a run with a classifier counts as finished.
        save_classifier(
            run.path / "classifier",
            TrainedClassifier(found[TRAINED].classifier.cpu(), model.config, images.classes),
            {"step": found[TRAINED].result.best_step},
        )


def class_table(
    classes: tuple[str, ...],
    y: Int64[np.ndarray, " images"],
    logits: Float[np.ndarray, "images classes"],
) -> Table:
    """How many test images of each class are recognised."""
    rows: list[list[Cell]] = []
    right = logits.argmax(1) == y
    for number, name in enumerate(classes):
        of = y == number
        if not of.any():
            rows.append([name, 0, None])
            continue
        hits, count = int(right[of].sum()), int(of.sum())
        low, high = wilson(hits, count)
        rows.append([name, count, interval(hits / count, low, high)])
    return Table(
        "test images by class",
        ("class", "images", "recognised"),
        rows,
        ("Of each class the share that was recognised, with 95 % Wilson intervals.",),
    )


def _top1(y: Int64[np.ndarray, " m"], logits: Float[np.ndarray, "m classes"]) -> Statistic:
    return mean_statistic((logits.argmax(1) == y).astype(np.float64))


def _sentence(top1: dict[str, float], images: int) -> str:
    """What the report's summary says."""
    trained = f"Top-1 on {images} test images {top1[TRAINED]:.3f}"
    others = [
        f"{top1[TRAINED] - score:+.3f} against {name}"
        for name, score in top1.items()
        if name != TRAINED
    ]
    return f"{trained}{': ' if others else ''}{', '.join(others)}."

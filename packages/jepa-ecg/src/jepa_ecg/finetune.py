"""Training a classifier on an encoder: labels in, logits of validation and test records out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from jepa_core.errors import ConfigError
from jepa_core.evaluation.attentive import CacheKey, cached_tokens, predict
from jepa_core.evaluation.finetune import Finetuned, finetune, label_loss, selection_score
from jepa_core.training.checkpoint import state_hash
from jepa_core.training.device import find_device
from jepa_ecg.classifier import ECGClassifier
from jepa_ecg.data.corpus import Corpus
from jepa_ecg.evaluation import (
    CropSource,
    Task,
    crop_logits,
    crop_windows,
    record_means,
    window_batches,
)
from jepa_ecg.model import ECGEncoder
from jepa_ecg.presets import DownstreamConfig


@dataclass(frozen=True)
class TrainedOnLabels:
    """What training on labels gives.

    Parameters
    ----------
    classifier
        At the best validated step.
    result
        How training went.
    validation, test
        Logits of the records of these parts, averaged over windows.
    crop
        Samples of a window.
    """

    classifier: ECGClassifier
    result: Finetuned
    validation: Float[np.ndarray, "validation classes"]
    test: Float[np.ndarray, "test classes"]
    crop: int


def train_classifier(
    encoder: ECGEncoder,
    corpus: Corpus,
    task: Task,
    config: DownstreamConfig,
    *,
    cache: Path,
    head: Mapping[str, Tensor] | None = None,
    label: str = "fine-tuning",
    checkpoints: Path | None = None,
    resume: bool = False,
) -> TrainedOnLabels:
    """Train encoder and head, or the head alone: random crops train, windows judge.

    A frozen encoder says the same of the same windows, so those of validation and test records are
    encoded once and kept; only the training crops, new every time, are encoded on the way.

    Parameters
    ----------
    encoder
        Is left as it is; a copy is trained.
    corpus
        Normalised with the statistics of the training records.
    cache
        Folder for the tokens of a frozen encoder.
    head
        State of an attention pooling to start from: the paper's fine-tuning after the probe.
    checkpoints
        Folder of this training's checkpoints; None keeps none.
    resume
        Continue from the last of them.

    Raises
    ------
    DataError, ConfigError
        A record is shorter than a crop, or the head to start from is of another task.
    """
    classifier = _classifier(encoder, len(task.classes), config)
    if head and classifier.attn_pool is not None:
        outputs = head["proj.weight"].shape[0]
        if outputs != len(task.classes):
            raise ConfigError(
                f"the classifier to start from has {outputs} classes, task {task.name} "
                f"{len(task.classes)}",
                remedy="start from one that was trained on this task and corpus",
            )
        classifier.attn_pool.load_state_dict(head)
    size = crop_size(classifier.encoder, config.crop_seconds)
    y = task.y.argmax(1) if task.single else task.y
    rows = {"validation": task.rows[task.validation], "test": task.rows[task.test]}
    source = CropSource(
        corpus, task.rows[task.train], y[task.train], size, seed=config.training.seed
    )
    if config.freeze:
        classifier.to(find_device(config.training.device))
        kept = {part: window_tokens(classifier, corpus, rows[part], size, cache) for part in rows}
        on_tokens = _Head(classifier)

    def judge(part: str) -> Float[np.ndarray, "records classes"]:
        if not config.freeze:
            return crop_logits(classifier, corpus, rows[part], size)
        tokens, place = kept[part]
        return record_means(predict(on_tokens, tokens), place, len(rows[part]))

    def validate() -> float:
        return selection_score(y[task.validation], judge("validation"))

    result = finetune(
        _WithLoss(classifier),
        source,
        validate,
        config.training,
        label=label,
        folder=checkpoints,
        resume=resume,
    )
    return TrainedOnLabels(classifier, result, judge("validation"), judge("test"), size)


def crop_size(encoder: ECGEncoder, seconds: float) -> int:
    """Samples of a crop: whole patches, at most what the encoder takes.

    Raises
    ------
    ConfigError
        That is less than a patch.
    """
    model = encoder.config
    size = min(round(seconds * model.fs), model.samples) // model.patch * model.patch
    if size < model.patch:
        raise ConfigError(
            f"crop_seconds is {seconds:g}", remedy=f"allowed: >= {model.patch / model.fs:g}"
        )
    return size


def window_tokens(
    classifier: ECGClassifier,
    corpus: Corpus,
    rows: Int64[np.ndarray, " records"],
    size: int,
    cache: Path,
) -> tuple[Float32[np.ndarray, "windows 1 tokens dim"], Int64[np.ndarray, " windows"]]:
    """What the encoder says of every test window, and the place in `rows` of its record.

    Comes from the cache where it is there: a file a set of records, encoder and size.
    """
    place, start = crop_windows(corpus, rows, size)
    row = rows[place]
    model = classifier.encoder.config
    registers = model.registers if classifier.use_register else 0
    device = next(classifier.parameters()).device

    @torch.no_grad()
    def encode(first: int, last: int) -> Tensor:
        parts = [
            classifier.encoder(signal.to(device), keep_registers=classifier.use_register)
            for signal in window_batches(corpus, row[first:last], start[first:last], size)
        ]
        return torch.cat(parts).unsqueeze(1)

    key = CacheKey(
        state_hash(classifier.encoder.state_dict()),
        f"{corpus.path.resolve()} {corpus.mean.tolist()} {corpus.std.tolist()} {rows.tolist()}",
        f"{size} samples from {start.tolist()}, {registers} registers",
    )
    shape = (len(row), 1, size // model.patch + registers, model.dim)
    return cached_tokens(cache, key, shape, encode), place


def _classifier(encoder: ECGEncoder, classes: int, config: DownstreamConfig) -> ECGClassifier:
    """A copy of the encoder with the dropout of the recipe, under a new head."""
    seed = config.training.seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        copy = ECGEncoder(replace(encoder.config, dropout=config.dropout))
        copy.load_state_dict(encoder.state_dict())
        classifier = ECGClassifier(
            copy,
            classes,
            attention_pooling=config.attention_pooling,
            use_register=config.use_register,
            seed=seed,
        )
    classifier.encoder.requires_grad_(not config.freeze)
    return classifier.eval()


class _WithLoss(nn.Module):
    def __init__(self, classifier: ECGClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": label_loss(self.classifier(batch["signal"]), batch["y"])}


class _Head(nn.Module):
    """The head of a classifier as a module of its own."""

    def __init__(self, classifier: ECGClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch classes"]:
        return self.classifier.head(tokens)

"""`jepa ecg predict`: score records with a fine-tuned classifier."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
import tyro
from jaxtyping import Float32
from torch import Tensor

from jepa_core.config import check
from jepa_core.domain import Machine
from jepa_ecg.data.transforms import crop_starts
from jepa_ecg.evaluation import probabilities
from jepa_ecg.inference import PretrainedECG, TrainedClassifier, load_classifier
from jepa_ecg.verbs.embed import Input, prepared_model, write_scores


@dataclass(frozen=True)
class Predict:
    """Probabilities of every class for every record, and the classes above their thresholds.

    Writes columns id, quality, warnings, p_CLASS for every class, and `positive` (the classes
    called; for single-label tasks the likeliest one).
    """

    model: tyro.conf.Positional[str]
    """A run folder of `jepa ecg finetune`, or its classifier folder."""
    io: Input
    """Records and output."""
    machine: Machine = Machine()
    """Device, precision, threads."""

    def __post_init__(self) -> None:
        check(self)

    def __call__(self) -> None:
        classifier = load_classifier(self.model)
        model = prepared_model(classifier.pretrained(), self.machine)
        classifier.model.to(next(model.parameters()).device)

        def score(_: list[str], signals: list[Float32[np.ndarray, "leads samples"]]) -> pa.Table:
            logits = np.stack([record_logits(classifier, model, signal) for signal in signals])
            shares = probabilities(logits, single=classifier.softmax)
            called = shares >= np.array(classifier.thresholds)
            if classifier.softmax:
                called = shares >= shares.max(1, keepdims=True)
            names = classifier.classes
            columns: dict[str, pa.Array] = {
                f"p_{name}": pa.array(shares[:, i].astype(np.float32))
                for i, name in enumerate(names)
            }
            columns["positive"] = pa.array(
                [[names[i] for i in np.flatnonzero(row)] for row in called], pa.list_(pa.string())
            )
            return pa.table(columns)

        write_scores(self.io, model.config, score)


@torch.no_grad()
def record_logits(
    classifier: TrainedClassifier,
    model: PretrainedECG,
    signal: Float32[np.ndarray, "leads samples"],
) -> Float32[np.ndarray, " classes"]:
    """Logits of a record in mV, averaged over half-overlapping windows.

    A record shorter than a window is one window of whole patches.
    """
    patch = model.config.patch
    size = min(classifier.crop, signal.shape[1] // patch * patch)
    starts = crop_starts(signal.shape[1], size, max(1, size // 2))
    windows = np.stack([signal[:, start : start + size] for start in starts.tolist()])
    device = next(model.parameters()).device
    with model.autocast():
        logits: Tensor = classifier.model(model.normalise(torch.from_numpy(windows).to(device)))
    return logits.float().mean(0).cpu().numpy()

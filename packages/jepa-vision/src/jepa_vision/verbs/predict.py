"""`jepa vision predict`: classify images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import tyro
from scipy.special import softmax

from jepa_core.config import check
from jepa_core.domain import Machine
from jepa_vision.classifier import load_classifier
from jepa_vision.inference import Readout
from jepa_vision.verbs.embed import Input, Prepared, prepared, write_scores


@dataclass(frozen=True)
class Predict:
    """Classify images with a fine-tuned model, streamed: any files, sizes and formats.

    Writes columns id, quality (1, or the image's side over the crop's where it is smaller),
    warnings, prediction, and p_CLASS for every class.
    """

    model: tyro.conf.Positional[str]
    """A run folder of `jepa vision finetune`, or its classifier folder."""
    io: Input
    """Images and output."""
    machine: Machine = Machine()
    """Device, precision, threads."""

    def __post_init__(self) -> None:
        check(self)

    def __call__(self) -> None:
        classifier = load_classifier(self.model, device=self.machine.device)
        model = prepared(classifier.pretrained(), self.machine)

        def score(rows: Sequence[Prepared]) -> pa.Table:
            pooled = model.read(np.stack([row.crop for row in rows]), Readout(pool=True))
            shares = softmax(classifier.logits(pooled), 1)
            names = np.array(classifier.classes)
            columns = {"prediction": pa.array(names[shares.argmax(1)].tolist(), pa.string())}
            for name, share in zip(classifier.classes, shares.T, strict=True):
                columns[f"p_{name}"] = pa.array(share.astype(np.float32))
            return pa.table(columns)

        write_scores(self.io, model, model.crop_size(), score)

"""A classifier on an encoder: one linear map of the mean token, and what scores an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from jepa_core import hub
from jepa_core.config import to_dict
from jepa_core.errors import DataError
from jepa_core.run import refuse_unfinished
from jepa_vision.inference import PretrainedImage
from jepa_vision.model import ImageEncoder
from jepa_vision.presets import PretrainConfig
from jepa_vision.saved import FORMAT, PACKAGE, filled_from, read_recipe


class ImageClassifier(nn.Module):
    """Encoder and a linear map of its mean token; `forward` gives logits.

    Parameters
    ----------
    encoder
        A pre-trained encoder, used in place.
    classes
        Number of outputs.
    seed
        Of the map's initial weights: normal, standard deviation 0.02, bias zero.
    """

    def __init__(self, encoder: ImageEncoder, classes: int, *, seed: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        self.fc = nn.Linear(encoder.config.dim, classes)
        if not self.fc.weight.is_meta:
            generator = torch.Generator().manual_seed(seed)
            nn.init.normal_(self.fc.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.fc.bias)

    def forward(
        self, image: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Logits of normalised images."""
        return self.fc(self.encoder(image).mean(1))


@dataclass(frozen=True)
class TrainedClassifier:
    """A classifier with everything needed to score an image.

    Parameters
    ----------
    model
        Encoder and output map.
    config
        The recipe of the encoder: channel statistics.
    classes
        Names of the outputs.
    device
        Where to compute.
    """

    model: ImageClassifier
    config: PretrainConfig
    classes: tuple[str, ...]
    device: str = "auto"

    def pretrained(self) -> PretrainedImage:
        """The encoder."""
        return PretrainedImage(self.model.encoder, self.config, device=self.device)

    def logits(
        self, pooled: Float32[np.ndarray, "images dim"]
    ) -> Float32[np.ndarray, "images classes"]:
        """Logits from the mean tokens of images."""
        fc = self.model.fc
        with torch.no_grad():
            return fc(torch.from_numpy(pooled).to(fc.weight.device)).cpu().numpy()


def save_classifier(
    folder: str | Path, classifier: TrainedClassifier, extra: Mapping[str, Any] | None = None
) -> Path:
    """Write a classifier as safetensors and JSON."""
    details = {
        "package": PACKAGE,
        "format": FORMAT,
        "recipe": to_dict(classifier.config),
        "classes": list(classifier.classes),
        **(extra or {}),
    }
    return hub.save_encoder(folder, classifier.model.state_dict(), details)


def load_classifier(path: str | Path, *, device: str = "auto") -> TrainedClassifier:
    """A classifier written by `save_classifier`, or by a run of `jepa vision finetune`.

    Raises
    ------
    DataError
        There is no classifier.
    """
    inner = Path(path) / "classifier"
    if not (Path(path) / "encoder").is_dir():
        refuse_unfinished(Path(path), "classifier", "vision")
    details, state = hub.load_encoder(inner if inner.is_dir() else path, PACKAGE)
    classes = tuple(details.get("classes", ()))
    if not classes:
        raise DataError(
            "holds an encoder without a classifier",
            where=path,
            remedy="train one with jepa vision finetune",
        )
    config = read_recipe(details, path)
    model = filled_from(
        state, "", lambda: ImageClassifier(ImageEncoder(config.model), len(classes)), path
    )
    return TrainedClassifier(model, config, classes, device)

"""Ways of training a classifier on an encoder. Only builtin types: the command's help reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from jepa_core.config import Range, check
from jepa_core.errors import ConfigError
from jepa_core.evaluation import FinetuneConfig


@dataclass(frozen=True)
class DownstreamConfig:
    """One way of training a classifier on a pre-trained encoder."""

    freeze: bool = False
    """Train the output map alone."""
    crop_scale: Annotated[tuple[float, float], Range(gt=0, le=1)] = (0.3, 1.0)
    """Least and largest area of a training crop, as a share of the image."""
    flip: Annotated[float, Range(ge=0, le=1)] = 0.5
    """Probability of a horizontal flip."""
    validation_share: Annotated[float, Range(gt=0, lt=1)] = 0.2
    """Share of the training images that chooses the step, where the data have no such split."""
    training: FinetuneConfig = FinetuneConfig()
    """Steps, rates and validation."""

    def __post_init__(self) -> None:
        check(self)
        if self.crop_scale[0] > self.crop_scale[1]:
            raise ConfigError(
                f"crop_scale is {list(self.crop_scale)}", remedy="allowed: the smaller value first"
            )


DOWNSTREAM: dict[str, DownstreamConfig] = {
    "finetune": DownstreamConfig(
        training=FinetuneConfig(
            steps=2000,
            batch=64,
            learning_rate=3e-4,
            final_learning_rate=1e-6,
            warmup=100,
            weight_decay=0.05,
            validate_every=50,
            patience=1000,
        )
    ),
    "frozen": DownstreamConfig(
        freeze=True,
        training=FinetuneConfig(
            steps=2000,
            batch=256,
            learning_rate=3e-3,
            final_learning_rate=1e-5,
            weight_decay=1e-2,
            validate_every=50,
            patience=1000,
        ),
    ),
}

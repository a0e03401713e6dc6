"""What an encoder is worth: probes, fine-tuning, metrics and how sure they are.

Only `FinetuneConfig` lives here, so that a preset can hold one without importing torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from jepa_core.config import Range, check
from jepa_core.errors import ConfigError

Count = Annotated[int, Range(ge=1)]
AtLeastZero = Annotated[float, Range(ge=0)]


@dataclass(frozen=True)
class FinetuneConfig:
    """How a head, or an encoder with its head, is trained on labels.

    The defaults are those of an attentive probe on a frozen encoder.
    """

    steps: Count = 5000
    """Optimiser steps, at most."""
    batch: Count = 128
    """Records in a step; all of them where there are fewer."""
    learning_rate: AtLeastZero = 1e-3
    """Highest learning rate, after the warm-up."""
    final_learning_rate: AtLeastZero = 1e-3
    """Learning rate of the last step; a cosine leads there."""
    warmup: Annotated[int, Range(ge=0)] = 0
    """Steps of linear warm-up."""
    warmup_learning_rate: AtLeastZero = 1e-6
    """Where the warm-up begins."""
    weight_decay: AtLeastZero = 0.1
    """AdamW's, of all but biases, norms and other 1-d parameters."""
    betas: Annotated[tuple[float, float], Range(ge=0, lt=1)] = (0.9, 0.999)
    """AdamW's betas."""
    eps: Annotated[float, Range(gt=0)] = 1e-8
    """AdamW's epsilon."""
    clip_norm: Annotated[float, Range(gt=0)] | None = 1.0
    """Largest norm of the gradient."""
    validate_every: Count = 100
    """Steps between two validations."""
    patience: Count = 5000
    """Steps without a better validation after which training stops."""
    seed: Annotated[int, Range(ge=0)] = 0
    """Seed of the order of records, of views and of what layers draw."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto takes the accelerator if there is one."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 computes under autocast where the device has units for it; weights stay float32."""
    workers: Annotated[int, Range(ge=0)] = 0
    """Processes that fetch batches ahead; 0 fetches in the training process."""

    def __post_init__(self) -> None:
        check(self)
        if self.warmup > self.steps:
            raise ConfigError(f"warmup is {self.warmup}", remedy=f"allowed: <= steps, {self.steps}")

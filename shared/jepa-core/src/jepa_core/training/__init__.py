"""Training: the loop (`fit`), who sees which sample when (`sampler`), what is kept (`checkpoint`).

Only `FitConfig` lives here, so that a preset can hold one without importing torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from jepa_core.config import Range, check

Count = Annotated[int, Range(ge=1)]
AtLeastZero = Annotated[int, Range(ge=0)]


@dataclass(frozen=True)
class FitConfig:
    """How `jepa_core.training.fit.fit` runs; what is trained comes as arguments."""

    steps: Count
    """Optimiser steps."""
    accumulation: Count = 1
    """Parts a process's share of the batch is computed in."""
    seed: AtLeastZero = 0
    """Seed of the draws that layers make while training (dropout)."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto takes the accelerator if there is one."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 computes under autocast where the device has units for it; weights stay float32."""
    threads: AtLeastZero = 0
    """CPU threads; 0 leaves them as they are."""
    workers: AtLeastZero = 0
    """Processes that fetch batches ahead; 0 fetches in the training process."""
    clip_norm: Annotated[float, Range(gt=0)] | None = None
    """Largest norm of the gradient."""
    betas: Annotated[tuple[float, float], Range(ge=0, lt=1)] = (0.9, 0.99)
    """AdamW's betas."""
    eps: Annotated[float, Range(gt=0)] = 1e-6
    """AdamW's epsilon."""
    log_every: Count = 10
    """Steps between two lines of metrics."""
    checkpoint_every: Count = 1000
    """Steps between two checkpoints; the last step always has one."""
    keep: Count = 2
    """Latest checkpoints kept, beside those that the choice without labels may still need."""
    health_every: AtLeastZero = 0
    """Steps between two looks at the health; 0 spaces 50 equally. Every checkpoint has one too."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Trackers that receive the metrics beside metrics.jsonl."""

    def __post_init__(self) -> None:
        check(self)

"""A JEPA small enough for exact tests: float64, ragged masks, EMA target, health."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jepa_core import rng
from jepa_core.ema import EMA
from jepa_core.evaluation import FinetuneConfig
from jepa_core.evaluation.finetune import Finetuned, finetune
from jepa_core.health import Observation
from jepa_core.run import Run
from jepa_core.training import FitConfig
from jepa_core.training.fit import FitResult, fit
from jepa_core.training.sampler import Draw, Epochs

SIZE, TOKENS, CHANNELS, DIM = 50, 6, 5, 8


class Toy(nn.Module):
    """Per-token encoder; the predictor sees the mean of the visible tokens and the position."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(CHANNELS, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, DIM)
        )
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.predictor = nn.Sequential(nn.Linear(DIM + TOKENS, 16), nn.GELU(), nn.Linear(16, DIM))
        self.ema = EMA(self.target_encoder, self.encoder)

    def predict(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Prediction and target, [batch, tokens, dim] each."""
        seen = (~hidden).to(x.dtype).unsqueeze(-1)
        context = (self.encoder(x) * seen).sum(1) / seen.sum(1)
        position = torch.eye(TOKENS, dtype=x.dtype).expand(len(x), -1, -1)
        context = context.unsqueeze(1).expand(-1, TOKENS, -1)
        with torch.no_grad():
            target = self.target_encoder(x)
        return self.predictor(torch.cat([context, position], -1)), target

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        prediction, target = self.predict(batch["x"], batch["hidden"])
        error = (prediction - target).square().mean(-1)[batch["hidden"]]
        return {"loss": error.mean(), "largest": error.detach().max()}

    def after_step(self, step: int) -> None:
        self.ema.update(0.9)

    def observe(self, batch: dict[str, Tensor]) -> Observation:
        prediction, target = self.predict(batch["x"], batch["hidden"])
        positions = torch.arange(TOKENS).expand(len(target), -1)
        return Observation(target, prediction, target, positions)


class Records:
    """Noise with a shared part per record, hidden at 1 to TOKENS - 1 places."""

    def __init__(self, size: int = SIZE, seed: int = 0, dtype: Any = np.float64) -> None:
        generator = np.random.default_rng(7)
        x = generator.normal(size=(size, TOKENS, CHANNELS)) + generator.normal(
            size=(size, 1, CHANNELS)
        )
        self.x, self.seed = x.astype(dtype), seed

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        words = rng.words(self.seed, "toy mask", draw.keys, draw.counters, TOKENS + 1)
        order = np.argsort(words[:, :TOKENS], axis=1)
        hidden = order < 1 + rng.bounded(words[:, TOKENS:], TOKENS - 1)
        return {
            "x": torch.from_numpy(self.x[draw.ids]),
            "hidden": torch.from_numpy(hidden),
            "count": torch.tensor(int(hidden.sum())),
        }


def build(dropout: float = 0.0) -> Toy:
    torch.manual_seed(0)
    return Toy(dropout).double()


def train(
    module: nn.Module | None = None,
    run: Run | None = None,
    *,
    batch: int = 8,
    health: bool = True,
    resume: bool = False,
    source: Any = None,
    rate: float = 1e-2,
    **settings: Any,
) -> tuple[FitResult, nn.Module]:
    """Train the toy; `settings` are those of `FitConfig`."""
    module = build() if module is None else module
    source = Records() if source is None else source
    config = FitConfig(**({"steps": 12, "device": "cpu", "log_every": 1} | settings))
    draw = Draw(0, np.arange(32), np.arange(32), np.zeros(32, dtype=np.int64))
    result = fit(
        module,
        source,
        Epochs(len(source), batch, seed=3),
        config,
        run,
        learning_rate=lambda step: rate * (1 - step / config.steps),
        weight_decay=lambda step: 0.1 + step / config.steps,
        health_batch=Records().batch(draw) if health else None,
        resume=resume,
    )
    return result, module


def tune(folder: Path | None = None, *, resume: bool = False) -> tuple[Finetuned, nn.Module]:
    """Fine-tune the toy; what validation says goes up and down with every bit of the weights."""
    module = build(dropout=0.1)

    def validate() -> float:
        return float(
            torch.cat([p.flatten() for p in module.encoder.parameters()]).sum().mul(99).sin()
        )

    config = FinetuneConfig(steps=50, batch=8, validate_every=1, device="cpu")
    return finetune(module, Records(), validate, config, folder=folder, resume=resume), module


def record(**config: Any) -> dict[str, Any]:
    return {"domain": "toy", "verb": "pretrain", "version": "0", "command": "", "config": config}


def create(path: Path, *, resume: bool = False, **config: Any) -> Run:
    return Run.create(path, record(**config), resume=resume)

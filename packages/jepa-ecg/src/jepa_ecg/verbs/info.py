"""`jepa ecg info`: a preset's sizes and numbers."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from jepa_core.config import check, leaves, to_dict
from jepa_core.report.table import Table
from jepa_ecg.model import ECGJEPA
from jepa_ecg.presets import PretrainConfig


@dataclass(frozen=True)
class Info:
    """A preset's parameter counts, the shapes through its forward pass, and every number of it."""

    preset: str = "vit-xs"
    """Which recipe."""
    json: bool = False
    """Print JSON instead of tables."""
    config: PretrainConfig = PretrainConfig()
    """The recipe; every field of it is a flag."""

    def __call__(self) -> None:
        check(self)
        found: dict[str, Any] = {
            "preset": self.preset,
            "parameters": parameters(self.config),
            "shapes": shapes(self.config),
            "config": to_dict(self.config),
        }
        if self.json:
            print(json.dumps(found, indent=2))
            return
        counts = Table(
            f"{self.preset}: parameters",
            ("part", "parameters"),
            [[name, f"{count:,}"] for name, count in found["parameters"].items()],
        )
        counts.print()
        through = Table(
            "shapes through the forward pass (batch of 4, smallest and largest context)",
            ("tensor", "smallest", "largest"),
            [[name, *map(str, pair)] for name, pair in found["shapes"].items()],
        )
        through.print()
        recipe = Table(
            "recipe",
            ("setting", "value"),
            [[name, str(value)] for name, value in leaves(found["config"])],
        )
        recipe.print()


def parameters(config: PretrainConfig) -> dict[str, int]:
    """Parameter counts per part; no memory is taken for them."""
    with torch.device("meta"):
        jepa = ECGJEPA(config)
    encoder, predictor = jepa.encoder, jepa.predictor

    def count(*parts: nn.Module | nn.Parameter | None) -> int:
        tensors = [
            tensor
            for part in parts
            if part is not None
            for tensor in ([part] if isinstance(part, nn.Parameter) else part.parameters())
        ]
        return sum(tensor.numel() for tensor in tensors)

    return {
        "encoder": count(encoder),
        "encoder: patch embedding": count(encoder.patch_embed),
        "encoder: registers": count(encoder.registers),
        "encoder: blocks": count(encoder.blocks),
        "encoder: norm": count(encoder.norm),
        "predictor": count(predictor),
        "predictor: input map": count(predictor.embed),
        "predictor: mask token": count(predictor.mask_token),
        "predictor: blocks": count(predictor.blocks),
        "predictor: norm": count(predictor.norm),
        "predictor: output map": count(predictor.proj),
        "trained": count(encoder, predictor),
        "target encoder (not trained)": count(jepa.target_encoder),
    }


def shapes(config: PretrainConfig, batch: int = 4) -> dict[str, list[list[int]]]:
    """Shapes of the tensors of one forward pass, with the smallest and the largest context."""
    model = config.model
    tokens, registers = model.tokens, model.registers
    found: dict[str, list[list[int]]] = {}
    for share in config.keep:
        kept = max(1, math.ceil(share * tokens - 1e-9))
        for name, shape in {
            "signal": [batch, len(model.leads), model.samples],
            "patches, target encoder": [batch, tokens, model.dim],
            "patches, context encoder": [batch, kept, model.dim],
            "tokens in a context block": [batch, kept + registers, model.dim],
            "tokens in a predictor block": [batch, tokens, model.predictor_dim],
            "prediction and target": [batch, tokens - kept, model.dim],
        }.items():
            found.setdefault(name, []).append(shape)
    return found

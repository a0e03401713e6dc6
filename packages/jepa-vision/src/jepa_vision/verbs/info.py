"""`jepa vision info`: a preset's sizes and numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from jepa_core.config import check, leaves, to_dict
from jepa_core.report.table import Table
from jepa_vision.masks import MultiBlockMasks
from jepa_vision.model import ImageJEPA
from jepa_vision.presets import PretrainConfig
from jepa_vision.source import mask_sampler

_BATCH = 4
_DRAWN, _STEPS = 64, 32  # images and steps whose masks are measured


@dataclass(frozen=True)
class Info:
    """A preset's parameter counts, shapes and work of its forward pass, and every number of it."""

    preset: str = "nano"
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
            "macs": macs(self.config),
            "config": to_dict(self.config),
        }
        if self.json:
            print(json.dumps(found, indent=2))
            return
        for title, columns, rows in (
            ("parameters", ("part", "parameters"), found["parameters"]),
            (
                f"shapes, batch of {_BATCH}, masks of mean size",
                ("tensor", "shape"),
                found["shapes"],
            ),
            ("multiply-accumulates of one image's forward pass", ("part", "10^6"), found["macs"]),
        ):
            shown = [[name, _text(value, columns[1])] for name, value in rows.items()]
            Table(f"{self.preset}: {title}", columns, shown).print()
        recipe = Table(
            "recipe",
            ("setting", "value"),
            [[name, str(value)] for name, value in leaves(found["config"])],
        )
        recipe.print()


def parameters(config: PretrainConfig) -> dict[str, int]:
    """Parameter counts per part; no memory is taken for them."""
    with torch.device("meta"):
        jepa = ImageJEPA(config, 1)
    encoder, predictor, head = jepa.encoder, jepa.predictor, jepa.head
    table = config.model.grid[0] * config.model.grid[1] * config.model.dim
    found = {
        "encoder": _count(encoder),
        "encoder: patch embedding": _count(encoder.patch_embed),
        "encoder: blocks": _count(encoder.blocks),
        "encoder: norm": _count(encoder.norm),
        "encoder, with its position table": _count(encoder) + table,
        "predictor": _count(predictor),
        "predictor: input map": _count(predictor.embed),
        "predictor: mask token": predictor.mask_token.numel(),
        "predictor: blocks": _count(predictor.blocks),
        "predictor: norm": _count(predictor.norm),
        "predictor: output map": _count(predictor.proj),
        "head": _count(head),
        "trained": _count(encoder) + _count(predictor) + _count(head),
        "target encoder and head (not trained)": _count(jepa.target_encoder)
        + _count(jepa.target_head),
    }
    return found if head is not None else {k: v for k, v in found.items() if k != "head"}


def _count(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def shapes(config: PretrainConfig, batch: int = _BATCH) -> dict[str, list[int]]:
    """Shapes of the tensors of one forward pass, with masks of mean size."""
    model, masks, sizes = config.model, config.masks, mask_sizes(config)
    patches = model.grid[0] * model.grid[1]
    context, target = round(sizes.context), round(sizes.target)
    passes = masks.contexts * batch * (1 if config.joint else masks.targets)
    seen = context + target * (masks.targets if config.joint else 1)
    return {
        "image": [batch, model.channels, *model.image],
        "patches, target encoder": [batch, patches, model.dim],
        "patches, context encoder": [masks.contexts * batch, context, model.dim],
        "tokens in a predictor block": [passes, seen, model.predictor_dim],
        "prediction and target": [masks.targets * masks.contexts * batch, target, model.dim],
        "features of an image": [patches, model.dim],
    }


@dataclass(frozen=True)
class MaskSizes:
    """Mean patches of a context, of a target block, and in any target block of an image."""

    context: float
    target: float
    union: float


def mask_sizes(config: PretrainConfig) -> MaskSizes:
    """Means over the masks of 32 batches of 64 images, as the recipe draws them."""
    patches = config.model.grid[0] * config.model.grid[1]
    found = []
    for step in range(_STEPS):
        context, target = _masks(config, step)
        inside = torch.zeros(_DRAWN, patches)
        inside.scatter_(1, target.transpose(0, 1).flatten(1), 1)
        found.append((context, target.shape[2], float(inside.sum(1).mean())))
    return MaskSizes(*np.mean(found, 0).tolist())


def _masks(config: PretrainConfig, step: int) -> tuple[float, Int64[Tensor, "targets batch m"]]:
    """Mean patches of a context in one batch, and the targets."""
    masks = config.masks
    if masks.compat == "official":
        generator = torch.Generator().manual_seed(step)
        sampler = MultiBlockMasks(config.model.grid, masks)
        contexts, targets = sampler.sample(_DRAWN, step, generator)
        return float(np.mean([context.shape[1] for context in contexts])), torch.stack(targets)
    sets, target = mask_sampler(config)(np.arange(_DRAWN), step, step=step, seed=0)
    lengths = torch.stack([one.lengths for one in sets])
    return float(lengths.float().mean()), target


def macs(config: PretrainConfig) -> dict[str, int]:
    """Multiply-accumulates of one image's forward pass, with masks of mean size."""
    model, masks, sizes = config.model, config.masks, mask_sizes(config)
    patches = model.grid[0] * model.grid[1]
    dim, width = model.dim, model.predictor_dim
    embed = model.channels * model.patch**2 * dim
    passes = masks.contexts * (1 if config.joint else masks.targets)
    tokens = sizes.context + sizes.target * (masks.targets if config.joint else 1)
    found = {
        "target encoder": patches * embed + model.depth * _block(patches, dim, model.mlp_ratio),
        "context encoder": masks.contexts
        * (sizes.context * embed + model.depth * _block(sizes.context, dim, model.mlp_ratio)),
        "predictor": passes
        * (2 * tokens * dim * width + model.predictor_depth * _block(tokens, width, 4.0)),
    }
    if config.method == "dmt-jepa" and config.dmt.aggregator == "head":
        # Of both blocks: keys and values of every patch; the first query's maps once an image, or
        # for each patch that is asked for; all else for those patches.
        first = 3 if config.dmt.query == "mean" else 3 * sizes.union
        found["target head"] = (4 * patches + first + 21 * sizes.union) * dim**2
        found["context head"] = masks.contexts * 20 * sizes.context * dim**2
    return {name: round(value) for name, value in found.items()}


def _block(tokens: float, dim: int, mlp_ratio: float) -> float:
    maps = 4 * dim + 2 * int(dim * mlp_ratio)
    return tokens * dim * maps + 2 * tokens**2 * dim


def _text(value: Any, unit: str) -> str:
    if unit == "10^6":
        return f"{value / 1e6:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)

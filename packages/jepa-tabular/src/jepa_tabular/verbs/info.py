"""`jepa tabular info`: a preset's sizes and numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn

from jepa_core.config import Range, check, leaves, to_dict
from jepa_core.errors import ConfigError
from jepa_core.report.table import Table
from jepa_tabular.masks import MaskSampler, count_bounds
from jepa_tabular.model import TJEPA
from jepa_tabular.presets import PretrainConfig, TableShape
from jepa_tabular.verbs.pretrain import fit_preprocessor, read_columns


@dataclass(frozen=True)
class Info:
    """A preset's parameter counts, the shapes through its forward pass, and every number of it.

    Counts and shapes depend on the table: give a file with --data, or say with --columns and
    with --cardinalities what it looks like. Without either it has 54 numerical columns, as jannis.
    """

    preset: str = "nano"
    """Which recipe."""
    data: Path | None = None
    """A table to take the shape from."""
    label: str = ""
    """A column of the file that is no feature."""
    ignore: tuple[str, ...] = ()
    """More columns that are no features."""
    categorical: tuple[str, ...] = ()
    """Columns of numbers that are categories, in addition to texts, booleans and dictionaries."""
    columns: Annotated[int, Range(ge=1)] = 54
    """Feature columns, categorical ones included."""
    cardinalities: tuple[Annotated[int, Range(ge=1)], ...] = ()
    """Codes of each categorical column; the others are numerical."""
    json: bool = False
    """Print JSON instead of tables."""
    config: PretrainConfig = PretrainConfig()
    """The recipe; every field of it is a flag."""

    def __call__(self) -> None:
        check(self)
        shape = self._shape()
        found: dict[str, Any] = {
            "preset": self.preset,
            "table": to_dict(shape),
            "parameters": parameters(self.config, shape),
            "shapes": shapes(self.config, shape),
            "config": to_dict(self.config),
        }
        if self.json:
            print(json.dumps(found, indent=2))
            return
        kinds = f"{len(shape.numeric)} numerical and {len(shape.categorical)} categorical columns"
        counts = Table(
            f"{self.preset}: parameters for {kinds}",
            ("part", "parameters"),
            [[name, f"{count:,}"] for name, count in found["parameters"].items()],
        )
        counts.print()
        through = Table(
            "shapes through the forward pass (batch of 4, fewest and most columns)",
            ("tensor", "fewest", "most"),
            [[name, *map(str, pair)] for name, pair in found["shapes"].items()],
        )
        through.print()
        recipe = Table(
            "recipe",
            ("setting", "value"),
            [[name, str(value)] for name, value in leaves(found["config"])],
        )
        recipe.print()

    def _shape(self) -> TableShape:
        if self.data is None:
            numeric = self.columns - len(self.cardinalities)
            if numeric < 0:
                raise ConfigError(
                    f"cardinalities has {len(self.cardinalities)} numbers",
                    remedy=f"allowed: one a categorical column, of {self.columns} columns",
                )
            places = tuple(range(numeric, self.columns))
            return TableShape(self.columns, places, self.cardinalities)
        found = read_columns(self.data, label=self.label, ignore=self.ignore)
        fitted = fit_preprocessor(found.frame, self.config, categorical=self.categorical)
        return fitted.shape_


def parameters(config: PretrainConfig, shape: TableShape) -> dict[str, int]:
    """Parameter counts per part; no memory is taken for them.

    Under compat official also what the official program's checkpoints hold and never use: a layer
    that the others were copied from, and a norm of the predictor.
    """
    with torch.device("meta"):
        jepa = TJEPA(config, shape)
    encoder, predictor = jepa.encoder, jepa.predictor
    found = {"encoder": _count([encoder])}
    found |= _parts("encoder", encoder)
    found["predictor"] = _count([predictor])
    found |= _parts("predictor", predictor)
    found["trained"] = found["encoder"] + found["predictor"]
    found["target encoder (not trained)"] = _count([jepa.target_encoder])
    if config.model.official:
        layer, other = _count([encoder.blocks[0]]), _count([predictor.blocks[0]])
        norm = 2 * config.model.predictor_dim
        found["official encoder, with its unused layer"] = found["encoder"] + layer
        found["official predictor, with its unused layer and norm"] = (
            found["predictor"] + other + norm
        )
    return found


def _parts(name: str, module: nn.Module) -> dict[str, int]:
    own = [p for _, p in module.named_parameters(recurse=False)]
    parts = {
        f"{name}: {child}": _count([part])
        for child, part in module.named_children()
        if _count([part])
    }
    if own:
        parts[f"{name}: vectors of its own"] = sum(p.numel() for p in own)
    return parts


def _count(modules: Iterable[nn.Module]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def shapes(config: PretrainConfig, shape: TableShape, batch: int = 4) -> dict[str, list[list[int]]]:
    """Shapes of the tensors of one forward pass, with the fewest and the most columns in masks."""
    model, masks = config.model, config.targets
    registers = 0 if config.compat == "official" else model.registers
    tokens = model.registers + shape.columns
    MaskSampler(shape.columns, config.context, config.target)  # refuses shares without columns
    low_c, high_c, low_t, high_t = count_bounds(shape.columns, config.context, config.target)
    found: dict[str, list[list[int]]] = {}
    for seen, asked in ((low_c, low_t), (high_c, min(high_t, shape.columns - high_c))):
        for name, size in {
            "rows": [batch, shape.columns],
            "tokens, target encoder": [batch, tokens, model.dim],
            "tokens, context encoder": [batch, seen + registers, model.dim],
            "tokens in the predictor": [
                masks * batch,
                seen + registers + asked,
                model.predictor_dim,
            ],
            "prediction and target": [masks, batch, asked, model.dim],
            "representation of the rows": [batch, tokens * model.dim],
        }.items():
            found.setdefault(name, []).append(size)
    return found

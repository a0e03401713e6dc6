"""Transformer layers, named as the field names them, and their initialisation."""

from __future__ import annotations

from jepa_core.layers.block import (
    Block,
    LayerScale,
    PostNormBlock,
    init_weights,
    take_rows,
)
from jepa_core.layers.patches import PatchEmbed1d, PatchEmbed2d
from jepa_core.layers.positions import sincos_1d, sincos_2d
from jepa_core.layers.predictor import Predictor
from jepa_core.layers.vit import ViT

__all__ = [
    "Block",
    "LayerScale",
    "PatchEmbed1d",
    "PatchEmbed2d",
    "PostNormBlock",
    "Predictor",
    "ViT",
    "init_weights",
    "sincos_1d",
    "sincos_2d",
    "take_rows",
]

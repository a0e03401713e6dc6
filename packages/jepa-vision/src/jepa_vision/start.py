"""Weights to begin pre-training with: those of an encoder that saw other images."""

from __future__ import annotations

from torch import nn

from jepa_core.errors import ConfigError
from jepa_vision.checkpoints import load_official
from jepa_vision.inference import OFFICIAL, load
from jepa_vision.model import ImageJEPA
from jepa_vision.presets import ModelConfig, PretrainConfig
from jepa_vision.pretrain import untrained

# Shapes of the encoder's weights; positions are computed for any image.
_ENCODER = ("patch", "channels", "dim", "depth", "heads", "mlp_ratio")


def started(place: str, config: PretrainConfig, *, seed: int, steps: int) -> ImageJEPA:
    """The module with the weights of an encoder that was trained before.

    The encoder and its average begin alike, as they do in any training, but where the place holds
    both. What it does not hold (a predictor, a head) begins untrained.

    Parameters
    ----------
    place
        A run, an encoder folder, a hub id or an official checkpoint.
    config
        The recipe; must have the shapes of the encoder.

    Raises
    ------
    ConfigError
        Another shape; names the setting and both values.
    DataError
        No encoder is there.
    """
    jepa = untrained(config, seed, steps)
    if place.endswith(OFFICIAL):
        official = load_official(place, heads=config.model.heads)
        _must_fit(official.model, config.model, place)
        parts: list[tuple[nn.Module | None, nn.Module | None]] = [
            (jepa.encoder, official.encoder),
            (jepa.target_encoder, official.target_encoder),
            (jepa.predictor, official.predictor),
            (jepa.head, official.head),
            (jepa.target_head, official.target_head),
        ]
    else:
        found = load(place, device="cpu")
        _must_fit(found.model, config.model, place)
        parts = [
            (jepa.encoder, found.encoder),
            (jepa.target_encoder, found.encoder),
            (jepa.head, found.head),
            (jepa.target_head, found.head),
        ]
    for ours, theirs in parts:
        if ours is not None and theirs is not None and _alike(ours, theirs):
            ours.load_state_dict(theirs.state_dict())
    return jepa


def _must_fit(theirs: ModelConfig, ours: ModelConfig, place: str) -> None:
    for name in _ENCODER:
        there, here = getattr(theirs, name), getattr(ours, name)
        if there != here and not (name == "mlp_ratio" and abs(there - here) < 1e-9):
            raise ConfigError(
                f"{name} is {there} there and {here} in the recipe",
                where=place,
                remedy=f"set --{name.replace('_', '-')} {there}",
            )


def _alike(ours: nn.Module, theirs: nn.Module) -> bool:
    shapes = [
        {name: value.shape for name, value in part.state_dict().items()} for part in (ours, theirs)
    ]
    return shapes[0] == shapes[1]

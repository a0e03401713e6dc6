"""Models from foreign weights: which shapes they are of, and whether they are whole."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from jepa_core import hub
from jepa_core.errors import ConfigError, DataError
from jepa_core.layers.positions import sincos_2d
from jepa_vision.model import ImageEncoder
from jepa_vision.presets import SIZES, AugmentConfig, MaskConfig, ModelConfig, PretrainConfig

_M = TypeVar("_M", bound=nn.Module)

HEADS = {size.dim: size.heads for size in SIZES.values()}

# Averaging moves the stored table of a target encoder by 1e-5 in 20 000 steps.
_DRIFT = 1e-2


def shapes(
    encoder: Mapping[str, Tensor],
    predictor: Mapping[str, Tensor] | None = None,
    *,
    heads: int | None = None,
    image: tuple[int, int] | None = None,
) -> ModelConfig:
    """The model that weights are of.

    Parameters
    ----------
    encoder, predictor
        Weights under our names, with `pos_embed`; those of the predictor under the official ones.
    heads
        What weights do not show; None takes the heads of the published size of this width.
    image
        Height and width of the training images; None takes a square from `pos_embed`.

    Raises
    ------
    DataError
        A tensor that shows a shape is missing, or the table of positions is no square's.
    ConfigError
        The width is of no published size and `heads` is not given, or does not divide it.
    """
    kernel = _tensor(encoder, "patch_embed.proj.weight", 4)
    dim, channels, patch, _ = kernel.shape
    hidden = len(_tensor(encoder, "blocks.0.mlp.fc1.weight", 2))
    if heads is None and dim not in HEADS:
        raise ConfigError(
            f"an encoder of width {dim} is of no published size, and weights do not show heads",
            remedy="give the number of heads",
        )
    if image is None:
        patches = _tensor(encoder, "pos_embed", 3).shape[1]
        side = math.isqrt(patches)
        if side * side != patches:
            raise DataError(
                f"the position table has {patches} places, which is no square",
                remedy="give height and width of the image",
            )
        image = side * patch, side * patch
    found: dict[str, Any] = {}
    if predictor is not None:
        found["predictor_dim"] = len(_tensor(predictor, "predictor_embed.weight", 2))
        found["predictor_depth"] = depth(predictor, "predictor_blocks")
    return ModelConfig(
        image=(image[0], image[1]),
        patch=patch,
        channels=channels,
        dim=dim,
        depth=depth(encoder, "blocks"),
        heads=heads or HEADS[dim],
        mlp_ratio=_ratio(hidden, dim),
        residual_scale="none",
        **found,
    )


def foreign_recipe(model: ModelConfig, *, dmt: bool) -> PretrainConfig:
    """The recipe of an encoder of which its weights alone are known.

    Channel statistics are ImageNet's; of other than three channels 0.5, to be replaced.
    """
    augment = AugmentConfig()
    if model.channels != len(augment.mean):
        half = (0.5,) * model.channels
        augment = AugmentConfig(mean=half, std=half)
    return PretrainConfig(
        method="dmt-jepa" if dmt else "i-jepa",
        model=model,
        masks=MaskConfig(min_keep=0),
        augment=augment,
    )


def depth(state: Mapping[str, Tensor], blocks: str) -> int:
    """How many blocks there are under this name."""
    numbers = [int(m[1]) for name in state if (m := re.match(rf"{blocks}\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1


def filled(
    build: Callable[[], _M],
    state: Mapping[str, Tensor],
    table: Mapping[str, str] | None = None,
    ignore: Iterable[str] = (),
) -> _M:
    """A module with these weights, in float32 and in evaluation mode.

    Parameters
    ----------
    build
        Makes the module; its initial weights are never drawn.
    table, ignore
        As in `jepa_core.hub.rename_keys`.

    Raises
    ------
    DataError
        Listing missing, unexpected and misshapen tensors.
    """
    with torch.device("meta"):
        module = build()
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = hub.rename_keys(state, table or {}, expected, ignore)
    module.load_state_dict({name: value.float() for name, value in found.items()}, assign=True)
    return module.eval()


def filled_encoder(model: ModelConfig, state: Mapping[str, Tensor]) -> ImageEncoder:
    """An encoder from weights under our names; a position table among them is compared."""
    check_positions("pos_embed", state, model.grid, model.dim)
    return filled(lambda: ImageEncoder(model), state, ignore=[r"^pos_embed$"])


def check_positions(
    name: str, state: Mapping[str, Tensor], grid: tuple[int, int], dim: int
) -> None:
    """Refuse a position table other than the one that is computed; one need not be there.

    Raises
    ------
    DataError
        Saying how far it is off.
    """
    table = state.get(name)
    if table is None:
        return
    ours = sincos_2d(*grid, dim)
    if table.shape != (1, *ours.shape):
        raise DataError(f"{name} is {tuple(table.shape)}, and the grid {grid[0]} x {grid[1]}")
    off = float((table[0].float() - ours).abs().max())
    if not off <= _DRIFT:
        raise DataError(
            f"{name} is another table than sines and cosines of column and row: up to {off:.2g} "
            "apart",
            remedy="encoders with learned or resized positions cannot be loaded",
        )


def _tensor(state: Mapping[str, Tensor], name: str, ndim: int) -> Tensor:
    if name not in state or state[name].ndim != ndim:
        raise DataError(f"the weights do not fit: missing: {name} of {ndim} dimensions")
    return state[name]


def _ratio(hidden: int, dim: int) -> float:
    """The ratio that gives this width again when it is multiplied and cut."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)

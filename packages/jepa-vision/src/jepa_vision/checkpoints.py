"""Other programs' weights: the official I-JEPA checkpoints and transformers' `IJepaModel`.

Both hold the position table, which is computed here: it is compared and left out. Files are read
without running anything in them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_core import hub
from jepa_core.errors import ConfigError, DataError, RunError
from jepa_core.layers.positions import sincos_2d
from jepa_vision.head import AggregationHead
from jepa_vision.model import ImageEncoder, ImageJEPA, ImagePredictor
from jepa_vision.presets import ModelConfig, PretrainConfig
from jepa_vision.weights import (
    check_positions,
    filled,
    filled_encoder,
    foreign_recipe,
    shapes,
)

_PREDICTOR = {r"^predictor_(embed|blocks|norm|proj)\.": r"\1."}
_HEAD = {r"^cls_blocks\.": "blocks.", r"^(blocks\.\d+)\.attn\.(q|k|v|proj)\.": r"\1.\2."}

# What transformers calls the parts of a block, in files written since version 5 and before.
_BLOCK = {
    "norm1": ("layernorm_before", "layernorm_before"),
    "attn.q": ("attention.q_proj", "attention.attention.query"),
    "attn.k": ("attention.k_proj", "attention.attention.key"),
    "attn.v": ("attention.v_proj", "attention.attention.value"),
    "attn.qkv": ("attention.qkv", "attention.attention.qkv"),
    "attn.proj": ("attention.o_proj", "attention.output.dense"),
    "norm2": ("layernorm_after", "layernorm_after"),
    "mlp.fc1": ("mlp.fc1", "intermediate.dense"),
    "mlp.fc2": ("mlp.fc2", "output.dense"),
}
_TRANSFORMERS = {
    r"^ijepa\.": "",
    r"^(?:encoder\.layer|layers)\.(\d+)\.": r"blocks.\1.",
    **{
        rf"^(blocks\.\d+)\.(?:{'|'.join(map(re.escape, theirs))})\.": rf"\1.{ours}."
        for ours, theirs in _BLOCK.items()
    },
    r"^embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
    r"^embeddings\.position_embeddings$": "pos_embed",
    r"^layernorm\.": "norm.",
}
# A classifier's output map, a pooler and a mask token are of no use to an encoder.
_DEAD = (r"^classifier\.", r"^(?:ijepa\.)?pooler\.", r"\bmask_token$")


@dataclass(frozen=True)
class OfficialCheckpoint:
    """What an official checkpoint holds.

    Parameters
    ----------
    encoder, target_encoder
        The trained one, and its average: the one to use.
    predictor
        None where the file has none.
    head, target_head
        DMT-JEPA's aggregation head and its average; None where the file has none: the official
        program does not save them.
    epoch
        Passes done, as the file says; 0 where it does not.
    """

    encoder: ImageEncoder
    target_encoder: ImageEncoder
    predictor: ImagePredictor | None
    head: AggregationHead | None
    target_head: AggregationHead | None
    epoch: int

    @property
    def model(self) -> ModelConfig:
        """Shapes; those of a predictor that is not there are the defaults."""
        return self.encoder.config

    @property
    def recipe(self) -> PretrainConfig:
        """A recipe with this model; the file says nothing of any other number."""
        return foreign_recipe(self.model, dmt=self.target_head is not None)


def load_official(path: str | Path, *, heads: int | None = None) -> OfficialCheckpoint:
    """Read a checkpoint of the official programs (`.pth.tar`), I-JEPA's or DMT-JEPA's.

    Parameters
    ----------
    heads
        Attention heads, which weights do not show; None takes those of the published size of this
        width.

    Raises
    ------
    DataError
        The file is no such checkpoint; missing, unexpected and misshapen tensors are listed. Its
        position table is another one.
    ConfigError
        The width is no published one and `heads` is not given, or does not divide it.
    """
    content = hub.read_torch_weights(path)
    parts = {
        str(name): {re.sub(r"^module\.", "", key): value for key, value in part.items()}
        for name, part in (content.items() if isinstance(content, Mapping) else ())
        if isinstance(part, Mapping) and part and all(torch.is_tensor(v) for v in part.values())
    }
    average = parts.get("target_encoder") or parts.get("encoder")
    if average is None:
        raise DataError(
            "is no official I-JEPA checkpoint",
            where=path,
            remedy="expected a dict with 'encoder', 'predictor' and 'target_encoder'",
        )
    try:
        predictor = parts.get("predictor")
        model = shapes(average, predictor, heads=heads)
        target_encoder = filled_encoder(model, average)
        encoder = filled_encoder(model, parts["encoder"]) if "encoder" in parts else target_encoder
        found = {name: _head(model, part) for name, part in parts.items() if _is_head(part)}
        averages = [name for name in found if "target" in name]
        online = [name for name in found if name not in averages]
        return OfficialCheckpoint(
            encoder,
            target_encoder,
            None if predictor is None else _predictor(model, predictor),
            found[(online or averages)[0]] if found else None,
            found[(averages or online)[0]] if found else None,
            int(content.get("epoch") or 0),
        )
    except DataError as error:
        raise DataError(error.what, where=path, remedy=error.remedy) from None
    except ConfigError as error:
        raise ConfigError(error.what, where=path, remedy=error.remedy) from None


def save_official(path: str | Path, jepa: ImageJEPA, *, epoch: int = 0) -> None:
    """Write a checkpoint that the official programs can evaluate: weights, no optimiser state.

    DMT-JEPA's heads go beside what the official program saves, as `head` and `target_head`.

    Raises
    ------
    ConfigError
        The grid is not square, or a head has no official form.
    RunError
        The file cannot be written.
    """
    model = jepa.config.model
    if model.grid[0] != model.grid[1]:
        raise ConfigError(
            f"image is {list(model.image)}", remedy="the official programs know squares only"
        )
    content: dict[str, Any] = {
        "encoder": _official_encoder(jepa.encoder),
        "predictor": _official_predictor(jepa.predictor),
        "target_encoder": _official_encoder(jepa.target_encoder),
    }
    for name, head in (("head", jepa.head), ("target_head", jepa.target_head)):
        if isinstance(head, AggregationHead):
            content[name] = _official_head(head)
        elif head is not None:
            raise ConfigError("the paper's head has no official form", remedy="export the encoder")
    content |= {"epoch": epoch, "batch_size": jepa.config.batch_size, "world_size": 1}
    path = Path(path)
    beside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            torch.save(content, file)
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise RunError(
            f"cannot be written: {error}", where=path, remedy="check free space and permissions"
        ) from error


def to_transformers(encoder: ImageEncoder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and state dict of transformers' `IJepaModel` (version 5) with these weights."""
    model = encoder.config
    rows, cols = model.image
    config = {
        "architectures": ["IJepaModel"],
        "model_type": "ijepa",
        "hidden_size": model.dim,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": int(model.dim * model.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": 1e-6,  # transformers' own default is 1e-12
        "image_size": rows if rows == cols else [rows, cols],
        "patch_size": model.patch,
        "num_channels": model.channels,
        "qkv_bias": True,
    }
    return config, _transformers_state(encoder, 0)


def save_transformers(
    folder: str | Path, encoder: ImageEncoder, mean: Iterable[float], std: Iterable[float]
) -> Path:
    """Write a folder for `IJepaModel.from_pretrained`, with the preprocessing of its images.

    Weights have the names of transformers 4.47, which version 5 reads too.

    Parameters
    ----------
    mean, std
        Of each channel, 0..1.

    Raises
    ------
    RunError
        It cannot be written.
    """
    config, _ = to_transformers(encoder)
    rows, cols = encoder.config.image
    preprocessing = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": rows, "width": cols},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    return hub.save_encoder(
        folder,
        _transformers_state(encoder, 1),
        {"package": "transformers", **config},
        {"preprocessor_config.json": preprocessing},
    )


def from_transformers(
    source: str | Path | Mapping[str, Tensor],
    *,
    heads: int | None = None,
    image: tuple[int, int] | None = None,
) -> ImageEncoder:
    """An encoder from weights of transformers' `IJepaModel`, of any version of it.

    Parameters
    ----------
    source
        A folder of `save_pretrained` (or a download), a `.safetensors` file, or a state dict.
    heads
        Attention heads; None takes them from the folder's config.json, or those of the published
        size of this width.
    image
        Height and width of the training images; None takes the config's, or a square.

    Raises
    ------
    DataError, ConfigError
        As `load_official`.
    """
    if isinstance(source, Mapping):
        return _from_transformers(source, heads, image)
    path = Path(source)
    files, config = [path], {}
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise DataError("holds no .safetensors file", where=path)
        config = _config(path / hub.CONFIG)
    state: dict[str, Tensor] = {}
    for file in files:
        state |= hub.read_safetensors(file)
    size = config.get("image_size")
    sides = (size, size) if isinstance(size, int) else tuple(size) if size else None
    try:
        return _from_transformers(state, heads or config.get("num_attention_heads"), image or sides)
    except DataError as error:
        raise DataError(error.what, where=path, remedy=error.remedy) from None
    except ConfigError as error:
        raise ConfigError(error.what, where=path, remedy=error.remedy) from None


def _transformers_state(encoder: ImageEncoder, generation: int) -> dict[str, Tensor]:
    """Weights under the names of version 5 (0) or of the versions before (1)."""
    model = encoder.config
    state = {"embeddings.position_embeddings": sincos_2d(*model.grid, model.dim)[None]}
    for name, value in _split_qkv(encoder.state_dict()).items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
        if block:
            stack = ("layers", "encoder.layer")[generation]
            name = f"{stack}.{block[1]}.{_BLOCK[block[2]][generation]}.{block[3]}"
        else:
            name = re.sub(r"^norm\.", "layernorm.", name)
            name = name.replace("patch_embed.proj.", "embeddings.patch_embeddings.projection.")
        state[name] = value
    return state


def _from_transformers(
    state: Mapping[str, Tensor], heads: int | None, image: tuple[int, int] | None
) -> ImageEncoder:
    renamed = {}
    for key, value in state.items():
        if any(re.search(pattern, key) for pattern in _DEAD):
            continue
        name = key
        for pattern, replacement in _TRANSFORMERS.items():
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    joined = _join_qkv(renamed)
    return filled_encoder(shapes(joined, heads=heads, image=image), joined)


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DataError(f"not valid JSON: {error}", where=path) from None
    if not isinstance(config, dict) or config.get("model_type", "ijepa") != "ijepa":
        raise DataError("is not of an I-JEPA model", where=path)
    if config.get("hidden_act", "gelu") != "gelu":
        raise DataError(f"hidden_act is {config['hidden_act']}", where=path, remedy="allowed: gelu")
    return config


# ---- the official names


def _predictor(model: ModelConfig, state: Mapping[str, Tensor]) -> ImagePredictor:
    check_positions("predictor_pos_embed", state, model.grid, model.predictor_dim)
    predictor = filled(
        lambda: ImagePredictor(model), state, _PREDICTOR, ignore=[r"^predictor_pos_embed$"]
    )
    predictor.positions = sincos_2d(*model.grid, model.predictor_dim)
    return predictor


def _is_head(state: Mapping[str, Tensor]) -> bool:
    return any(name.startswith("cls_blocks.") for name in state)


def _head(model: ModelConfig, state: Mapping[str, Tensor]) -> AggregationHead:
    return filled(lambda: AggregationHead(model.dim, model.heads), state, _HEAD)


def _official_encoder(encoder: ImageEncoder) -> dict[str, Tensor]:
    model = encoder.config
    return _module({"pos_embed": sincos_2d(*model.grid, model.dim)[None]} | encoder.state_dict())


def _official_predictor(predictor: ImagePredictor) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {"predictor_pos_embed": predictor.positions[None]}
    for name, value in predictor.state_dict().items():
        state[name if name == "mask_token" else f"predictor_{name}"] = value
    return _module(state)


def _official_head(head: AggregationHead) -> dict[str, Tensor]:
    state = {}
    for name, value in head.state_dict().items():
        name = re.sub(r"^(blocks\.\d+)\.(q|k|v|proj)\.", r"\1.attn.\2.", name)
        state[re.sub(r"^blocks\.", "cls_blocks.", name)] = value
    return _module(state)


def _module(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under the prefix that the wrapper for several processes gives names."""
    return {f"module.{name}": value.detach().cpu().clone() for name, value in state.items()}


# ---- queries, keys and values, in one map or three


def _split_qkv(state: Mapping[str, Float[Tensor, "..."]]) -> dict[str, Tensor]:
    found = {}
    for name, value in state.items():
        if ".attn.qkv." in name:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                found[name.replace(".qkv.", f".{letter}.")] = part.clone()
        else:
            found[name] = value.clone()
    return found


def _join_qkv(state: Mapping[str, Float[Tensor, "..."]]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        apart = re.fullmatch(r"(blocks\.\d+\.attn)\.([qkv])\.(weight|bias)", name)
        if apart:
            parts.setdefault(f"{apart[1]}.qkv.{apart[3]}", {})[apart[2]] = value
        else:
            found[name] = value
    for name, three in parts.items():
        if missing := [letter for letter in "qkv" if letter not in three]:
            lacks = ", ".join(name.replace(".qkv.", f".{letter}.") for letter in missing)
            raise DataError(f"the weights do not fit: missing: {lacks}")
        found[name] = torch.cat([three[letter] for letter in "qkv"])
    return found

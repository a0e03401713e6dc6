"""Checkpoints of the official program (jose-melo/t-jepa): import and export.

A file `epoch_<n>.pth` holds a dict with `context_encoder`, `target_encoder`, `predictor` and the
state of the training. Neither sizes that no weight shows (heads, activations) nor the columns'
kinds are in it: they come as arguments. Files are read with weights-only unpickling.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jepa_core import hub
from jepa_core.errors import DataError
from jepa_tabular.model import TJEPA, position_table, predictor_position_table
from jepa_tabular.presets import ModelConfig, PretrainConfig, TableShape

Activation = Literal["relu", "gelu"]

_LAYER = {
    r"\.self_attn\.in_proj_": ".attn.qkv.",
    r"\.self_attn\.out_proj\.": ".attn.proj.",
    r"\.linear([12])\.": r".mlp.fc\1.",
}
_ENCODER = {
    r"^encoder\.transformer\.layers\.": "blocks.",
    r"^encoder\.fc\.": "head.fc.",
    r"^encoder\.layernorm([12])\.": r"head.norm\1.",
    r"^feature_type_embedding\.weight$": "type_embedding",
    **_LAYER,
}
_PREDICTOR = {
    r"^transformer\.transformer\.layers\.": "blocks.",
    r"^transformer\.fc\.": "head.fc.",
    r"^transformer\.layernorm([12])\.": r"head.norm\1.",
    r"^predictor_emb\.": "embed.",
    r"^predictor_norm\.": "norm.",
    r"^predictor_proj\.": "proj.",
    **_LAYER,
}
# Fixed tables, and what the program registers and never uses.
_DEAD = (r"^pe\.pe$", r"transformer_layers\.", r"^layer_norm\.", r"^predictor_pos_embed$")
_PARTS = ("context_encoder", "target_encoder", "predictor")
# Rows of the encoder's table of positions in the file.
_POSITIONS = 5000


def load_state(
    checkpoint: Mapping[str, Any],
    *,
    num_idx: Sequence[int],
    cardinalities: Iterable[tuple[int, int]] = (),
    heads: int,
    pred_heads: int,
    act: Activation = "relu",
    pred_act: Activation = "relu",
    n_reg: int = 1,
    where: object = "",
) -> TJEPA:
    """The module of an official checkpoint, an official model.

    Parameters
    ----------
    checkpoint
        The dict of the file, or its three state dicts; names may start with "module.".
    num_idx
        Positions of the numerical columns in the table.
    cardinalities
        (position, number of codes) of each categorical column.
    heads, pred_heads, act, pred_act, n_reg
        Attention heads, activations ("relu" or "gelu") and number of [REG] tokens.
    where
        The file, for messages.

    Raises
    ------
    DataError
        A part or a weight is missing, left over, or of another shape than the arguments say.
    """
    missing = [part for part in _PARTS if not isinstance(checkpoint.get(part), Mapping)]
    if missing:
        raise DataError(f"holds no {', '.join(missing)}", where=where)
    parts = {
        part: {name.removeprefix("module."): value for name, value in checkpoint[part].items()}
        for part in _PARTS
    }
    encoder, predictor = parts["context_encoder"], parts["predictor"]
    categorical = sorted((int(position), int(codes)) for position, codes in cardinalities)
    shape = TableShape(
        columns=len(num_idx) + len(categorical),
        categorical=tuple(position for position, _ in categorical),
        cardinalities=tuple(codes for _, codes in categorical),
    )
    if list(shape.numeric) != sorted(int(i) for i in num_idx):
        raise DataError(
            f"numerical columns {list(num_idx)} and categorical columns "
            f"{list(shape.categorical)} are not all of {shape.columns}",
            where=where,
        )
    try:
        model = ModelConfig(
            dim=encoder["tokenizer.weight"].shape[1],
            depth=_depth(encoder, "encoder.transformer.layers."),
            heads=heads,
            hidden=encoder["encoder.transformer.layers.0.linear1.weight"].shape[0],
            activation=act,
            predictor_dim=predictor["mask_token"].shape[-1],
            predictor_depth=_depth(predictor, "transformer.transformer.layers."),
            predictor_heads=pred_heads,
            predictor_hidden=predictor["transformer.transformer.layers.0.linear1.weight"].shape[0],
            predictor_activation=pred_act,
            registers=n_reg,
            position_scale=1.0,
            type_embedding="feature_type_embedding.weight" in encoder,
            init="normal",
            target_scale="plain",
            official=True,
        )
    except KeyError as error:
        raise DataError(f"holds no weight {error.args[0]}", where=where) from None
    module = TJEPA(PretrainConfig(model=model, compat="official"), shape)
    _load(module.encoder, parts["context_encoder"], _ENCODER, shape)
    _load(module.target_encoder, parts["target_encoder"], _ENCODER, shape)
    _load(module.predictor, predictor, _PREDICTOR, shape)
    return module.eval()


def read_checkpoint(path: str | Path, **arguments: Any) -> TJEPA:
    """`load_state` of a file.

    Raises
    ------
    DataError
        Also where the file is no file of torch weights, or holds more.
    """
    content = hub.read_torch_weights(path)
    if not isinstance(content, Mapping):
        raise DataError("is no official checkpoint: it holds no dict", where=path)
    return load_state(content, where=path, **arguments)


def dump_state(module: TJEPA) -> dict[str, dict[str, Tensor]]:
    """The three state dicts of the official program; what it never uses is filled with zeros.

    Raises
    ------
    DataError
        The module has what the official one cannot hold: tokens for missing numbers, a predictor
        without the official head, or positions of another size.
    """
    model = module.config.model
    if module.shape.missing or not model.official or model.position_scale != 1.0:
        raise DataError(
            "only an official model with position_scale 1 and no missing numbers "
            "can be written in the official layout"
        )
    width, hidden = model.dim, model.hidden
    encoders = {}
    for part, encoder in (
        ("context_encoder", module.encoder),
        ("target_encoder", module.target_encoder),
    ):
        state = _renamed(encoder, "encoder.transformer.layers.", "encoder.")
        table = state.pop("tokenizer.category", None)
        if table is not None:
            pieces = table.split(list(module.shape.cardinalities))
            for i, piece in enumerate(pieces):
                state[f"tokenizer.category_embeddings.{i}.weight"] = piece.clone()
        if "type_embedding" in state:
            state["feature_type_embedding.weight"] = state.pop("type_embedding")
        state |= _dead_layer("encoder.transformer_layers.", width, hidden)
        state["pe.pe"] = position_table(width, _POSITIONS)
        encoders[part] = state
    predictor = _renamed(module.predictor, "transformer.transformer.layers.", "transformer.")
    for ours in ("embed", "norm", "proj"):
        theirs = f"predictor_{'emb' if ours == 'embed' else ours}."
        predictor = {_moved(name, f"{ours}.", theirs): value for name, value in predictor.items()}
    p_width = model.predictor_dim
    predictor |= _dead_layer("transformer.transformer_layers.", p_width, model.predictor_hidden)
    predictor |= {
        "layer_norm.weight": torch.ones(p_width),
        "layer_norm.bias": torch.zeros(p_width),
        "predictor_pos_embed": predictor_position_table(p_width, module.shape.columns)[None],
    }
    return {**encoders, "predictor": predictor}


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    numbers = {name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}
    return max(1, len(numbers))


def _load(
    module: nn.Module, state: dict[str, Tensor], table: Mapping[str, str], shape: TableShape
) -> None:
    tables = [f"tokenizer.category_embeddings.{i}.weight" for i in range(len(shape.cardinalities))]
    found = [state.pop(name) for name in tables if name in state]
    if found:
        for name, piece, codes in zip(tables, found, shape.cardinalities, strict=False):
            if len(piece) != codes:
                raise DataError(f"{name} has {len(piece)} rows for a column of {codes} codes")
        state["tokenizer.category"] = torch.cat(found)
    expected = {name: value.shape for name, value in module.state_dict().items()}
    module.load_state_dict(hub.rename_keys(state, table, expected, _DEAD))


def _renamed(module: nn.Module, layers: str, stack: str) -> dict[str, Tensor]:
    """Our state under the official names of layers and head."""
    state = {}
    for name, value in module.state_dict().items():
        if name.startswith("blocks."):
            name = layers + name.removeprefix("blocks.")
            name = name.replace(".attn.qkv.", ".self_attn.in_proj_")
            name = name.replace(".attn.proj.", ".self_attn.out_proj.")
            name = name.replace(".mlp.fc", ".linear")
        elif name.startswith("head."):
            name = stack + name.removeprefix("head.").replace("norm", "layernorm")
        state[name] = value.detach().cpu().clone()
    return state


def _moved(name: str, ours: str, theirs: str) -> str:
    return theirs + name.removeprefix(ours) if name.startswith(ours) else name


def _dead_layer(prefix: str, width: int, hidden: int) -> dict[str, Tensor]:
    """Zeros in the shapes of one layer."""
    layer = nn.TransformerEncoderLayer(width, 1, hidden)
    return {prefix + name: torch.zeros_like(value) for name, value in layer.state_dict().items()}

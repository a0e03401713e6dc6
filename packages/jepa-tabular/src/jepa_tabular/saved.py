"""Fitted heads as JSON and arrays, and back: linear ones, and networks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from jepa_core.config import from_dict, to_dict
from jepa_core.evaluation.finetune import Finetuned
from jepa_tabular.downstream import (
    AutoIntConfig,
    DCNv2Config,
    FTTransformerConfig,
    MLPConfig,
    NetConfig,
    ResNetConfig,
)
from jepa_tabular.downstream.nets import DownstreamNet, build
from jepa_tabular.downstream.train import FittedHead
from jepa_tabular.heads import LinearHead
from jepa_tabular.inference import PretrainedTable

NETS: dict[str, type[NetConfig]] = {
    "mlp": MLPConfig,
    "resnet": ResNetConfig,
    "dcnv2": DCNv2Config,
    "autoint": AutoIntConfig,
    "fttransformer": FTTransformerConfig,
}


def head_state(
    head: LinearHead | FittedHead, config: NetConfig | None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `load_head` needs: a dict that JSON can hold, and arrays."""
    if isinstance(head, LinearHead):
        return {"kind": "linear"}, head.arrays()
    assert config is not None
    assert isinstance(head.net, DownstreamNet)
    state = {
        "kind": config.kind,
        "net": to_dict(config),
        "outputs": head.net.head.out_features,
        "task": head.task,
        "centre": head.centre,
        "scale": head.scale,
    }
    return state, {name: value.numpy() for name, value in head.net.state_dict().items()}


def load_head(
    state: Mapping[str, Any], table: PretrainedTable
) -> tuple[LinearHead | FittedHead, NetConfig | None]:
    """The head that `head_state` described, and the recipe of its network."""
    if state["kind"] == "linear":
        return LinearHead.from_arrays(table.head), None
    config = from_dict(NETS[state["kind"]], state["net"])
    shape = (table.encoder.tokens, table.encoder.config.dim)
    net = build(config, shape, state["outputs"])
    net.load_state_dict({name: torch.from_numpy(value) for name, value in table.head.items()})
    # How training went is not kept.
    result = Finetuned(0, math.nan, "steps", ())
    return FittedHead(net.eval(), state["task"], result, state["centre"], state["scale"]), config

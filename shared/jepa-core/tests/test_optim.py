"""Parameter groups: each parameter once, names in order; AdamW against its definition."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from jepa_core.errors import ConfigError
from jepa_core.layers import PatchEmbed1d, Predictor, ViT, sincos_1d
from jepa_core.optim import adamw, decay_groups, partition, set_hyperparameters


def jepa() -> nn.ModuleDict:
    """The recorded model's shapes and names."""
    encoder = ViT(24, 2, 2, registers=1, bias=False, qkv_bias=False)
    encoder.patch_embed = PatchEmbed1d(12, 5, 24, bias=False)
    predictor = Predictor(24, 16, 3, 4, positions=sincos_1d(50, 16), bias=False, qkv_bias=False)
    return nn.ModuleDict({"encoder": encoder, "predictor": predictor})


def test_the_groups_are_the_originals(data: Callable[[str], Path]) -> None:
    golden = np.load(data("ecg") / "golden_tiny_jepa.npz")
    decay, no_decay = decay_groups(jepa())
    assert set(decay["names"]) == set(golden["official/decay_names"].tolist())
    assert set(no_decay["names"]) == set(golden["official/nodecay_names"].tolist())
    assert decay["decay"]
    assert not no_decay["decay"]
    assert no_decay["weight_decay"] == 0.0


def test_names_are_in_the_order_of_the_parameters() -> None:
    model = jepa()
    named = dict(model.named_parameters())
    for group in decay_groups(model):
        assert len(group["names"]) == len(group["params"]) > 0
        for name, parameter in zip(group["names"], group["params"], strict=True):
            assert named[name] is parameter


def test_several_registers_and_named_tables_do_not_decay() -> None:
    model = ViT(8, 1, 2, registers=4, layer_scale=0.1)
    model.table = nn.Parameter(torch.zeros(5, 8))
    _, no_decay = decay_groups(model, no_decay=("table",))
    assert {"registers", "table", "blocks.0.attn_ls.weight", "norm.bias"} <= set(no_decay["names"])


def test_frozen_parameters_are_in_no_group_and_tied_ones_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[2].requires_grad_(False)
    names = [name for group in decay_groups(model) for name in group["names"]]
    assert sorted(names) == ["0.bias", "0.weight", "1.bias"]


def test_a_group_without_parameters_does_not_exist() -> None:
    (decay,) = decay_groups(nn.Linear(3, 3, bias=False))
    assert decay["names"] == ["weight"]


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'tables\.\*'"):
        decay_groups(jepa(), no_decay=("tables.*",))


def test_a_parameter_outside_all_groups_or_in_two_is_named() -> None:
    model = nn.Linear(3, 3)
    with pytest.raises(ConfigError, match="bias is in no group"):
        partition(model, {"matrices": lambda name, p: p.ndim == 2})
    with pytest.raises(ConfigError, match="weight is in groups all and matrices"):
        partition(model, {"all": lambda name, p: True, "matrices": lambda name, p: p.ndim == 2})


def test_adamw_takes_the_definitions_steps() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    optimizer = adamw(decay_groups(model), betas=(0.9, 0.99), eps=1e-6)
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    moments = {name: (torch.zeros_like(v), torch.zeros_like(v)) for name, v in values.items()}
    for step in range(1, 6):
        lr, decay = 0.1 / step, 0.01 * step
        set_hyperparameters(optimizer, lr, decay)
        for name, parameter in model.named_parameters():
            g = torch.randn_like(parameter)
            parameter.grad = g
            first, second = moments[name]
            first.mul_(0.9).add_(0.1 * g)
            second.mul_(0.99).add_(0.01 * g * g)
            values[name] *= 1 - lr * (decay if name == "weight" else 0.0)
            denominator = (second / (1 - 0.99**step)).sqrt() + 1e-6
            values[name] -= lr * first / (1 - 0.9**step) / denominator
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), values[name], rtol=0, atol=1e-12)


def test_adamw_is_fused_where_torch_can() -> None:
    assert adamw(decay_groups(jepa())).defaults["fused"]
    on_meta = nn.Linear(3, 2, device="meta")
    assert not adamw(decay_groups(on_meta)).defaults["fused"]


def test_scheduled_weight_decay_spares_the_group_without() -> None:
    optimizer = adamw(decay_groups(jepa()))
    set_hyperparameters(optimizer, 0.5, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25, 0.0]

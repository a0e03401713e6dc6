"""The post-norm block is torch's own encoder layer, and computes only the rows that are read."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from jepa_core.errors import ConfigError
from jepa_core.layers import PostNormBlock, take_rows

# Ours -> torch's names.
NAMES = {
    "attn.qkv.weight": "self_attn.in_proj_weight",
    "attn.qkv.bias": "self_attn.in_proj_bias",
    "attn.proj.weight": "self_attn.out_proj.weight",
    "attn.proj.bias": "self_attn.out_proj.bias",
    "mlp.fc1.weight": "linear1.weight",
    "mlp.fc1.bias": "linear1.bias",
    "mlp.fc2.weight": "linear2.weight",
    "mlp.fc2.bias": "linear2.bias",
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
}


def random(block: nn.Module) -> nn.Module:
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    return block.double()


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_block_is_torchs_encoder_layer(activation: str) -> None:
    torch.manual_seed(0)
    ours = random(PostNormBlock(12, 3, 20, activation=activation, dropout=0.0))  # type: ignore[arg-type]
    theirs = nn.TransformerEncoderLayer(
        12, 3, 20, dropout=0.0, activation=activation, batch_first=True
    ).double()
    state = ours.state_dict()
    theirs.load_state_dict({NAMES[name]: value for name, value in state.items()})
    x = torch.randn(4, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("rows", [slice(3, None), torch.tensor([[0, 4], [6, 1], [2, 3], [5, 5]])])
def test_some_rows_are_those_of_all(rows: slice | torch.Tensor) -> None:
    torch.manual_seed(1)
    block = random(PostNormBlock(12, 3, 20))
    x = torch.randn(4, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(block(x, rows=rows), take_rows(block(x), rows), atol=1e-12, rtol=0)


def test_dropout_is_in_four_places() -> None:
    torch.manual_seed(2)
    block = PostNormBlock(8, 2, 16, dropout=0.3).train()
    dropped = [part.p for part in block.modules() if isinstance(part, nn.Dropout)]
    assert dropped == [0.3, 0.3]  # after attention; after both maps of the MLP
    assert block.attn.attention_dropout == 0.3


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError):
        PostNormBlock(10, 4, 16)

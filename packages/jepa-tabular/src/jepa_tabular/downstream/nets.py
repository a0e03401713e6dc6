"""The downstream networks: tokens or raw columns of a row in, logits or a value out.

The representation of a row [tokens, dim] is first squeezed to one number a token; from there on
tokens are treated as numerical columns. Raw columns skip the squeeze.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from rtdl_revisiting_models import FTTransformer, ResNet
from torch import Tensor, nn

from jepa_core.attention import attention
from jepa_core.errors import ConfigError
from jepa_tabular.downstream import (
    AutoIntConfig,
    DCNv2Config,
    FTTransformerConfig,
    LinearConfig,
    MLPConfig,
    NetConfig,
    ResNetConfig,
    Squeeze,
)


def build(
    config: NetConfig, shape: tuple[int, ...], outputs: int, *, seed: int = 0
) -> DownstreamNet:
    """An untrained network.

    Parameters
    ----------
    shape
        Of one row: (tokens, dim) of a representation, or (columns,) of raw columns.
    outputs
        1 for two classes or a value, else the number of classes.
    seed
        Of the initial weights; the global generator is left alone.

    Raises
    ------
    ConfigError
        A row has another number of axes.
    """
    if len(shape) not in (1, 2) or min(shape) < 1:
        raise ConfigError(
            f"a row has shape {tuple(shape)}", remedy="allowed: (tokens, dim) or (columns,)"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DownstreamNet(config, tuple(shape), outputs)


class DownstreamNet(nn.Module):
    """Squeeze, body, and a linear map to the outputs."""

    def __init__(self, config: NetConfig, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        columns = shape[0]
        if len(shape) == 1:
            self.squeeze: nn.Module = nn.Identity()
        elif isinstance(config, LinearConfig):
            self.squeeze, columns = nn.Flatten(), shape[0] * shape[1]
        else:
            self.squeeze = squeeze(config.squeeze, *shape)
        self.body, width = _body(config, columns)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Float[Tensor, "batch *row"]) -> Float[Tensor, "batch outputs"]:
        """Logits, or a value."""
        return self.head(self.body(self.squeeze(x)))


def _body(config: NetConfig, columns: int) -> tuple[nn.Module, int]:
    """The network between squeeze and last map, and the width it gives."""
    if isinstance(config, LinearConfig):
        return nn.Identity(), columns
    if isinstance(config, MLPConfig):
        return _mlp(config, columns), config.width
    if isinstance(config, ResNetConfig):
        resnet = ResNet(
            d_in=columns,
            d_out=config.out,
            n_blocks=config.blocks,
            d_block=config.width,
            d_hidden=config.hidden,
            d_hidden_multiplier=None,
            dropout1=config.hidden_dropout,
            dropout2=config.residual_dropout,
        )
        return resnet, config.out
    if isinstance(config, DCNv2Config):
        return DCNv2(config, columns), config.width
    if isinstance(config, AutoIntConfig):
        return AutoInt(config, columns), config.dim
    return _FTTransformer(config, columns), config.dim


def _mlp(config: MLPConfig, columns: int) -> nn.Sequential:
    """The first layer stays linear, as in the official program."""
    width = config.width
    layers: list[nn.Module] = [nn.Linear(columns, width)]
    layers += [
        nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(config.dropout), nn.BatchNorm1d(width)
        )
        for _ in range(config.layers - 1)
    ]
    return nn.Sequential(*layers)


class DCNv2(nn.Module):
    """Deep and cross network, version 2 (Wang et al. 2021, section 3)."""

    def __init__(self, config: DCNv2Config, columns: int) -> None:
        super().__init__()
        width = config.width
        self.stacked = config.stacked
        self.first = nn.Linear(columns, width)
        self.cross = nn.ModuleList(nn.Linear(width, width) for _ in range(config.cross))
        self.cross_dropout = nn.Dropout(config.cross_dropout)
        deep: list[nn.Module] = []
        for _ in range(config.deep):
            deep += [nn.Linear(width, width), nn.ReLU(), nn.Dropout(config.hidden_dropout)]
        self.deep = nn.Sequential(*deep)
        self.last = nn.Linear(width if config.stacked else 2 * width, width)

    def forward(self, x: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch width"]:
        """Products of columns of growing order, and what a deep network makes of them."""
        first = crossed = self.first(x)
        for layer in self.cross:
            crossed = crossed + self.cross_dropout(first * layer(crossed))
        if self.stacked:
            return self.last(self.deep(crossed))
        return self.last(torch.cat([crossed, self.deep(first)], dim=1))


class AutoInt(nn.Module):
    """Self-attention between columns (Song et al. 2019, section 4)."""

    def __init__(self, config: AutoIntConfig, columns: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(columns, config.dim))
        bound = config.dim**-0.5
        nn.init.uniform_(self.tokens, -bound, bound)
        self.layers = nn.ModuleList(_AutoIntLayer(config) for _ in range(config.layers))
        self.last = nn.Linear(columns * config.dim, config.dim)

    def forward(self, x: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch dim"]:
        """A token a column, mixed layer by layer, then all of them at once."""
        tokens = x[:, :, None] * self.tokens
        for layer in self.layers:
            tokens = layer(tokens)
        return self.last(tokens.flatten(1))


class _AutoIntLayer(nn.Module):
    def __init__(self, config: AutoIntConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.attention_dropout = config.attention_dropout
        self.q, self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        for part in (self.q, self.k, self.v):
            nn.init.zeros_(part.bias)
        self.residual_dropout = nn.Dropout(config.residual_dropout)
        self.linear = nn.Linear(dim, dim, bias=False)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, tokens: Float[Tensor, "batch columns dim"]
    ) -> Float[Tensor, "batch columns dim"]:
        q, k, v = (
            part(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        dropout = self.attention_dropout if self.training else 0.0
        mixed = attention(q, k, v, dropout=dropout).transpose(1, 2).flatten(2)
        return torch.relu(self.norm(self.linear(tokens) + self.residual_dropout(mixed)))


class _FTTransformer(nn.Module):
    """The library's, on numerical columns alone."""

    def __init__(self, config: FTTransformerConfig, columns: int) -> None:
        super().__init__()
        self.transformer = FTTransformer(
            n_cont_features=columns,
            cat_cardinalities=[],
            d_out=config.dim,
            n_blocks=config.blocks,
            d_block=config.dim,
            attention_n_heads=config.heads,
            attention_dropout=config.attention_dropout,
            ffn_d_hidden=config.hidden,
            ffn_d_hidden_multiplier=None,
            ffn_dropout=config.hidden_dropout,
            residual_dropout=config.residual_dropout,
        )

    def forward(self, x: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch dim"]:
        return self.transformer(x, None)


def squeeze(kind: Squeeze, tokens: int, dim: int) -> nn.Module:
    """A module from [batch, tokens, dim] to one number a token, [batch, tokens].

    conv falls back to linear_flatten where its two convolutions and poolings leave nothing of a
    side. mean_pool says little of an encoder that ends in a normalisation over dim: the mean is
    then a constant until the normalisation's own weights have moved.
    """
    if kind == "linear_per_feature":
        return LinearPerFeature(tokens, dim)
    if kind in ("mean_pool", "max_pool"):
        return _Pool(kind)
    height, width = (_after_convolutions(side) for side in (tokens, dim))
    if kind == "conv" and min(height, width) >= 1:
        return nn.Sequential(
            nn.Unflatten(1, (1, tokens)),
            *_convolution(1, 3),
            *_convolution(3, 1),
            nn.Flatten(),
            nn.Linear(height * width, tokens),
        )
    return nn.Sequential(nn.Flatten(), nn.Linear(tokens * dim, tokens))


class LinearPerFeature(nn.Module):
    """A linear map of its own for each token."""

    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        bound = dim**-0.5
        self.weight = nn.Parameter(torch.empty(tokens, dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(tokens).uniform_(-bound, bound))

    def forward(self, z: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens"]:
        """One number a token."""
        return torch.einsum("btd,td->bt", z, self.weight) + self.bias


class _Pool(nn.Module):
    def __init__(self, kind: Squeeze) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, z: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens"]:
        return z.mean(-1) if self.kind == "mean_pool" else z.amax(-1)


def _convolution(channels: int, out: int) -> list[Any]:
    return [nn.Conv2d(channels, out, 3), nn.ReLU(), nn.BatchNorm2d(out), nn.MaxPool2d(2)]


def _after_convolutions(side: int) -> int:
    for _ in range(2):
        side = (side - 2) // 2
    return side

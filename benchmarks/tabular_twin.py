"""T-JEPA in plain PyTorch: the straightforward port that the package is measured against.

Written from the paper and the official program's behaviour; torch's own transformer layers. Names
of weights as in `jepa_tabular` but for those layers and the tables of categories.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.preprocessing import OneHotEncoder
from torch import Tensor, nn

from jepa_tabular.model import position_table, predictor_position_table
from jepa_tabular.presets import ModelConfig, PretrainConfig, TableShape


@dataclass(frozen=True)
class Masked:
    """A batch: x [batch, columns], context [batch, kept], target [masks, batch, hidden]."""

    x: Tensor
    context: Tensor
    target: Tensor


def as_twin(tensors: Mapping[str, Tensor], shape: TableShape) -> dict[str, Tensor]:
    """Weights or gradients of `jepa_tabular` under the names below."""
    found = {}
    for name, value in tensors.items():
        for ours, theirs in (
            ("blocks.", "blocks.layers."),
            (".attn.qkv.", ".self_attn.in_proj_"),
            (".attn.proj.", ".self_attn.out_proj."),
            (".mlp.fc", ".linear"),
        ):
            name = name.replace(ours, theirs)
        if not name.endswith("tokenizer.category"):
            found[name] = value
            continue
        for number, part in enumerate(value.split(shape.cardinalities)):
            found[f"{name.removesuffix('category')}categories.{number}.weight"] = part
    return found


def layers(
    depth: int, width: int, heads: int, hidden: int, dropout: float, activation: str
) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        width, heads, hidden, dropout, activation, batch_first=True, norm_first=False
    )
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)


class TwinHead(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.dropout(self.fc(self.norm1(self.dropout(x)))))


class TwinTokenizer(nn.Module):
    def __init__(self, width: int, registers: int, shape: TableShape) -> None:
        super().__init__()
        self.registers, self.shape = registers, shape
        self.weight = nn.Parameter(torch.empty(registers + len(shape.numeric), width))
        self.bias = nn.Parameter(torch.empty(shape.columns, width))
        self.categories = nn.ModuleList(nn.Embedding(n, width) for n in shape.cardinalities)

    def forward(self, x: Tensor) -> Tensor:
        numbers = x[:, self.shape.numeric]
        ones = torch.ones(len(x), self.registers, dtype=x.dtype)
        tokens = self.weight * torch.cat((ones, numbers), 1)[:, :, None]
        if self.categories:
            embedded = [
                table(codes) for table, codes in zip(self.categories, self.codes(x), strict=True)
            ]
            tokens = torch.cat((tokens, torch.stack(embedded, 1)), 1)
        none = torch.zeros(self.registers, self.bias.shape[1], dtype=x.dtype)
        return tokens + torch.cat((none, self.bias))

    def codes(self, x: Tensor) -> list[Tensor]:
        """Codes of each categorical column, which the official program reads off a one-hot form."""
        known = [np.arange(n) for n in self.shape.cardinalities]
        encoder = OneHotEncoder(categories=known, sparse_output=False)
        hot = torch.from_numpy(encoder.fit_transform(x[:, self.shape.categorical].numpy()))
        return [part.argmax(1) for part in hot.split(self.shape.cardinalities, 1)]


class TwinEncoder(nn.Module):
    def __init__(self, model: ModelConfig, shape: TableShape) -> None:
        super().__init__()
        self.tokenizer = TwinTokenizer(model.dim, model.registers, shape)
        tokens = model.registers + shape.columns
        self.positions = model.position_scale * position_table(model.dim, tokens)
        if model.type_embedding and shape.numeric and shape.categorical:
            self.type_embedding = nn.Parameter(torch.empty(2, model.dim))
        of_column = [int(column in shape.categorical) for column in range(shape.columns)]
        if not model.official:
            of_column = [of_column[column] for column in shape.order]
        self.types = torch.tensor(of_column)
        self.blocks = layers(
            model.depth, model.dim, model.heads, model.hidden, model.dropout, model.activation
        )
        self.head: nn.Module = TwinHead(model.dim, model.dropout)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        tokens = self.tokenizer(x) + self.positions
        if hasattr(self, "type_embedding"):
            none = torch.zeros(tokens.shape[1] - len(self.types), tokens.shape[2], dtype=x.dtype)
            tokens = tokens + torch.cat((none, self.type_embedding[self.types]))
        return self.head(self.blocks(tokens if context is None else take(tokens, context)))


class TwinPredictor(nn.Module):
    def __init__(self, model: ModelConfig, positions: int) -> None:
        super().__init__()
        width, official = model.predictor_dim, model.official
        self.embed = nn.Linear(model.dim, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = predictor_position_table(width, positions)
        self.blocks = layers(
            model.predictor_depth,
            width,
            model.predictor_heads,
            model.predictor_hidden,
            model.predictor_dropout,
            model.predictor_activation,
        )
        self.head = TwinHead(width, model.predictor_dropout) if official else nn.Identity()
        self.norm = nn.LayerNorm(width)
        self.proj = nn.Linear(width, model.dim)

    def forward(self, z: Tensor, context: Tensor, target: Tensor) -> Tensor:
        known = self.embed(z) + self.positions[context]
        known = known.repeat(len(target), 1, 1)
        asked = self.mask_token + self.positions[target.flatten(0, 1)]
        x = self.norm(self.head(self.blocks(torch.cat((known, asked), 1))))
        return self.proj(x[:, context.shape[1] :])


class Twin(nn.Module):
    def __init__(self, config: PretrainConfig, shape: TableShape) -> None:
        super().__init__()
        self.config = config
        self.encoder = TwinEncoder(config.model, shape)
        official = config.model.official
        self.predictor = TwinPredictor(
            config.model, shape.columns + (0 if official else config.model.registers)
        )
        self.target_encoder = TwinEncoder(config.model, shape).requires_grad_(False)
        if official:
            for parameter in self.encoder.parameters():
                parameter.register_hook(lambda g: g.clamp(-config.clip_norm, config.clip_norm))

    def train(self, mode: bool = True) -> Twin:
        super().train(mode)
        self.target_encoder.train(mode and self.config.compat == "official")
        return self

    def forward(self, batch: Masked) -> Tensor:
        prediction = self.predictor(
            self.encoder(batch.x, batch.context), batch.context, batch.target
        )
        with torch.no_grad():
            tokens = self.target_encoder(batch.x)
            if self.config.model.target_scale == "standardised":
                mean, spread = tokens.mean(0), tokens.std(0, correction=0)
                overall = (spread.square().mean() + mean.var(correction=0)).sqrt()
                tokens = (tokens - mean) / (spread + 1e-3 * overall)
            target = torch.cat([take(tokens, mask) for mask in batch.target])
        return F.mse_loss(prediction, target)

    @torch.no_grad()
    def average(self, momentum: float) -> None:
        pairs = zip(self.target_encoder.parameters(), self.encoder.parameters(), strict=True)
        for target, online in pairs:
            target.mul_(momentum).add_((1 - momentum) * online)


def take(x: Tensor, index: Tensor) -> Tensor:
    """The tokens `index` [batch, n] of x [batch, tokens, width]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))

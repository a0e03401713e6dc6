"""Tokenizer, encoder, predictor and the module that trains them (arXiv 2410.05016).

A row becomes one token a column and a few learned [REG] tokens. The context encoder sees some of
the columns, and the predictor says what the target encoder, an exponential moving average that
sees the whole row, makes of others.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from jepa_core.attention.dropout import Dropout
from jepa_core.ema import EMA
from jepa_core.health.quantities import Observation
from jepa_core.layers import PostNormBlock, sincos_1d, take_rows
from jepa_core.layers.linear import Linear
from jepa_core.losses import mse
from jepa_core.schedules import linear
from jepa_tabular.presets import ModelConfig, PretrainConfig, TableShape

# Keeps the spread of a target that does not move from blowing up its rounding.
_LEAST_SPREAD = 1e-3


def position_table(dim: int, n: int, base: float = 100.0) -> Float[Tensor, "n dim"]:
    """The encoder's table of positions: interleaved sine and cosine of position * base^(-2i/dim).

    In float32 throughout, as the official program computes it: the same bits.
    """
    frequency = torch.exp(torch.arange(0, dim, 2).float() * (-math.log(base) / dim))
    angle = torch.arange(n).float()[:, None] * frequency
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(1)


def predictor_position_table(dim: int, n: int) -> Float[Tensor, "n dim"]:
    """The predictor's: all sines, then all cosines of position * 10000^(-k / (dim / 2))."""
    return sincos_1d(n, dim).unflatten(1, (-1, 2)).transpose(1, 2).flatten(1)


class Tokenizer(nn.Module):
    """Columns to tokens: [REG] tokens, numerical columns, categorical columns.

    A numerical token is x weight + bias, a categorical one its code's embedding + bias.

    Parameters
    ----------
    shape
        The table; `shape.missing` adds a learned token a numerical column, for NaN.
    """

    order: Tensor
    first_code: Tensor

    def __init__(self, dim: int, registers: int, shape: TableShape) -> None:
        super().__init__()
        self.registers, self.numeric = registers, len(shape.numeric)
        self.weight = nn.Parameter(torch.empty(registers + self.numeric, dim))
        self.bias = nn.Parameter(torch.empty(shape.columns, dim))
        self.category: nn.Parameter | None = None
        self.missing: nn.Parameter | None = None
        if shape.cardinalities:
            self.category = nn.Parameter(torch.empty(sum(shape.cardinalities), dim))
        if shape.missing:
            self.missing = nn.Parameter(torch.empty(self.numeric, dim))
        codes = torch.tensor((0, *shape.cardinalities)[:-1] if shape.cardinalities else ())
        self.register_buffer("order", torch.tensor(shape.order), persistent=False)
        self.register_buffer("first_code", codes.long().cumsum(0), persistent=False)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(dim), 1 / math.sqrt(dim))

    def forward(self, x: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch tokens dim"]:
        """Tokens of encoded rows: numbers scaled, categories as codes, columns as in the table."""
        x = x.index_select(1, self.order)
        parts = [self.weight[: self.registers].expand(len(x), -1, -1)]
        if self.numeric:
            numbers = x[:, : self.numeric, None]
            bias, weight = self.bias[: self.numeric], self.weight[self.registers :]
            if self.missing is None:
                parts.append(torch.addcmul(bias, numbers, weight))
            else:
                absent = numbers.isnan()
                value = torch.where(absent, self.missing, numbers.nan_to_num(0.0) * weight)
                parts.append(value + bias)
        if self.category is not None:
            codes = x[:, self.numeric :].long() + self.first_code
            embedded = nn.functional.embedding(codes, self.category)
            parts.append(embedded + self.bias[self.numeric :])
        return torch.cat(parts, 1)


class Head(nn.Module):
    """dropout, norm, map, dropout, norm: ends the encoder, and officially the predictor's stack."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.fc = Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return self.norm2(self.dropout(self.fc(self.norm1(self.dropout(x)))))


class TabularEncoder(nn.Module):
    """Encoded rows to token features.

    Parameters
    ----------
    config
        Widths and depths.
    shape
        The table that rows come from.
    """

    positions: Tensor
    types: Tensor

    def __init__(self, config: ModelConfig, shape: TableShape) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        self.tokens = config.registers + shape.columns
        self.tokenizer = Tokenizer(config.dim, config.registers, shape)
        table = config.position_scale * position_table(config.dim, self.tokens)
        self.register_buffer("positions", table, persistent=False)
        self.type_embedding: nn.Parameter | None = None
        if config.type_embedding and shape.numeric and shape.categorical:
            self.type_embedding = nn.Parameter(torch.empty(2, config.dim))
            self.register_buffer("types", self._types(), persistent=False)
        self.blocks = nn.ModuleList(
            PostNormBlock(
                config.dim,
                config.heads,
                config.hidden,
                activation=config.activation,
                dropout=config.dropout,
            )
            for _ in range(config.depth)
        )
        self.head = Head(config.dim, config.dropout)
        init_maps(self, config.init)
        if config.init == "normal" and self.tokenizer.category is not None:
            nn.init.normal_(self.tokenizer.category, std=0.02)
        if self.type_embedding is not None:
            nn.init.normal_(self.type_embedding, std=1.0 if config.init == "torch" else 0.02)
        if config.official:
            copy_first(self.blocks)

    def forward(
        self,
        x: Float[Tensor, "batch columns"],
        context: Int[Tensor, "batch kept"] | None = None,
        *,
        layer: str = "head",
    ) -> Float[Tensor, "batch tokens dim"]:
        """Features of the tokens [REG], numerical columns, categorical columns.

        Parameters
        ----------
        x
            Encoded rows, columns as in the table.
        context
            The only tokens to look at, by index; their features come back in this order.
        layer
            "head", "block" for the last block's output before the head, or "blocks" for those of
            all blocks side by side, [batch, tokens, depth * dim].
        """
        tokens = self.embed(x)
        if context is not None:
            tokens = take_rows(tokens, context)
        outputs = []
        for block in self.blocks:
            tokens = block(tokens)
            if layer == "blocks":
                outputs.append(tokens)
        if outputs:
            return torch.cat(outputs, -1)
        return self.head(tokens) if layer == "head" else tokens

    def embed(self, x: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch tokens dim"]:
        """Tokens with positions and types, before the first block."""
        tokens = self.tokenizer(x) + self.positions
        return tokens if self.type_embedding is None else tokens + self._type_codes()

    def _types(self) -> Int[Tensor, " columns"]:
        """Of each column's token 0 if it is numerical, 1 if categorical."""
        shape = self.shape
        is_categorical = [int(column in shape.categorical) for column in range(shape.columns)]
        if self.config.official:
            # Listed as in the table but added to tokens in another order.
            return torch.tensor(is_categorical)
        return torch.tensor([is_categorical[column] for column in shape.order])

    def _type_codes(self) -> Float[Tensor, "tokens dim"]:
        assert self.type_embedding is not None
        none = self.type_embedding.new_zeros(self.config.registers, self.config.dim)
        return torch.cat((none, self.type_embedding[self.types]))


class Predictor(nn.Module):
    """Context features to features of target tokens.

    Parameters
    ----------
    positions
        Rows of its table: every token's, or officially one a column.
    """

    positions: Tensor

    def __init__(self, config: ModelConfig, positions: int) -> None:
        super().__init__()
        width = config.predictor_dim
        official = config.official
        self.embed = Linear(config.dim, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.register_buffer(
            "positions", predictor_position_table(width, positions), persistent=False
        )
        self.blocks = nn.ModuleList(
            PostNormBlock(
                width,
                config.predictor_heads,
                config.predictor_hidden,
                activation=config.predictor_activation,
                dropout=config.predictor_dropout,
            )
            for _ in range(config.predictor_depth)
        )
        self.head = Head(width, config.predictor_dropout) if official else nn.Identity()
        self.norm = nn.LayerNorm(width)
        self.proj = Linear(width, config.dim)
        init_maps(self, "normal" if official else config.init)
        nn.init.normal_(self.mask_token, std=0.02)
        if official:
            copy_first(self.blocks)

    def forward(
        self,
        z: Float[Tensor, "batch kept dim"],
        context: Int[Tensor, "batch kept"],
        targets: Int[Tensor, "masks batch hidden"],
    ) -> Float[Tensor, "masks batch hidden dim"]:
        """What stands at the target tokens, mask by mask.

        Parameters
        ----------
        z
            Features of the context tokens.
        context, targets
            Token indices.
        """
        known = self.embed(z) + self.positions[context]
        asked = self.mask_token + self.positions[targets]
        x = torch.cat((known.expand(len(targets), -1, -1, -1), asked), 2).flatten(0, 1)
        for block in self.blocks[:-1]:
            x = block(x)
        # What the last block would write into the context's rows is never read.
        x = self.blocks[-1](x, rows=slice(context.shape[1], None))
        return self.proj(self.norm(self.head(x))).unflatten(0, targets.shape[:2])


class TJEPA(nn.Module):
    """Encoder, predictor and target encoder; `forward` returns the loss of a batch.

    A batch holds `x` float [batch, columns], encoded rows; `context` int64 [batch, kept], the
    tokens that the encoder sees; `target` int64 [masks, batch, hidden], those to be predicted.
    """

    def __init__(self, config: PretrainConfig, shape: TableShape) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        self.encoder = TabularEncoder(config.model, shape)
        # The official indices are those of columns: there is no row for the last [REG] tokens.
        official = config.model.official
        self.predictor = Predictor(config.model, shape.columns if official else self.encoder.tokens)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.ema = EMA(self.target_encoder, self.encoder)
        if config.compat == "official" and config.clip_norm:
            for parameter in self.encoder.parameters():
                parameter.register_hook(lambda g: g.clamp(-config.clip_norm, config.clip_norm))

    def train(self, mode: bool = True) -> TJEPA:
        """Training mode; the targets are without dropout, officially with."""
        super().train(mode)
        if self.config.compat != "official":
            self.target_encoder.eval()
        return self

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean squared error of the predicted features, and the variance of rows in the targets."""
        x, context, target = batch["x"], batch["context"], batch["target"]
        tokens = self.targets(x)
        mean, variance = _moments(tokens)
        if self.config.model.target_scale == "standardised":
            wanted = (tokens - mean) / _spread(mean, variance)
        else:
            wanted = tokens
        prediction = self.predict(x, context, target)
        return {
            "loss": mse(prediction, _at(wanted, target)),
            "row_variance": variance.mean(),
            "prediction_std": prediction.detach().std(),
        }

    def loss(
        self,
        x: Float[Tensor, "batch columns"],
        context: Int[Tensor, "batch kept"],
        target: Int[Tensor, "masks batch hidden"],
    ) -> Float[Tensor, ""]:
        """The loss alone."""
        return self({"x": x, "context": context, "target": target})["loss"]

    def predict(
        self,
        x: Float[Tensor, "batch columns"],
        context: Int[Tensor, "batch kept"],
        target: Int[Tensor, "masks batch hidden"],
    ) -> Float[Tensor, "masks batch hidden dim"]:
        """What the predictor says of the target tokens, given the context."""
        return self.predictor(self.encoder(x, context), context, target)

    @torch.no_grad()
    def targets(self, x: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch tokens dim"]:
        """The target encoder's features of every token."""
        return self.target_encoder(x)

    def after_step(self, step: int) -> None:
        """Average the target encoder after the optimiser's step number `step`, from 0."""
        config = self.config
        self.ema.update(float(linear(step, config.steps, config.momentum, config.final_momentum)))

    @torch.no_grad()
    def observe(self, batch: dict[str, Tensor]) -> Observation:
        """What the health of a run is read from; `batch` has `views` int64 [seen, q, kept] too.

        In the target encoder's own units, so that `signal` is the variance of rows: targets that
        are standardised would hide its fall.
        """
        x, context, target = batch["x"], batch["context"], batch["target"][:1]
        tokens = self.targets(x)
        prediction = self.predict(x, context, target)
        if self.config.model.target_scale == "standardised":
            mean, variance = _moments(tokens)
            mean, spread = mean.expand_as(tokens), _spread(mean, variance).expand_as(tokens)
            prediction = prediction * _at(spread, target) + _at(mean, target)
        views = [self.encoder(x[: len(v)], v).mean(1) for v in batch["views"].unbind(1)]
        return Observation(
            tokens=tokens,
            prediction=prediction[0],
            target=_at(tokens, target)[0],
            positions=target[0],
            views=torch.stack(views, 1),
        )


def decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to biases, the tokenizer's table of them included."""
    return parameter.ndim > 1 and "bias" not in name


@torch.no_grad()
def init_maps(module: nn.Module, init: str) -> None:
    """Start linear maps: "xavier", "normal" (std 0.02) or "torch"; norms stay at 1 and 0.

    The query-key-value map is Xavier-uniform and unbiased, as is the bias of attention's output,
    whatever the rest.
    """
    for name, part in module.named_modules():
        if not isinstance(part, nn.Linear):
            continue
        attention = name.endswith(("attn.qkv", "attn.proj"))
        if name.endswith("attn.qkv") or init == "xavier":
            nn.init.xavier_uniform_(part.weight)
        elif init == "normal":
            nn.init.trunc_normal_(part.weight, std=0.02)
        if attention or init != "torch":
            nn.init.zeros_(part.bias)


def copy_first(blocks: nn.ModuleList) -> None:
    """Start every block as a copy of the first, as the official program does."""
    first = blocks[0].state_dict()
    for block in _rest(blocks):
        block.load_state_dict(first)


def _rest(blocks: nn.ModuleList) -> Iterable[nn.Module]:
    return list(blocks)[1:]


def _at(
    tokens: Float[Tensor, "batch tokens dim"], target: Int[Tensor, "masks batch hidden"]
) -> Float[Tensor, "masks batch hidden dim"]:
    """The rows of `tokens` that the masks name."""
    return torch.stack([take_rows(tokens, mask) for mask in target.unbind(0)])


def _moments(
    tokens: Float[Tensor, "batch tokens dim"],
) -> tuple[Float[Tensor, "1 tokens dim"], Float[Tensor, "1 tokens dim"]]:
    """Mean and variance over the rows of all processes, at each token and dimension."""
    mean, count = tokens.mean(0, keepdim=True), 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        count = torch.distributed.get_world_size()
        torch.distributed.all_reduce(mean)
        mean /= count
    variance = (tokens - mean).square().mean(0, keepdim=True)
    if count > 1:
        torch.distributed.all_reduce(variance)
        variance /= count
    return mean, variance


def _spread(
    mean: Float[Tensor, "1 tokens dim"], variance: Float[Tensor, "1 tokens dim"]
) -> Float[Tensor, "1 tokens dim"]:
    """What standardised targets are divided by."""
    overall = (variance.mean() + mean.var(unbiased=False)).sqrt()
    return variance.sqrt() + _LEAST_SPREAD * overall

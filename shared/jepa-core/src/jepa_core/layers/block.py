"""The pre-norm transformer block, and the initialisation all models share."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64, Shaped
from torch import Tensor, nn

from jepa_core.attention import attention, attention_ragged
from jepa_core.attention.dropout import Dropout
from jepa_core.errors import ConfigError
from jepa_core.layers.linear import Linear, linear

Rows = slice | Int[Tensor, "batch rows"]
# Rows of packed samples, and where those of each sample begin: int [m] and int [batch + 1].
PackedRows = tuple[Int[Tensor, " m"], Int[Tensor, " batch_plus_1"]]


def take_rows(x: Shaped[Tensor, "batch n *dims"], rows: Rows) -> Shaped[Tensor, "batch m *dims"]:
    """The tokens `rows` of each sample: a slice for all, or int [batch, m] of one each."""
    if isinstance(rows, slice):
        return x[:, rows]
    # One flat index: torch's index_select and its backward are 2 to 3 times as fast on a CPU as
    # indexing or gathering in two dimensions.
    start = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, (start + rows).flatten()).unflatten(0, rows.shape)


# Multiplications that leaving out padding must save a block to pay for the ways around it.
PACKING = 1 << 23


def pays_to_pack(x: Float[Tensor, "batch n dim"], lengths: Int[Tensor, " batch"]) -> bool:
    """Whether blocks are faster on `packed_rows`; on a GPU the lengths would have to be read."""
    batch, n, dim = x.shape
    return x.device.type == "cpu" and 12 * dim**2 * (batch * n - int(lengths.sum())) >= PACKING


def packed_rows(
    lengths: Int[Tensor, " batch"], longest: int
) -> tuple[Int64[Tensor, " total"], Int64[Tensor, " samples_plus_1"], Int64[Tensor, " batch"]]:
    """Which of the rows of padded samples, flat, are no padding, and where each sample begins.

    From the shortest sample to the longest, so that equal ones are attended in one call; the
    samples in this order are the third answer.

    Filled up to a multiple of 32 rows with copies of the first, as one more sample: oneDNN makes
    code for every number of rows that it meets, which costs as much as the product and stays in
    memory.

    Parameters
    ----------
    lengths
        Valid rows of each sample.
    longest
        Rows of each sample with padding.
    """
    lengths, order = lengths.sort(stable=True)
    place = torch.arange(longest, device=lengths.device)
    index = (order[:, None] * longest + place)[place < lengths[:, None]]
    ends = torch.cat((lengths.new_zeros(1), lengths.cumsum(0))).long()
    spare = -len(index) % 32
    if spare:
        index = torch.cat((index, index.new_zeros(spare)))
        ends = torch.cat((ends, ends[-1:] + spare))
    return index, ends, order


class LayerScale(nn.Module):
    """A learned factor per feature (Touvron et al. 2021, arXiv 2103.17239, section 2)."""

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim,), start))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return x * self.weight


class Attention(nn.Module):
    """Multi-head self-attention with one fused map; features ordered [q | k | v], heads inside."""

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        bias: bool,
        qkv_bias: bool,
        dropout: float,
        attention_dropout: float,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ConfigError(f"width {dim} is no multiple of {heads} heads")
        self.heads = heads
        self.attention_dropout = attention_dropout
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim, bias=bias)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch n dim"],
        *,
        rows: Rows | None = None,
        key_lengths: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch m dim"]:
        """The output at `rows`; keys and values come from all tokens."""
        if rows is None:
            q, k, v = self._heads(self.qkv(x), 3)
        else:
            # Queries nobody reads are not computed: the fused map is applied in its two parts.
            weight, bias, dim = self.qkv.weight, self.qkv.bias, x.shape[-1]
            q_bias, kv_bias = (None, None) if bias is None else (bias[:dim], bias[dim:])
            (q,) = self._heads(linear(take_rows(x, rows), weight[:dim], q_bias), 1)
            k, v = self._heads(linear(x, weight[dim:], kv_bias), 2)
        dropout = self.attention_dropout if self.training else 0.0
        out = attention(q, k, v, key_lengths=key_lengths, dropout=dropout)
        return self.dropout(self.proj(out.transpose(1, 2).flatten(2)))

    def packed(
        self,
        x: Float[Tensor, "total dim"],
        cu_seqlens: Int[Tensor, " batch_plus_1"],
        rows: PackedRows | None = None,
    ) -> Float[Tensor, "m dim"]:
        """The output at `rows` of a batch without padding."""
        split = (-1, self.heads, x.shape[-1] // self.heads)
        if rows is None:
            q, k, v = self.qkv(x).unflatten(-1, (3, *split[1:])).unbind(1)
            cu_rows = cu_seqlens
        else:
            index, cu_rows = rows
            weight, bias, dim = self.qkv.weight, self.qkv.bias, x.shape[-1]
            q_bias, kv_bias = (None, None) if bias is None else (bias[:dim], bias[dim:])
            q = linear(x.index_select(0, index), weight[:dim], q_bias).view(split)
            k, v = linear(x, weight[dim:], kv_bias).unflatten(-1, (2, *split[1:])).unbind(1)
        dropout = self.attention_dropout if self.training else 0.0
        out = attention_ragged(q, k, v, cu_rows, cu_seqlens, dropout=dropout)
        return self.dropout(self.proj(out.flatten(1)))

    def _heads(
        self, x: Float[Tensor, "batch n parts*dim"], parts: int
    ) -> tuple[Float[Tensor, "batch heads n head_dim"], ...]:
        # Parted along this axis the gradients of the parts go back together by one copy.
        each = x.unflatten(-1, (parts, self.heads, -1)).unbind(2)
        return tuple(part.transpose(1, 2) for part in each)


class Mlp(nn.Module):
    """Two maps with a nonlinearity between; GELU is the exact one (erf)."""

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        bias: bool,
        dropout: float,
        activation: Literal["gelu", "relu"] = "gelu",
    ) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden, bias=bias)
        self.fc2 = Linear(hidden, dim, bias=bias)
        self.dropout = Dropout(dropout)
        self.activation = activation

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        hidden = self.fc1(x)
        hidden = F.gelu(hidden) if self.activation == "gelu" else F.relu(hidden)
        return self.dropout(self.fc2(self.dropout(hidden)))


class Block(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x)) (Dosovitskiy et al. 2021, equations 2 and 3).

    Parameters
    ----------
    bias
        Bias of the maps and of the norms; that of the fused query-key-value map is `qkv_bias`.
    dropout
        After the attention's output map and after both maps of the MLP.
    attention_dropout
        On the attention weights.
    layer_scale
        Start of the factors on both branches; 0 = none.

    Raises
    ------
    ConfigError
        `heads` does not divide `dim`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float = 4.0,
        *,
        bias: bool = True,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        layer_scale: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps, bias=bias)
        self.attn = Attention(
            dim,
            heads,
            bias=bias,
            qkv_bias=qkv_bias,
            dropout=dropout,
            attention_dropout=attention_dropout,
        )
        self.attn_ls = LayerScale(dim, layer_scale) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps, bias=bias)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), bias=bias, dropout=dropout)
        self.mlp_ls = LayerScale(dim, layer_scale) if layer_scale else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "batch n dim"],
        *,
        rows: Rows | None = None,
        key_lengths: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch m dim"]:
        """The block's output at `rows` (all by default), exactly as if all were computed.

        Parameters
        ----------
        rows
            A slice, or int [batch, m]. Only the keys and values of the others are computed: for
            the last block of a stack, whose other outputs nobody reads.
        key_lengths
            Sample b attends to its first key_lengths[b] tokens only.
        """
        attended = self.attn(self.norm1(x), rows=rows, key_lengths=key_lengths)
        x = (x if rows is None else take_rows(x, rows)) + self.attn_ls(attended)
        return x + self.mlp_ls(self.mlp(self.norm2(x)))

    def packed(
        self,
        x: Float[Tensor, "total dim"],
        cu_seqlens: Int[Tensor, " batch_plus_1"],
        rows: PackedRows | None = None,
    ) -> Float[Tensor, "m dim"]:
        """The block on samples of unequal lengths, one after the other, without padding.

        The same numbers as with padding and `key_lengths`, for the rows that are no padding.

        Parameters
        ----------
        cu_seqlens
            Sample b holds rows cu_seqlens[b] to cu_seqlens[b + 1]; best on the CPU.
        rows
            The only rows of `x` whose output is wanted, sample after sample, and where those of
            each sample begin.
        """
        attended = self.attn.packed(self.norm1(x), cu_seqlens, rows)
        x = (x if rows is None else x.index_select(0, rows[0])) + self.attn_ls(attended)
        return x + self.mlp_ls(self.mlp(self.norm2(x)))


class PostNormBlock(nn.Module):
    """x = norm(x + attention(x)); x = norm(x + mlp(x)) (Vaswani et al. 2017, section 3.1).

    Maps and norms have biases.

    Parameters
    ----------
    hidden
        Width between the maps of the MLP.
    dropout
        On the attention weights, after the attention's output map and after both maps of the MLP.

    Raises
    ------
    ConfigError
        `heads` does not divide `dim`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        *,
        activation: Literal["gelu", "relu"] = "relu",
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attn = Attention(
            dim, heads, bias=True, qkv_bias=True, dropout=dropout, attention_dropout=dropout
        )
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, hidden, bias=True, dropout=dropout, activation=activation)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)

    def forward(
        self, x: Float[Tensor, "batch n dim"], *, rows: Rows | None = None
    ) -> Float[Tensor, "batch m dim"]:
        """The block's output at `rows` (all by default), exactly as if all were computed."""
        kept = x if rows is None else take_rows(x, rows)
        x = self.norm1(kept + self.attn(x, rows=rows))
        return self.norm2(x + self.mlp(x))


@torch.no_grad()
def init_weights(module: nn.Module, std: float = 0.02, residual_depth: int | None = None) -> None:
    """Initialise in place: maps and learned tokens from N(0, std^2), biases 0, norms 1.

    The normal is cut at +-2 in absolute value, which touches nothing at the usual scales.
    LayerScale keeps its start.

    Parameters
    ----------
    residual_depth
        Depth L of the stack: the maps that write into the residual stream (`attn.proj`, `mlp.fc2`)
        take std / sqrt(2 L) (Radford et al. 2019, section 2.3). None = as all other maps.
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d):
            residual = residual_depth is not None and name.endswith(("attn.proj", "mlp.fc2"))
            scale = 1 / math.sqrt(2 * residual_depth) if residual and residual_depth else 1.0
            nn.init.trunc_normal_(part.weight, std=std * scale)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            part.reset_parameters()
        elif not isinstance(part, LayerScale):
            for token in part.parameters(recurse=False):
                nn.init.trunc_normal_(token, std=std)

"""The encoder: a stack of blocks over embedded tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from jepa_core.errors import ConfigError
from jepa_core.layers.block import Block, init_weights, packed_rows, pays_to_pack


class ViT(nn.Module):
    """Pre-norm transformer encoder (Dosovitskiy et al. 2021) with registers (Darcet et al. 2024).

    Works on tokens that already carry their positions; what makes tokens of a domain's data, and
    its position table, belong to the domain's encoder, which may derive from this class.

    Parameters
    ----------
    registers
        Number of learned tokens put in front of every sample, without position.
    bias, qkv_bias, norm_eps, dropout, attention_dropout, layer_scale
        As in `Block`.

    Raises
    ------
    ConfigError
        `depth` < 1, or `heads` does not divide `dim`.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        registers: int = 0,
        bias: bool = True,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        layer_scale: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ConfigError(f"an encoder of depth {depth} has no block")
        self.registers = nn.Parameter(torch.empty(1, registers, dim)) if registers else None
        self.blocks = nn.ModuleList(
            Block(
                dim,
                heads,
                mlp_ratio,
                bias=bias,
                qkv_bias=qkv_bias,
                norm_eps=norm_eps,
                dropout=dropout,
                attention_dropout=attention_dropout,
                layer_scale=layer_scale,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=norm_eps, bias=bias)
        init_weights(self, residual_depth=depth)

    def forward(
        self,
        tokens: Float[Tensor, "batch n dim"],
        *,
        rows: Int[Tensor, "batch m"] | None = None,
        key_lengths: Int[Tensor, " batch"] | None = None,
        keep_registers: bool = False,
    ) -> Float[Tensor, "batch m dim"]:
        """Encoded and normalised tokens.

        Parameters
        ----------
        rows
            Tokens whose output is wanted (all by default): the last block computes no other, with
            exactly the same result.
        key_lengths
            Number of valid tokens of each sample, registers not counted; what lies behind is
            padding, and its output means nothing. On a CPU much padding is left out of the work.
        keep_registers
            Return the registers too, in front.
        """
        registers = 0 if self.registers is None else self.registers.shape[1]
        if (
            key_lengths is not None
            and rows is None
            and not registers
            and pays_to_pack(tokens, key_lengths)
        ):
            return self._packed(tokens, key_lengths)
        x = tokens
        if self.registers is not None:
            x = torch.cat((self.registers.to(x.dtype).expand(len(x), -1, -1), x), 1)
            key_lengths = None if key_lengths is None else key_lengths + registers
        for block in self.blocks[:-1]:
            x = block(x, key_lengths=key_lengths)

        first = 0 if keep_registers else registers
        wanted: slice | Tensor | None = slice(first, None) if first else None
        if rows is not None:
            front = torch.arange(first, registers, device=rows.device).expand(len(rows), -1)
            wanted = torch.cat((front.to(rows.dtype), rows + registers), 1)
        return self.norm(self.blocks[-1](x, rows=wanted, key_lengths=key_lengths))

    def _packed(
        self, tokens: Float[Tensor, "batch n dim"], lengths: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch n dim"]:
        """Without padding on the way; zeros at it in the end."""
        batch, n, dim = tokens.shape
        index, ends, _ = packed_rows(lengths, n)
        x = tokens.flatten(0, 1).index_select(0, index)
        for block in self.blocks:
            assert isinstance(block, Block)
            x = block.packed(x, ends)
        x = self.norm(x)
        # What fills up comes last, where there are more samples than were given.
        kept = slice(0, ends[batch])
        out = x.new_zeros((batch * n, dim)).index_copy(0, index[kept], x[kept])
        return out.unflatten(0, (batch, n))

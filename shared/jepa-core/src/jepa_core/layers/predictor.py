"""The predictor: from the context's tokens to the target encoder's tokens elsewhere."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from jepa_core.errors import ConfigError
from jepa_core.layers.block import Block, init_weights
from jepa_core.layers.linear import Linear


class Predictor(nn.Module):
    """A narrow transformer over context tokens and one mask token per target (I-JEPA, section 3).

    Parameters
    ----------
    dim
        Width of the encoder, of the input and of the output.
    width
        Width of the predictor's own blocks.
    positions
        Position table [positions, width]; a buffer outside the state dict.
    mlp_ratio, bias, qkv_bias, norm_eps, dropout, attention_dropout, layer_scale
        As in `Block`.

    Raises
    ------
    ConfigError
        `depth` < 1, `heads` does not divide `width`, or a table of another width.
    """

    positions: Tensor

    def __init__(
        self,
        dim: int,
        width: int,
        depth: int,
        heads: int,
        *,
        positions: Float[Tensor, "positions width"],
        mlp_ratio: float = 4.0,
        bias: bool = True,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        layer_scale: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ConfigError(f"a predictor of depth {depth} has no block")
        if positions.ndim != 2 or positions.shape[1] != width:
            raise ConfigError(
                f"the predictor has width {width}, its positions {tuple(positions.shape)}"
            )
        self.embed = Linear(dim, width, bias=bias)
        self.register_buffer("positions", positions, persistent=False)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.ModuleList(
            Block(
                width,
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
        self.norm = nn.LayerNorm(width, eps=norm_eps, bias=bias)
        self.proj: nn.Linear = Linear(width, dim, bias=bias)
        init_weights(self, residual_depth=depth)

    def forward(
        self,
        z: Float[Tensor, "batch k dim"],
        context: Int[Tensor, "batch k"],
        targets: Int[Tensor, "batch m"],
    ) -> Float[Tensor, "batch m dim"]:
        """Predictions at `targets`, in their order.

        Parameters
        ----------
        z
            Encoded context tokens, without registers.
        context, targets
            Positions of the context tokens and of the targets.
        """
        known = self.embed(z) + self.positions[context.long()]
        asked = self.mask_token + self.positions[targets.long()]
        x = torch.cat((known, asked), 1)
        for block in self.blocks[:-1]:
            x = block(x)
        # What the last block would write into the context's rows is never read.
        x = self.blocks[-1](x, rows=slice(context.shape[1], None))
        return self.proj(self.norm(x))

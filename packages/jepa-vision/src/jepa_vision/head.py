"""DMT-JEPA's aggregation head: cross-attention of one query over a few tokens.

Mo and Yun (arXiv 2405.17995), section 3.2. One head, two uses: a patch's target is made of its
neighbours (`aggregate`), and the context is enriched by what its mean asks of it (`forward`).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from jepa_core.attention import attention
from jepa_core.layers import init_weights
from jepa_core.layers.block import Mlp, take_rows
from jepa_core.layers.linear import Linear


class CrossBlock(nn.Module):
    """Pre-norm block whose queries, keys and values have maps of their own."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.q = Linear(dim, dim)
        self.k = Linear(dim, dim)
        self.v = Linear(dim, dim)
        self.proj = Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim, bias=True, dropout=0.0)

    def split(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch heads head_dim"]:
        return x.unflatten(-1, (self.heads, -1))


class AggregationHead(nn.Module):
    """Cross-attention blocks over keys and values that stay as they came, and a final norm.

    Parameters
    ----------
    dim, heads
        Of the encoder.
    depth
        Blocks.
    """

    def __init__(self, dim: int, heads: int, depth: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(CrossBlock(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        init_weights(self)

    def forward(
        self,
        z: Float[Tensor, "batch k dim"],
        lengths: Int[Tensor, " batch"] | None = None,
        *,
        form: Literal["cross", "self"] = "cross",
    ) -> Float[Tensor, "batch k dim"]:
        """Context tokens, enriched.

        Parameters
        ----------
        lengths
            Valid tokens of each sample; the output at padding means nothing.
        form
            `cross`: the mean token asks itself and all tokens, and the one answer is added to every
            token. `self`: every token asks all tokens; there is no mean token.
        """
        for block in self.blocks:
            assert isinstance(block, CrossBlock)
            own = block.norm1(z)
            k, v = block.split(block.k(own)), block.split(block.v(own))
            if form == "self":
                q = block.split(block.q(own))
                answer = attention(
                    *(part.transpose(1, 2) for part in (q, k, v)), key_lengths=lengths
                ).transpose(1, 2)
            else:
                mean = block.norm1(_mean(z, lengths))
                q, own_k, own_v = (
                    block.split(linear(mean)) for linear in (block.q, block.k, block.v)
                )
                # The mean token comes first: valid keys are a prefix.
                k, v = torch.cat((own_k, k), 1), torch.cat((own_v, v), 1)
                answer = attention(
                    *(part.transpose(1, 2) for part in (q, k, v)),
                    key_lengths=None if lengths is None else lengths + 1,
                ).transpose(1, 2)
            z = z + block.proj(answer.flatten(2))
            z = z + block.mlp(block.norm2(z))
        return self.norm(z)

    def aggregate(
        self,
        h: Float[Tensor, "batch patches dim"],
        neighbours: Int64[Tensor, "batch n k"],
        query: Float[Tensor, "batch #n dim"],
    ) -> Float[Tensor, "batch n dim"]:
        """One token for each of n patches: what its query finds in its neighbours.

        Exactly the official blocks, at a third of their work: keys and values are computed once for
        a patch, not once for each of its neighbours, and the first block's query once for all
        patches that share it.

        Parameters
        ----------
        neighbours
            Patches that are keys and values of each of the n, beside the query itself; -1 = none.
        query
            Of each of the n patches, or one for all.
        """
        absent = (neighbours < 0)[..., None]
        index = neighbours.clamp(min=0).flatten(1)
        y = query
        for block in self.blocks:
            assert isinstance(block, CrossBlock)
            context = block.norm1(h)
            k, v = block.k(context), block.v(context)
            # [batch, n, k, heads, head_dim]
            k, v = (
                block.split(take_rows(part, index).unflatten(1, neighbours.shape[1:]))
                for part in (k, v)
            )
            own = block.norm1(y)
            q, own_k, own_v = (block.split(linear(own)) for linear in (block.q, block.k, block.v))
            answer = _ask(q, own_k, own_v, k, v, absent)
            y = y + block.proj(answer.flatten(2))
            y = y + block.mlp(block.norm2(y))
        return self.norm(y)


class PaperHead(nn.Module):
    """The paper's equation taken literally: one attention, values as they came, nothing added.

    Same two uses as `AggregationHead`; the context's mean asks all tokens and the one answer is
    added to each, since the predictor wants one token a patch.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = Linear(dim, dim)
        self.k = Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        init_weights(self)

    def forward(
        self, z: Float[Tensor, "batch k dim"], lengths: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch k dim"]:
        """Context tokens, enriched; `lengths` as in `AggregationHead`."""
        q, k, v = self.q(_mean(z, lengths)), self.k(z), z
        answer = attention(
            *(part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v)),
            key_lengths=lengths,
        )
        return self.norm(z + answer.transpose(1, 2).flatten(2))

    def aggregate(
        self,
        h: Float[Tensor, "batch patches dim"],
        neighbours: Int64[Tensor, "batch n k"],
        query: Float[Tensor, "batch #n dim"],
    ) -> Float[Tensor, "batch n dim"]:
        """One token for each of n patches; as `AggregationHead.aggregate`."""
        index = neighbours.clamp(min=0).flatten(1)
        k, v = (
            take_rows(part, index)
            .unflatten(1, neighbours.shape[1:])
            .unflatten(-1, (self.heads, -1))
            for part in (self.k(h), h)
        )
        q = self.q(query).unflatten(-1, (self.heads, -1))
        scores = _scores(q, k).masked_fill((neighbours < 0)[..., None], -torch.inf)
        answer = (scores.softmax(2)[..., None] * v).sum(2)
        return self.norm(answer.flatten(2))


def _mean(
    z: Float[Tensor, "batch k dim"], lengths: Int[Tensor, " batch"] | None
) -> Float[Tensor, "batch 1 dim"]:
    if lengths is None:
        return z.mean(1, keepdim=True)
    valid = torch.arange(z.shape[1], device=z.device) < lengths[:, None]
    total = z.masked_fill(~valid[..., None], 0).sum(1, keepdim=True)
    return total / lengths.clamp(min=1)[:, None, None]


def _scores(
    q: Float[Tensor, "batch #n heads head_dim"], k: Float[Tensor, "batch n k heads head_dim"]
) -> Float[Tensor, "batch n k heads"]:
    return (q.unsqueeze(2) * k).sum(-1) / math.sqrt(q.shape[-1])


def _ask(
    q: Float[Tensor, "batch #n heads head_dim"],
    own_k: Float[Tensor, "batch #n heads head_dim"],
    own_v: Float[Tensor, "batch #n heads head_dim"],
    k: Float[Tensor, "batch n k heads head_dim"],
    v: Float[Tensor, "batch n k heads head_dim"],
    absent: Bool[Tensor, "batch n k 1"],
) -> Float[Tensor, "batch n heads head_dim"]:
    """Attention of one query to itself and to a few others."""
    others = _scores(q, k).masked_fill(absent, -torch.inf)
    own = (q * own_k).sum(-1).unsqueeze(2) / math.sqrt(q.shape[-1])
    weights = torch.cat((own.expand(-1, k.shape[1], -1, -1), others), 2).softmax(2)[..., None]
    return weights[:, :, 0] * own_v + (weights[:, :, 1:] * v).sum(2)

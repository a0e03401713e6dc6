"""Attention of many short sequences by narrow heads, on a CPU.

Where heads are 4 to 12 wide, as in models of tables, products are a small part of the work: torch's
fused kernel and its plain softmax spend their time on exponentials, and on rows that do not fill a
vector register. Here weights are powers of two, which torch computes 4 times as fast; the maximum
of a row is subtracted only where the row needs it; a row is normalised after it was summed up, not
before; and features come first, so that the tokens are the long side of every product.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from jepa_core.attention.dropout import dropped

# Weights computed at once: they stay in the core's own cache.
_PIECE = 1 << 18
# Sums of weights that are as exact as any other, with room for the products that follow.
_LEAST, _MOST = 2.0**-32, 2.0**32
_LOG2_E = math.log2(math.e)

Heads = Float[Tensor, "batch heads tokens dim"]


def attention_narrow(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch heads keys dim"],
    v: Float[Tensor, "batch heads keys dim"],
    *,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads queries dim"]:
    """softmax(scale q k') v; parameters as in `attention`. Differentiable once."""
    out: Tensor = Narrow.apply(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale, dropout)
    return out


class Narrow(torch.autograd.Function):
    """Keeps no weights: the backward computes them again."""

    @staticmethod
    def forward(ctx: Any, q: Heads, k: Heads, v: Heads, scale: float, dropout: float) -> Heads:
        ctx.heads, ctx.scale, ctx.keep = q.shape[:2], scale, 1 - dropout
        q, k, v = (_features_first(x) for x in (q, k, v))
        q = q * (scale * _LOG2_E)
        out, total = torch.empty_like(q), torch.empty_like(q[:, :1])
        shift, drops = None, []
        for at, weights, _ in _pieces(q, k):
            _powers(q[at], k[at], None, weights)
            torch.sum(weights, 1, keepdim=True, out=total[at])
            low, high = total[at].aminmax()
            if not (low >= _LEAST and high <= _MOST):
                shift = torch.zeros_like(total) if shift is None else shift
                # Other rows keep their bits: what a row gives must not depend on its company.
                wild = ~((total[at] >= _LEAST) & (total[at] <= _MOST))
                highest = torch.bmm(k[at].mT, q[at]).amax(1, keepdim=True)
                shift[at] = highest.where(wild, 0.0)
                _powers(q[at], k[at], shift[at], weights)
                torch.sum(weights, 1, keepdim=True, out=total[at])
            if dropout:
                drops.append(dropped(weights.numel(), dropout))
                weights.view(-1).index_fill_(0, drops[-1], 0.0)
            torch.bmm(v[at], weights, out=out[at])
        total *= ctx.keep
        out /= total
        ctx.save_for_backward(q, k, v, out, total, shift)
        ctx.drops = drops
        return _heads_first(out, ctx.heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Heads) -> tuple[Heads, Heads, Heads, None, None]:
        q, k, v, out, total, shift = ctx.saved_tensors
        grad = _features_first(grad) / total
        # Weights sum to 1: where one rises, all others of its row fall.
        common = (grad * out).sum(1, keepdim=True) * ctx.keep
        to_q, to_k, to_v = (torch.empty_like(x) for x in (q, k, v))
        for i, (at, weights, slopes) in enumerate(_pieces(q, k)):
            _powers(q[at], k[at], None if shift is None else shift[at], weights)
            torch.bmm(v[at].mT, grad[at], out=slopes)
            if ctx.drops:
                slopes.view(-1).index_fill_(0, ctx.drops[i], 0.0)
            slopes -= common[at]
            slopes *= weights
            torch.bmm(k[at], slopes, out=to_q[at])
            torch.bmm(q[at], slopes.mT, out=to_k[at])
            if ctx.drops:
                weights.view(-1).index_fill_(0, ctx.drops[i], 0.0)
            torch.bmm(grad[at], weights.mT, out=to_v[at])
        to_q *= ctx.scale
        to_k /= _LOG2_E
        to_q, to_k, to_v = (_heads_first(x, ctx.heads) for x in (to_q, to_k, to_v))
        return to_q, to_k, to_v, None, None


def _features_first(x: Heads) -> Float[Tensor, "sequences dim tokens"]:
    return x.mT.reshape(-1, x.shape[3], x.shape[2])


def _heads_first(
    x: Float[Tensor, "sequences dim tokens"], batch_and_heads: tuple[int, int]
) -> Heads:
    return x.unflatten(0, batch_and_heads).mT


def _pieces(
    q: Float[Tensor, "sequences dim queries"], k: Float[Tensor, "sequences dim keys"]
) -> Iterator[
    tuple[slice, Float[Tensor, "piece keys queries"], Float[Tensor, "piece keys queries"]]
]:
    """Which sequences to compute next, and where to: two arrays, the same ones every time."""
    sequences, queries, keys = len(q), q.shape[2], k.shape[2]
    size = min(sequences, max(1, _PIECE // (queries * keys)))
    weights, slopes = (q.new_empty(size, keys, queries) for _ in range(2))
    for first in range(0, sequences, size):
        last = min(first + size, sequences)
        yield slice(first, last), weights[: last - first], slopes[: last - first]


def _powers(
    q: Float[Tensor, "piece dim queries"],
    k: Float[Tensor, "piece dim keys"],
    shift: Float[Tensor, "piece 1 queries"] | None,
    out: Float[Tensor, "piece keys queries"],
) -> None:
    """Two to the power of k' q - shift."""
    torch.bmm(k.mT, q, out=out)
    if shift is not None:
        out -= shift
    torch.exp2(out, out=out)

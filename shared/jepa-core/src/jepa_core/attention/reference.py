"""Attention by its definition: slow, any dtype up to float64, the truth of every other backend."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def attention_weights(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch heads keys dim"],
    *,
    mask: Bool[Tensor, "#batch #heads #queries #keys"] | None = None,
    bias: Float[Tensor, "*#shape"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "batch heads queries keys"]:
    """The softmax weights, for pictures and for the reference.

    Each row sums to 1, or is zero where no key is allowed. Parameters as in `attention`.
    """
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
        finite = bias != -float("inf")
        mask = finite if mask is None else mask & finite
    if mask is None:
        return scores.softmax(-1)
    # The softmax of a row without allowed key is NaN. The second fill takes it out of the weights,
    # the first, on the way back, out of the gradients.
    scores = scores.masked_fill(~mask, -float("inf"))
    return scores.softmax(-1).masked_fill(~mask, 0.0)


def attention_reference(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch heads keys dim"],
    v: Float[Tensor, "batch heads keys dim"],
    *,
    mask: Bool[Tensor, "#batch #heads #queries #keys"] | None = None,
    bias: Float[Tensor, "*#shape"] | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads queries dim"]:
    """softmax(scale q k' + bias) v; parameters as in `attention`."""
    weights = attention_weights(q, k, mask=mask, bias=bias, scale=scale)
    return F.dropout(weights, dropout) @ v


def contextual_bias(
    q: Float[Tensor, "batch heads queries dim"],
    table: Float[Tensor, "*heads dim buckets"],
    bucket: Int[Tensor, "queries keys"],
    *,
    scale: float | None = None,
) -> Float[Tensor, "batch heads queries keys"]:
    """Relative position bias that depends on the query: bias_ij = scale q_i . table[:, bucket_ij].

    The contextual, product form on keys or queries of Wu et al. 2021, "Rethinking and improving
    relative position encoding for vision transformer", equations 14 and 15.

    Parameters
    ----------
    table
        One column a bucket; [dim, buckets] shared by the heads or [heads, dim, buckets].
    bucket
        The bucket of each pair, in [0, buckets).
    """
    per_bucket = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ table
    index = bucket.long().expand(*per_bucket.shape[:-1], bucket.shape[-1])
    return per_bucket.gather(-1, index)

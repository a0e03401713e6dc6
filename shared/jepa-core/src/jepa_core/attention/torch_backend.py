"""Attention by torch's fused kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def attention_torch(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch heads keys dim"],
    v: Float[Tensor, "batch heads keys dim"],
    *,
    mask: Bool[Tensor, "#batch #heads #queries #keys"] | None = None,
    bias: Float[Tensor, "*#shape"] | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads queries dim"]:
    """softmax(scale q k' + bias) v; parameters as in `attention`.

    `causal` is for calls without mask and bias.
    """
    empty = None
    if mask is not None:
        # Not every kernel of every device promises zeros for a row without allowed key: let such
        # rows attend to everything and cut them off behind, which also zeroes their gradients.
        empty = ~mask.any(-1, keepdim=True)
        mask = mask | empty
    if bias is not None:
        bias = bias.to(q.dtype)
        mask = bias if mask is None else bias.masked_fill(~mask, -float("inf"))
    kernels = choose_kernels(q, k, v)
    if kernels is None:
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale
        )
    else:
        with sdpa_kernel(kernels):
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale
            )
    return out if empty is None else out.masked_fill(empty, 0.0)


def choose_kernels(q: Tensor, k: Tensor, v: Tensor) -> SDPBackend | None:
    """The kernel to insist on, or None to leave the choice to torch."""
    needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if needs_gradient and q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # The fused CPU kernel's backward in bfloat16 is slower than the plain products, the
        # more so the shorter the sequences: 1.1 to 1.2 times at 200 tokens, 3.6 times at 41.
        return SDPBackend.MATH
    return None

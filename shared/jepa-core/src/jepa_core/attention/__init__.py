"""Attention: one function, several backends, one slow truth.

`attention` serves rectangular batches, `attention_ragged` packed sequences. A query that may attend
to nothing returns zeros and adds nothing to any gradient, in every backend and dtype.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepa_core.attention.narrow import attention_narrow
from jepa_core.attention.ragged import attention_ragged
from jepa_core.attention.reference import attention_reference, contextual_bias
from jepa_core.attention.torch_backend import attention_torch
from jepa_core.errors import ConfigError

__all__ = [
    "Backend",
    "attention",
    "attention_narrow",
    "attention_ragged",
    "attention_reference",
    "choose_backend",
    "contextual_bias",
]

Backend = Literal["reference", "torch", "narrow"]

# Where `attention_narrow` is faster: the widest heads, without dropout and with it (for which torch
# has no fused kernel on a CPU), the fewest keys and the fewest weights.
_WIDEST, _WIDEST_WITH_DROPOUT, _KEYS, _WEIGHTS = 12, 32, 8, 1 << 14


def attention(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch heads keys dim"],
    v: Float[Tensor, "batch heads keys dim"],
    *,
    mask: Bool[Tensor, "#batch #heads #queries #keys"] | None = None,
    bias: Float[Tensor, "*#shape"] | None = None,
    key_lengths: Int[Tensor, " batch"] | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    backend: Backend | None = None,
) -> Float[Tensor, "batch heads queries dim"]:
    """softmax(scale q k' + bias) v over the allowed pairs (Vaswani et al. 2017, equation 1).

    Parameters
    ----------
    mask
        True = may attend. All of `mask`, `key_lengths` and `causal` must allow a pair.
    bias
        Added to the scaled scores, broadcast to [batch, heads, queries, keys]; may need a
        gradient; -inf forbids the pair.
    key_lengths
        Sample b attends to its first key_lengths[b] keys only.
    causal
        Query i attends to keys j <= i; needs as many queries as keys.
    scale
        1 / sqrt(dim) by default.
    dropout
        Probability for the weights. The caller passes 0 outside training.
    backend
        Overrides `choose_backend`.

    Raises
    ------
    ConfigError
        `causal` with unequal numbers of queries and keys, an unknown backend, or one that cannot
        do what is asked.
    """
    every_pair = mask is None and bias is None and key_lengths is None and not causal
    backend = choose_backend(q, k, dropout, every_pair) if backend is None else backend
    if backend not in ("reference", "torch", "narrow"):
        raise ConfigError(
            f"no attention backend {backend!r}",
            remedy="choose 'reference', 'torch' or 'narrow'",
        )
    if backend == "narrow":
        if not every_pair:
            raise ConfigError(
                "the narrow backend lets every query attend to every key",
                remedy="choose 'torch' for attention with a mask, bias, lengths or causality",
            )
        return attention_narrow(q, k, v, scale=scale, dropout=dropout)
    queries, keys = q.shape[-2], k.shape[-2]
    if causal and queries != keys:
        raise ConfigError(
            f"causal attention with {queries} queries and {keys} keys is ambiguous",
            remedy="pass the mask you mean",
        )
    if key_lengths is not None:
        valid = torch.arange(keys, device=k.device) < key_lengths[:, None, None, None]
        mask = valid if mask is None else mask & valid
    # The fused kernels know a causal pattern without a mask, but not both at once.
    if causal and (mask is not None or bias is not None or backend == "reference"):
        below = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril()
        mask, causal = below if mask is None else mask & below, False
    if backend == "reference":
        return attention_reference(q, k, v, mask=mask, bias=bias, scale=scale, dropout=dropout)
    return attention_torch(
        q, k, v, mask=mask, bias=bias, causal=causal, scale=scale, dropout=dropout
    )


def choose_backend(q: Tensor, k: Tensor, dropout: float = 0.0, every_pair: bool = True) -> Backend:
    """`torch` wherever a fused kernel is safe: everything but attention without a row or a key.

    `narrow` instead for much work by narrow heads on a CPU, where `every_pair` is allowed.
    """
    if q.numel() == 0 or k.numel() == 0:
        return "reference"
    width, keys = q.shape[-1], k.shape[-2]
    narrow = (
        every_pair
        and width <= (_WIDEST_WITH_DROPOUT if dropout else _WIDEST)
        and keys >= _KEYS
        and q.numel() // width * keys >= _WEIGHTS
        and q.device.type == "cpu"
        and q.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )
    return "narrow" if narrow else "torch"

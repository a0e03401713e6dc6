"""Dropout that draws what is dropped, not what is kept.

torch draws a random number an element on a CPU, which at a rate of 0.002 takes longer than the
layer that it is for. The gaps between dropped elements are geometric: drawing those gives the same
distribution, 70 times as fast at that rate and still 1.7 times at one half.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


def dropped(count: int, rate: float) -> Int64[Tensor, " drops"]:
    """Places in [0, count), ascending, each of them with probability `rate` in (0, 1).

    Draws from torch's generator of the CPU.
    """
    mean = count * rate
    size = int(mean + 4 * math.sqrt(mean)) + 8
    places = torch.empty(size, dtype=torch.int64).geometric_(rate).cumsum_(0)
    while places[-1] <= count:
        more = torch.empty(size, dtype=torch.int64).geometric_(rate).cumsum_(0)
        places = torch.cat((places, places[-1] + more))
    # Counted from 1 so far.
    return places[: int(torch.searchsorted(places, count, right=True))] - 1


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, on a CPU by `dropped`: other random numbers, same distribution."""

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        if not self.training or not 0 < self.p < 1:
            return super().forward(x)
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        out: Tensor = Dropped.apply(x, self.p)
        return out


class Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "*shape"], rate: float) -> Float[Tensor, "*shape"]:
        ctx.places, ctx.factor = dropped(x.numel(), rate), 1 / (1 - rate)
        return _without(x, ctx.places, ctx.factor)

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "*shape"]) -> tuple[Float[Tensor, "*shape"], None]:
        return _without(grad, ctx.places, ctx.factor), None


def _without(
    x: Float[Tensor, "*shape"], places: Int64[Tensor, " drops"], factor: float
) -> Float[Tensor, "*shape"]:
    out = (x * factor).contiguous()
    out.view(-1).index_fill_(0, places, 0.0)
    return out

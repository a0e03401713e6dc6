"""Linear maps by whichever of torch's two CPU libraries uses the whole CPU.

torch multiplies float32 matrices by MKL, which keeps to AVX2 on AMD's CPUs, also where they have
AVX-512. oneDNN, in the same torch, does not: the same products in the same precision, 2.1 times as
fast forward and 1.9 times with the backward (AMD family 26, one thread, 3216 x 192 x 768).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

# Multiplications below which oneDNN's cost per call eats the gain: even at 2.5 million.
SMALL = 2**22


def linear(
    x: Float[Tensor, "*batch inner"],
    weight: Float[Tensor, "outer inner"],
    bias: Float[Tensor, " outer"] | None = None,
) -> Float[Tensor, "*batch outer"]:
    """x weight' + bias, as `torch.nn.functional.linear`; sums are rounded in another order."""
    if not (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * len(weight) >= SMALL
        and onednn_is_faster()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    ):
        return F.linear(x, weight, bias)
    out: Tensor = OneDNN.apply(x.flatten(0, -2), weight, bias)
    return out.unflatten(0, x.shape[:-1])


class Linear(nn.Linear):
    """`torch.nn.Linear` by `linear`."""

    def forward(self, x: Float[Tensor, "*batch inner"]) -> Float[Tensor, "*batch outer"]:
        return linear(x, self.weight, self.bias)


class OneDNN(torch.autograd.Function):
    """a b' + bias of float32 matrices, which need not be contiguous."""

    @staticmethod
    def forward(
        ctx: Any,
        a: Float[Tensor, "rows inner"],
        b: Float[Tensor, "columns inner"],
        bias: Float[Tensor, " columns"] | None,
    ) -> Float[Tensor, "rows columns"]:
        ctx.save_for_backward(a, b)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
        return out

    @staticmethod
    def backward(
        ctx: Any, *gradients: Float[Tensor, "rows columns"]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (gradient,) = gradients
        a, b = ctx.saved_tensors
        to_a, to_b, to_bias = ctx.needs_input_grad
        for_b = None
        if to_b:
            # The left operand is copied where it is transposed: let that be the narrower one.
            wide = gradient.shape[1] > a.shape[1]
            left, right = (a, gradient) if wide else (gradient, a)
            product = OneDNN.apply(left.t(), right.t(), None)
            for_b = product.t() if wide else product
        return (
            OneDNN.apply(gradient, b.t(), None) if to_a else None,
            for_b,
            gradient.sum(0) if to_bias else None,
        )


@cache
def onednn_is_faster(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether MKL leaves AVX-512 of this CPU unused, and torch offers oneDNN's product.

    A property of the machine and not a measurement: a resumed run must take the same way.
    """
    try:
        amd = "AuthenticAMD" in Path(cpuinfo).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return (
        amd
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )

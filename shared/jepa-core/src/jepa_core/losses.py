"""Distances between predictions and targets, averaged in float32 or better.

All take [*rows, dim] and average over the features of each row and then over the rows, with equal
weights or those given. Rows of a padded batch that hold nothing get weight 0; if all do, the loss
is 0 and so is its gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

Weights = Float[Tensor, "*rows"] | Bool[Tensor, "*rows"]


def l1(
    prediction: Float[Tensor, "*rows dim"],
    target: Float[Tensor, "*rows dim"],
    weights: Weights | None = None,
) -> Float[Tensor, ""]:
    """Mean absolute error."""
    prediction, target = _wide(prediction), _wide(target)
    if weights is None:
        return F.l1_loss(prediction, target)
    return _weighted(F.l1_loss(prediction, target, reduction="none"), weights)


def mse(
    prediction: Float[Tensor, "*rows dim"],
    target: Float[Tensor, "*rows dim"],
    weights: Weights | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error."""
    prediction, target = _wide(prediction), _wide(target)
    if weights is None:
        return F.mse_loss(prediction, target)
    return _weighted(F.mse_loss(prediction, target, reduction="none"), weights)


def smooth_l1(
    prediction: Float[Tensor, "*rows dim"],
    target: Float[Tensor, "*rows dim"],
    weights: Weights | None = None,
    beta: float = 1.0,
) -> Float[Tensor, ""]:
    """e^2 / (2 beta) where |e| < beta, else |e| - beta / 2 (Girshick 2015, equation 3)."""
    prediction, target = _wide(prediction), _wide(target)
    if weights is None:
        return F.smooth_l1_loss(prediction, target, beta=beta)
    return _weighted(F.smooth_l1_loss(prediction, target, beta=beta, reduction="none"), weights)


def _wide(x: Tensor) -> Tensor:
    # A mean over 10^6 bfloat16 numbers has three digits at best.
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _weighted(errors: Float[Tensor, "*rows dim"], weights: Weights) -> Float[Tensor, ""]:
    weights = weights.to(errors.dtype)
    total = weights.sum()
    # No row at all: 0 / 1, chosen on the device.
    return (errors.mean(-1) * weights).sum() / torch.where(total > 0, total, 1.0)

"""Losses against their definitions written out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jepa_core.losses import l1, mse, smooth_l1

ERRORS: dict[Callable[..., Tensor], Callable[[Tensor], Tensor]] = {
    l1: torch.abs,
    mse: torch.square,
    smooth_l1: lambda e: torch.where(e.abs() < 1, e * e / 2, e.abs() - 0.5),
}


@pytest.fixture(params=ERRORS, ids=lambda loss: loss.__name__)
def loss(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    return request.param


def pair(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, *shape, generator=generator, dtype=torch.float64).mul(2)
    return prediction.to(dtype).requires_grad_(), target.to(dtype)


def test_a_loss_is_the_mean_over_rows_and_features(loss: Callable[..., Tensor]) -> None:
    prediction, target = pair(3, 5, 4)
    expected = ERRORS[loss](prediction - target).mean()
    torch.testing.assert_close(loss(prediction, target), expected, rtol=0, atol=1e-14)


def test_rows_of_weight_zero_do_not_exist(loss: Callable[..., Tensor]) -> None:
    prediction, target = pair(3, 5, 4)
    valid = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    masked = loss(prediction, target, valid)
    torch.testing.assert_close(masked, loss(prediction[valid], target[valid]), rtol=0, atol=1e-14)
    masked.backward()
    assert (prediction.grad[~valid] == 0).all()
    assert (prediction.grad[valid] != 0).any()


def test_weights_average(loss: Callable[..., Tensor]) -> None:
    prediction, target = pair(2, 4)
    rows = ERRORS[loss](prediction - target).mean(-1)
    weighted = loss(prediction, target, torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(weighted, (rows[0] + 3 * rows[1]) / 4, rtol=0, atol=1e-14)


def test_no_rows_at_all_cost_nothing(loss: Callable[..., Tensor]) -> None:
    prediction, target = pair(2, 4)
    nothing = loss(prediction, target, torch.zeros(2, dtype=torch.bool))
    nothing.backward()
    assert nothing == 0
    assert (prediction.grad == 0).all()


def test_half_precision_is_averaged_in_float32(loss: Callable[..., Tensor]) -> None:
    prediction, target = pair(500, 64, dtype=torch.bfloat16)
    value = loss(prediction, target)
    assert value.dtype == torch.float32
    exact = ERRORS[loss](prediction.double() - target.double()).mean()
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=0)
    weighted = loss(prediction, target, torch.ones(500))
    torch.testing.assert_close(weighted.double(), exact, rtol=1e-5, atol=0)


def test_smooth_l1_bends_at_beta() -> None:
    e = torch.tensor([[0.5], [3.0]], dtype=torch.float64)
    value = smooth_l1(e, torch.zeros_like(e), beta=2.0)
    assert float(value) == pytest.approx((0.25 / 4 + 3 - 1) / 2, abs=1e-15)

"""Dropout by geometric gaps has the distribution of dropout by a draw an element."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from jepa_core.attention import dropout as room
from jepa_core.attention.dropout import Dropout, dropped


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.8])
def test_every_place_is_dropped_at_the_rate_and_alone(rate: float) -> None:
    torch.manual_seed(0)
    draws, count = 5000, 12
    hits = torch.zeros(draws, count, dtype=torch.float64)
    for hit in hits:
        hit[dropped(count, rate)] = 1
    sd = (rate * (1 - rate) / draws) ** 0.5
    assert ((hits.mean(0) - rate).abs() < 5 * sd).all()
    # The covariance of two independent places is zero, with this spread.
    covariance = torch.cov(hits.T).fill_diagonal_(0)
    assert (covariance.abs() < 6 * rate * (1 - rate) / draws**0.5).all()


@settings(deadline=None, max_examples=60)
@given(count=st.integers(0, 3000), rate=st.floats(1e-4, 0.999), seed=st.integers(0, 2**31))
def test_places_are_in_the_range_ascending_and_single(count: int, rate: float, seed: int) -> None:
    torch.manual_seed(seed)
    places = dropped(count, rate)
    assert (places >= 0).all()
    assert (places < count).all()
    assert (places.diff() > 0).all()


def test_a_first_draw_that_falls_short_is_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    # 608 gaps of 5 on average do not span 5000 places.
    monkeypatch.setattr(room.math, "sqrt", lambda _: -100.0)
    torch.manual_seed(0)
    shares = [len(dropped(5000, 0.2)) / 5000 for _ in range(200)]
    assert sum(shares) / 200 == pytest.approx(0.2, abs=5 * (0.16 / 5000 / 200) ** 0.5)


def test_what_is_kept_is_scaled_and_the_gradient_too() -> None:
    torch.manual_seed(0)
    x = torch.ones(50, 40, dtype=torch.float64).requires_grad_()
    out = Dropout(0.2)(x.T)
    assert set(out.unique().tolist()) == {0.0, 1.25}
    out.sum().backward()
    torch.testing.assert_close(x.grad, out.detach().T)
    assert (out == 0).double().mean().item() == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_nothing_and_everything_can_be_dropped(rate: float) -> None:
    x = torch.randn(5, 4)
    torch.testing.assert_close(Dropout(rate)(x), nn.Dropout(rate)(x), atol=0, rtol=0)


def test_nothing_is_dropped_outside_training() -> None:
    x = torch.randn(5, 4)
    assert Dropout(0.5).eval()(x) is x


def test_the_seed_fixes_what_is_dropped() -> None:
    x, layer = torch.randn(30, 40), Dropout(0.3)
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(layer(x))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])

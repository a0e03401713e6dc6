"""Attention by narrow heads equals the reference, however large the scores are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from jepa_core.attention import attention, attention_reference, choose_backend, narrow
from jepa_core.attention.narrow import attention_narrow
from jepa_core.errors import ConfigError

HEADS, DIM = 3, 4


def inputs(
    batch: int = 5, queries: int = 7, keys: int = 9, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Queries, keys and values as a model has them: views of one map's output."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for tokens in (queries, keys, keys):
        x = torch.randn(batch, tokens, 2, HEADS, DIM, generator=generator, dtype=torch.float64)
        parts.append(x.to(dtype)[:, :, 0].transpose(1, 2))
    return parts


def outcome(function: Callable[..., Tensor], parts: list[Tensor], **options: float) -> list[Tensor]:
    """Output, and the gradients of a weighted sum of it."""
    leaves = [part.detach().clone().requires_grad_() for part in parts]
    out = function(*leaves, **options)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)]


def assert_equal(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        largest = max(1.0, b.abs().max().item())
        torch.testing.assert_close(a, b, atol=tolerance * largest, rtol=0)


@pytest.fixture(params=[1, 200, 1 << 18], ids=lambda n: f"{n} weights at once")
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrow, "_PIECE", request.param)


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize(("queries", "keys"), [(7, 9), (9, 9), (1, 9), (7, 1)])
@pytest.mark.parametrize("options", [{}, {"scale": 0.3}], ids=str)
def test_outputs_and_gradients_are_those_of_the_reference(
    queries: int, keys: int, options: dict[str, float]
) -> None:
    parts = inputs(queries=queries, keys=keys)
    expected = outcome(attention_reference, parts, **options)
    assert_equal(outcome(attention_narrow, parts, **options), expected, 1e-13)


def test_the_recorded_outputs_and_gradients_are_reproduced(data: Callable[[str], Path]) -> None:
    with np.load(data("core") / "golden_attention.npz") as golden:
        leaves = [torch.from_numpy(golden[name]).requires_grad_() for name in "qkv"]
        out = attention(*leaves, backend="narrow")
        out.backward(torch.from_numpy(golden["grad_out"]))
        torch.testing.assert_close(
            out.detach(), torch.from_numpy(golden["dense_out"]), atol=1e-12, rtol=0
        )
        for name, leaf in zip("qkv", leaves, strict=True):
            wanted = torch.from_numpy(golden[f"dense_d{name}"])
            torch.testing.assert_close(leaf.grad, wanted, atol=1e-12, rtol=0)


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("size", [30.0, 1000.0, -1000.0])
def test_large_scores_overflow_nothing(dtype: torch.dtype, size: float) -> None:
    parts = inputs(dtype=dtype)
    # Queries meet keys that all agree with them, or all disagree: even the largest scores are far
    # off zero.
    parts[0][1, 2] = 1 + 0.1 * parts[0][1, 2]
    parts[1][1, 2] = size * (1 + 0.001 * parts[1][1, 2])
    truth = outcome(attention_reference, [part.double() for part in parts])
    found = outcome(attention_narrow, parts)
    assert all(part.isfinite().all() for part in found)
    # A weight is as exact as its score, and that is rounded to its own size.
    tolerance = 10 * abs(size) * torch.finfo(dtype).eps
    assert_equal([part.double() for part in found], truth, tolerance)


def test_a_rows_result_does_not_depend_on_its_company() -> None:
    parts = inputs(dtype=torch.float32)
    calm = attention_narrow(*parts)
    parts[0][1, 2, 3] *= 1e4
    wild = attention_narrow(*parts)
    assert not torch.equal(calm[1, 2, 3], wild[1, 2, 3])
    wild[1, 2, 3] = calm[1, 2, 3]
    assert torch.equal(calm, wild)


def test_a_number_that_is_none_stays_in_its_row() -> None:
    parts = inputs()
    parts[0][1, 2, 3, 0] = float("nan")
    out = attention_narrow(*parts)
    assert out[1, 2, 3].isnan().all()
    assert out.isnan().sum() == DIM


@pytest.mark.usefixtures("piece")
def test_dropout_drops_the_same_weights_on_the_way_back() -> None:
    leaves = [part.clone().requires_grad_() for part in inputs(2, 3, 4)]

    def seeded(*parts: Tensor) -> Tensor:
        torch.manual_seed(0)
        return attention_narrow(*parts, dropout=0.4)

    assert torch.autograd.gradcheck(seeded, leaves)


def test_dropout_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    parts = inputs(1, 6, 6)
    draws = torch.stack([attention_narrow(*parts, dropout=0.5) for _ in range(2000)])
    assert draws.std(0).min() > 0
    error = (draws.mean(0) - attention_narrow(*parts)).abs() / (draws.std(0) / 2000**0.5)
    assert error.max() < 5


def heads(width: int, tokens: int = 20, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(16, 4, tokens, width, dtype=dtype)


def test_many_narrow_heads_on_a_cpu_are_chosen_and_nothing_else() -> None:
    q = heads(8)
    assert choose_backend(q, q) == "narrow"
    assert choose_backend(q.double(), q.double()) == "narrow"
    assert choose_backend(q[:2], q[:2]) == "torch"  # little work
    assert choose_backend(q, heads(8, 4)) == "torch"  # few keys
    assert choose_backend(heads(16), heads(16)) == "torch"
    assert choose_backend(heads(16), heads(16), 0.1) == "narrow"
    assert choose_backend(heads(64), heads(64), 0.1) == "torch"
    assert choose_backend(q.bfloat16(), q.bfloat16()) == "torch"
    assert choose_backend(q.to("meta"), q.to("meta")) == "torch"
    assert choose_backend(q, q, every_pair=False) == "torch"
    with torch.autocast("cpu", torch.bfloat16):
        assert choose_backend(q, q) == "torch"


@pytest.mark.parametrize("how", ["mask", "bias", "key_lengths", "causal"])
def test_what_forbids_pairs_goes_another_way(how: str) -> None:
    q = torch.randn(16, 4, 20, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    below = torch.ones(20, 20, dtype=torch.bool).tril()
    options = {
        "mask": {"mask": below},
        "bias": {"bias": torch.zeros(20, 20, dtype=q.dtype).masked_fill(~below, -torch.inf)},
        "key_lengths": {"key_lengths": torch.full((16,), 5)},
        "causal": {"causal": True},
    }[how]
    expected = attention(q, q, q, backend="reference", **options)  # type: ignore[arg-type]
    found = attention(q, q, q, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    with pytest.raises(ConfigError, match="every query attend to every key"):
        attention(q, q, q, backend="narrow", **options)  # type: ignore[arg-type]

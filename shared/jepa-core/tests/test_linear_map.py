"""The product by oneDNN is torch's own, and is taken only where it pays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_core.layers import linear as room
from jepa_core.layers.linear import Linear, OneDNN, linear, onednn_is_faster

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch is built without oneDNN"
)


@pytest.fixture
def onednn_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(room, "SMALL", 1)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is called from now on, of the two ways."""
    found: list[str] = []
    apply, plain = OneDNN.apply, F.linear

    def noted(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*arguments: Any) -> Tensor:
            found.append(name)
            return function(*arguments)

        return call

    monkeypatch.setattr(OneDNN, "apply", noted("onednn", apply))
    monkeypatch.setattr(room.F, "linear", noted("plain", plain))
    return found


def outcome(
    function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None
) -> list[Tensor]:
    """Output and gradients of a weighted sum of it."""
    leaves = [
        part.detach().clone().requires_grad_() for part in (x, weight, bias) if part is not None
    ]
    out = function(*leaves)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    (out * weights).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@needs_onednn
@pytest.mark.usefixtures("onednn_everywhere")
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("inner", "outer"), [(24, 8), (8, 24), (5, 1)])
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 5)])
def test_output_and_gradients_are_those_of_float64(
    shape: tuple[int, ...], inner: int, outer: int, with_bias: bool
) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(*shape, inner), torch.randn(outer, inner)
    bias = torch.randn(outer) if with_bias else None
    found = outcome(linear, x, weight, bias)
    truth = outcome(F.linear, x.double(), weight.double(), None if bias is None else bias.double())
    assert len(found) == len(truth) == 3 + with_bias
    for ours, theirs in zip(found, truth, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


@needs_onednn
@pytest.mark.usefixtures("onednn_everywhere")
def test_rows_and_weights_may_be_views() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 2, 10)[:, 1, ::2]
    weight = torch.randn(5, 9).t()[:4]
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight))


@needs_onednn
@pytest.mark.usefixtures("onednn_everywhere")
def test_a_frozen_side_gets_no_gradient(calls: list[str]) -> None:
    weight = torch.randn(4, 3)
    x = torch.randn(5, 3, requires_grad=True)
    linear(x, weight).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(5, -1))
    assert calls == ["onednn", "onednn"]  # forward and one gradient


@needs_onednn
@pytest.mark.usefixtures("onednn_everywhere")
def test_the_gradient_has_a_gradient() -> None:
    x = torch.randn(5, 3, requires_grad=True)
    weight = torch.randn(4, 3, requires_grad=True)
    first = []
    for function in (linear, F.linear):
        (to_x,) = torch.autograd.grad(function(x, weight).square().sum(), x, create_graph=True)
        first.append(torch.autograd.grad(to_x.square().sum(), weight)[0])
    torch.testing.assert_close(*first, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("onednn_everywhere")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_go_the_usual_way(dtype: torch.dtype, calls: list[str]) -> None:
    linear(torch.ones(2, 3, dtype=dtype), torch.ones(4, 3, dtype=dtype))
    assert calls == ["plain"]


@pytest.mark.usefixtures("onednn_everywhere")
def test_autocast_still_casts(calls: list[str]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert Linear(3, 4)(torch.ones(2, 3)).dtype == torch.bfloat16
    assert calls == ["plain"]


@needs_onednn
def test_small_products_go_the_usual_way(monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    monkeypatch.setattr(room, "onednn_is_faster", lambda: True)
    linear(torch.ones(64, 256), torch.ones(255, 256))
    linear(torch.ones(0, 256), torch.ones(256, 256))
    linear(torch.ones(64, 256), torch.ones(256, 256))
    assert calls == ["plain", "plain", "onednn"]


@pytest.mark.parametrize("vendor", ["GenuineIntel", ""])
def test_other_cpus_keep_mkl(vendor: str, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"vendor_id\t: {vendor}\nflags\t\t: avx512f\n")
    assert not onednn_is_faster(str(cpuinfo))
    assert not onednn_is_faster(str(tmp_path / "no such list"))


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_amd_takes_onednn_where_it_has_avx512(
    capability: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("vendor_id\t: AuthenticAMD\n")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    for library in (torch.backends.mkl, torch.backends.mkldnn):
        monkeypatch.setattr(library, "is_available", lambda: True)
    offered = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    assert onednn_is_faster(str(cpuinfo)) == (capability == "AVX512" and offered)

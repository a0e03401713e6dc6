"""The moving average: recorded sequences, what is matched, and what float arithmetic does to it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from jepa_core.ema import EMA
from jepa_core.errors import ConfigError


class Vector(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value.clone())

    def set(self, value: Tensor) -> None:
        with torch.no_grad():
            self.value.copy_(value)


def model(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(dtype)


@pytest.fixture
def golden(data: Callable[[str], Path]) -> dict[str, np.ndarray]:
    return dict(np.load(data("core") / "golden_ema.npz"))


def run(golden: dict[str, np.ndarray], order: str, as_tensor: bool) -> np.ndarray:
    states = torch.from_numpy(golden["online"])
    online = Vector(states[0])
    target = copy.deepcopy(online)
    ema = EMA(target, online)
    history = [target.value.detach().clone()] if order == "after_step" else []
    for momentum, state in zip(golden["momentum"], states[1:], strict=True):
        momentum = torch.tensor(momentum) if as_tensor else float(momentum)
        if order == "before_forward":
            ema.update(momentum)
            history.append(target.value.detach().clone())
        online.set(state)
        if order == "after_step":
            ema.update(momentum)
            history.append(target.value.detach().clone())
    return torch.stack(history).numpy()


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("order", ["after_step", "before_forward"])
def test_both_orders_reproduce_the_recorded_targets(
    golden: dict[str, np.ndarray], order: str, as_tensor: bool
) -> None:
    history = run(golden, order, as_tensor)
    np.testing.assert_allclose(history, golden[f"target_{order}"], rtol=0, atol=1e-12)


def test_a_momentum_near_one_in_float32_is_nearer_the_truth_than_multiply_and_add(
    golden: dict[str, np.ndarray],
) -> None:
    states = torch.from_numpy(golden["online"])
    online = Vector(states[0].float())
    target = copy.deepcopy(online)
    ema = EMA(target, online)
    exact, multiplied = states[0].clone(), states[0].float()
    momentum = torch.tensor(0.999996, dtype=torch.float32)
    for state in states[1:]:
        online.set(state.float())
        ema.update(0.999996)
        exact.lerp_(state, 1 - 0.999996)
        multiplied = momentum * multiplied + (1 - momentum) * state.float()
    # The recorded target is that of the multiply-and-add form, which rounds the large term anew at
    # each step.
    recorded = torch.from_numpy(golden["float32_m_0_999996"])
    torch.testing.assert_close(multiplied, recorded, rtol=0, atol=2e-7)
    error = (target.value.detach().double() - exact).abs().max()
    assert error < 4e-7 < 2e-6 < (recorded.double() - exact).abs().max()


def test_one_minus_momentum_is_rounded_once() -> None:
    online, target = Vector(torch.ones(1)), Vector(torch.zeros(1))
    EMA(target, online).update(0.999996)
    # Subtracting in float32 instead gives 4.0531e-06.
    assert target.value.item() == pytest.approx(4e-6, rel=1e-6)


@pytest.mark.parametrize(("momentum", "expected"), [(0.0, "online"), (1.0, "target")])
def test_momentum_zero_copies_and_one_freezes(momentum: float, expected: str) -> None:
    online, target = model(0), model(1)
    states = {"online": copy.deepcopy(online), "target": copy.deepcopy(target)}
    EMA(target, online).update(momentum)
    for actual, wanted in zip(target.parameters(), states[expected].parameters(), strict=True):
        assert torch.equal(actual, wanted)


def test_the_online_module_and_the_graph_are_left_alone() -> None:
    online, target = model(0), model(1)
    before = copy.deepcopy(online.state_dict())
    EMA(target, online).update(0.9)
    assert all(torch.equal(value, before[name]) for name, value in online.state_dict().items())
    assert all(p.grad_fn is None and p.is_leaf for p in target.parameters())


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan"), torch.tensor(1.5)])
def test_a_momentum_outside_its_range_is_refused(momentum: float | Tensor) -> None:
    with pytest.raises(ConfigError, match=r"not in \[0, 1\]"):
        EMA(model(1), model(0)).update(momentum)


def test_a_momentum_on_the_device_is_not_read_back() -> None:
    # A meta tensor has no value: whoever asks for it gets an error.
    online, target = model(0).to("meta"), model(1).to("meta")
    EMA(target, online, buffers="average").update(torch.tensor(0.9, device="meta"))


def test_mismatches_are_all_listed() -> None:
    target = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    online = nn.Sequential(nn.Linear(3, 5), nn.Linear(4, 2, bias=False), nn.LayerNorm(2))
    with pytest.raises(ConfigError) as error:
        EMA(target, online)
    assert str(error.value).split("; ")[0] == (
        "parameters of target and online module do not match: "
        "0.bias (4,) in the target, (5,) online, 0.weight (4, 3) in the target, (5, 3) online, "
        "1.bias only in the target, 2.bias only online, 2.weight only online"
    )


def test_a_target_without_heads_skips_them() -> None:
    online = nn.ModuleDict({"encoder": model(0), "head": nn.Linear(2, 2).double()})
    target = nn.ModuleDict({"encoder": model(1)})
    EMA(target, online, skip=("head.*",)).update(0.0)
    assert torch.equal(target["encoder"][0].weight, online["encoder"][0].weight)


def test_a_skipped_name_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'heads\.\*'"):
        EMA(model(1), model(0), skip=("heads.*",))


def test_several_modules_are_averaged_at_once() -> None:
    online = nn.ModuleList((model(0), nn.Linear(2, 2).double()))
    target = nn.ModuleList((model(1), nn.Linear(2, 2).double()))
    EMA(target, online).update(0.0)
    assert torch.equal(target[1].weight, online[1].weight)


def test_what_is_frozen_online_is_not_averaged() -> None:
    online, target = model(0), model(1)
    online[0].weight.requires_grad_(False)
    before = target[0].weight.clone()
    EMA(target, online).update(0.5)
    assert torch.equal(target[0].weight, before)
    assert not torch.equal(target[0].bias, model(1)[0].bias)


def test_a_tied_parameter_is_averaged_once() -> None:
    online, target = (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).double() for _ in range(2))
    for module in (online, target):
        module[1].weight = module[0].weight
    expected = torch.lerp(target[0].weight, online[0].weight, 0.25)
    EMA(target, online).update(0.75)
    torch.testing.assert_close(target[0].weight, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("policy", ["keep", "copy", "average"])
def test_buffers_follow_their_policy(policy: str) -> None:
    online, target = model(0), model(1)
    online(torch.randn(8, 3).double())
    online(torch.randn(8, 3).double())
    mean, count = target[1].running_mean.clone(), target[1].num_batches_tracked.clone()
    EMA(target, online, buffers=policy).update(0.75)
    new = online[1].running_mean
    expected = {"keep": mean, "copy": new, "average": 0.75 * mean + 0.25 * new}[policy]
    torch.testing.assert_close(target[1].running_mean, expected, rtol=0, atol=1e-15)
    # A number of batches cannot be averaged.
    assert target[1].num_batches_tracked == (count if policy == "keep" else 2)


def test_an_unknown_buffer_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="'mean'"):
        EMA(model(1), model(0), buffers="mean")


def test_missing_buffers_are_refused_where_they_matter() -> None:
    online = nn.Sequential(nn.BatchNorm1d(3))
    target = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False))
    EMA(target, online)
    with pytest.raises(ConfigError, match=r"0\.running_mean only online"):
        EMA(target, online, buffers="copy")


def test_a_target_in_half_precision_is_refused() -> None:
    online, target = model(0, torch.bfloat16), model(1, torch.bfloat16)
    with pytest.raises(ConfigError, match="bfloat16"):
        EMA(target, online).update(0.999)


def test_a_float32_target_follows_an_online_module_in_half_precision() -> None:
    online, target = model(0, torch.bfloat16), model(1, torch.float32)
    EMA(target, online).update(0.0)
    assert torch.equal(target[0].weight, online[0].weight.float())


def test_the_average_survives_moving_and_copying_the_modules() -> None:
    modules = nn.ModuleList((model(1), model(0)))
    modules.ema = EMA(modules[0], modules[1], buffers="copy")
    modules.float()
    copied = copy.deepcopy(modules)
    copied[1][1].running_mean.fill_(3.0)
    copied.ema.update(0.0)
    assert torch.equal(copied[0][0].weight, copied[1][0].weight)
    assert (copied[0][1].running_mean == 3.0).all()
    assert not torch.equal(modules[0][0].weight, modules[1][0].weight)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_sharded_parameters_are_averaged_in_place() -> None:
    online, target = model(0), model(1)
    ema = EMA(target, online)
    expected = [
        0.75 * t.detach() + 0.25 * o.detach()
        for t, o in zip(target.parameters(), online.parameters(), strict=True)
    ]
    mesh = init_device_mesh("cpu", (1,))
    for module in (online, target):
        fully_shard(module, mesh=mesh)
    ema.update(0.75)
    for parameter, value in zip(target.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.full_tensor(), value, rtol=0, atol=1e-15)

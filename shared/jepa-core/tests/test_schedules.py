"""Schedules against recorded curves and at their edges."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jepa_core import schedules
from jepa_core.schedules import (
    cosine_ema,
    cosine_past_end,
    cosine_to_last,
    linear,
    onecycle_lr,
    onecycle_momentum,
    ramp_clamped,
    wd_cosine,
)

CURVES: dict[str, Callable[[Any], Any]] = {
    "cosine_to_last": lambda s: cosine_to_last(s, 100, 10, 1e-6, 1e-3, 1e-6),
    "cosine_nowarm": lambda s: cosine_to_last(s, 100, 0, 0.0, 0.01, 0.1),
    "cosine_past_end": lambda s: cosine_past_end(s, 100, 10, 2e-4, 1e-3, 1e-6),
    "linear": lambda s: linear(s, 100, 0.996, 1.0),
    "ramp_clamped": lambda s: ramp_clamped(s, 0.996, 0.004 / 80),
    "cosine_ema": lambda s: cosine_ema(s, 100, 0.996),
    "wd_cosine": lambda s: wd_cosine(s, 100, 0.04, 0.4),
    "onecycle_lr": lambda s: onecycle_lr(s, 100, 0.01),
    "onecycle_momentum": lambda s: onecycle_momentum(s, 100),
}


@pytest.mark.parametrize("name", CURVES)
def test_every_schedule_reproduces_its_recorded_curve(
    data: Callable[[str], Path], name: str
) -> None:
    golden = np.load(data("core") / "golden_schedules.npz")
    curve = CURVES[name](golden["step"])
    np.testing.assert_allclose(curve, golden[name], rtol=1e-12, atol=0)
    assert [CURVES[name](int(step)) for step in golden["step"]] == curve.tolist()


def test_the_recorded_arguments_are_those_used(data: Callable[[str], Path]) -> None:
    golden = np.load(data("core") / "golden_schedules.npz")
    for name in ("cosine_to_last", "cosine_past_end"):
        total, warmup, *values = golden[f"{name}_args"]
        schedule = getattr(schedules, name)
        curve = schedule(golden["step"], int(total), int(warmup), *values)
        np.testing.assert_allclose(curve, golden[name], rtol=1e-12, atol=0)


def test_the_ecg_schedules_reproduce_the_original(data: Callable[[str], Path]) -> None:
    golden = np.load(data("ecg") / "golden_schedules.npz")
    # One step past the run the original follows its cosine up again, by 3e-7 of the value.
    inside = golden["step"] != 100_000
    steps = golden["step"][inside]
    curves = {
        "lr": cosine_to_last(steps, 100_000, 10_000, 1e-6, 1e-3, 1e-6),
        "wd": cosine_to_last(steps, 100_000, 0, 0.01, 0.01, 0.1),
        "momentum": linear(steps, 100_000, 0.998, 0.9995),
    }
    for name, curve in curves.items():
        np.testing.assert_allclose(curve, golden[name][inside], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", CURVES)
def test_outside_its_range_a_schedule_keeps_its_ends(name: str) -> None:
    curve = CURVES[name]
    assert curve(-1) == curve(-1000)
    assert curve(100) == curve(101) == curve(10**9)


@pytest.mark.parametrize("name", CURVES)
def test_arrays_keep_their_shape(name: str) -> None:
    curve = CURVES[name](np.arange(6).reshape(2, 3))
    assert curve.shape == (2, 3)
    assert curve.dtype == np.float64
    assert isinstance(CURVES[name](3), float)
    assert CURVES[name](np.int64(3)) == CURVES[name](3)


@pytest.mark.parametrize("schedule", [cosine_to_last, cosine_past_end])
@pytest.mark.parametrize(
    ("total", "warmup"), [(1, 0), (1, 1), (5, 0), (5, 5), (5, 9), (2, 1), (5, 4)]
)
def test_extreme_warmups_stay_between_the_named_values(
    schedule: Callable[..., Any], total: int, warmup: int
) -> None:
    curve = schedule(np.arange(-2, 20), total, warmup, 0.1, 1.0, 0.2)
    assert np.isfinite(curve).all()
    assert curve.min() >= 0.1
    assert curve.max() <= 1.0
    assert schedule(0, total, warmup, 0.1, 1.0, 0.2) == (0.1 if warmup else 1.0)
    assert curve[-1] == 0.2


@pytest.mark.parametrize("schedule", [linear, wd_cosine])
def test_a_run_of_one_step_has_its_first_value(schedule: Callable[..., Any]) -> None:
    assert schedule(0, 1, 0.25, 1.0) == 0.25
    assert schedule(1, 1, 0.25, 1.0) == 1.0


def test_the_last_step_of_the_cosine_is_the_final_value() -> None:
    assert cosine_to_last(99, 100, 10, 0.0, 1.0, 0.25) == 0.25
    assert cosine_past_end(99, 100, 10, 0.0, 1.0, 0.25) > 0.25
    assert cosine_past_end(100, 100, 10, 0.0, 1.0, 0.25) == 0.25


def test_ipe_scale_stretches_the_cosine_and_not_the_warmup() -> None:
    stretched = cosine_past_end(np.arange(101), 100, 10, 0.1, 1.0, 0.0, ipe_scale=1.25)
    plain = cosine_past_end(np.arange(126), 125, 10, 0.1, 1.0, 0.0)
    np.testing.assert_array_equal(stretched, plain[:101])
    assert stretched[-1] > 0.05


def test_one_cycle_turns_at_its_share_of_the_run() -> None:
    assert onecycle_lr(30, 100, 0.5, pct=0.3) == pytest.approx(0.5, rel=1e-15)
    assert onecycle_lr(0, 100, 0.5, div=25) == pytest.approx(0.02, rel=1e-12)
    assert onecycle_lr(100, 100, 0.5, div=25, final_div=10) == pytest.approx(0.002, rel=1e-12)
    assert onecycle_momentum(40, 100) == pytest.approx(0.85, rel=1e-15)
    for pct in (0.0, 1.0):
        assert math.isfinite(onecycle_lr(0, 1, 0.5, pct=pct))


def test_scalars_need_no_numpy() -> None:
    code = "import sys; from jepa_core.schedules import linear; linear(3, 10, 0.0, 1.0); "
    code += "assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_schedule_has_a_recorded_curve() -> None:
    public = {
        name
        for name, value in vars(schedules).items()
        if inspect.isfunction(value)
        and value.__module__ == "jepa_core.schedules"
        and not name.startswith("_")
    }
    assert public == set(CURVES) - {"cosine_nowarm"}

"""The early notices that the health study proposes, and its account of the alarm."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("jepa_ecg")
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.health")


@pytest.fixture
def toys(
    study: ModuleType, data: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Any]]:
    monkeypatch.setenv("JEPA_DATA", str(data("core").parent))
    return study.toy_runs()


def test_the_recorded_runs_do_not_tell_the_alarm_from_its_first_form(
    study: ModuleType, toys: list[dict[str, Any]], data: Callable[[str], Path]
) -> None:
    golden = np.load(data("core") / "golden_alarm.npz")
    assert len(toys) == 52
    for name, run in zip(golden["names"].tolist(), toys, strict=True):
        for state in (study.alarm(run), study.alarm(run, first_form=True)):
            assert state.alarm_step == golden[f"{name}/alarm_step"], name
            assert state.reason == golden[f"{name}/reason"], name
            assert state.warning_step == golden[f"{name}/warning_step"], name


def test_only_the_first_form_alarms_while_an_error_comes_down(study: ModuleType) -> None:
    step = np.arange(51.0)
    series = {"step": step, "signal": 0 * step + 1, "rank": 0 * step + 5}
    run = {"total": 50, "series": {**series, "unexplained": 30 * 0.96**step}}
    assert study.alarm(run).alarm_step == -1
    assert study.alarm(run, first_form=True).alarm_step == 6


def test_a_relapse_finds_erosion_and_a_lost_stop_gradient_within_a_tenth_of_the_recorded_runs(
    study: ModuleType, toys: list[dict[str, Any]]
) -> None:
    broken = [run for run in toys if run["failure"] in ("D", "E")]
    assert len(broken) == 6
    for run in broken:
        delay = study.alarm(run).relapse_step - run["onset"]
        assert 0 < delay <= 0.1 * run["total"], run["recipe"]
    silent = [run for run in toys if not run["failure"] and "wd5" not in run["recipe"]]
    assert len(silent) == 28
    assert all(study.alarm(run).relapse_step == -1 for run in silent)

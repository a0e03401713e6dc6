"""Fine-tuning that was stopped goes on to the same bits."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from jepa_core.errors import Interrupted, RunError
from jepa_core.evaluation import FinetuneConfig
from jepa_core.evaluation.finetune import Finetuned, finetune
from jepa_core.training import checkpoint
from jepa_core.training.sampler import Draw


class _Model(nn.Module):
    """Regression through statistics and dropout."""

    def __init__(self, frozen: bool = False, start: float = 0.1) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.head = nn.Linear(8, 1)
        for parameter in self.parameters():
            nn.init.constant_(parameter, start)
        self.encoder.requires_grad_(not frozen)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": F.mse_loss(self.head(self.encoder(batch["x"]))[:, 0], batch["y"])}


class _Records:
    """Noise and its sum; sends its own process signals while the batch of a step is fetched."""

    def __init__(
        self, n: int = 50, stop: int = -1, *signals: int, infinite: float = math.inf
    ) -> None:
        self.infinite = infinite
        self.x = torch.from_numpy(np.random.default_rng(0).normal(size=(n, 4))).float()
        self.stop, self.signals, self.fetched = stop, signals, list[int]()

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, draw: Draw) -> dict[str, Any]:
        self.fetched.append(draw.step)
        for number in self.signals if draw.step == self.stop else ():
            os.kill(os.getpid(), number)
        x = self.x[draw.ids]
        return {"x": x, "y": x.sum(1) * (math.inf if draw.step >= self.infinite else 1)}


def _tune(
    folder: Path | None = None,
    source: _Records | None = None,
    *,
    resume: bool = False,
    model: _Model | None = None,
    fall_after: int = 10**9,
    **changes: Any,
) -> tuple[Finetuned, _Model]:
    model = model or _Model()
    settings = {"steps": 30, "batch": 16, "validate_every": 7, "device": "cpu", "clip_norm": None}

    def validate() -> float:
        # Up and down with every bit of the weights, then only down.
        weight = float(model.head.weight.double().sum())
        steps = int(model.encoder[1].num_batches_tracked)
        return math.sin(1e4 * weight) - (steps if steps > fall_after else 0)

    config = FinetuneConfig(**settings | changes)
    source = source or _Records()
    return finetune(model, source, validate, config, folder=folder, resume=resume), model


def _assert_same(one: nn.Module, two: nn.Module) -> None:
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stop", [0, 6, 9, 29], ids="at step {}".format)
def test_a_signal_ends_the_step_saves_and_resumes_to_the_same_bits(
    tmp_path: Path, number: int, stop: int
) -> None:
    expected, model = _tune()
    said = f"fine-tuning stopped after step {stop + 1} of 30; --resume continues"
    with pytest.raises(Interrupted, match=said):
        _tune(tmp_path, _Records(50, stop, number))
    assert checkpoint.latest(tmp_path) == stop + 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    source = _Records()
    result, resumed = _tune(tmp_path, source, resume=True)
    assert source.fetched == list(range(stop + 1, 30))
    assert result == expected
    assert [one.step for one in result.history] == [7, 14, 21, 28, 30]
    _assert_same(resumed, model)


def test_the_best_step_survives_though_training_went_on(tmp_path: Path) -> None:
    expected, model = _tune(fall_after=8)
    assert expected.best_step == 7
    with pytest.raises(Interrupted):
        _tune(tmp_path, _Records(50, 24, signal.SIGTERM), fall_after=8)
    assert checkpoint.steps(tmp_path) == [7, 25]
    result, resumed = _tune(tmp_path, resume=True, fall_after=8)
    assert result == expected
    _assert_same(resumed, model)
    assert checkpoint.steps(tmp_path) == [7, 30]


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _tune(tmp_path, _Records(50, 9, signal.SIGINT, signal.SIGINT))
    assert checkpoint.latest(tmp_path) == 7


def test_without_a_folder_an_interrupt_says_that_nothing_is_kept() -> None:
    with pytest.raises(Interrupted, match="after step 4 of 30; nothing of it is kept"):
        _tune(None, _Records(50, 3, signal.SIGTERM))


@pytest.mark.parametrize("end", ["steps", "patience", "nonfinite"])
def test_a_training_that_had_ended_is_not_done_again(tmp_path: Path, end: str) -> None:
    changes = {"patience": 7, "fall_after": 8} if end == "patience" else {}
    source = _Records(infinite=9 if end == "nonfinite" else math.inf)
    expected, model = _tune(tmp_path, source, **changes)
    assert expected.stopped == end
    source = _Records()
    result, again = _tune(tmp_path, source, resume=True, **changes)
    assert source.fetched == []
    assert result == expected
    _assert_same(again, model)
    assert not again.training


def test_what_is_frozen_is_in_no_checkpoint(tmp_path: Path) -> None:
    expected, model = _tune(model=_Model(frozen=True))
    with pytest.raises(Interrupted):
        _tune(tmp_path, _Records(50, 9, signal.SIGTERM), model=_Model(frozen=True))
    saved = load_file(checkpoint.where(tmp_path, 10) / "model.safetensors")
    trained = {"head.weight", "head.bias"}
    assert {name for name in saved if not name.startswith("encoder.1.")} == trained
    assert "encoder.1.weight" not in saved
    result, resumed = _tune(tmp_path, resume=True, model=_Model(frozen=True))
    assert result == expected
    _assert_same(resumed, model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 31}, "steps was 30 and is now 31"),
        ({"learning_rate": 0.1}, "learning_rate was 0.001 and is now 0.1"),
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"source": _Records(49)}, "records was 50 and is now 49"),
        ({"model": _Model(start=0.2)}, "hash of the initial weights was"),
        ({"model": _Model(frozen=True), "resume": False}, "holds checkpoints already; give --res"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_training_is_not_resumed_and_the_difference_is_named(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(Interrupted):
        _tune(tmp_path, _Records(50, 9, signal.SIGTERM))
    with pytest.raises(RunError, match=message):
        _tune(tmp_path, **{"resume": True, **change})


def test_workers_may_change_on_resume(tmp_path: Path) -> None:
    expected, _ = _tune()
    with pytest.raises(Interrupted):
        _tune(tmp_path, _Records(50, 9, signal.SIGTERM))
    result, _ = _tune(tmp_path, resume=True, workers=1)
    assert result == expected


def test_resume_where_nothing_was_saved_starts_from_the_beginning(tmp_path: Path) -> None:
    (tmp_path / "step-00000003.tmp-1").mkdir()
    source = _Records()
    _tune(tmp_path, source, resume=True)
    assert source.fetched[0] == 0
    assert not list(tmp_path.glob("*.tmp-*"))


def test_nothing_in_a_checkpoint_needs_pickle(tmp_path: Path) -> None:
    _tune(tmp_path)
    for place in tmp_path.iterdir():
        names = {path.name for path in place.iterdir()}
        assert names == {"model.safetensors", "optimizer.safetensors", "state.json", "DONE"}
        json.loads((place / "state.json").read_text())


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        _tune(tmp_path / "file" / "deeper")

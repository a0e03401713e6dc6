"""Stopping and going on: the same bits, whatever stopped the run."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from jepa_core.errors import Interrupted, RunError
from jepa_core.training import checkpoint

PROGRAMS = Path(__file__).parent / "programs"
_spec = importlib.util.spec_from_file_location("toy", PROGRAMS / "toy.py")
assert _spec is not None
assert _spec.loader is not None
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)

ENVIRONMENT = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": ""}


def curve(run) -> list[dict]:
    """The metrics without what the clock wrote."""
    clock = ("steps_per_second", "data_wait")
    return [{k: v for k, v in line.items() if k not in clock} for line in run.metrics()]


def assert_same(one: nn.Module, two: nn.Module) -> None:
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name


class StopsAt(toy.Records):
    """Sends its own process a signal while the batch of a step is fetched."""

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.step, self.number = step, number

    def batch(self, draw):
        if draw.step == self.step:
            os.kill(os.getpid(), self.number)
        return super().batch(draw)


SETTINGS = {"steps": 30, "checkpoint_every": 7, "log_every": 2, "health_every": 5}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stop", [0, 10, 13, 29])
def test_a_signal_ends_the_step_saves_and_resumes_to_the_same_bits(tmp_path, number, stop):
    whole = toy.create(tmp_path / "whole")
    expected, module = toy.train(toy.build(0.2), whole, **SETTINGS)
    run = toy.create(tmp_path / "cut")
    with pytest.raises(Interrupted, match=f"stopped after step {stop + 1} of 30; --resume continu"):
        toy.train(toy.build(0.2), run, source=StopsAt(stop, number), **SETTINGS)
    assert checkpoint.latest(run.checkpoints) == stop + 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again, resumed = toy.train(toy.build(0.2), run, resume=True, **SETTINGS)
    assert_same(module, resumed)
    assert curve(run) == curve(whole)
    assert again.chosen_step == expected.chosen_step
    assert again.alarm == expected.alarm


def test_the_optimiser_goes_on_as_if_nothing_had_been(tmp_path):
    for name, source in (("whole", None), ("cut", StopsAt(10))):
        run = toy.create(tmp_path / name)
        if source is not None:
            with pytest.raises(Interrupted):
                toy.train(run=run, source=source, **SETTINGS)
        toy.train(run=run, resume=True, **SETTINGS)
    last = [
        (tmp_path / name / "checkpoints" / "step-00000030" / "optimizer.safetensors").read_bytes()
        for name in ("whole", "cut")
    ]
    assert last[0] == last[1]


def test_a_second_interrupt_stops_at_once(tmp_path):
    class Twice(StopsAt):
        def batch(self, draw):
            batch = super().batch(draw)
            if draw.step == self.step:
                os.kill(os.getpid(), signal.SIGINT)
            return batch

    run = toy.create(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        toy.train(run=run, source=Twice(10, signal.SIGINT), **SETTINGS)
    assert checkpoint.latest(run.checkpoints) == 7


def test_without_a_folder_an_interrupt_says_that_nothing_is_kept():
    with pytest.raises(Interrupted, match="without --out nothing is kept"):
        toy.train(source=StopsAt(3))


def test_a_finished_run_is_resumed_to_the_same_verdict(tmp_path):
    run = toy.create(tmp_path)
    first, module = toy.train(run=run, **SETTINGS)
    again, resumed = toy.train(run=run, resume=True, **SETTINGS)
    assert (again.step, again.chosen_step, again.alarm) == (
        first.step,
        first.chosen_step,
        first.alarm,
    )
    assert again.history == first.history
    assert_same(module, resumed)


def test_resume_where_nothing_was_saved_starts_from_the_beginning(tmp_path):
    run = toy.create(tmp_path)
    run.append_metrics({"step": 1, "loss": 9.0})
    _, module = toy.train(run=run, resume=True, **SETTINGS)
    _, other = toy.train(**SETTINGS)
    assert_same(module, other)
    assert [line["step"] for line in run.metrics() if "loss" in line] == [
        *sorted({*range(2, 31, 2), 7, 21})
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 31}, "steps was 30 and is now 31"),
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"betas": (0.9, 0.95)}, r"betas was \[0.9, 0.99\] and is now \[0.9, 0.95\]"),
        ({"clip_norm": 1.0}, "clip_norm was None and is now 1.0"),
    ],
)
def test_resuming_with_other_settings_names_the_one_that_differs(tmp_path, change, message):
    run = toy.create(tmp_path)
    toy.train(run=run, **SETTINGS)
    with pytest.raises(RunError, match=message):
        toy.train(run=run, resume=True, **(SETTINGS | change))


def test_workers_and_threads_may_change_on_resume(tmp_path):
    run = toy.create(tmp_path)
    with pytest.raises(Interrupted):
        toy.train(run=run, source=StopsAt(10), **SETTINGS)
    _, module = toy.train(run=run, resume=True, workers=2, threads=1, **SETTINGS)
    _, other = toy.train(**SETTINGS)
    assert_same(module, other)


def test_checkpoints_are_not_trained_over_without_a_word(tmp_path):
    run = toy.create(tmp_path)
    toy.train(run=run, **SETTINGS)
    with pytest.raises(RunError, match="holds checkpoints already; give --resume or --overwrite"):
        toy.train(run=run, **SETTINGS)


def test_what_a_crash_left_half_written_is_cleaned_away(tmp_path):
    run = toy.create(tmp_path)
    (run.checkpoints / "step-00000099.tmp-1").mkdir()
    toy.train(run=run, **SETTINGS)
    assert not list(run.checkpoints.glob("*.tmp-*"))


@pytest.mark.parametrize("what", ["fit", "finetune"])
def test_sigkill_at_any_moment_also_while_a_checkpoint_is_written(tmp_path, what):
    command = [sys.executable, str(PROGRAMS / "crash.py"), str(tmp_path), "0", what]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    kills, torn = map(int, done.stdout.split())
    assert kills == 8
    assert torn > 0, "no kill hit a checkpoint that was being written"
    killed, whole = (
        (tmp_path / f"{name}.safetensors").read_bytes() for name in ("killed", "whole")
    )
    assert killed == whole
    lines = [
        [
            {
                k: v
                for k, v in json.loads(line).items()
                if k not in ("steps_per_second", "data_wait")
            }
            for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()
        ]
        for name in ("killed", "whole")
    ]
    assert lines[0] == lines[1]


@pytest.mark.parametrize(("workers", "number"), [(0, signal.SIGINT), (2, signal.SIGTERM)])
def test_a_signal_to_the_whole_process_group_is_the_trainers_alone(tmp_path, workers, number):
    order = {"run": str(tmp_path / "run"), "out": str(tmp_path / "out"), "steps": 400}
    order |= {"source": "slow", "workers": workers, "checkpoint_every": 1000, "health": False}
    command = [sys.executable, str(PROGRAMS / "train.py"), json.dumps([order])]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "training\n"
        os.killpg(process.pid, number)
        said, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    step = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert step is not None
    assert said.splitlines()[-1].startswith(f"interrupted: stopped after step {step} of 400")
    assert "Traceback" not in error
    assert ("Ctrl-C again stops at once" in error) is (number == signal.SIGINT)

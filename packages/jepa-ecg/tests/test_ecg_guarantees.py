"""What a run promises: its weights depend on the recipe and the seed, and on nothing else."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from jepa_core import cli
from jepa_core.domain import Machine
from jepa_core.training import checkpoint
from jepa_ecg.presets import NANO
from jepa_ecg.pretrain import pretrain
from jepa_ecg.source import ArraySignals

SMALL = replace(
    NANO,
    model=replace(NANO.model, dim=16, depth=1, heads=2, predictor_dim=8, predictor_depth=1),
    steps=5,
    batch_size=8,
    warmup_steps=2,
)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def signals() -> ArraySignals:
    return ArraySignals(np.random.default_rng(0).normal(size=(30, 12, 700)).astype(np.float32))


def weights(workers: int = 0, seed: int = 0) -> dict[str, torch.Tensor]:
    done = pretrain(signals(), SMALL, machine=Machine(seed=seed, device="cpu"), workers=workers)
    return done.module.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("workers", [1, 3])
def test_weights_do_not_depend_on_the_number_of_workers(workers):
    assert same(weights(), weights(workers))


def test_weights_depend_on_the_seed():
    assert same(weights(seed=1), weights(seed=1))
    assert not same(weights(seed=0), weights(seed=1))


def command(corpus: Path, out: Path, tiny: list[str], steps: int, *more: str) -> list[str]:
    words = ["ecg", "pretrain", "--preset", "nano", "--data", corpus, "--out", out]
    words += [*tiny, "--steps", steps, "--checkpoint-every", 10, "--device", "cpu", *more]
    return list(map(str, words))


def curve(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    timing = ("steps_per_second", "data_wait")
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


STEPS = 120


@pytest.fixture(scope="module")
def whole(corpus, tiny, tmp_path_factory) -> Path:
    """A run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert cli.main(command(corpus, out, tiny, STEPS)) == 0
    return out


@pytest.mark.parametrize(
    ("stop", "code"),
    [
        pytest.param(signal.SIGKILL, -signal.SIGKILL, id="kill"),
        # The core's training is interrupted, too, and so is the fine-tuning of this package.
        pytest.param(signal.SIGINT, 130, id="ctrl-c", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_bits(
    corpus, tiny, whole, tmp_path, stop, code
):
    out = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-m", "jepa_core.cli", *command(corpus, out, tiny, STEPS)],
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 200
        while checkpoint.latest(out / "checkpoints") is None and time.monotonic() < deadline:
            time.sleep(0.005)
        os.killpg(process.pid, stop)
        _, said = process.communicate(timeout=200)
    assert process.returncode == code, said
    assert 0 < checkpoint.latest(out / "checkpoints") < STEPS
    assert not (out / "encoder").exists()
    assert "Traceback" not in said
    assert cli.main(command(corpus, out, tiny, STEPS, "--resume")) == 0
    for name in ("encoder/model.safetensors", f"checkpoints/step-{STEPS:08d}/model.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert curve(out) == curve(whole)


def test_two_processes_give_the_curve_of_one_with_the_whole_batch(corpus, tiny, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    launch += ["--master-addr=127.0.0.1", f"--master-port={port}", "-m", "jepa_core.cli"]
    launch += command(corpus, tmp_path / "two", tiny, 20)
    done = subprocess.run(launch, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    assert cli.main(command(corpus, tmp_path / "one", tiny, 20)) == 0
    for one, two in zip(curve(tmp_path / "one"), curve(tmp_path / "two"), strict=True):
        assert one.keys() == two.keys()
        if "loss" in one:
            assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    one, two = (
        load_file(tmp_path / name / "checkpoints/step-00000020/model.safetensors")
        for name in ("one", "two")
    )
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-5

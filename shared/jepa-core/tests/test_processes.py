"""Several processes end where one does. Judged by what was written, not by how they exited."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jepa_core.training import checkpoint

PROGRAMS = Path(__file__).parent / "programs"
_spec = importlib.util.spec_from_file_location("toy", PROGRAMS / "toy.py")
assert _spec is not None
assert _spec.loader is not None
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
SETTINGS = {"steps": 12, "batch": 16, "health": False}


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--master-addr=127.0.0.1", f"--master-port={port}", str(PROGRAMS / program)]
    return subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    )


VARIANTS = {
    "plain": {},
    "accumulated": {"accumulation": 4, "clip_norm": 0.05},
    "saved": {"run": "run", "checkpoint_every": 5, "health": True, "workers": 1},
    "uncounted": {"source": "uncounted"},
    "counting": {"counting": True},
}


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """Folder of what two processes wrote: final weights and losses of each variant."""
    folder = tmp_path_factory.mktemp("two")
    orders = [
        SETTINGS
        | variant
        | {"out": str(folder / name)}
        | ({"run": str(folder / "run")} if "run" in variant else {})
        for name, variant in VARIANTS.items()
    ]
    process = start("train.py", json.dumps(orders))
    said, _ = process.communicate(timeout=300)
    assert all((folder / f"{name}.json").exists() for name in VARIANTS), said
    (folder / "said").write_text(said)
    return folder


def alone(**settings) -> tuple[dict, list[float]]:
    """Weights and losses of one process with the whole batch, twice that of each of two."""
    result, module = toy.train(**(SETTINGS | settings))
    return module.state_dict(), [line["loss"] for line in result.history if "loss" in line]


def largest_difference(one: dict, two: dict) -> float:
    assert one.keys() == two.keys()
    return max((one[name] - two[name]).abs().max().item() for name in one)


@pytest.mark.parametrize("name", ["plain", "accumulated", "saved"])
def test_two_processes_equal_one_with_twice_the_batch_though_masks_are_ragged(two, name):
    weights, losses = alone(clip_norm=VARIANTS[name].get("clip_norm"))
    assert largest_difference(load_file(two / f"{name}.safetensors"), weights) < 1e-12
    written = json.loads((two / f"{name}.json").read_text())
    assert written["losses"] == pytest.approx(losses, abs=1e-12)


def test_the_mean_of_two_means_is_another_thing(two):
    weights, _ = alone()
    assert largest_difference(load_file(two / "uncounted.safetensors"), weights) > 1e-4


def test_each_process_keeps_the_statistics_of_what_it_saw(two):
    records, draws = toy.Records(), toy.Epochs(toy.SIZE, SETTINGS["batch"], seed=3)
    for rank in range(2):
        seen = sum(
            records.x[draws.draw(step, rank, 2).ids].sum() for step in range(SETTINGS["steps"])
        )
        assert float((two / f"counting-{rank}.txt").read_text()) == pytest.approx(seen)


def test_nothing_that_torch_warns_of_is_used(two):
    assert "Warning" not in (two / "said").read_text()


def test_of_two_processes_one_writes_each_thing_once(two):
    assert checkpoint.latest(two / "run" / "checkpoints") == 12
    saved = checkpoint.read_weights(two / "run" / "checkpoints", 12)
    assert largest_difference(saved, load_file(two / "saved.safetensors")) == 0.0
    steps = [json.loads(line)["step"] for line in (two / "run" / "metrics.jsonl").open()]
    # A look at the health before the first step, then a loss and a look after each.
    assert steps == [step for step in range(13) for _ in range(1 + (step > 0))]


def test_ctrl_c_stops_two_processes_after_the_same_step_with_a_checkpoint(tmp_path):
    order = SETTINGS | {"out": str(tmp_path / "out"), "run": str(tmp_path / "run")}
    order |= {"steps": 4000, "source": "slow", "log_every": 2, "checkpoint_every": 4000}
    process = start("train.py", json.dumps([order]))
    deadline = time.monotonic() + 200
    metrics = tmp_path / "run" / "metrics.jsonl"
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=200)
    step = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert step is not None, said
    assert step % 2 == 0
    assert said.count(f"interrupted: stopped after step {step} of 4000") == 2


def test_sharded_parameters_train_save_and_load_as_whole_ones_do(tmp_path):
    process = start("shard.py", str(tmp_path))
    said, _ = process.communicate(timeout=300)
    assert (tmp_path / "written").exists(), said
    whole, sharded = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "sharded"))
    assert largest_difference(whole, sharded) < 1e-12
    again = load_file(tmp_path / "again.safetensors")
    assert all(torch.equal(sharded[name], again[name]) for name in sharded)

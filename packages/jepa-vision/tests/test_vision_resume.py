"""What a run promises: its weights depend on the recipe and the seed, and on nothing else."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from jepa_core import cli
from jepa_core.training import checkpoint

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
TINY = "--image 32 32 --patch 8 --dim 16 --depth 1 --heads 2 --predictor-dim 8".split()  # noqa: SIM905
TINY += "--predictor-depth 1 --min-keep 0 --batch-size 8 --device cpu".split()  # noqa: SIM905
STEPS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """24 images of two classes."""
    root = tmp_path_factory.mktemp("images")
    g = np.random.default_rng(0)
    for i in range(24):
        pixels = g.integers(0, 120, (40, 44, 3))
        pixels[..., i % 2] += 130
        place = root / ("red", "green")[i % 2]
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i:02}.png")
    return root


def command(folder: Path, out: Path, steps: int, *more: object) -> list[str]:
    words = ["vision", "pretrain", "--data", folder, "--out", out, *TINY, "--steps", steps]
    return list(map(str, [*words, "--checkpoint-every", 10, *more]))


def curve(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    timing = ("steps_per_second", "data_wait")
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


def stopped(words: list[str], kept: Path, stop: signal.Signals) -> tuple[int, str]:
    """Run a command and stop it when there is a checkpoint; gives its exit code and words."""
    with subprocess.Popen(
        [sys.executable, "-m", "jepa_core.cli", *words],
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 200
        while checkpoint.latest(kept) is None and time.monotonic() < deadline:
            time.sleep(0.005)
        os.killpg(process.pid, stop)
        _, said = process.communicate(timeout=200)
    return process.returncode, said


SIGNALS = pytest.mark.parametrize(
    ("stop", "code"),
    [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)],
    ids=["kill", "ctrl-c"],
)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory) -> Path:
    """A run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert cli.main(command(folder, out, STEPS)) == 0
    return out


@SIGNALS
def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_bits(
    folder, whole, tmp_path, stop, code
):
    out = tmp_path / "run"
    words = command(folder, out, STEPS)
    returned, said = stopped(words, out / "checkpoints", stop)
    assert returned == code, said
    assert 0 < checkpoint.latest(out / "checkpoints") < STEPS
    assert not (out / "encoder").exists()
    assert "Traceback" not in said
    assert cli.main([*words, "--resume"]) == 0
    for name in (f"checkpoints/step-{STEPS:08d}/model.safetensors", "encoder/model.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert curve(out) == curve(whole)


@pytest.mark.parametrize("workers", [1, 2])
def test_weights_do_not_depend_on_the_number_of_workers(folder, tmp_path, workers):
    found = []
    for count in (0, workers):
        out = tmp_path / str(count)
        assert cli.main(command(folder, out, 10, "--workers", count)) == 0
        found.append((out / "encoder" / "model.safetensors").read_bytes())
    assert found[0] == found[1]


def test_weights_depend_on_the_seed(folder, tmp_path):
    found = []
    for run, seed in enumerate((1, 1, 2)):
        out = tmp_path / str(run)
        assert cli.main(command(folder, out, 2, "--seed", seed)) == 0
        found.append((out / "encoder" / "model.safetensors").read_bytes())
    assert found[0] == found[1] != found[2]


def test_two_processes_give_the_curve_of_one_with_the_whole_batch(folder, tmp_path):
    # With the recipe's tiny epsilon AdamW would make steps out of rounding.
    same = ["--eps", 1e-5]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    launch += ["--master-addr=127.0.0.1", f"--master-port={port}", "-m", "jepa_core.cli"]
    launch += command(folder, tmp_path / "two", 20, *same)
    done = subprocess.run(launch, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    assert cli.main(command(folder, tmp_path / "one", 20, *same)) == 0
    for one, two in zip(curve(tmp_path / "one"), curve(tmp_path / "two"), strict=True):
        assert one.keys() == two.keys()
        if "loss" in one:
            assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    one, two = (
        load_file(tmp_path / name / "checkpoints/step-00000020/model.safetensors")
        for name in ("one", "two")
    )
    # Softmax is blind to what all keys share: their biases move by rounding alone.
    fair = [name for name in one if not name.endswith((".k.bias", "qkv.bias"))]
    assert max((one[name] - two[name]).abs().max().item() for name in fair) < 1e-5


# ---- fine-tuning


def tuning(run: Path, folder: Path, out: Path) -> list[str]:
    words = ["vision", "finetune", "--encoder", run, "--data", folder, "--out", out]
    words += ["--steps", STEPS, "--validate-every", 10, "--batch", 8, "--warmup", 0]
    return [*map(str, words), "--device", "cpu"]


@SIGNALS
def test_a_stopped_fine_tuning_resumes_to_the_same_bits(folder, whole, tmp_path, stop, code):
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "run"
    assert cli.main(tuning(whole, folder, undisturbed)) == 0
    part = "pre-trained" if stop == signal.SIGKILL else "from-scratch"
    words = tuning(whole, folder, out)
    returned, said = stopped(words, out / "checkpoints" / part, stop)
    assert returned == code, said
    if code == 130:
        assert said.endswith(f" of {STEPS}; --resume continues\n")
    assert not (out / "classifier").exists()
    assert cli.main([*words, "--resume"]) == 0
    for name in ("classifier/model.safetensors", "classifier/config.json", "results/test.json"):
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes(), name


def test_a_finished_fine_tuning_is_not_done_again(folder, whole, tmp_path, capsys):
    out = tmp_path / "run"
    words = tuning(whole, folder, out)
    words += ["--no-twin"]
    few = [*words, "--steps", "2", "--validate-every", "1"]
    assert cli.main(few) == 0
    before = (out / "classifier/model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert cli.main([*few, "--resume"]) == 0
    assert f"{out} is trained already" in capsys.readouterr().out
    assert (out / "classifier/model.safetensors").stat().st_mtime_ns == before

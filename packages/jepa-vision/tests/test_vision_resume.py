"""What a run promises: its weights depend on the recipe and the seed, and on nothing else."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="module", autouse=True)
def no_reports() -> Iterator[None]:
    """Their pictures take longer than these trainings, and other tests read them."""
    with pytest.MonkeyPatch.context() as patch:
        for verb in ("pretrain", "finetune"):
            patch.setattr(f"jepa_vision.verbs.{verb}.write_report", lambda run: run.path)
        yield


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
    return list(map(str, [*words, "--checkpoint-every", 5, *more]))


def curve(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    timing = ("steps_per_second", "data_wait")
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


def killed(words: list[str], kept: Path) -> int:
    """Kill a command when there is a checkpoint; gives the last step that was kept."""
    with subprocess.Popen(
        [sys.executable, "-m", "jepa_core.cli", *words],
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 200
        while checkpoint.latest(kept) is None and time.monotonic() < deadline:
            if process.poll() is not None:
                break
            time.sleep(0.005)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        _, said = process.communicate(timeout=200)
    assert process.returncode == -signal.SIGKILL, said
    return checkpoint.latest(kept) or 0


def interrupted(words: list[str], kept: Path) -> int:
    """Press Ctrl-C at the first checkpoint of a command; gives the last step that was kept."""
    write, pressed = checkpoint.write, False

    def press(folder: Path, *what: Any) -> Path:
        nonlocal pressed
        path = write(folder, *what)
        if folder == kept and not pressed:
            pressed = True
            os.kill(os.getpid(), signal.SIGINT)
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write", press)
        assert cli.main(words) == 130
    return checkpoint.latest(kept) or 0


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory) -> Path:
    """A run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert cli.main(command(folder, out, STEPS)) == 0
    return out


def test_a_run_that_was_killed_and_interrupted_ends_with_the_same_bits(
    folder, whole, tmp_path, capsys
):
    out = tmp_path / "run"
    kept, words = out / "checkpoints", command(folder, out, STEPS)
    first = killed(words, kept)
    words += ["--resume"]
    second = interrupted(words, kept)
    assert 0 < first < second < STEPS
    assert capsys.readouterr().err.endswith("--resume continues\n")
    assert not (out / "encoder").exists()
    assert cli.main(words) == 0
    for name in (f"checkpoints/step-{STEPS:08d}/model.safetensors", "encoder/model.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert curve(out) == curve(whole)


def test_weights_depend_on_the_seed_and_not_on_the_number_of_workers(folder, tmp_path):
    found = []
    for run, (seed, workers) in enumerate(((1, 0), (1, 2), (2, 0))):
        out = tmp_path / str(run)
        words = command(folder, out, 10, "--seed", seed, "--workers", workers)
        assert cli.main(words) == 0
        found.append((out / "encoder" / "model.safetensors").read_bytes())
    assert found[0] == found[1] != found[2]


@pytest.mark.slow  # the core's processes equal one, whatever the module
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


@pytest.fixture(scope="module")
def tuned(folder, whole, tmp_path_factory) -> dict[str, bytes]:
    """What a fine-tuning that nobody disturbed writes."""
    out = tmp_path_factory.mktemp("tuned") / "run"
    assert cli.main(tuning(whole, folder, out)) == 0
    return written(out)


def written(out: Path) -> dict[str, bytes]:
    names = ("classifier/model.safetensors", "classifier/config.json", "results/test.json")
    return {name: (out / name).read_bytes() for name in names}


def test_a_fine_tuning_that_was_interrupted_in_both_parts_ends_with_the_same_bits(
    folder, whole, tuned, tmp_path, capsys
):
    out = tmp_path / "run"
    words = tuning(whole, folder, out)
    for part in ("pre-trained", "from-scratch"):
        assert 0 < interrupted(words, out / "checkpoints" / part) < STEPS
        assert capsys.readouterr().err.endswith(f" of {STEPS}; --resume continues\n")
        assert not (out / "classifier").exists()
        words = [*tuning(whole, folder, out), "--resume"]
    assert cli.main(words) == 0
    assert written(out) == tuned


@pytest.mark.slow  # the core's checkpoints survive a kill, and fine-tuning resumes as above
def test_a_fine_tuning_that_was_killed_ends_with_the_same_bits(folder, whole, tuned, tmp_path):
    out = tmp_path / "run"
    words = tuning(whole, folder, out)
    assert 0 < killed(words, out / "checkpoints" / "pre-trained") < STEPS
    assert cli.main([*words, "--resume"]) == 0
    assert written(out) == tuned


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

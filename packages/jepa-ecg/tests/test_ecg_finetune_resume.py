"""`jepa ecg finetune` and `probe` stopped: what is kept, what is said, and how it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jepa_core import cli
from jepa_core.training import checkpoint
from jepa_ecg.data.corpus import Corpus
from jepa_ecg.evaluation import CropSource, split_task
from jepa_ecg.finetune import train_classifier
from jepa_ecg.inference import load
from jepa_ecg.model import ECGEncoder
from jepa_ecg.presets import DOWNSTREAM

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
STEPS = 150


def command(run: Path, corpus: Path, out: Path, *more: object) -> list[str]:
    words = ["finetune", "--encoder", run, "--data", corpus, "--out", out, "--device", "cpu"]
    words += ["--steps", STEPS, "--validate-every", 10, "--batch", 16, "--warmup", 0, *more]
    return list(map(str, words))


@pytest.fixture(scope="module")
def whole(corpus, run, tmp_path_factory) -> Path:
    """A fine-tuning that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert cli.main(["ecg", *command(run, corpus, out)]) == 0
    return out


@pytest.fixture
def drawn(monkeypatch) -> list[int]:
    """Steps of the training batches that are fetched, in order."""
    steps: list[int] = []
    batch = CropSource.batch

    def counted(self, draw):
        steps.append(draw.step)
        return batch(self, draw)

    monkeypatch.setattr(CropSource, "batch", counted)
    return steps


@pytest.mark.parametrize(
    ("stop", "code", "during"),
    [
        # The core's fine-tuning is killed at any moment.
        pytest.param(
            signal.SIGKILL, -signal.SIGKILL, "pre-trained", id="kill", marks=pytest.mark.slow
        ),
        pytest.param(signal.SIGINT, 130, "from-scratch", id="ctrl-c in the twin"),
    ],
)
def test_a_stopped_fine_tuning_resumes_to_the_same_bits_and_repeats_nothing(
    jepa, corpus, run, whole, tmp_path, drawn, stop, code, during
):
    out = tmp_path / "run"
    words = command(run, corpus, out)
    with subprocess.Popen(
        [sys.executable, "-m", "jepa_core.cli", "ecg", *words],
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 200
        kept = out / "checkpoints" / during
        while checkpoint.latest(kept) is None and time.monotonic() < deadline:
            time.sleep(0.005)
        os.killpg(process.pid, stop)
        _, said = process.communicate(timeout=200)
    assert process.returncode == code, said
    if code == 130:
        name = during.replace("from-", "from ")
        assert f"classifier, {name} stopped after step " in said
        assert said.endswith(f" of {STEPS}; --resume continues\n")
    done = checkpoint.latest(kept)
    assert 0 < done < STEPS
    assert not (out / "classifier").exists()

    said = jepa(*words, "--resume")
    assert said.code == 0, said.err
    rest = list(range(done, STEPS))
    assert drawn == rest + (list(range(STEPS)) if during == "pre-trained" else [])
    for name in ("classifier/model.safetensors", "classifier/config.json", "results/test.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_finished_fine_tuning_is_not_done_again_and_keeps_no_checkpoints(
    jepa, corpus, run, whole, drawn
):
    before = (whole / "classifier/model.safetensors").stat().st_mtime_ns
    (whole / "report.html").unlink()
    said = jepa(*command(run, corpus, whole), "--resume")
    assert (said.code, drawn) == (0, [])
    assert f"{whole} is trained already" in said.out
    assert (whole / "report.html").exists()
    assert (whole / "classifier/model.safetensors").stat().st_mtime_ns == before
    assert not list((whole / "checkpoints").rglob("*"))
    assert not (whole / "tokens").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--steps", "90"], "config.training.steps was 150 and is now 90; resume with the set"),
        (["--no-twin"], "twin was True and is now False"),
        (["--task", "diagnostic"], "task was 'superdiagnostic' and is now 'diagnostic'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_other_settings_are_not_resumed_and_named(jepa, corpus, run, whole, words, says):
    said = jepa(*command(run, corpus, whole, *words), "--resume")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert says in said.err


def test_an_existing_fine_tuning_is_kept_until_a_flag_says_otherwise(jepa, corpus, run, whole):
    said = jepa(*command(run, corpus, whole))
    assert said.code == 2
    assert "already exists; give --resume or --overwrite, or another --out" in said.err


def test_overwrite_begins_anew_though_the_old_run_was_finished(jepa, corpus, run, tmp_path, drawn):
    out = tmp_path / "run"
    words = ["--preset", "attentive", "--steps", 2, "--validate-every", 1, "--no-twin"]
    assert jepa(*command(run, corpus, out, *words)).code == 0
    drawn.clear()
    said = jepa(*command(run, corpus, out, *words), "--overwrite")
    assert said.code == 0, said.err
    assert drawn == [0, 1]


@pytest.mark.parametrize("verb", ["finetune", "probe"])
def test_several_processes_are_refused_in_one_line(jepa, corpus, run, tmp_path, monkeypatch, verb):
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = command(run, corpus, tmp_path / "run") if verb == "finetune" else ["probe", run]
    said = jepa(*words, *(() if verb == "finetune" else ("--data", corpus)))
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert f"2 processes were launched, and jepa ecg {verb} runs in one" in said.err
    assert not (tmp_path / "run").exists()


def test_the_checkpoints_of_a_frozen_encoder_hold_the_head_alone(corpus, run, tmp_path):
    built = Corpus(corpus)
    task, config = split_task(built, "superdiagnostic"), DOWNSTREAM["attentive"]
    few = replace(config.training, steps=2, validate_every=1, batch=16, device="cpu")
    config = replace(config, training=few)
    encoder = load(run).encoder
    cache, kept = tmp_path / "tokens", tmp_path / "kept"
    done = train_classifier(encoder, built, task, config, cache=cache, checkpoints=kept)
    saved = load_file(checkpoint.where(kept, 2) / "model.safetensors")
    assert saved
    assert all(name.startswith("classifier.attn_pool.") for name in saved)
    again = train_classifier(
        encoder, built, task, config, cache=cache, checkpoints=kept, resume=True
    )
    assert again.result == done.result
    assert (again.test == done.test).all()
    state = again.classifier.state_dict()
    assert all(torch.equal(state[k], v) for k, v in done.classifier.state_dict().items())


def probing(run: Path, corpus: Path, cache: Path) -> list[str]:
    words = ["probe", run, "--data", corpus, "--methods", "attentive", "--task", "ST-MEM"]
    words += ["--steps", 6, "--validate-every", 2, "--batch", 16, "--cache", cache]
    return [*map(str, words), "--device", "cpu"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["while encoding", "while training"])
def test_a_stopped_probe_says_what_is_kept_and_does_not_encode_it_again(
    jepa, corpus, run, tmp_path, monkeypatch, moment, number
):
    cache, seen = tmp_path / "tokens", []
    forward = ECGEncoder.forward

    def counted(self, x, *arguments, **settings):
        seen.append(len(x))
        # Windows of the validation records come first, then those of the test records.
        encoding, training = len(seen) == 2, len(x) == 16
        if encoding if moment == "while encoding" else training:
            os.kill(os.getpid(), number)
        return forward(self, x, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(ECGEncoder, "forward", counted)
        said = jepa(*probing(run, corpus, cache))
    assert said.code == 130
    what = "stopped" if moment == "while encoding" else "attentive probe, trained stopped after"
    last = said.err.splitlines()[-1]
    assert last.startswith(what)
    assert f"give the same command again; what the encoders said is kept in {cache}" in last
    kept = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(kept) == (1 if moment == "while encoding" else 2)
    assert not [name for name in kept if not name.endswith(".npy")]
    said = jepa(*probing(run, corpus, cache))
    assert said.code == 0, said.err
    now = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(now) == 4  # validation and test records, trained and twin
    assert kept.items() <= now.items()

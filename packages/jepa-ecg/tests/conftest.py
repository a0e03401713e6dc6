"""What several of these tests share: simulated records, their corpus, a run and a classifier."""

from __future__ import annotations

from pathlib import Path

import pytest

from jepa_core import cli

TINY = "--dim 16 --depth 1 --heads 2 --batch-size 8 --warmup-steps 2".split()  # noqa: SIM905
TINY += "--predictor-dim 8 --predictor-depth 1 --predictor-heads 2".split()  # noqa: SIM905


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Flags that make a recipe a thousand times smaller."""
    return TINY


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PTB-XL folder of 80 generated records."""
    from jepa_ecg.simulate import SimulationConfig, write_ptbxl

    root = tmp_path_factory.mktemp("simulated") / "ptb-xl"
    write_ptbxl(root, 80, SimulationConfig())
    return root


@pytest.fixture(scope="session")
def corpus(simulated: Path) -> Path:
    """The corpus of `simulated` at 100 Hz."""
    out = simulated.parent / "corpus"
    words = ["data", "build", simulated, "--out", out, "--fs", 100, "--source-fs", 100]
    assert cli.main(["ecg", *map(str, words)]) == 0
    return out


@pytest.fixture(scope="session")
def run(corpus: Path) -> Path:
    """A pre-training run of a tiny `nano`, with three checkpoints."""
    out = corpus.parent / "run"
    words = ["pretrain", "--preset", "nano", "--data", corpus, "--out", out, *TINY]
    words += ["--steps", 12, "--checkpoint-every", 4, "--final-momentum", 0.9, "--momentum", 0.5]
    assert cli.main(["ecg", *map(str, words)]) == 0
    return out


@pytest.fixture(scope="session")
def attentive(corpus: Path, run: Path) -> Path:
    """A classifier: an attention pooling on the frozen encoder of `run`, single labels."""
    out = corpus.parent / "attentive"
    words = ["finetune", "--preset", "attentive", "--encoder", run, "--data", corpus, "--out", out]
    words += ["--task", "ST-MEM", "--steps", 4, "--validate-every", 2, "--batch", 16]
    assert cli.main(["ecg", *map(str, words)]) == 0
    return out

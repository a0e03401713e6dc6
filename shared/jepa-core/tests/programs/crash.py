"""Kill a training process with SIGKILL at random moments until it has come to its end.

`python crash.py FOLDER SEED [fit | finetune]`: prints how often it was killed, and after how many
of these kills a half written checkpoint lay there. FOLDER then holds killed.safetensors and
whole.safetensors, and the curves killed.jsonl and whole.jsonl.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from toy import build, create, train, tune

KILLS = 8
SETTINGS = {"steps": 120, "checkpoint_every": 1, "keep": 1, "health_every": 20, "log_every": 3}


def fit(path: Path) -> torch.nn.Module:
    return train(build(dropout=0.1), create(path, resume=True), resume=True, **SETTINGS)[1]


def finetune(path: Path) -> torch.nn.Module:
    result, module = tune(path / "checkpoints", resume=True)
    lines = [json.dumps(asdict(one)) + "\n" for one in result.history]
    (path / "metrics.jsonl").write_text("".join(lines))
    return module


def child(work: Callable[[Path], torch.nn.Module], path: Path, out: Path) -> int:
    """Train in a fork of this process, which has imported everything; gives its id."""
    if pid := os.fork():
        return pid
    save_file(work(path).state_dict(), out)
    os._exit(0)


def ended(pid: int) -> bool:
    done, status = os.waitpid(pid, os.WNOHANG)
    assert status == 0, f"a child ended with {status}"
    return done != 0


def steps_begun(checkpoints: Path) -> set[str]:
    """Steps whose checkpoint is there, or is being written."""
    return {path.name.partition(".")[0] for path in checkpoints.glob("step-*")}


def kill_after_some_progress(pid: int, checkpoints: Path, more: int, patience: float) -> bool:
    """Kill `patience` seconds after `more` checkpoints have begun; False if the child ends before.

    Progress is counted in checkpoints, so that a fast machine is killed as often as a slow one.
    """
    before, seen = steps_begun(checkpoints), set[str]()
    while len(seen) < more:
        if ended(pid):
            return False
        seen |= steps_begun(checkpoints) - before
        time.sleep(0.0002)
    time.sleep(patience)
    if ended(pid):
        return False
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def main(folder: Path, seed: int, work: Callable[[Path], torch.nn.Module]) -> None:
    chance = random.Random(seed)
    path = folder / "run"
    kills = torn = 0
    while kills < KILLS and kill_after_some_progress(
        child(work, path, folder / "killed.safetensors"),
        path / "checkpoints",
        chance.randint(1, 3),
        chance.uniform(0, 0.01),
    ):
        kills += 1
        torn += bool(list((path / "checkpoints").glob("*.tmp-*")))
    for name in ("killed", "whole"):
        last = child(work, path, folder / f"{name}.safetensors")
        while not ended(last):
            time.sleep(0.01)
        shutil.copy(path / "metrics.jsonl", folder / f"{name}.jsonl")
        shutil.rmtree(path)
    print(kills, torn)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(steps=1)  # what is imported on first use is imported before the forks
    main(Path(sys.argv[1]), int(sys.argv[2]), finetune if "finetune" in sys.argv else fit)

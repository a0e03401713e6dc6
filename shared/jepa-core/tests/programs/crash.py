"""Kill a training process with SIGKILL at random moments until it has come to its end.

`python crash.py FOLDER SEED`: prints how often it was killed, and after how many of these kills a
half written checkpoint lay there. FOLDER then holds killed.safetensors and whole.safetensors.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from toy import build, create, train

KILLS = 8
SETTINGS = {"steps": 40, "checkpoint_every": 1, "keep": 1, "health_every": 20, "log_every": 3}


def child(path: Path, out: Path) -> int:
    """Train in a fork of this process, which has imported everything; gives its id."""
    if pid := os.fork():
        return pid
    _, module = train(build(dropout=0.1), create(path, resume=True), resume=True, **SETTINGS)
    save_file(module.state_dict(), out)
    os._exit(0)


def ended(pid: int) -> bool:
    done, status = os.waitpid(pid, os.WNOHANG)
    assert status == 0, f"a child ended with {status}"
    return done != 0


def kill_after_some_progress(pid: int, checkpoints: Path, patience: float) -> bool:
    """Kill `patience` seconds after the next checkpoint begins; False if the child ends before."""
    before = set(checkpoints.glob("*"))
    since = None
    while since is None or time.monotonic() < since + patience:
        if ended(pid):
            return False
        if since is None and set(checkpoints.glob("*")) - before:
            since = time.monotonic()
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def main(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = folder / "run"
    kills = torn = 0
    while kills < KILLS and kill_after_some_progress(
        child(path, folder / "killed.safetensors"), path / "checkpoints", chance.uniform(0, 0.15)
    ):
        kills += 1
        torn += bool(list((path / "checkpoints").glob("*.tmp-*")))
    for name in ("killed", "whole"):
        last = child(path, folder / f"{name}.safetensors")
        while not ended(last):
            time.sleep(0.01)
        shutil.copy(path / "metrics.jsonl", folder / f"{name}.jsonl")
        shutil.rmtree(path)
    print(kills, torn)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(steps=1)  # what is imported on first use is imported before the forks
    main(Path(sys.argv[1]), int(sys.argv[2]))

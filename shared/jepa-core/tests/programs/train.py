"""Train the toy in a process of its own, once for each order of a JSON list."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from toy import Records, Toy, build, create, train

from jepa_core.errors import Interrupted, JepaError
from jepa_core.training.sampler import Draw


class SlowRecords(Records):
    """Says that it has begun, then takes its time."""

    def batch(self, draw: Draw):
        if draw.step == 3:
            print("training", flush=True)
        time.sleep(0.02)
        return super().batch(draw)


class Uncounted(Records):
    """Does not say how many terms its losses have."""

    def batch(self, draw: Draw):
        return {k: v for k, v in super().batch(draw).items() if k != "count"}


class Counting(Toy):
    """Keeps statistics of its own in a buffer: the sum of what this process saw."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, batch):
        self.seen += batch["x"].sum()
        return super().forward(batch)


SOURCES = {"slow": SlowRecords, "uncounted": Uncounted, "plain": Records}


def main(order: dict) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    path, out, resume = order.pop("run", None), order.pop("out"), order.pop("resume", False)
    source = SOURCES[order.pop("source", "plain")]()
    module = build(order.pop("dropout", 0.0))
    if order.pop("counting", False):
        module = Counting().double()
    try:
        run = create(Path(path), resume=resume) if path else None
        result, module = train(module, run, source=source, resume=resume, **order)
    except Interrupted as stop:
        print(f"interrupted: {stop}", flush=True)
        return 130
    except JepaError as error:
        print(f"error: {error}", flush=True)
        return 2
    if isinstance(module, Counting):
        Path(f"{out}-{os.environ['RANK']}.txt").write_text(str(module.seen.item()))
    if result.main:
        save_file(module.state_dict(), f"{out}.safetensors")
        losses = [line["loss"] for line in result.history if "loss" in line]
        Path(f"{out}.json").write_text(json.dumps({"losses": losses, "chosen": result.chosen_step}))
    return 0


if __name__ == "__main__":
    code = max(main(order) for order in json.loads(sys.argv[1]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(code)

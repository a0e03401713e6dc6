"""Representations of many rows by a trained encoder: rows a second, and memory.

`small` encoders on tables like jannis (54 numerical columns) and adult (6 numerical, 8
categorical), representations after the last block. The baseline is the loop as usually written:
torch's data loader over rows, the official program's model without gradients, the parts
concatenated at the end. Ours writes into an array that is there. The check compares all
representations. Memory: a call beyond the encoder, the rows and the result, of ours at two numbers
of rows; the baseline's result is part of its call.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.harness import Contender, Row, compare, equal_outputs, main
from benchmarks.memory import peak_memory
from benchmarks.tabular_batches import TABLES, noise
from benchmarks.tabular_twin import TwinEncoder, as_twin
from jepa_tabular.inference import encode
from jepa_tabular.presets import PRETRAIN
from jepa_tabular.pretrain import untrained

BATCH = 512  # of the loop
LOOP, OURS = "plain loop", "encode"


def run(quick: bool = False) -> list[Row]:
    if quick:
        return _rows("adult", 256, quick=True)
    return _rows("jannis", 20_000) + _rows("adult", 50_000)


def _rows(table: str, count: int, *, quick: bool = False) -> list[Row]:
    names = (LOOP, OURS)
    memory = {} if quick else {name: peak_memory(prepare, name, table, count) for name in names}
    rows = compare(
        f"{count} rows like {table}'s",
        {name: prepare(name, table, count) for name in names},
        LOOP,
        check=equal_outputs({name: prepare(name, table, 1000) for name in names}, atol=2e-5),
        memory=memory,
    )
    notes = {
        name: f"{count / row.seconds:.0f} rows/s" for name, row in zip(names, rows, strict=True)
    }
    if not quick:
        more = peak_memory(prepare, OURS, table, 4 * count)
        notes[OURS] += f"; {more / 2**20:.1f} MiB for {4 * count} rows"
    return [replace(row, note=notes[row.contender]) for row in rows]


def prepare(name: str, table: str, count: int) -> Contender:
    """One pass of a contender over rows of noise."""
    config, shape = PRETRAIN["small"], TABLES[table]
    encoder = untrained(config, shape, 0).encoder.eval()
    x = noise(shape, count)
    if name == OURS:
        out = np.ones((count, encoder.tokens, config.model.dim), np.float32)
        return lambda: encode(encoder, x, device="cpu", out=out)
    twin = TwinEncoder(config.model, shape)
    twin.load_state_dict(as_twin(encoder.state_dict(), shape))
    # The representation is that before the head.
    twin.head = nn.Identity()
    twin.eval()
    rows = TensorDataset(torch.from_numpy(x))

    @torch.no_grad()
    def loop() -> Tensor:
        return torch.cat([twin(part) for (part,) in DataLoader(rows, batch_size=BATCH)])

    return loop


if __name__ == "__main__":
    main(run, packages=("scikit-learn",))

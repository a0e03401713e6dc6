"""Batches fetched whole against one record at a time, in the training process.

The baseline is torch's usual way: a data set with `__getitem__` for one record, stacked by the
default collation. Both fetch the same records in the same order.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.harness import Contender, Row, compare, main
from jepa_core.training.loader import Loader
from jepa_core.training.sampler import Draw, Epochs

EPOCHS = 4  # in one call


class Whole:
    """Our form of a source: an index into an array gives the batch."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        return {"x": torch.from_numpy(self.array[draw.ids])}


class Single(Dataset[Tensor]):
    """The usual form: an index gives a record."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.array[index].copy())


def run(quick: bool = False) -> list[Row]:
    size = 512 if quick else 4096
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.npy"
        np.save(path, random.normal(size=(size, 12, 250)).astype(np.float32))
        mapped = np.load(path, mmap_mode="r")
        # Whole batches come out of a plain view of the same memory; indexing np.memmap, as is usual
        # for records, makes an object of that class each time.
        rows = _rows(
            "memory-mapped records of 12 x 250", np.asarray(mapped), Single(mapped), 64, 4.0
        )
    table = random.normal(size=(size, 16)).astype(np.float32)
    usual = TensorDataset(torch.from_numpy(table))
    return rows + _rows("rows of a table of 16 columns", table, usual, 256, 20.0)


def _rows(
    name: str, array: np.ndarray, usual: Dataset[Tensor] | TensorDataset, batch: int, target: float
) -> list[Row]:
    epochs = Epochs(len(array), batch, seed=0)
    steps = EPOCHS * len(array) // batch
    order = np.concatenate([epochs.draw(step).ids for step in range(steps)]).tolist()

    def one_by_one() -> Iterator[Tensor]:
        for item in DataLoader(usual, batch_size=batch, sampler=order):
            yield item[0] if isinstance(item, list) else item

    def at_once() -> Iterator[Tensor]:
        for _, parts in Loader(Whole(array), epochs, first=0, last=steps):
            yield parts[0]["x"]

    def equal() -> bool:
        pairs = zip(one_by_one(), at_once(), strict=True)
        return all(torch.equal(one, other) for one, other in pairs)

    contenders: dict[str, Contender] = {
        "record by record": lambda: sum(1 for _ in one_by_one()),
        "Loader": lambda: sum(1 for _ in at_once()),
    }
    return compare(
        f"{EPOCHS} epochs of {len(array)} {name}, batch {batch}",
        contenders,
        "record by record",
        check=equal,
        target={"Loader": target},
    )


if __name__ == "__main__":
    main(run)

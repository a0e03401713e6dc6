"""Batches of T-JEPA, rows and masks: a whole batch at once against one row after the other.

512 rows of a table in memory, with the shapes of adult (6 numerical and 8 categorical columns),
jannis (54 numerical) and aloi (128). The baseline is the official program's way: each row fetched
alone and stacked by torch's default collation, its masks shuffled by NumPy's legacy generator, and
the unknown category of our recipe drawn beside them. Sound masks are one context and four target
masks a row; the official ones are four equal masks, of which ours draws one. The check draws the
same batches from the same random words one row at a time: equal index for index. Four orders of up
to 128 columns take 400 random words a row, most of the time of aloi's sound masks.
"""

from __future__ import annotations

from itertools import count

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from benchmarks.harness import Contender, Row, compare, main
from jepa_core import rng
from jepa_core.training.sampler import Draw, Epochs
from jepa_tabular.presets import PRETRAIN, PretrainConfig, TableShape
from jepa_tabular.source import TableSource

TABLES = {
    "adult": TableShape(14, (1, 3, 5, 6, 7, 8, 9, 13), (9, 16, 7, 15, 6, 5, 2, 42)),
    "jannis": TableShape(54),
    "aloi": TableShape(128),
}
LOOP, OURS = "row by row", "TableSource"
Batch = tuple[Tensor, Tensor, Tensor]


def run(quick: bool = False) -> list[Row]:
    rows = []
    for table in list(TABLES)[: 1 if quick else None]:
        for kind, preset in (("sound", "small"), ("official", f"official-{table}")):
            rows += _rows(table, kind, PRETRAIN[preset], 16 if quick else 512, quick=quick)
    return rows


def _rows(table: str, kind: str, config: PretrainConfig, batch: int, *, quick: bool) -> list[Row]:
    shape = TABLES[table]
    x = noise(shape, 8 * batch)
    source, epochs = TableSource(x, config, shape, seed=0), Epochs(len(x), batch, seed=0)
    one_by_one = RowByRow(x, config, shape)
    # Each call is another step, so that every contender meets the same sizes of masks.
    theirs, ours = count(), count()

    def loop() -> Batch:
        draw = epochs.draw(next(theirs))
        return one_by_one(draw.ids.tolist(), *sizes(source, draw.step))

    contenders: dict[str, Contender] = {
        LOOP: loop,
        OURS: lambda: source.batch(epochs.draw(next(ours))),
    }
    return compare(
        f"{kind} batches of {batch} rows of {shape.columns} columns",
        contenders,
        LOOP,
        check=lambda: all(_equal(source, epochs.draw(step)) for step in range(4)),
        target=None if quick else 20.0,
        notes={LOOP: "other random numbers, same distribution"},
    )


def noise(shape: TableShape, rows: int) -> np.ndarray:
    """Encoded rows of a table without any structure."""
    random = np.random.default_rng(0)
    x = random.uniform(size=(rows, shape.columns)).astype(np.float32)
    for column, codes in zip(shape.categorical, shape.cardinalities, strict=True):
        x[:, column] = random.integers(0, codes, rows)
    return x


def sizes(source: TableSource, step: int) -> tuple[int, int]:
    """Columns in the context and in a target of a step, as the source draws them."""
    batch = source.batch(Draw(step, *(np.zeros(1, np.int64) for _ in range(3))))
    return batch["context"].shape[1] - source.masks.kept, batch["target"].shape[-1]


class RowByRow:
    """Rows one by one with masks drawn for each: x, context and targets [masks, batch, hidden]."""

    def __init__(self, x: np.ndarray, config: PretrainConfig, shape: TableShape) -> None:
        self.x, self.config, self.shape = torch.from_numpy(x), config, shape
        self.official = config.compat == "official"
        self.registers = 0 if self.official else config.model.registers
        self.random = np.random.RandomState(0)

    def __call__(self, ids: list[int], n_context: int, n_target: int) -> Batch:
        items = [self._row(i) for i in ids]
        masks = [self._masks(n_context, n_target) for _ in items]
        x, context = default_collate(items), default_collate([mask[0] for mask in masks])
        return x, context, torch.stack(default_collate([mask[1] for mask in masks]))

    def _row(self, i: int) -> Tensor:
        row = self.x[i].clone()
        if self.config.unknown_rate:
            for column in self.shape.categorical:
                if self.random.rand() < self.config.unknown_rate:
                    row[column] = 0
        return row

    def _masks(self, n_context: int, n_target: int) -> tuple[np.ndarray, list[np.ndarray]]:
        order = np.arange(self.shape.columns) + self.registers
        self.random.shuffle(order)
        context = order[:n_context]
        rest = np.setdiff1d(order, context)
        targets = []
        for _ in range(self.config.targets):
            self.random.shuffle(rest)
            # Officially every mask is a view of the array that the next shuffle changes.
            targets.append(rest[:n_target] if self.official else rest[:n_target].copy())
        return np.concatenate((np.arange(self.registers), context)), targets


def _equal(source: TableSource, draw: Draw) -> bool:
    """Whether a batch is what its random words say, read one row at a time."""
    batch, counts = source.batch(draw), sizes(source, draw.step)
    rows = zip(draw.ids, draw.keys, draw.counters, strict=True)
    for place, (record, key, counter) in enumerate(rows):
        x, context, target = _one_row(source, int(record), np.array([key]), int(counter), *counts)
        if (
            not np.array_equal(batch["x"][place], x)
            or batch["context"][place].tolist() != context
            or batch["target"][:, place].tolist() != target
        ):
            return False
    return True


def _one_row(
    source: TableSource, record: int, key: np.ndarray, counter: int, n_context: int, n_target: int
) -> tuple[np.ndarray, list[int], list[list[int]]]:
    x, sampler = np.array(source.x[np.array([record])][0]), source.masks
    if source.config.unknown_rate and source.shape.categorical:
        draws = rng.words(0, "unknown", key, counter, len(source.shape.categorical))[0]
        for column, value in zip(source.shape.categorical, rng.uniform32(draws), strict=True):
            x[column] = 0 if value < source.config.unknown_rate else x[column]
    columns, rest = sampler.tokens, sampler.tokens - n_context
    drawn = columns + (sampler.targets - 1) * rest
    words = rng.words(0, "mask", key, counter, drawn)[0].tolist()
    order = _order(words[:columns])
    left = order[n_context:]
    targets = [left] + [
        [left[i] for i in _order(words[first : first + rest])]
        for first in range(columns, drawn, rest)
    ]
    context = [*range(sampler.kept), *sorted(i + sampler.kept for i in order[:n_context])]
    return x, context, [sorted(i + sampler.kept for i in mask[:n_target]) for mask in targets]


def _order(words: list[int]) -> list[int]:
    return sorted(range(len(words)), key=words.__getitem__)


if __name__ == "__main__":
    main(run)

"""Batches for pre-training: which rows, which unknown categories, which masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from jepa_core import rng
from jepa_core.errors import ConfigError, DataError
from jepa_core.masking.subset import SubsetSampler
from jepa_core.tokens import IndexSet
from jepa_core.training.sampler import Draw
from jepa_tabular.masks import official_sizes
from jepa_tabular.presets import PretrainConfig, TableShape


class Rows(Protocol):
    """Encoded rows: an array, or one in a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, ids: Int64[np.ndarray, " batch"]) -> Float32[np.ndarray, "batch columns"]:
        """Rows by number."""
        ...


class TableSource:
    """Rows with masks, a pure function of the draw.

    Parameters
    ----------
    x
        Encoded rows [rows, columns], columns as in the table.
    config, shape
        The recipe and the table.
    seed
        The run's seed.

    Raises
    ------
    DataError
        There is no row, or rows are not as wide as the table.
    ConfigError
        A table without two columns, or shares that make no mask of its columns.
    """

    def __init__(self, x: Rows, config: PretrainConfig, shape: TableShape, *, seed: int) -> None:
        if not x.shape[0]:
            raise DataError("the table has no row")
        if x.shape[1] != shape.columns:
            raise DataError(f"rows of {x.shape[1]} numbers for a table of {shape.columns} columns")
        if shape.columns < 2:
            raise ConfigError(
                f"a table of {shape.columns} feature(s) leaves nothing to predict",
                remedy="two columns at least",
            )
        self.x, self.shape, self.config, self.seed = x, shape, config, seed
        self.official = config.compat == "official"
        self.masks = SubsetSampler(
            shape.columns,
            config.context,
            config.target,
            # The official masks of a row are equal: one gives the same loss and gradient.
            targets=1 if self.official else config.targets,
            kept=0 if self.official else config.model.registers,
        )

    def __len__(self) -> int:
        return self.x.shape[0]

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """x [batch, columns], context [batch, kept] and target [masks, batch, hidden]."""
        x = self.x[draw.ids]
        if self.config.unknown_rate and self.shape.categorical:
            x = self._forget(x, draw.keys, draw.counters)
        context, target = self._masks(draw.keys, draw.counters, draw.step)
        return {"x": torch.from_numpy(x), "context": context, "target": target}

    def health_batch(self, rows: int = 256, views: int = 8) -> dict[str, Tensor]:
        """A fixed batch for the health of the run, with `views` contexts of its first rows.

        The rows are spread evenly over the table; masks have counters that training never reaches.
        """
        count = min(rows, len(self))
        ids = np.linspace(0, len(self) - 1, count).astype(np.int64)
        last = 2**32 - 1
        masks = [self._masks(ids, np.full(count, last - view), last) for view in range(views + 1)]
        context, target = masks[0]
        seen = min(count, 64)
        return {
            "x": torch.from_numpy(self.x[ids]),
            "context": context,
            "target": target,
            "views": torch.stack([view[:seen] for view, _ in masks[1:]], 1),
        }

    def _masks(
        self, keys: Int64[np.ndarray, " batch"], counters: Int64[np.ndarray, " batch"], step: int
    ) -> tuple[Tensor, Tensor]:
        if self.official:
            # The program's sizes; who is in them comes from (seed, row, visit) as everywhere, so
            # that a run can be resumed and fetched by several processes.
            sizes = official_sizes(step, self.masks.bounds, self.shape.columns)
            context, target = self.masks.draw(keys, counters, *sizes, seed=self.seed)
        else:
            context, target = self.masks(keys, counters, step=step, seed=self.seed)
        return _long(context), _long(target).unflatten(0, (self.masks.targets, len(keys)))

    def _forget(
        self,
        x: Float32[np.ndarray, "batch columns"],
        keys: Int64[np.ndarray, " batch"],
        counters: Int64[np.ndarray, " batch"],
    ) -> Float32[np.ndarray, "batch columns"]:
        """Rows with some codes replaced by 0, the code of unknown categories."""
        categorical = list(self.shape.categorical)
        words = rng.words(self.seed, "unknown", keys, counters, len(categorical))
        forgotten = rng.uniform32(words) < self.config.unknown_rate
        x = np.array(x)
        x[:, categorical] = np.where(forgotten, 0, x[:, categorical])
        return x


@dataclass(frozen=True)
class FileOrder:
    """Rows as in the file, every epoch alike, with a smaller last batch: the official loader.

    Parameters
    ----------
    size
        Rows of the table.
    batch
        Rows of a step.
    """

    size: int
    batch: int

    def draw(
        self, step: int, rank: int = 0, world: int = 1, micro: int = 0, accumulation: int = 1
    ) -> Draw:
        """Keys are the row ids, counters the epochs."""
        if world * accumulation > 1:
            raise ConfigError(
                "the official order of rows is that of one process without accumulation",
                remedy="set --compat none",
            )
        epoch, place = divmod(step, -(-self.size // self.batch))
        ids = np.arange(place * self.batch, min(self.size, (place + 1) * self.batch))
        return Draw(step=step, ids=ids, keys=ids, counters=np.full(len(ids), epoch))


def _long(indices: IndexSet) -> Tensor:
    return indices.indices.long()

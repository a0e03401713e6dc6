"""Batches for pre-training: which crops of which records, and their masks."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from jepa_core import rng
from jepa_core.errors import DataError
from jepa_core.masking.span import RunSampler
from jepa_core.training.sampler import Draw
from jepa_ecg.presets import PretrainConfig


class Signals(Protocol):
    """Records that crops are cut from: a corpus on disk, or an array."""

    lengths: Int64[np.ndarray, " records"]

    def __len__(self) -> int: ...

    def crops(
        self, ids: Int64[np.ndarray, " batch"], starts: Int64[np.ndarray, " batch"], size: int
    ) -> Float32[np.ndarray, "batch leads size"]:
        """Normalised crops."""
        ...


class ArraySignals:
    """Records of equal length in memory.

    Parameters
    ----------
    signal
        float32 [records, leads, samples], normalised.
    """

    def __init__(self, signal: Float32[np.ndarray, "records leads samples"]) -> None:
        self.signal = signal
        self.lengths = np.full(len(signal), signal.shape[2], np.int64)

    def __len__(self) -> int:
        return len(self.signal)

    def crops(
        self, ids: Int64[np.ndarray, " batch"], starts: Int64[np.ndarray, " batch"], size: int
    ) -> Float32[np.ndarray, "batch leads size"]:
        """Crops of the records `ids` from sample `starts` on."""
        windows = np.lib.stride_tricks.sliding_window_view(self.signal, size, axis=2)
        return windows[ids, :, starts]


class Subset:
    """Some of the records of `signals`, renumbered from 0 in the order of `rows`."""

    def __init__(self, signals: Signals, rows: Int64[np.ndarray, " chosen"]) -> None:
        self.signals = signals
        self.rows = rows
        self.lengths = signals.lengths[rows]

    def __len__(self) -> int:
        return len(self.rows)

    def crops(
        self, ids: Int64[np.ndarray, " batch"], starts: Int64[np.ndarray, " batch"], size: int
    ) -> Float32[np.ndarray, "batch leads size"]:
        """Crops of the chosen records."""
        return self.signals.crops(self.rows[ids], starts, size)


class ECGSource:
    """Random crops with run masks, a pure function of the draw.

    Parameters
    ----------
    signals
        Records of at least `config.model.samples` samples.
    config
        The recipe.
    seed
        The run's seed.

    Raises
    ------
    DataError
        There is no record, or one is shorter than a crop.
    """

    def __init__(self, signals: Signals, config: PretrainConfig, *, seed: int) -> None:
        size = config.model.samples
        if not len(signals):
            raise DataError("the corpus has no record")
        if int(signals.lengths.min()) < size:
            short = int((signals.lengths < size).sum())
            raise DataError(
                f"{short} of {len(signals)} records are shorter than a crop of {size} samples",
                remedy="set --samples lower or leave them out",
            )
        self.signals = signals
        self.size = size
        self.seed = seed
        self.masks = RunSampler(
            config.model.tokens, config.keep, config.min_block, circular=config.circular
        )

    def __len__(self) -> int:
        return len(self.signals)

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Signal [batch, leads, samples], context [batch, kept] and target [batch, hidden]."""
        context, target = self.masks(draw.keys, draw.counters, step=draw.step, seed=self.seed)
        return {
            "signal": self._crops(draw.ids, draw.keys, draw.counters),
            "context": context.indices.long(),
            "target": target.indices.long(),
        }

    def health_batch(self, samples: int = 256, views: int = 8) -> dict[str, Tensor]:
        """A fixed batch for the health of the run, with `views` contexts of its first records.

        The records are spread evenly over the corpus; crops and masks have counters that training
        never reaches.
        """
        count = min(samples, len(self))
        ids = np.linspace(0, len(self) - 1, count).astype(np.int64)
        last = 2**32 - 1
        masks = [
            self.masks(ids, np.full(count, last - view), step=last, seed=self.seed)
            for view in range(views + 1)
        ]
        context, target = masks[0]
        seen = min(count, 64)
        return {
            "signal": self._crops(ids, ids, np.full(count, last)),
            "context": context.indices.long(),
            "target": target.indices.long(),
            "views": torch.stack([view.indices[:seen].long() for view, _ in masks[1:]], 1),
        }

    def _crops(
        self,
        ids: Int64[np.ndarray, " batch"],
        keys: Int64[np.ndarray, " batch"],
        counters: Int64[np.ndarray, " batch"],
    ) -> Float32[Tensor, "batch leads samples"]:
        room = self.signals.lengths[ids] - self.size + 1
        words = rng.words(self.seed, "crop", keys, counters, 2)
        starts = np.floor(rng.uniform64(words)[:, 0] * room).astype(np.int64)
        return torch.from_numpy(
            np.ascontiguousarray(self.signals.crops(ids, starts, self.size), dtype=np.float32)
        )

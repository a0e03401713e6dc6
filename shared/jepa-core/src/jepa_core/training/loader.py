"""Batches fetched whole, in order, by this process or by workers ahead of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jepa_core.errors import JepaError, RunError
from jepa_core.training.sampler import Draw, Sampler

Batch = dict[str, Any]


class Source(Protocol):
    """Where batches come from: a data set with its masks."""

    def __len__(self) -> int:
        """Records."""

    def batch(self, draw: Draw) -> Batch:
        """The records of a draw, stacked, with their masks: CPU tensors (or `IndexSet`, `Packed`).

        A function of the draw alone. An optional 0-dim "count" says how many terms the loss of
        this batch is a mean of; losses over ragged sets need it to be normalised globally.
        """


class Loader:
    """The batches of steps [first, last) for one process.

    Iterating gives (step, parts): as many parts as batches are accumulated. Bit-equal for any
    number of workers. Leaving the context ends the workers.

    Raises
    ------
    JepaError
        What the source raised, as it was raised, also out of a worker.
    RunError
        A worker died.
    """

    def __init__(
        self,
        source: Source,
        sampler: Sampler,
        *,
        first: int,
        last: int,
        rank: int = 0,
        world: int = 1,
        accumulation: int = 1,
        workers: int = 0,
        pin: bool = False,
    ) -> None:
        self.steps = range(first, last)
        self.accumulation = accumulation
        self._waited, self._done, self._since = 0.0, 0, time.perf_counter()
        self._fetched: Iterator[Batch | JepaError] = iter(())
        self._batches: DataLoader[Batch | JepaError] = DataLoader(
            _Parts(source, sampler, rank, world, accumulation),
            sampler=range(first * accumulation, last * accumulation),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            worker_init_fn=_leave_signals_to_the_trainer,
            pin_memory=pin,
        )

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A dead worker is told of by a signal handler, at any moment: also while ending the others.
        dead = _is_of_a_dead_worker(error)
        try:
            # By name: a traceback may keep the iterator, and so its workers, to the very end.
            end = getattr(self._fetched, "_shutdown_workers", None)
            if end is not None:
                end()
        except RuntimeError as another:
            if not _is_of_a_dead_worker(another):
                raise
            dead = True
        if dead and self._batches.num_workers:
            raise RunError(
                "a process that fetches batches died, most likely for want of memory",
                remedy="use fewer workers or a smaller batch",
            ) from error

    def __iter__(self) -> Iterator[tuple[int, list[Batch]]]:
        self._fetched = iter(self._batches)
        self._since = time.perf_counter()
        for step in self.steps:
            begin = time.perf_counter()
            parts = [self._next() for _ in range(self.accumulation)]
            self._waited += time.perf_counter() - begin
            self._done += 1
            yield step, parts

    def lap(self) -> dict[str, float]:
        """Steps a second and the share of time spent waiting for batches, since the last call."""
        now = time.perf_counter()
        elapsed = max(now - self._since, 1e-9)
        lap = {"steps_per_second": self._done / elapsed, "data_wait": self._waited / elapsed}
        self._waited, self._done, self._since = 0.0, 0, now
        return lap

    def _next(self) -> Batch:
        fetched = next(self._fetched)
        if isinstance(fetched, JepaError):
            raise fetched
        return fetched


class _Parts(Dataset[Batch | JepaError]):
    """Item i is part i mod A of step i div A."""

    def __init__(
        self, source: Source, sampler: Sampler, rank: int, world: int, accumulation: int
    ) -> None:
        self.source, self.sampler = source, sampler
        self.rank, self.world, self.accumulation = rank, world, accumulation

    def __getitem__(self, item: int) -> Batch | JepaError:
        step, micro = divmod(item, self.accumulation)
        try:
            draw = self.sampler.draw(step, self.rank, self.world, micro, self.accumulation)
            return self.source.batch(draw)
        except JepaError as error:
            # Handed over as a value: torch would bury its one line in a worker's traceback.
            return error


def _is_of_a_dead_worker(error: BaseException | None) -> bool:
    if isinstance(error, (ConnectionError, EOFError)):  # half a batch came through
        return "Caught" not in str(error)  # what a source raised in a worker starts so
    return isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error)


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_signals_to_the_trainer(worker: int) -> None:
    # Ctrl-C and SIGTERM may go to the whole process group; the trainer ends its step first and
    # then its workers. Should it not, they end a minute after SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(60))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`; pinned tensors travel while the host goes on."""
    moved = {}
    for name, value in batch.items():
        if isinstance(value, Tensor):
            moved[name] = value.to(device, non_blocking=True)
        else:
            moved[name] = value.to(device) if hasattr(value, "to") else value
    return moved

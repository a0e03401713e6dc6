"""Ratios that survive a shared machine: contenders interleaved in one process, on CPU time.

A subject script builds its contenders as functions without arguments and calls `compare`:

    from benchmarks.harness import Row, compare, equal_outputs, main

    def run(quick: bool = False) -> list[Row]:
        contenders = {"loop": lambda: ..., "one call": lambda: ...}
        return compare(
            "update of 21 M parameters",
            contenders,
            "loop",
            check=equal_outputs(contenders),
            target={"one call": 2.1},
        )

    if __name__ == "__main__":
        main(run)

A ratio is baseline time / contender time: above 1 is faster than the baseline.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.machine import machine

WARM_UP = 2  # rounds; the allocator's page faults vanish after two
SHORT = 0.2  # seconds of a sample below which more rounds are needed, and cheap
SAMPLE = 0.02  # seconds a sample lasts at least: shorter calls are repeated

Contender = Callable[[], object]
Clock = Literal["cpu", "wall", "cuda"]


class UnequalError(AssertionError):
    """Contenders that do not compute the same thing; nothing was timed."""


@dataclass(frozen=True)
class Row:
    """One contender of one comparison.

    `ratio`, `low` and `high` are the median and the 10th and 90th percentile of the per-round
    ratios baseline / contender. `seconds` and `wall` are medians per call by the clock used and by
    the wall. `share_of_peak` is the counted work per second over what the machine's matrix product
    or copy reached in the same rounds. `memory` is in bytes. `note` says what the numbers cannot.
    """

    what: str
    contender: str
    baseline: str
    ratio: float
    low: float
    high: float
    seconds: float
    wall: float
    rounds: int
    checked: bool = False
    share_of_peak: float | None = None
    target: float | None = None
    memory: int | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the target; None where there is none."""
        return None if self.target is None else self.ratio >= self.target


@dataclass(frozen=True)
class Gemm:
    """Matrix products whose rate is the peak: (rows, inner, columns) each."""

    shapes: tuple[tuple[int, int, int], ...] = ((1568, 384, 1536), (1568, 1536, 384))
    dtype: str = "float32"
    device: str = "cpu"

    def build(self) -> tuple[Contender, float]:
        """The products as one call, and its floating-point operations."""
        import torch

        options: Any = {"dtype": getattr(torch, self.dtype), "device": self.device}
        pairs = [
            (torch.ones(m, k, **options), torch.ones(k, n, **options)) for m, k, n in self.shapes
        ]
        work = float(sum(2 * m * k * n for m, k, n in self.shapes))
        return lambda: [torch.matmul(a, b) for a, b in pairs], work


@dataclass(frozen=True)
class Copy:
    """A copy whose rate (bytes read plus bytes written) is the peak."""

    size: int = 2**27  # bytes; several times any cache
    device: str = "cpu"

    def build(self) -> tuple[Contender, float]:
        """The copy as one call, and the bytes it moves."""
        import torch

        source = torch.ones(self.size, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return lambda: target.copy_(source), 2.0 * self.size


def compare(
    name: str,
    contenders: Mapping[str, Contender],
    baseline: str,
    *,
    rounds: int | None = None,
    check: Callable[[], object] | None = None,
    work: Mapping[str, float] | None = None,
    flops: Mapping[str, float] | None = None,
    peak: Gemm | Copy | None = None,
    target: float | Mapping[str, float] | None = None,
    memory: Mapping[str, int] | None = None,
    notes: Mapping[str, str] | None = None,
    threads: int = 1,
    clock: Clock = "cpu",
) -> list[Row]:
    """Time contenders against a baseline, interleaved.

    Parameters
    ----------
    name
        What is timed, with its size.
    contenders
        Functions without arguments; one call is one unit of work.
    baseline
        The contender the others are divided by.
    rounds
        Timed rounds; default 7, or 15 where every sample lasts less than 200 ms.
    check
        Called before anything is timed; raises or returns False where contenders differ, and then
        nothing is timed. `equal_outputs` makes one. Without it the rows say "not compared".
    work, flops
        Work of one call per contender, counted: floating-point operations (`flops`, against a
        matrix product) or bytes read and written (`work` with `peak=Copy()`).
    peak
        What `share_of_peak` is a share of; default `Gemm()` where `flops` is given.
    target
        Least ratio that passes: for every contender but the baseline, or by name.
    memory
        Bytes by contender, from `peak_memory`.
    notes
        Remark by contender; different work must be named here.
    threads
        torch's threads. BLAS threads outside torch are those of the environment.
    clock
        "cpu": user plus system time of this process, all threads. "wall": elapsed, for more than
        one thread on an idle machine. "cuda": elapsed between synchronisations.

    Raises
    ------
    UnequalError
        By `check`.
    """
    if baseline not in contenders:
        raise ValueError(f"{name}: baseline {baseline!r} is none of {sorted(contenders)}")
    amounts = flops if flops is not None else work
    if amounts is not None and peak is None:
        if flops is None:
            raise ValueError(f"{name}: say what `work` is a share of: peak=Copy() or Gemm()")
        peak = Gemm()
    targets = target if isinstance(target, Mapping) else {}
    for given in (amounts, targets, memory, notes):
        if unknown := set(given or ()) - set(contenders):
            raise ValueError(f"{name}: {sorted(unknown)} are no contenders")
    with _threads(threads):
        if check is not None and check() is False:
            raise UnequalError(f"{name}: the contenders are not equal; nothing was timed")
        timed = dict(contenders)
        peak_work = 0.0
        if peak is not None:
            timed[_PEAK], peak_work = peak.build()
        gc.collect()
        gc.freeze()  # what is alive now need not be searched again before every sample
        try:
            times, walls = _rounds(timed, rounds, clock)
        finally:
            gc.unfreeze()
    rows = []
    for contender in contenders:
        ratios = times[baseline] / times[contender]
        low, median, high = np.percentile(ratios, (10, 50, 90))
        share = None
        if amounts is not None and contender in amounts:
            rates = amounts[contender] / times[contender]
            share = float(np.median(rates / (peak_work / times[_PEAK])))
        rows.append(
            Row(
                what=name,
                contender=contender,
                baseline=baseline,
                ratio=float(median),
                low=float(low),
                high=float(high),
                seconds=float(np.median(times[contender])),
                wall=float(np.median(walls[contender])),
                rounds=len(ratios),
                checked=check is not None,
                share_of_peak=share,
                target=_target(target, contender, baseline),
                memory=(memory or {}).get(contender),
                note=(notes or {}).get(contender, ""),
            )
        )
    return rows


_PEAK = "\0peak"


def _target(
    target: float | Mapping[str, float] | None, contender: str, baseline: str
) -> float | None:
    if target is None or isinstance(target, Mapping):
        return (target or {}).get(contender)
    return None if contender == baseline else float(target)


def _rounds(
    contenders: Mapping[str, Contender], rounds: int | None, clock: Clock
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Seconds per call [rounds] of each contender, by the clock and by the wall."""
    names = list(contenders)
    repeats = dict.fromkeys(names, 1)
    longest = 0.0
    for turn in range(WARM_UP):
        for name in names:
            seconds, _ = _sample(contenders[name], 1, clock)
            if turn == WARM_UP - 1:
                repeats[name] = max(1, round(SAMPLE / max(seconds, 1e-9)))
                longest = max(longest, seconds * repeats[name])
    if rounds is None:
        rounds = 15 if longest < SHORT else 7
    samples = {name: np.empty((rounds, 2)) for name in names}
    for turn in range(rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            samples[name][turn] = _sample(contenders[name], repeats[name], clock)
    by_clock = {name: values[:, 0] / repeats[name] for name, values in samples.items()}
    by_wall = {name: values[:, 1] / repeats[name] for name, values in samples.items()}
    return by_clock, by_wall


def _sample(contender: Contender, repeats: int, clock: Clock) -> tuple[float, float]:
    """Seconds of `repeats` calls: by the clock, by the wall."""
    synchronise: Callable[[], object] = _nothing
    if clock == "cuda":
        import torch

        synchronise = torch.cuda.synchronize
    gc.collect()
    gc.disable()
    try:
        synchronise()
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            contender()
        synchronise()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    finally:
        gc.enable()
    # A clock that has not ticked must not make an infinite ratio.
    return max(cpu if clock == "cpu" else wall, 1e-9), max(wall, 1e-9)


def _nothing() -> None:
    return None


@contextmanager
def _threads(count: int) -> Iterator[None]:
    # Only where torch is in use: a reader's benchmark need not import it.
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    if torch:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if torch:
            torch.set_num_threads(before)


def equal_outputs(
    contenders: Mapping[str, Contender], *, rtol: float = 0.0, atol: float = 0.0
) -> Callable[[], None]:
    """A check that one call of each contender returns the same as the first one's.

    Outputs are arrays, tensors, numbers, None, or tuples, lists and dicts of them. The default
    tolerance is none: bit for bit, NaN equal to NaN.

    Raises
    ------
    UnequalError
        Naming the contenders and the largest difference.
    """

    def check() -> None:
        first, *others = contenders
        expected = list(_leaves(contenders[first]()))
        for name in others:
            found = list(_leaves(contenders[name]()))
            if len(found) != len(expected):
                raise UnequalError(f"{name} returns {len(found)} arrays, {first} {len(expected)}")
            for (place, a), (_, b) in zip(expected, found, strict=True):
                if a.shape != b.shape:
                    raise UnequalError(
                        f"{name} against {first}, output{place}: {b.shape} not {a.shape}"
                    )
                if not np.allclose(b, a, rtol=rtol, atol=atol, equal_nan=True):
                    worst = np.max(np.abs(b.astype(np.float64) - a.astype(np.float64)))
                    raise UnequalError(
                        f"{name} against {first}, output{place}: differ by {worst:.3g}"
                    )

    return check


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(value, Mapping):
        for key in sorted(value):
            yield from _leaves(value[key], f"{place}[{key!r}]")
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{place}[{index}]")
    elif hasattr(value, "detach"):
        tensor = value.detach().cpu()
        # numpy has no bfloat16; every bfloat16 is a float32.
        yield place, (tensor.float() if "bfloat16" in str(tensor.dtype) else tensor).numpy()
    elif value is not None:
        yield place, np.asarray(value)


def show(rows: Sequence[Row]) -> None:
    """Print rows for a person at a terminal."""
    width = max((len(row.contender) for row in rows), default=0)
    what = None
    for row in rows:
        if row.what != what:
            what = row.what
            print(f"\n{what} (ratio to {row.baseline}; {row.rounds} rounds)")
        print(f"  {row.contender:<{width}}  {describe(row)}")


def describe(row: Row) -> str:
    """A row's numbers in one line."""
    words = [f"{row.ratio:7.3f} [{row.low:.3f}, {row.high:.3f}]", f"{duration(row.seconds):>9}"]
    if row.share_of_peak is not None:
        words.append(f"{row.share_of_peak:.2f} of peak")
    if row.memory is not None:
        words.append(f"{row.memory / 2**20:.0f} MiB")
    if row.target is not None:
        words.append(f"target {row.target:g}: {'met' if row.met else 'MISSED'}")
    if not row.checked:
        words.append("not compared")
    return "  ".join(words + ([row.note] if row.note else []))


def duration(seconds: float) -> str:
    """Seconds with a unit a person reads."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def main(run: Callable[[bool], list[Row]], packages: Sequence[str] = ()) -> None:
    """The command line of a subject script: `--quick`, `--json FILE`."""
    import argparse

    parser = argparse.ArgumentParser(description=sys.modules[run.__module__].__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all")
    parser.add_argument("--json", type=Path, help="write the rows and the machine to this file")
    arguments = parser.parse_args()
    before = machine(packages)
    rows = run(arguments.quick)
    show(rows)
    if arguments.json:
        # torch may have been imported only by the run; the load is that of before it.
        described = {**machine(packages), "load": before["load"]}
        record = {"machine": described, "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(record, indent=1), encoding="utf-8")


def row_from_dict(data: Mapping[str, Any]) -> Row:
    """A row out of results.json; unknown or missing fields are an error naming them."""
    known = {field.name for field in fields(Row)}
    if set(data) != known:
        raise ValueError(f"not a row of this harness: {sorted(set(data) ^ known)}")
    return Row(**data)

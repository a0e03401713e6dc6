"""Schedules: pure functions of the step.

Each takes the step first, as a number (and returns a float, without numpy) or as a numpy array (and
returns a float64 array of that shape). Outside its range a schedule keeps the value of the nearer
end. A warm-up of 0 steps, one as long as the run, and a run of one step are legal. The value of
step s is meant for update s: the first update uses that of step 0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, cast, overload

if TYPE_CHECKING:
    import numpy as np

P = ParamSpec("P")


class Schedule(Protocol[P]):
    """A function of one step or of an array of steps."""

    @overload
    def __call__(self, step: float, /, *args: P.args, **kwargs: P.kwargs) -> float: ...
    @overload
    def __call__(self, step: np.ndarray, /, *args: P.args, **kwargs: P.kwargs) -> np.ndarray: ...


def _elementwise(schedule: Callable[Concatenate[float, P], float]) -> Schedule[P]:
    @functools.wraps(schedule)
    def wrapped(step: Any, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        if isinstance(step, int | float):
            return schedule(step, *args, **kwargs)
        import numpy as np

        steps = np.asarray(step)
        values = [schedule(s, *args, **kwargs) for s in steps.ravel().tolist()]
        return np.array(values, dtype=np.float64).reshape(steps.shape)

    return cast("Schedule[P]", wrapped)


def _cosine(start: float, end: float, progress: float) -> float:
    """From `start` to `end` along half a cosine while `progress` goes from 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2


@_elementwise
def cosine_to_last(
    step: float, total: int, warmup: int, start: float, peak: float, final: float
) -> float:
    """Linear warm-up, then cosine that reaches `final` at the last step, total - 1.

    Weimann and Conrad 2024 (ECG-JEPA), learning rate and weight decay. Steps below 0 get `start`.
    """
    if step < 0:
        return start
    if step < warmup:
        return start + (peak - start) * step / warmup
    return _cosine(peak, final, (step - warmup) / max(1, total - warmup - 1))


@_elementwise
def cosine_past_end(
    step: float,
    total: int,
    warmup: int,
    start: float,
    peak: float,
    final: float,
    ipe_scale: float = 1.0,
) -> float:
    """Linear warm-up, then cosine that would reach `final` one step past the last.

    Assran et al. 2023 (I-JEPA), appendix A.1, learning rate; the step counts from 1 there.

    Parameters
    ----------
    ipe_scale
        Stretches `total` but not `warmup`, so that the run ends on the way down.
    """
    if step < 0:
        return start
    if step < warmup:
        return start + (peak - start) * step / warmup
    end = ipe_scale * total
    if step >= end:
        return final
    return max(final, _cosine(peak, final, (step - warmup) / (end - warmup)))


@_elementwise
def wd_cosine(step: float, total: float, start: float, final: float) -> float:
    """Cosine from `start` to `final` at step `total` (DINO's and I-JEPA's weight decay)."""
    return final if step >= total else _cosine(start, final, step / total)


@_elementwise
def linear(step: float, total: float, start: float, final: float) -> float:
    """Straight from `start` to `final` at step `total` (the usual EMA momentum)."""
    return final if step >= total else start + (final - start) * max(step, 0) / total


@_elementwise
def ramp_clamped(step: float, start: float, delta: float) -> float:
    """`start` plus `delta` a step, at most 1."""
    return min(1.0, start + max(step, 0) * delta)


@_elementwise
def cosine_ema(step: float, total: float, start: float) -> float:
    """Cosine from `start` to 1 at step `total` (Grill et al. 2020, BYOL, section 3.2)."""
    return 1.0 if step >= total else _cosine(start, 1.0, step / total)


@_elementwise
def onecycle_lr(
    step: float,
    total: int,
    peak: float,
    pct: float = 0.4,
    div: float = 10.0,
    final_div: float = 1e4,
) -> float:
    """One cycle (Smith and Topin 2018): cosine from peak / div to `peak`, then to nearly nothing.

    Parameters
    ----------
    pct
        Share of `total` until the peak.
    div, final_div
        The cycle starts at peak / div and ends at peak / div / final_div.
    """
    return _cycle(step, total, pct, peak / div, peak, peak / div / final_div)


@_elementwise
def onecycle_momentum(
    step: float, total: int, high: float = 0.95, low: float = 0.85, pct: float = 0.4
) -> float:
    """The momentum that goes with `onecycle_lr`: `high`, `low` at its peak, `high`."""
    return _cycle(step, total, pct, high, low, high)


def _cycle(step: float, total: int, pct: float, start: float, middle: float, end: float) -> float:
    turn = pct * total
    if step >= total:
        return end
    if step < turn:
        return _cosine(start, middle, step / turn)
    return _cosine(middle, end, (step - turn) / (total - turn))

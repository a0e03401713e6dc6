"""When rules speak on a recorded run, and whether it deserved it: verdicts and candidates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jepa_core.health import AlarmState, update

# --- verdicts on recorded runs

Run = dict[str, Any]  # what `record` gives, its series as float64 arrays
Rule = Callable[[Run], int | None]  # the step at which it speaks, -1 never, None not recorded
CHOOSING = (0, 1, 2)  # seeds that candidates' thresholds come from; other seeds and toys judge
HARM = 0.03  # fall of the probe below the untrained encoder's from which a run counts as harmed


def harmed(run: Run) -> bool:
    """Whether the encoder ends clearly worse than it began, by the labels."""
    probe = run["series"]["probe"]
    probe = probe[~np.isnan(probe)]
    return bool(probe[-1] < probe[0] - HARM)


def sound(run: Run) -> bool:
    """Nothing planted, no harm done: whatever speaks here is a false alarm."""
    return not run["failure"] and not harmed(run)


def spoilt(run: Run) -> bool:
    """Nothing planted, and yet harmed: a recipe that does not work. Speaking is no mistake."""
    return not run["failure"] and harmed(run)


def alarm(run: Run, first_form: bool = False) -> AlarmState:
    """The alarm at the end of a run.

    In its first form the clause on `unexplained` above 3 after a tenth of the run did not ask
    whether it had risen.
    """
    state, total = AlarmState(), run["total"]
    names = ("signal", "unexplained", "rank", "weights")
    for step, signal, unexplained, rank, weights in looks(run, *names):
        if first_form and 3 < unexplained < math.inf and 10 * step >= total:
            # No other clause tells 3 from more, and this is above twice whatever was lowest.
            unexplained = 1e300
        state = update(state, int(step), total, signal, unexplained, rank, weights)
    return state


def looks(run: Run, *names: str) -> Iterator[tuple[float, ...]]:
    """Step and values of every look; NaN where one was not recorded."""
    series = run["series"]
    missing = np.full(len(series["step"]), math.nan)
    return zip(*(series.get(name, missing).tolist() for name in ("step", *names)), strict=True)


def either(run: Run) -> int:
    """The first of the alarm and the notices."""
    said = alarm(run)
    steps = (said.alarm_step, said.relapse_step, said.erosion_step)
    return min((step for step in steps if step >= 0), default=-1)


RULES: dict[str, Rule] = {
    "alarm, first form": lambda run: alarm(run, first_form=True).alarm_step,
    "alarm": lambda run: alarm(run).alarm_step,
    "rank warning": lambda run: alarm(run).warning_step,
    "relapse": lambda run: alarm(run).relapse_step,
    "erosion": lambda run: alarm(run).erosion_step if "weights" in run["series"] else None,
    "alarm or a notice": either,
}


# --- candidates: one number a look, larger is worse, from what was seen so far


def above_lowest(x: np.ndarray) -> np.ndarray:
    """ln of x over its lowest since the second look."""
    return np.append(0.0, np.log(x[1:] / np.minimum.accumulate(x[1:])))


def below_highest(x: np.ndarray) -> np.ndarray:
    """ln of the highest so far over x."""
    return np.log(np.maximum.accumulate(x) / x)


def above_recent(x: np.ndarray, looks: int = 5) -> np.ndarray:
    """ln of x over the median of the looks before; 0 until there are that many."""
    usual = [np.median(x[i - looks : i]) if i > looks else x[i] for i in range(len(x))]
    return np.log(x / np.array(usual))


def fall(x: np.ndarray, looks: int, share: np.ndarray) -> np.ndarray:
    """ln of the highest of the last looks over x, after 30 % of the run."""
    highest = [x[max(1, i - looks) : i + 1].max() if i else x[0] for i in range(len(x))]
    return np.where(share >= 0.3, np.log(np.array(highest) / x), 0.0)


Series = Mapping[str, np.ndarray]
CANDIDATES: dict[str, Callable[[Series], np.ndarray]] = {
    "`unexplained` over its lowest": lambda s: above_lowest(s["unexplained"]),
    "`snr` under its highest": lambda s: below_highest(s["snr"]),
    "`signal` falls in 5 looks, after 30 %": lambda s: fall(s["signal"], 5, s["share"]),
    "`signal` over its lowest": lambda s: above_lowest(s["signal"]),
    "`rank` under its highest": lambda s: below_highest(s["rank"]),
    "`effective_rank_ev` under its highest": lambda s: below_highest(s["effective_rank_ev"]),
    "`token_rank` under its highest": lambda s: below_highest(s["token_rank"]),
    "`share_position` over its lowest": lambda s: above_lowest(s["share_position"]),
    "`alignment_relative` over its lowest": lambda s: above_lowest(s["alignment_relative"]),
    "norm of the weights under its highest": lambda s: below_highest(s["weights"]),
    "drift (1 - CKA with the last look) over its usual": lambda s: above_recent(s["drift"]),
    "distance of online from target under its highest": lambda s: below_highest(s["gap"]),
    "gradient norm over its usual": lambda s: above_recent(s["gradient"]),
    "training loss over its lowest": lambda s: above_lowest(s["loss"]),
    "training loss falls in 2 looks, after 30 %": lambda s: fall(s["loss"], 2, s["share"]),
}


def badness(run: Run, candidate: str) -> np.ndarray | None:
    """The candidate at every look, the lower of two in a row; None where it was not recorded."""
    series = {name: np.maximum(x, 1e-12) for name, x in run["series"].items()}
    series["share"] = run["series"]["step"] / run["total"]
    with np.errstate(all="ignore"):
        try:
            x = np.nan_to_num(CANDIDATES[candidate](series))
        except KeyError:
            return None
    # What is not finite has broken, whatever the candidate.
    x = np.where(np.isfinite(run["series"]["unexplained"]), x, math.inf)
    return np.minimum(x, np.append(0.0, x[:-1]))


def threshold(runs: Sequence[Run], candidate: str) -> float:
    """A tenth above the highest that sound runs reach."""
    values = [badness(run, candidate) for run in runs if sound(run)]
    return 1.1 * max(float(x.max()) for x in values if x is not None)


def first_above(run: Run, candidate: str, bound: float) -> int | None:
    """The step at which the candidate speaks."""
    x = badness(run, candidate)
    if x is None:
        return None
    above = np.flatnonzero(x > bound)
    return int(run["series"]["step"][above[0]]) if len(above) else -1

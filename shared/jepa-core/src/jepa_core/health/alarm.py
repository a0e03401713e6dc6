"""Is the run alive? A rule over three label-free quantities, and the checkpoint it leaves to take.

The state is a value: `update` is pure, `to_dict` goes into the checkpoint, and a resumed run
raises the alarm where an uninterrupted one would. The thresholds come from 216 recorded toy runs
(no false alarm in 56 healthy ones held out, 40 of 44 planted collapses found, a median of 7 % of
the run after the onset); on other data take them as defaults.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

Reason = Literal["", "const", "lost", "nonfinite"]

PATIENCE = 2  # evaluations in a row before the alarm
RANK_PATIENCE = 3
RELAPSE = 1.2  # times the least that was ever left unexplained
EROSION = 0.8  # of the largest norm the weights had
MARGIN = 0.05  # of the run, before the alarm, that no checkpoint is taken from
ALIKE = 0.99  # of the features' variance that all tokens of a sample share
OVERRULES = 0.9  # share of what is left unexplained below which a checkpoint overrules a warning


@dataclass(frozen=True)
class AlarmState:
    """What the rule remembers between evaluations; JSON-able by `to_dict`."""

    evaluations: int = 0
    step: int = -1
    total: int = 0
    first_signal: float | None = None
    best_unexplained: float | None = None  # since the second evaluation
    below_one: bool = False
    constant: int = 0
    lost: int = 0
    highest_rank: float | None = None
    falling: int = 0
    alarm_step: int = -1
    reason: Reason = ""
    warning_step: int = -1
    relapsed: int = 0
    relapse_step: int = -1
    largest_weights: float | None = None
    eroded: int = 0
    erosion_step: int = -1
    alike: int = 0
    alike_step: int = -1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AlarmState:
        """The state `to_dict` wrote; raises `KeyError` when a field is missing."""
        return cls(**{field.name: data[field.name] for field in fields(cls)})


@dataclass(frozen=True)
class Verdict:
    """What to tell the person who watches the run; steps are -1 where nothing happened."""

    alarm_step: int
    reason: Reason
    warning_step: int
    note: str
    advice: str
    relapse_step: int = -1
    erosion_step: int = -1
    alike_step: int = -1


def update(
    state: AlarmState,
    step: int,
    total: int,
    signal: float,
    unexplained: float,
    rank: float,
    weights: float = math.nan,
    share_sample: float = math.nan,
) -> AlarmState:
    """The state after one more evaluation.

    Parameters
    ----------
    state
        `AlarmState()` before the first evaluation, which belongs to the untrained encoder.
    step, total
        Optimiser steps done and planned.
    signal, unexplained, rank
        As in `jepa_core.health.quantities`.
    weights
        Norm of all weight matrices of the online encoder; NaN = not measured.
    share_sample
        As in `jepa_core.health.quantities`; NaN = not measured.
    """
    finite = math.isfinite(signal) and math.isfinite(unexplained)
    first = signal if state.first_signal is None and math.isfinite(signal) else state.first_signal
    best = state.best_unexplained
    if state.evaluations > 0 and finite:
        best = unexplained if best is None else min(best, unexplained)
    highest = state.highest_rank
    if math.isfinite(rank):
        highest = rank if highest is None else max(highest, rank)

    largest = state.largest_weights
    if math.isfinite(weights):
        largest = weights if largest is None else max(largest, weights)

    relapsed = best is not None and unexplained > RELAPSE * best
    eroded = largest is not None and weights < EROSION * largest
    constant = finite and (
        signal < 1e-10
        or (first is not None and signal < 1e-3 * first)
        or (first is not None and signal < 1e-2 * first and unexplained > 0.6)
    )
    lost = finite and (
        (best is not None and best < 0.8 and unexplained > 1.0)
        or _hopeless(unexplained, best, step, total)
    )
    falling = math.isfinite(rank) and highest is not None and rank < 0.6 * highest
    state = replace(
        state,
        evaluations=state.evaluations + 1,
        step=step,
        total=total,
        first_signal=first,
        best_unexplained=best,
        below_one=state.below_one or (finite and unexplained < 1),
        constant=state.constant + 1 if constant else 0,
        lost=state.lost + 1 if lost else 0,
        highest_rank=highest,
        falling=state.falling + 1 if falling else 0,
        relapsed=state.relapsed + 1 if relapsed else 0,
        largest_weights=largest,
        eroded=state.eroded + 1 if eroded else 0,
        alike=state.alike + 1 if share_sample > ALIKE else 0,
    )
    reason: Reason = ""
    if not finite:
        reason = "nonfinite"
    elif state.constant >= PATIENCE:
        reason = "const"
    elif state.lost >= PATIENCE:
        reason = "lost"
    if reason and not state.reason:
        state = replace(state, alarm_step=step, reason=reason)
    if state.falling >= RANK_PATIENCE and state.warning_step < 0:
        state = replace(state, warning_step=step)
    if state.relapsed >= PATIENCE and state.relapse_step < 0:
        state = replace(state, relapse_step=step)
    if state.eroded >= PATIENCE and state.erosion_step < 0:
        state = replace(state, erosion_step=step)
    if state.alike >= PATIENCE and state.alike_step < 0:
        state = replace(state, alike_step=step)
    return state


def _hopeless(unexplained: float, best: float | None, step: int, total: int) -> bool:
    """Far above the mean predictor after a tenth of the run, and not on the way down.

    Untrained predictors start at 5, with small initial weights at 500, and come down slowly: a
    short healthy run is above 3 for much of its length. Twice the best since the second
    evaluation tells those from runs that blow up.
    """
    return unexplained > 3 and 10 * step >= total and best is not None and unexplained > 2 * best


def verdict(state: AlarmState) -> Verdict:
    """The alarm, the warning, the note and what to try, as of the last evaluation."""
    note = ""
    if not state.below_one and state.evaluations and 4 * state.step >= state.total:
        note = "not learning yet"
    if state.reason:
        early = state.reason == "const" and 10 * state.alarm_step <= state.total
        advice = ADVICE["const from the start" if early else state.reason]
    elif state.erosion_step >= 0:
        advice = ADVICE["erosion"]
    elif state.relapse_step >= 0:
        advice = ADVICE["relapse"]
    elif state.warning_step >= 0:
        advice = ADVICE["rank falling"]
    elif state.alike_step >= 0:
        advice = ADVICE["alike"]
    else:
        advice = ADVICE[note]
    return Verdict(
        state.alarm_step,
        state.reason,
        state.warning_step,
        note,
        advice,
        state.relapse_step,
        state.erosion_step,
        state.alike_step,
    )


ADVICE = {
    "": "",
    "nonfinite": "lower the learning rate, clip the gradient, look for missing values in the data",
    "const from the start": (
        "look at the data, and whether the target encoder is kept out of the gradient"
    ),
    "const": (
        "raise the EMA momentum, keep the target encoder out of the gradient, lower the learning "
        "rate"
    ),
    "lost": (
        "lower the learning rate, clip the gradient, look at what the reader delivers from that "
        "step on"
    ),
    "rank falling": "lower the weight decay, look at the scale of the initial weights",
    "erosion": "the weights shrink faster than they learn: lower the weight decay",
    "relapse": (
        "see what changed shortly before: learning rate, data, whether the target encoder is kept "
        "out of the gradient"
    ),
    "alike": "predict targets that keep what tells a sample's tokens apart",
    "not learning yet": "hide less, train longer, change the learning rate",
}


@dataclass(frozen=True)
class Candidate:
    """A saved checkpoint and its health."""

    step: int
    unexplained: float
    snr: float = math.nan


@dataclass(frozen=True)
class Choice:
    """Which checkpoint to take; `latest` and `by_snr` are for comparison."""

    step: int
    latest: int
    by_snr: int


def choose_checkpoint(
    candidates: Sequence[Candidate], total: int, alarm_step: int = -1, warning_step: int = -1
) -> Choice:
    """The checkpoint with the lowest `unexplained`, well before anything went wrong.

    Only those at least 5 % of the run before the alarm or the warning count, whichever came first;
    the untrained encoder of step 0 counts only when no other is left, and the earliest checkpoint
    when none is. A falling rank is weak evidence (it falls in healthy runs on ECGs): a later
    checkpoint that leaves a tenth less unexplained overrules the warning. `by_snr` follows the
    same rule with the highest signal-to-noise ratio. RankMe and LiDAR do not choose: inside a run
    they prefer the untrained encoder.

    Raises
    ------
    ValueError
        Without candidates.
    """
    if not candidates:
        raise ValueError("no checkpoint to choose from")
    before_alarm = _well_before([alarm_step], candidates, total)
    before_both = _well_before([alarm_step, warning_step], candidates, total)
    safe = before_both
    if _unexplained(_best(before_alarm)) < OVERRULES * _unexplained(_best(before_both)):
        safe = before_alarm
    clearest = max(safe, key=lambda c: -math.inf if math.isnan(c.snr) else c.snr)
    latest = max(candidate.step for candidate in candidates)
    return Choice(step=_best(safe).step, latest=latest, by_snr=clearest.step)


def _well_before(
    steps: Sequence[int], candidates: Sequence[Candidate], total: int
) -> list[Candidate]:
    """Candidates at least the margin before each of `steps` (-1 = never), the latest first."""
    ordered = sorted(candidates, key=lambda candidate: candidate.step)
    ends = [step for step in steps if step >= 0]
    safe = [c for c in ordered if not ends or c.step + MARGIN * total <= min(ends)] or ordered[:1]
    return ([c for c in safe if c.step > 0] or safe)[::-1]


def _best(candidates: Sequence[Candidate]) -> Candidate:
    # Ties and missing values go to the later checkpoint, which comes first.
    return min(candidates, key=_unexplained)


def _unexplained(candidate: Candidate) -> float:
    return math.inf if math.isnan(candidate.unexplained) else candidate.unexplained


def regret(step: int, probes: Mapping[int, float]) -> float:
    """What the choice of `step` cost: the best probe of the run minus that of the chosen step.

    Parameters
    ----------
    step
        The chosen checkpoint; must be among `probes`.
    probes
        Step to a score on the user's labels, higher is better; NaN = not measured.
    """
    measured = [score for score in probes.values() if not math.isnan(score)]
    return max(measured) - probes[step]

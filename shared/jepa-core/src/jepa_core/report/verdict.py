"""The verdict on a run in plain words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jepa_core.errors import DataError

_ALARMS = {
    "const": "The features stopped depending on the sample: the run collapsed.",
    "lost": "The predictions are worse than the mean at each position.",
    "nonfinite": "The loss or the features are no longer finite.",
}
# Early signs that are no alarm.
_NOTICES = {
    "relapse": "the predictor explains less than it once did",
    "erosion": "the weights shrink faster than they learn",
}


@dataclass(frozen=True)
class Verdict:
    """What the page says on top, and the vertical lines of its curves.

    Parameters
    ----------
    level
        "good", "note", "warning" or "alarm".
    headline
        One sentence.
    sentences
        What supports it, what to try, which checkpoint to take.
    marks
        (step, what) for `jepa_core.report.figures.curves`.
    """

    level: str
    headline: str
    sentences: tuple[str, ...]
    marks: tuple[tuple[float, str], ...]


def read_verdict(path: Path, metrics: Sequence[Mapping[str, Any]]) -> Verdict | None:
    """The verdict of a health.json; None where there is none.

    Raises
    ------
    DataError
        If the file is no JSON object.
    """
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"is no JSON: {error}", where=path) from error
    if not isinstance(data, dict):
        raise DataError("must be an object", where=path)
    return _verdict(data, metrics)


def _verdict(found: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> Verdict:
    alarm, warning = _step(found, "alarm_step"), _step(found, "warning_step")
    note, advice = str(found.get("note") or ""), str(found.get("advice") or "")
    looks = [
        value
        for line in metrics
        if isinstance(value := line.get("health/unexplained"), (int, float))
    ]
    if alarm is not None:
        level, headline = "alarm", _ALARMS.get(str(found.get("reason")), "The run went wrong.")
        headline = f"Alarm at step {alarm:,}. {headline}"
    elif warning is not None:
        level = "warning"
        headline = f"Warning at step {warning:,}. The features use fewer and fewer directions."
    elif (alike := _step(found, "alike_step")) is not None:
        level = "warning"
        headline = f"Warning at step {alike:,}. The targets of a sample's tokens are nearly alike."
    elif note:
        level, headline = "note", f"{note[:1].upper()}{note[1:]}."
    elif looks:
        level, headline = "good", "No sign of collapse."
    else:
        level, headline = "note", "The features were not looked at while training."
    sentences = [_evidence(looks)] if looks else []
    for kind, seen in _NOTICES.items():
        at = _step(found, f"{kind}_step")
        if at is not None:
            sentences.append(f"From step {at:,} on {seen}.")
    if advice:
        sentences.append(f"What to try: {advice}.")
    done, steps = _step(found, "done"), _step(found, "steps")
    if done is not None and steps is not None and done < steps:
        sentences.append(f"The run ended after {done:,} of {steps:,} steps.")
    marks = [(step, what) for step, what in ((warning, "warning"), (alarm, "alarm")) if step]
    chosen = _step(found, "chosen_step")
    if chosen is not None:
        marks.append((chosen, "checkpoint"))
        sentences.append(_choice(chosen, found))
    return Verdict(level, headline, tuple(sentences), tuple(marks))


def _evidence(looks: Sequence[float]) -> str:
    first, last = looks[0], looks[-1]
    if last < 1:
        meaning = f"the predictor explains {100 * (1 - last):.0f} % of what tells samples apart"
    else:
        meaning = "the predictor knows no more of a sample than the mean at each position"
    count = "1 look" if len(looks) == 1 else f"{len(looks)} looks"
    change = f"unexplained {first:.3g} at the start, {last:.3g} at the end"
    return f"At the last of {count} at the features, {meaning} ({change})."


def _choice(chosen: int, found: Mapping[str, Any]) -> str:
    by_snr, latest = _step(found, "step_by_snr"), _step(found, "latest_step")
    if by_snr is None:
        return f"Checkpoint taken: step {chosen:,}, the latest."
    others = [
        f"{words} {step:,}"
        for words, step in (("the latest is step", latest), ("signal to noise would take", by_snr))
        if step is not None and step != chosen
    ]
    reason = "where the least was unexplained"
    if chosen != _least_unexplained(found, chosen):
        ends = [step for key in ("alarm_step", "warning_step") if (step := _step(found, key))]
        reason = "where the least was unexplained well before the alarm or warning"
        looked = [one["step"] for one in found.get("checkpoints") or () if one["step"] > 0]
        if ends and chosen >= min(ends) and chosen == min(looked):
            reason = "the earliest, because none was well before the alarm or warning"
    sentence = f"Checkpoint taken without labels: step {chosen:,}, {reason}"
    return f"{'; '.join([sentence, ', '.join(others)] if others else [sentence])}."


def _least_unexplained(found: Mapping[str, Any], otherwise: int) -> int:
    """The step of the checkpoint that left the least unexplained, of those that were looked at."""
    looked = [
        (one["unexplained"], one["step"])
        for one in found.get("checkpoints") or ()
        if isinstance(one, Mapping)
        and isinstance(one.get("unexplained"), (int, float))
        and isinstance(one.get("step"), int)
        and one["step"] > 0
    ]
    return min(looked)[1] if looked else otherwise


def _step(data: Mapping[str, Any], key: str) -> int | None:
    """A step; None where it is missing or -1, which means that nothing happened."""
    step = data.get(key)
    return step if isinstance(step, int) and step >= 0 else None

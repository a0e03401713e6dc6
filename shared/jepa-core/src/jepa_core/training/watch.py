"""The health of a run while it trains: when to look, what to say, which checkpoints to keep."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from jepa_core.health import (
    AlarmState,
    Candidate,
    Choice,
    Verdict,
    choose_checkpoint,
    quantities,
    update,
    verdict,
)
from jepa_core.health.alarm import ADVICE
from jepa_core.sharded import whole

# Looks at the health over a run, beside the one at step 0.
_LOOKS = 50

# What the alarm reads of a look.
_READ = ("signal", "unexplained", "rank", "weights", "share_sample")
_SCORES = ("unexplained", "snr")

_NAMES = {
    "const": "the features no longer depend on the sample (collapse)",
    "lost": "the predictions are worse than the mean at each position",
    "nonfinite": "the loss or the features are not finite",
}


class Watch:
    """Looks at a fixed batch through `module.observe(batch)` and remembers what it saw.

    Parameters
    ----------
    module
        The JEPA, not wrapped.
    batch
        The fixed batch, on the module's device; None looks at nothing.
    total
        Steps of the run.
    every
        Steps between two looks; 0 spaces 50 equally.
    """

    def __init__(
        self, module: nn.Module, batch: Mapping[str, Any] | None, total: int, every: int
    ) -> None:
        self._module, self._batch, self.total = module, batch, total
        self._due = (
            {*range(0, total, every), total}
            if every
            else {round(i * total / _LOOKS) for i in range(_LOOKS + 1)}
        )
        self.state = AlarmState()
        self.candidates: list[Candidate] = []
        self._last: tuple[int, dict[str, float]] = (-1, {})

    def due(self, step: int) -> bool:
        """Whether to look after `step` steps; checkpoints are looked at besides."""
        return step in self._due

    def look(self, step: int) -> dict[str, float]:
        """The label-free quantities after `step` steps; feeds the alarm."""
        if self._batch is None:
            return {}
        values = _observe(self._module, self._batch)
        matrices = [p.detach() for p in self._module.parameters() if p.requires_grad and p.ndim > 1]
        norm = nn.utils.get_total_norm(matrices)
        values["weights"] = whole(norm).item()
        self._last = (step, values)
        self._update(step, **{name: values[name] for name in _READ})
        return values

    def lost(self, step: int) -> None:
        """Say that the loss is not finite: the features need no look."""
        self._update(step, signal=math.nan, unexplained=math.nan, rank=math.nan)

    def saved(self, step: int) -> None:
        """Say that a checkpoint is being saved, which may be chosen if it was looked at."""
        seen, values = self._last
        if seen == step:
            self.candidates.append(
                Candidate(step, values["unexplained"], values.get("snr", math.nan))
            )

    @property
    def verdict(self) -> Verdict:
        """Alarm, warning, note and advice as of now."""
        return verdict(self.state)

    def news(self, before: Verdict) -> list[str]:
        """What to say now that was not yet to be said at the verdict `before`."""
        now, lines = self.verdict, []
        if now.reason and not before.reason:
            lines.append(f"ALARM at step {now.alarm_step}: {_NAMES[now.reason]}; {now.advice}")
        if now.warning_step >= 0 > before.warning_step:
            falling = "the rank of the features falls"
            lines.append(f"warning at step {now.warning_step}: {falling}; {ADVICE['rank falling']}")
        if now.erosion_step >= 0 > before.erosion_step:
            shrinking = "the weights shrink"
            lines.append(f"notice at step {now.erosion_step}: {shrinking}; {ADVICE['erosion']}")
        if now.alike_step >= 0 > before.alike_step:
            alike = "the tokens of a sample are alike, the target says little of each"
            lines.append(f"notice at step {now.alike_step}: {alike}; {ADVICE['alike']}")
        if now.relapse_step >= 0 > before.relapse_step:
            less = "less is explained than before"
            lines.append(f"notice at step {now.relapse_step}: {less}; {ADVICE['relapse']}")
        if now.note and not before.note:
            lines.append(f"note at step {self.state.step}: {now.note}; {ADVICE[now.note]}")
        return lines

    def keep(self, saved: Sequence[int], latest: int) -> set[int]:
        """Of the `saved` steps the `latest` last, and those that may still be chosen."""
        now = self.verdict
        return {*sorted(saved)[-latest:]} | may_be_chosen(
            self._among(saved), self.total, saved[-1], now.alarm_step, now.warning_step
        )

    def choice(self, saved: Sequence[int]) -> Choice | None:
        """Which of the `saved` steps to take; None where none was looked at."""
        now, candidates = self.verdict, self._among(saved)
        if not candidates:
            return None
        return choose_checkpoint(candidates, self.total, now.alarm_step, now.warning_step)

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {
            "alarm": self.state.to_dict(),
            "candidates": [
                {k: None if math.isnan(v) else v for k, v in asdict(c).items()}
                for c in self.candidates
            ],
        }

    def load(self, data: Mapping[str, Any]) -> None:
        """Go on from what `to_dict` gave."""
        self.state = AlarmState.from_dict(data["alarm"])
        self.candidates = [
            Candidate(c["step"], *(math.nan if c[k] is None else c[k] for k in _SCORES))
            for c in data["candidates"]
        ]

    def _update(self, step: int, **values: float) -> None:
        self.state = update(self.state, step, self.total, **values)

    def _among(self, steps: Iterable[int]) -> list[Candidate]:
        there = set(steps)
        return [candidate for candidate in self.candidates if candidate.step in there]


def may_be_chosen(
    candidates: Sequence[Candidate],
    total: int,
    step: int,
    alarm_step: int = -1,
    warning_step: int = -1,
) -> set[int]:
    """The checkpoints that the choice may fall on, whatever happens after `step`.

    The choice leaves out what lies shortly before an alarm, so the best of those before that
    margin must be kept as well as the best of all, and whatever is between the two.
    """
    if not candidates:
        return set()
    if alarm_step >= 0:
        # What comes later cannot move this end, and only a warning could come before it.
        return {
            choose_checkpoint(candidates, total, alarm_step, warning_step).step,
            choose_checkpoint(candidates, total, alarm_step).step,
        }
    margin = math.ceil(total / 20)  # what `choose_checkpoint` leaves out before an alarm
    ends = {step + 1} | {candidate.step + margin for candidate in candidates}
    alarms = {-1} | {end for end in ends if end > step}
    # A warning holds the choice back unless a later checkpoint overrules it: keep both.
    return {
        choose_checkpoint(candidates, total, end, warning).step
        for end in alarms
        for warning in {-1, warning_step}
    } | {choose_checkpoint(candidates, total, warning_step).step}


def _observe(module: nn.Module, batch: Mapping[str, Any]) -> dict[str, float]:
    """Quantities of the module in evaluation mode; leaves every mode as it was."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            return quantities(module.observe(batch))  # type: ignore[operator]
    finally:
        for part, training in modes.items():
            part.training = training

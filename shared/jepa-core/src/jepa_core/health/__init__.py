"""The health of a run without labels: quantities of its features, an alarm, a checkpoint."""

from __future__ import annotations

from jepa_core.health.alarm import (
    AlarmState,
    Candidate,
    Choice,
    Verdict,
    choose_checkpoint,
    regret,
    update,
    verdict,
)
from jepa_core.health.quantities import Observation, linear_cka, quantities

__all__ = [
    "AlarmState",
    "Candidate",
    "Choice",
    "Observation",
    "Verdict",
    "choose_checkpoint",
    "linear_cka",
    "quantities",
    "regret",
    "update",
    "verdict",
]

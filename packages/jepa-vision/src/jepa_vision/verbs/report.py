"""`jepa vision report`: write a run's report again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from jepa_core.run import Run
from jepa_vision.report import write_report


@dataclass(frozen=True)
class Report:
    """Write report.html of a run folder from what lies in it."""

    run: tyro.conf.Positional[Path]
    """The run folder."""

    def __call__(self) -> None:
        print(write_report(Run.open(self.run)))

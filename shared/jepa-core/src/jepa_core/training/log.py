"""What a run says: a line of metrics, how far it is, and a word when something is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from accelerate import Accelerator

from jepa_core.progress import Progress
from jepa_core.run import Run
from jepa_core.training import FitConfig


class Journal:
    """Metrics to metrics.jsonl, to the trackers and to `history`; words to the screen.

    Only the first of several processes writes and speaks.
    """

    def __init__(
        self, run: Run | None, accelerator: Accelerator, config: FitConfig, first: int
    ) -> None:
        main = accelerator.is_main_process
        self._run = run if main else None
        self._accelerator = accelerator
        self.history: list[dict[str, Any]] = list(run.metrics()) if run and main else []
        self.progress = Progress("training", config.steps, first, quiet=not main)
        if config.trackers and run is not None:
            settings = {k: v for k, v in run.config.items() if isinstance(v, (str, float, int))}
            accelerator.init_trackers("jepa", config=settings)

    def __enter__(self) -> Journal:
        self.progress.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.__exit__(kind, error, trace)
        for tracker in self._accelerator.trackers:
            tracker.finish()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """One line: what is known after `step` steps."""
        line = {"step": step, **values}
        self.history.append(line)
        if self._run is not None:
            self._run.append_metrics(line)
        self._accelerator.log(dict(values), step=step)

    def say(self, text: str) -> None:
        """A word to the user."""
        self.progress.say(text)

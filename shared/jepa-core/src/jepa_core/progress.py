"""How far a long job is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

# Seconds: what ends sooner shows nothing; and between two plain lines.
_PATIENCE, _BETWEEN_LINES = 2.0, 30.0


class Progress:
    """Rate and time left: a bar on a terminal, plain lines elsewhere.

    Nothing is shown of what takes less than two seconds. Everything goes to stderr.

    Parameters
    ----------
    label
        What is going on.
    total, done
        Steps in all, and those done before (by a run that is resumed).
    quiet
        Show nothing at all.
    """

    def __init__(
        self,
        label: str,
        total: int,
        done: int = 0,
        *,
        quiet: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.label, self.total, self.done, self.quiet = label, total, done, quiet
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._first, self._begin = done, clock()
        self._last_line = self._begin + _PATIENCE - _BETWEEN_LINES
        self._note = ""
        self._bar: Bar | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._last_line > self._begin and kind is None:
            self._console.print(self._line(), highlight=False, soft_wrap=True)

    def update(self, done: int, note: str = "") -> None:
        """Say that `done` steps are done; `note` stands at the end of the line until the next."""
        self.done, self._note = done, note or self._note
        now = self._clock()
        if self.quiet or now - self._begin < _PATIENCE:
            return
        if self._console.is_terminal:
            self._show_bar()
        elif now - self._last_line >= _BETWEEN_LINES:
            self._last_line = now
            self._console.print(self._line(), highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print a line, above the bar where there is one."""
        if not self.quiet:
            console = self._bar.console if self._bar is not None else self._console
            console.print(text, markup=False, highlight=False, soft_wrap=True)

    @property
    def rate(self) -> float:
        """Steps a second since the beginning; 0 before the first."""
        elapsed = self._clock() - self._begin
        return (self.done - self._first) / elapsed if elapsed > 0 else 0.0

    def _show_bar(self) -> None:
        if self._bar is None:
            self._bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[tail]}", markup=False),
                console=self._console,
            )
            self._bar.add_task(self.label, total=self.total, completed=self.done, tail="")
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=self.done, tail=self._tail())

    def _line(self) -> str:
        return f"{self.label} {self.done}/{self.total}, {self._tail()}"

    def _tail(self) -> str:
        rate = self.rate
        parts = [f"{rate:.3g}/s"]
        if rate > 0 and self.done < self.total:
            parts.append(f"{_duration((self.total - self.done) / rate)} left")
        return ", ".join([*parts, self._note] if self._note else parts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

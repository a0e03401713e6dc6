"""Ctrl-C and SIGTERM as a wish that the loop reads at the end of a step, and what to say then."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from jepa_core.errors import Interrupted

_SAID = b"\nstopping after this step; Ctrl-C again stops at once\n"


class StopSignals:
    """While entered, the first SIGINT or SIGTERM sets `received`; a second SIGINT raises.

    Outside the main thread, where Python delivers no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.received = False
        self._old: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # Ignored on purpose, by a shell that put the job in the background: stays ignored.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._old[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGINT and not self.received:
            os.write(2, _SAID)  # print could be in the middle of a line
        self.received = True


@contextlib.contextmanager
def saying(remedy: str) -> Iterator[None]:
    """Whatever Ctrl-C or SIGTERM stops inside cleans up, and the user is told how to go on.

    Raises
    ------
    Interrupted
        In place of KeyboardInterrupt, and of an `Interrupted` that knows less.
    """
    old = signal.getsignal(signal.SIGTERM)
    # Ignored on purpose: stays ignored. Python delivers signals to the main thread alone.
    mine = old is not signal.SIG_IGN and threading.current_thread() is threading.main_thread()
    if mine:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as stop:
        what = stop.what if isinstance(stop, Interrupted) else "stopped"
        raise Interrupted(what, remedy=remedy) from None
    finally:
        if mine:
            signal.signal(signal.SIGTERM, old)

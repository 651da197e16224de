"""SIGTERM and Ctrl-C: finish the step, save, leave with the conventional status."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interrupted(SystemExit):
    """A run was stopped by a signal after everything was saved; status 128 + signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


class StopSignals:
    """Context in which the first SIGTERM or Ctrl-C is only noted in `received`.

    A second one ends the process at once. Outside the main thread, where Python
    allows no handlers, signals keep their meaning.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for s in (signal.SIGINT, signal.SIGTERM):
                self._before[s] = signal.signal(s, self._note)
        return self

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        for s in self._before:
            signal.signal(s, signal.SIG_DFL)

    def __exit__(self, *error: object) -> None:
        for s, handler in self._before.items():
            signal.signal(s, handler)

"""Signals that ask a run to stop: noted, and obeyed between two steps.

In: SIGTERM, as batch systems send it before they kill, or Ctrl-C. Out: the name of the signal. A second one acts as if
nobody listened.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from xgfm.errors import TrainError

_NAMES = ("SIGTERM", "SIGINT")


class Stopped(TrainError):  # noqa: N818 - what the run is
    """A run was told to stop, and has left a checkpoint."""


class Interrupts:
    """Listens while its context is open; outside of the main thread, where Python hears no signals, it does not."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in _NAMES]
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - Python's own signature
        self.name = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

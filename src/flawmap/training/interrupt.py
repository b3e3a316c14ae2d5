"""A polite stop: the first signal lets the current step end, the second does not.

The signals are Ctrl-C, SIGTERM and, where there is one, that of a terminal that went away.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from flawmap.errors import FlawmapError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


class Interrupted(FlawmapError):
    """The user stopped the work; what was reached is saved."""

    exit_code = 130
    http_status = 503


class PoliteStop:
    """A context in which `requested` becomes true at the first signal.

    Outside the main thread, where signals cannot be caught, it never does.
    """

    def __init__(self) -> None:
        self.requested = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> PoliteStop:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # Ignored by whoever started this, as by nohup, or handled outside of Python.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._old[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

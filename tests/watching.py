"""Progress that tests look at, and users who stop a fit."""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext
from typing import Any

from flawmap.progress import Silent


class Notes(Silent):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class StopAt:
    """Shows nothing, and sends Ctrl-C when the loop reports an iteration: each tenth, and the last.

    Args:
        at: The iteration.
    """

    def __init__(self, at: int) -> None:
        self.at = at

    def task(self, name: str, total: int, **options: Any) -> Any:
        return nullcontext(self if name == "Learning" else Silent())

    def update(self, done: int, **values: float | str) -> None:
        if done == self.at:
            os.kill(os.getpid(), signal.SIGINT)

    def note(self, text: str) -> None:
        return

    def warn(self, text: str) -> None:
        return

"""Progress of long work: a live bar on a terminal, a plain line every few seconds elsewhere.

Everything goes to standard error, so that standard output stays free for results.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

from flawmap.errors import FlawmapWarning

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import ProgressColumn, TaskID

_PLAIN_SECONDS = 5.0


class Task(Protocol):
    """One piece of long work."""

    def update(
        self,
        done: int,
        *,
        total: int | None = None,
        seconds_left: float | None = None,
        **values: float | str,
    ) -> None:
        """Set how much is done; `values` are shown beside it, such as loss=0.12.

        Args:
            done: Pieces that are finished.
            total: Replaces the one that the task began with.
            seconds_left: Of a caller that knows better than the rate so far, which is then hidden;
                infinite while it does not know yet.
            values: What else is shown.
        """


class Progress(Protocol):
    """Where progress and notes are shown."""

    def task(self, name: str, total: int, *, start: int = 0) -> AbstractContextManager[Task]:
        """Start a piece of work, of which `start` was done before."""

    def note(self, text: str) -> None:
        """Say something that stays on the screen."""

    def warn(self, text: str) -> None:
        """Say what somebody must know who wants to see no progress, too."""


class Silent:
    """Shows nothing; what somebody must know becomes a `FlawmapWarning`."""

    @contextmanager
    def task(self, name: str, total: int, *, start: int = 0) -> Iterator[Task]:
        yield self

    def update(
        self,
        done: int,
        *,
        total: int | None = None,
        seconds_left: float | None = None,
        **values: float | str,
    ) -> None:
        return

    def note(self, text: str) -> None:
        return

    def warn(self, text: str) -> None:
        warnings.warn(text, FlawmapWarning, stacklevel=2)


class Mute(Silent):
    """Says nothing at all: for processes beside the one that speaks for all."""

    def warn(self, text: str) -> None:
        return


class Quiet(Silent):
    """Prints what somebody must know, and nothing else."""

    def warn(self, text: str) -> None:
        print(f"warning: {text}", file=sys.stderr, flush=True)


class Plain:
    """A line every few seconds, for logs."""

    @contextmanager
    def task(self, name: str, total: int, *, start: int = 0) -> Iterator[Task]:
        yield _PlainTask(name, total, start)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        self.note(f"warning: {text}")


class _PlainTask:
    def __init__(self, name: str, total: int, start: int) -> None:
        self.name, self.total, self.start = name, total, start
        self.began = self.last = time.monotonic()

    def update(
        self,
        done: int,
        *,
        total: int | None = None,
        seconds_left: float | None = None,
        **values: float | str,
    ) -> None:
        self.total = self.total if total is None else total
        now = time.monotonic()
        if now - self.last < _PLAIN_SECONDS and done < self.total:
            return
        self.last = now
        seconds = now - self.began
        rate = (done - self.start) / seconds if seconds > 0 else 0.0
        left = (self.total - done) / rate if rate > 0 else 0.0
        shown = "".join(f", {name} {_format(value)}" for name, value in values.items())
        speed = f", {rate:.1f}/s" if seconds_left is None else ""
        if done >= self.total:
            end = f", {seconds:.0f} s"
        elif seconds_left is None:
            end = f", {left:.0f} s left"
        else:
            end = f", {clock(seconds_left)} left" if math.isfinite(seconds_left) else ""
        print(
            f"{self.name}: {done}/{self.total}{shown}{speed}{end}",
            file=sys.stderr,
            flush=True,
        )


class Live:
    """Rich's live bars, for terminals."""

    @contextmanager
    def task(self, name: str, total: int, *, start: int = 0) -> Iterator[Task]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        bars = Progress(
            # Names of products and lines of logs may look like Rich's markup.
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            # Standard output belongs to results, also while a bar is shown.
            redirect_stdout=False,
        )
        clockless = tuple(c for c in bars.columns if not isinstance(c, TimeRemainingColumn))
        with bars:
            task = bars.add_task(name, total=total, completed=start, values="")
            yield _LiveTask(bars, clockless, task, start)

    def note(self, text: str) -> None:
        from rich.console import Console

        Console(stderr=True, highlight=False).print(text, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        self.note(f"warning: {text}")


class _LiveTask:
    def __init__(
        self,
        bars: RichProgress,
        clockless: tuple[str | ProgressColumn, ...],
        task: TaskID,
        start: int,
    ) -> None:
        self.bars, self.clockless, self.id, self.start = bars, clockless, task, start
        self.began = time.monotonic()

    def update(
        self,
        done: int,
        *,
        total: int | None = None,
        seconds_left: float | None = None,
        **values: float | str,
    ) -> None:
        rate = (done - self.start) / max(1e-9, time.monotonic() - self.began)
        parts = [f"{name} {_format(value)}" for name, value in values.items()]
        if seconds_left is None:
            parts.append(f"{rate:.1f}/s")
        else:
            self.bars.columns = self.clockless
            if math.isfinite(seconds_left):
                parts.append(f"about {clock(seconds_left)} left")
        self.bars.update(self.id, completed=done, total=total, values=" ".join(parts))


def duration(seconds: float) -> str:
    """How long something took.

    Example:
        >>> duration(0.42), duration(71.5), duration(7300)
        ('0.4 s', '1 min 12 s', '2 h 1 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def clock(seconds: float) -> str:
    """How long something will take, which nobody knows to the second.

    Example:
        >>> clock(5400)
        '1 h 30 min'
    """
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _format(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def default_progress() -> Progress:
    """Live on a terminal, plain lines otherwise."""
    return Live() if sys.stderr.isatty() else Plain()

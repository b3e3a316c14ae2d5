"""What the parts of a fit share: options, device, clock, and how it is stopped."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from lightning_fabric import Fabric

from flawmap.config import Config
from flawmap.data.pictures import Pictures
from flawmap.progress import Progress
from flawmap.resources import default_threads
from flawmap.training.interrupt import Interrupted, PoliteStop

MEASURABLE = 1e-6
"""Seconds that anything takes at least, for those who divide by them: clocks may show none."""


@dataclass
class Run:
    """One fit while it goes on.

    Attributes:
        config: Everything that decides what the fit does.
        folder: Where checkpoints and caches lie.
        resume: Go on from the checkpoints in that folder.
        progress: Where progress is shown.
        fabric: Device and precision; the other processes, if there are any.
        deadline: When the fit is to be over, on the monotonic clock; None for no limit.
        stop: Tells when the user has asked to stop.
        pictures: Images that were decoded already.
        seconds: Time spent so far, by stage.
        last: When the last stage ended, on the monotonic clock.
    """

    config: Config
    folder: Path
    resume: bool
    progress: Progress
    fabric: Fabric
    deadline: float | None
    stop: PoliteStop
    pictures: Pictures | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.monotonic)

    @property
    def threads(self) -> int:
        """Threads that decode images, and do other work of a fit beside torch's."""
        return self.config.training.threads or default_threads()

    def mark(self, stage: str) -> None:
        """A stage has ended."""
        now = time.monotonic()
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + now - self.last, 3)
        self.last = now

    def stop_if_asked(self, stage: str) -> None:
        """End here if the user has asked to.

        Raises:
            Interrupted: They have.
        """
        if self.stop.requested:
            kept = self.folder.exists()
            raise Interrupted(
                f"stopped while {stage}",
                where=str(self.folder) if kept else None,
                hint="give the same command with --resume to go on from the last checkpoint"
                if kept
                else "give the same command again; there is nothing yet to go on from",
            )

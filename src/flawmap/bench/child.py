"""A cell that is being run: a process for each of its stages, one after the other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flawmap.bench.grid import Cell
from flawmap.files import FolderLock

_STOP_SECONDS = 20.0
"""How long a child may take to save itself after Ctrl-C."""

_LOG_TAIL = 2000


def stage_command(stage: str, job: Path) -> list[str]:
    """The command that runs one stage of a cell; see `measure`."""
    return [sys.executable, "-W", "ignore", "-m", "flawmap.bench.measure", stage, str(job)]


@dataclass
class Child:
    """A cell that is being run.

    Attributes:
        cell: The cell.
        folder: Where its stages write.
        stages: Those still to do.
        lock: Of the folder; its processes hold it too.
        threads: Of each process; None leaves it to them.
        process: Of the stage that runs, or ran last.
        stage: Its name.
        began: When the cell began, by the monotonic clock.
    """

    cell: Cell
    folder: Path
    stages: deque[str]
    lock: FolderLock
    threads: int | None = None
    process: subprocess.Popen[bytes] | None = None
    stage: str = ""
    began: float = field(default_factory=time.monotonic)

    @property
    def log(self) -> Path:
        """What its processes say."""
        return self.folder / "log.txt"

    def next_stage(self) -> None:
        """Begin the next stage; the process of the one before has ended."""
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
        self.stage = self.stages.popleft()
        (self.folder / f"{self.stage}.error.json").unlink(missing_ok=True)
        variables = dict(os.environ)
        if self.threads is not None:
            share = str(self.threads)
            variables.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), share))
        with self.log.open("ab") as log:
            log.write(f"{self.stage}\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                stage_command(self.stage, self.folder / "job.json"),
                # It closes when this process is gone, however that came about; see `measure`.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=variables,
                **_apart(self.lock),
            )

    def stop(self) -> None:
        """Ask it to end; a fit that hears this saves a checkpoint first."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT if sys.platform != "win32" else signal.SIGTERM)

    def end(self) -> None:
        """Wait until its process has saved itself and ended, or end it."""
        if self.process is not None:
            try:
                self.process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            assert self.process.stdin is not None
            self.process.stdin.close()
        self.lock.close()

    def error(self, code: int) -> dict[str, Any]:
        """Why it failed, by what it wrote or by its exit code; "message" says it in words."""
        found = self.folder / f"{self.stage}.error.json"
        if found.is_file():
            error: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
        else:
            error = {"message": _how_it_ended(code), "log": self.last_words()}
        return {**error, "stage": self.stage}

    def last_words(self) -> str:
        """The end of what the cell's processes said, for a failure without a message."""
        try:
            with self.log.open("rb") as log:
                # Only its end: this is asked several times a second.
                log.seek(max(0, self.log.stat().st_size - _LOG_TAIL))
                return log.read().decode("utf-8", "replace").strip()
        except OSError:
            return ""

    def doing(self) -> str:
        """The last line of its progress."""
        lines = self.last_words().splitlines()
        return lines[-1][:60] if lines else self.stage


def _apart(lock: FolderLock) -> dict[str, Any]:
    """Options of a child: Ctrl-C reaches this process alone, which passes it on in its own time."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True, "pass_fds": (lock.descriptor,)}


def _how_it_ended(code: int) -> str:
    if code == -9:
        return "its process was killed, perhaps because the memory was full"
    if code < 0:
        return f"its process ended with signal {-code}"
    return f"its process ended with exit code {code}"

"""Runs the cells of a grid, each in processes of its own, and stores each as it ends."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import shutil
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flawmap.bench.child import Child
from flawmap.bench.environment import code, environment
from flawmap.bench.grid import Cell
from flawmap.bench.groups import current
from flawmap.bench.known import Known
from flawmap.bench.measure import BUNDLE, STAGES
from flawmap.bench.results import Outcome, StoredCell
from flawmap.bench.store import Claim, Store
from flawmap.bench.work import changes, empty, left_job, work_folder
from flawmap.errors import BenchError, ConfigError
from flawmap.files import FolderLock
from flawmap.progress import Progress, Silent, Task
from flawmap.resources import usable_cores
from flawmap.training.interrupt import Interrupted, PoliteStop

_POLL_SECONDS = 0.2
_ALIVE_SECONDS = 4.0


@dataclass
class Summary:
    """What a run of a grid came to.

    Attributes:
        done: Cells that this run finished.
        before: Cells that were finished before.
        failed: Cells of this grid that failed, now or before.
        elsewhere: Cells that another process took over.
        seconds: Duration of this run.
    """

    done: int = 0
    before: int = 0
    failed: list[str] = field(default_factory=list)
    elsewhere: int = 0
    seconds: float = 0.0


def run_cells(
    cells: Sequence[Cell],
    store: Store,
    *,
    jobs: int = 1,
    retry: bool = False,
    keep_models: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> Summary:
    """Run what is not finished yet.

    Args:
        cells: The cells of a grid.
        store: Where results go; also the place of the working folder, beside it.
        jobs: Cells at a time. With more than one their times compete for the machine; the tables
            say so.
        retry: Run cells again that failed before.
        keep_models: Keep each cell's bundle in the working folder.
        device: Where to compute; wins over the option of that name.
        progress: Where progress is shown; nowhere by default.

    Raises:
        Interrupted: The user stopped it; what was finished is stored, and the rest goes on where
            it was with the same command.
    """
    if jobs < 1:
        raise ConfigError("there must be at least one job", where="--jobs", given=jobs)
    return _Run(cells, store, jobs, retry, keep_models, device, progress or Silent()).run()


Durations = dict[tuple[str, str], list[tuple[float, int]]]
"""Seconds and images of finished cells, by method and data."""


class _Run:
    def __init__(
        self,
        cells: Sequence[Cell],
        store: Store,
        jobs: int,
        retry: bool,
        keep_models: bool,
        device: str,
        progress: Progress,
    ) -> None:
        self.store = store
        self.jobs = jobs
        self.threads = max(1, usable_cores() // jobs) if jobs > 1 else None
        self.retry = retry
        self.keep_models = keep_models
        self.device = device
        self.progress = progress
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.work = work_folder(store.path)
        self.waiting = deque(cells)
        self.running: list[Child] = []
        self.total = len(cells)
        # Only what auto chooses may be the same fit as another line.
        self.chooses = any(cell.config.chosen for cell in cells)
        self.finished = 0
        self.summary = Summary()
        # Those that failed before, by their keys.
        self.failed: set[str] = set()
        # For those that lack nothing but metrics, the cell whose bundle an earlier run kept.
        self.bundles: dict[str, str] = {}
        self.durations: Durations = {}
        # Seconds of the waiting cells, and what they were reckoned from.
        self.expected: tuple[tuple[int, int], float] = ((0, 0), 0.0)
        self.known = Known(())

    def run(self) -> Summary:
        began = time.monotonic()
        self._skip_known(self.store.cells())
        if self.summary.before:
            self.progress.note(f"{self.summary.before} of {self.total} cells are finished already")
        if self.summary.failed and not self.retry:
            self.progress.note(
                f"{len(self.summary.failed)} failed before and are left alone; --retry runs them "
                "again"
            )
        with PoliteStop() as stop, self.progress.task("Benchmark", self.total, start=0) as task:
            try:
                self._loop(stop, task)
            except BaseException:
                self._stop_children()
                raise
        self.summary.seconds = time.monotonic() - began
        # It stays as long as anything is in it, such as the log of a cell that failed.
        with contextlib.suppress(OSError):
            self.work.rmdir()
        return self.summary

    def _skip_known(self, stored: Sequence[StoredCell]) -> None:
        """Leave out what the file holds already, so that progress speaks of the rest."""
        known = Known(stored)
        todo: deque[Cell] = deque()
        lacking: dict[str, list[str]] = {}
        pairs = [(m, cell) for cell in self.waiting for m in known.measured(cell)]
        self.store.adopt(pairs)
        done = [c for c in stored if c.status == "done" and c.figures]
        if {m.key for m, _ in pairs} & ({c.key for c in done} - {c.key for c in current(done)}):
            # The data is again what it was before others were measured.
            self.store.renew([m.key for m, _ in pairs])
        for cell in self.waiting:
            status = known.status(cell)
            if status == "done":
                self.summary.before += 1
                continue
            if status == "failed":
                self.failed.add(cell.key)
                if not self.retry:
                    self.summary.failed.append(f"{cell}: {_reason(known.error(cell))}")
                    continue
            todo.append(cell)
            if models := known.measured(cell):
                lacking[cell.key] = known.missing(cell)
                kept = [m.key for m in models if (self.work / m.key / BUNDLE).is_file()]
                # The bundle may be what was wrong with a cell that failed.
                if kept and status != "failed":
                    self.bundles[cell.key] = kept[-1]
        self.finished = self.total - len(todo)
        self.waiting = todo
        if lacking:
            names = sorted({name for found in lacking.values() for name in found})
            self.progress.note(
                f"{len(lacking)} models were measured without {', '.join(names)}: "
                f"{len(self.bundles)} are scored again, {len(lacking) - len(self.bundles)} are "
                "fitted again, as no model was kept (--keep-models)"
            )

    def _loop(self, stop: PoliteStop, task: Task) -> None:
        last_alive = 0.0
        taken: deque[Cell] = deque()
        while self.waiting or self.running or taken:
            if stop.requested:
                raise Interrupted(
                    f"stopped after {self.finished} of {self.total} cells",
                    where=str(self.store.path),
                    hint="the same command goes on where it was",
                )
            while len(self.running) < self.jobs and self.waiting:
                cell = self.waiting.popleft()
                if self._begin(cell) == "taken":
                    taken.append(cell)
            for child in list(self.running):
                # A signal to all reaches the children first: what it ends has not failed.
                if not stop.requested:
                    self._attend(child)
            now = time.monotonic()
            if now - last_alive > _ALIVE_SECONDS:
                self._keep_claims()
                last_alive = now
                if not self.running and not self.waiting:
                    # Another process may have ended, or died: look again at what it had taken.
                    self.waiting, taken = taken, deque()
            self._show(task)
            time.sleep(_POLL_SECONDS)
        self._show(task)

    def _begin(self, cell: Cell) -> Claim:
        if self.chooses:
            self.known.add(self.store.cells(status="done", besides=self.known.keys))
        if self.chooses and (twin := self.known.twin(cell)):
            self.store.copy(twin, cell)
            self.progress.note(f"{cell}: the same fit as {twin.label}'s, measured once")
            self.summary.done += 1
            self.finished += 1
            return "done"
        claim = self.store.claim(cell, self.owner, retry=self.retry)
        if claim == "ours":
            folder = self.work / cell.key
            lock: FolderLock | None = None
            try:
                folder.mkdir(parents=True, exist_ok=True)
                lock = FolderLock(folder)
                if not lock.acquire():
                    # Its last owner is gone, but not yet the process that it had begun.
                    self.store.release(cell.key, self.owner)
                    return "taken"
                self.running.append(self._start(cell, folder, lock))
            except BaseException as error:
                if lock is not None:
                    lock.close()
                self.store.release(cell.key, self.owner)
                if isinstance(error, OSError):
                    raise BenchError(
                        f"the cell cannot be begun: {error.strerror or error}",
                        where=str(folder),
                        hint="free some space or make the folder writable, and start again",
                    ) from error
                raise
        elif claim != "taken":
            # Another process on the same file was quicker.
            self.finished += 1
            if claim == "failed":
                self.summary.failed.append(f"{cell}: {_reason(self.store.error(cell.key))}")
            else:
                self.summary.before += 1
        return claim

    def _keep_claims(self) -> None:
        lost = self.store.alive([c.cell.key for c in self.running], self.owner)
        for child in [c for c in self.running if c.cell.key in lost]:
            self.progress.note(f"another process has taken over: {child.cell}")
            child.stop()
            child.end()
            self.running.remove(child)
            self.finished += 1
            self.summary.elsewhere += 1

    def _start(self, cell: Cell, folder: Path, lock: FolderLock) -> Child:
        tree = cell.config.model_dump(mode="json")
        tree["training"]["device"] = self.device
        if self.threads is not None:
            tree["training"]["threads"] = self.threads
        job = {
            "path": list(cell.path),
            "format": cell.reader,
            "fingerprint": cell.fingerprint,
            "categories": list(cell.categories),
            "config": tree,
            "metrics": sorted(cell.metrics),
            "jobs": self.jobs,
            # What one version learnt is not scored by another, nor told as its result.
            **code(),
        }
        if cell.key in self.bundles:
            job["bundle"] = f"../{self.bundles[cell.key]}/{BUNDLE}"
        file = folder / "job.json"
        left = left_job(file)
        changed = [] if left is None else changes(left, job)
        if left is None or changed or cell.key in self.failed:
            # What another job, device or fault left behind would be taken for this job's.
            empty(folder)
            if changed and cell.key not in self.failed:
                self.progress.note(
                    f"{cell} begins anew: what was left of it had another {', '.join(changed)}"
                )
        else:
            # A part of the fit may have shared the machine.
            job["jobs"] = max(self.jobs, left["jobs"])
        file.write_text(json.dumps(job), encoding="utf-8")
        if "bundle" in job:
            # Its fit stands with the figures that were measured first.
            (folder / "fit.json").write_text("{}", encoding="utf-8")
        todo = deque(s for s in STAGES if not (folder / f"{s}.json").is_file())
        child = Child(cell, folder, todo, lock, self.threads)
        if child.stages:
            child.next_stage()
        return child

    def _attend(self, child: Child) -> None:
        code = 0 if child.process is None else child.process.poll()
        if code is None:
            return
        # A child without a process had finished before its last parent could write it down.
        if code == 0 and all((child.folder / f"{s}.json").is_file() for s in STAGES):
            self._finish(child)
        elif code == 0 and child.stages and (child.folder / f"{child.stage}.json").is_file():
            child.next_stage()
            return
        else:
            self._fail(child, code)
        child.end()
        self.running.remove(child)
        self.finished += 1

    def _finish(self, child: Child) -> None:
        fit = json.loads((child.folder / "fit.json").read_text(encoding="utf-8"))
        score = json.loads((child.folder / "score.json").read_text(encoding="utf-8"))
        outcome = Outcome(
            figures={
                name: {**metrics, **{f"n_{k}": v for k, v in score["counts"][name].items()}}
                for name, metrics in score["figures"].items()
            },
            scores=[tuple(row) for row in score["scores"]],
            cost={**fit, **score["cost"]},
            environment={**score["environment"], **child.cell.about},
        )
        if not self.store.finish(child.cell.key, self.owner, outcome):
            self.summary.elsewhere += 1
            return
        kind = (child.cell.label, child.cell.data)
        seconds = time.monotonic() - child.began
        self.durations.setdefault(kind, []).append((seconds, max(1, child.cell.images)))
        self.summary.done += 1
        if self.keep_models and (child.folder / BUNDLE).is_file():
            self._describe(child)
        else:
            shutil.rmtree(child.folder, ignore_errors=True)

    @staticmethod
    def _describe(child: Child) -> None:
        """Leave the bundle, and beside it what it is."""
        job = json.loads((child.folder / "job.json").read_text(encoding="utf-8"))
        about = {"cell": str(child.cell), "data": child.cell.data, **job}
        text = json.dumps(about, indent=2) + "\n"
        (child.folder / "cell.json").write_text(text, encoding="utf-8")
        for name in ("job.json", "fit.json", "score.json"):
            (child.folder / name).unlink(missing_ok=True)

    def _fail(self, child: Child, code: int) -> None:
        error = child.error(code)
        if self.store.fail(child.cell.key, self.owner, error, environment()):
            self.summary.failed.append(f"{child.cell}: {_reason(error)}")
            self.progress.note(f"failed: {child.cell}: {_reason(error)}\n  its log: {child.log}")

    def _stop_children(self) -> None:
        for child in self.running:
            child.stop()
        for child in self.running:
            child.end()
        for child in self.running:
            # On a full disk the claim stays; it is void after a while.
            with contextlib.suppress(BenchError):
                self.store.release(child.cell.key, self.owner)
        self.running.clear()

    def _show(self, task: Task) -> None:
        now = "-"
        if self.running:
            child = self.running[0]
            more = f" (+{len(self.running) - 1})" if len(self.running) > 1 else ""
            now = f"{child.cell}{more}: {child.doing()}"
        task.update(self.finished, seconds_left=self._seconds_left(), now=now)

    def _seconds_left(self) -> float:
        if not self.durations:
            return math.inf
        now = time.monotonic()
        basis = (len(self.waiting), sum(map(len, self.durations.values())))
        if self.expected[0] != basis:
            # Not in every round: it takes time from the cells that are being measured.
            self.expected = (basis, sum(expected_seconds(c, self.durations) for c in self.waiting))
        left = self.expected[1]
        for child in self.running:
            expected = expected_seconds(child.cell, self.durations)
            left += max(0.0, expected - (now - child.began))
        return left / self.jobs


def expected_seconds(cell: Cell, durations: Durations) -> float:
    """How long a cell will take: as those of its method, on the same data where it has run there.

    Args:
        cell: What will run.
        durations: Of at least one finished cell.
    """
    known = (
        durations.get((cell.label, cell.data))
        or [v for (label, _), found in durations.items() if label == cell.label for v in found]
        or [v for found in durations.values() for v in found]
    )
    # Scoring takes its time for each image, training often one for all: between the two.
    whole = [seconds * math.sqrt(cell.images / images) for seconds, images in known]
    return sum(whole) / len(whole)


def _reason(error: Mapping[str, Any]) -> str:
    return " ".join(str(error.get("message", "unknown")).split())

"""The working folder beside a results file: a folder for each cell, named by its key, with its job,
its log, checkpoints until it is finished, and afterwards its bundle if that is to be kept.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flawmap.bench.grid import dotted
from flawmap.bench.measure import BUNDLE
from flawmap.bench.store import Store

_FREE = frozenset({"jobs", "config.training.threads", "config.chosen"})
"""What of a job may change before it goes on."""


def work_folder(store: Path) -> Path:
    """Where unfinished cells keep their checkpoints and logs."""
    return store.with_name(store.name + ".work")


def forget_unfinished(store: Store) -> None:
    """Remove all but the models of finished cells that were to be kept."""
    work = work_folder(store.path)
    done = {cell.key for cell in store.cells(status="done")}
    for folder in work.iterdir() if work.is_dir() else ():
        if folder.name not in done or not (folder / BUNDLE).is_file():
            shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        work.rmdir()


def left_job(file: Path) -> dict[str, Any] | None:
    """The job that an earlier run began in the same folder; None if that cannot be told."""
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def changes(left: Mapping[str, Any], job: Mapping[str, Any]) -> list[str]:
    """The names in which two jobs differ so that one cannot go on with what the other left."""
    one, other = dotted(left), dotted(job)
    names = sorted({*one, *other} - _FREE)
    return [name for name in names if one.get(name) != other.get(name)]


def empty(folder: Path) -> None:
    """Remove everything from a cell's folder but its lock."""
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != ".lock":
            entry.unlink()

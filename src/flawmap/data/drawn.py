"""Maps and overlays of an earlier run: they look like images, and are no pictures of parts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

from flawmap.files import is_file

RECORDS = "predictions.jsonl"
_FOLDERS = {"map": "maps", "overlay": "overlays"}
"""Where files lie inside the folder of a run, by the key that names them in a record."""


def drawn_before(folder: Path) -> list[Path]:
    """The maps and overlays that an earlier run wrote into a folder."""
    with suppress(OSError), _records(folder) as lines:
        return [folder / inside for line in lines for inside in _named(line)]
    return []


def drawn_folders(folder: Path, names: Iterable[str]) -> frozenset[str]:
    """The sub-folders that hold the maps and overlays of an earlier run.

    Args:
        folder: Where the run may have written.
        names: Its sub-folders.
    """
    there = frozenset(names) & frozenset(_FOLDERS.values())
    if there and is_file(folder / RECORDS):
        with suppress(OSError), _records(folder) as lines:
            # A run draws the same of every image.
            return there & {inside.parts[0] for inside in _named(lines.readline())}
    return frozenset()


def _records(folder: Path) -> IO[str]:
    return (folder / RECORDS).open(encoding="utf-8", errors="surrogateescape")


def _named(line: str) -> list[Path]:
    """The files that a record names, relative to its folder."""
    found = []
    # The last line may be half of one, and the file may be somebody else's.
    with suppress(ValueError, AttributeError):
        record = json.loads(line)
        for kind, folder in _FOLDERS.items():
            inside = Path(str(record.get(kind) or ""))
            if inside.parts[:1] == (folder,) and ".." not in inside.parts:
                found.append(inside)
    return found

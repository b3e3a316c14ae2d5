"""What cells measured, and the JSON file that keeps it with code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from flawmap.bench.grid import name_of, setting_of
from flawmap.errors import BenchError
from flawmap.files import write_text

VERSION = 1
"""Of the form of the results file and of its JSON; a newer one is refused."""

Status = Literal["running", "done", "failed"]

Score = tuple[str, str, int, str, float]
"""Category, path relative to the data, label, defect and image score."""


@dataclass(frozen=True)
class Outcome:
    """What a finished cell measured.

    Attributes:
        figures: Metrics by category; undefined ones are None.
        scores: Of each test image.
        cost: Seconds, images/s, latency, memory, parameters, MACs and bytes; see `measure`.
        environment: Device, versions, commit, date, and what `Cell.about` gives.
    """

    figures: Mapping[str, Mapping[str, float | None]]
    scores: Sequence[Score]
    cost: Mapping[str, Any]
    environment: Mapping[str, Any]


@dataclass(frozen=True)
class StoredCell:
    """A cell as it stands in a results file.

    Attributes:
        key: See `Cell.key`.
        label, method, encoder, data, format, fingerprint, setting, categories, seed: As in the
            cell.
        config: The whole configuration, as plain values.
        status: "running", "done" or "failed".
        error: Why it failed, as plain values.
        cost: See `Outcome`.
        environment: See `Outcome`.
        figures: See `Outcome`.
    """

    key: str
    label: str
    method: str
    encoder: str
    data: str
    format: str
    fingerprint: str
    setting: str
    categories: tuple[str, ...]
    seed: int
    config: Mapping[str, Any]
    status: Status
    error: Mapping[str, Any] | None
    cost: Mapping[str, Any]
    environment: Mapping[str, Any]
    figures: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)

    @property
    def data_versions(self) -> Mapping[str, str]:
        """See `Cell`; empty for a cell of an earlier version that no grid has asked for since."""
        found: Mapping[str, str] = self.environment.get("data_versions", {})
        return found

    def __str__(self) -> str:
        return name_of(self)


def read_export(path: Path) -> list[StoredCell]:
    """The cells of the JSON file that `write_cells` wrote.

    Raises:
        BenchError: The file is missing or has another form.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if tree["version"] != VERSION:
            raise BenchError(
                "the results have another form",
                where=str(path),
                given=f"version {tree['version']}",
                expected=f"version {VERSION}",
            )
        return [
            StoredCell(
                **{
                    **cell,
                    "categories": tuple(cell["categories"]),
                    "setting": setting_of(cell["categories"]),
                }
            )
            for cell in tree["cells"]
        ]
    except (OSError, UnicodeDecodeError, ValueError, TypeError, KeyError) as error:
        raise BenchError(
            f"the results cannot be read: {error}",
            where=str(path),
            expected="a file that 'flawmap bench' or 'flawmap bench export' wrote",
        ) from error


def _without_places(value: Any) -> Any:
    """Plain values with the names of files and folders in place of their whole paths."""
    if isinstance(value, Mapping):
        return {key: _without_places(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_places(part) for part in value]
    if isinstance(value, str) and (found := Path(value)).is_absolute():
        return found.name
    return value


def write_cells(cells: Sequence[StoredCell], path: Path) -> None:
    """Write cells as JSON, a cell a line: small, and its changes can be read.

    Raises:
        BenchError: The file cannot be written.
    """
    # The end of a log may hold anything; places of this machine say nothing elsewhere.
    kept = [
        replace(
            c,
            config=_without_places(c.config),
            environment=_without_places(c.environment),
            error=c.error and {k: v for k, v in c.error.items() if k in ("message", "stage")},
        )
        for c in cells
    ]
    lines = ",\n".join(json.dumps(asdict(cell), sort_keys=True) for cell in kept)
    text = f'{{"version": {VERSION}, "cells": [\n{lines}\n]}}\n'
    write_text(path, text, error=BenchError)

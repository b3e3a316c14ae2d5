"""Which cells of a grid a results file has already, and which models of the others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import replace
from typing import Any

from flawmap.bench.grid import Cell, deciding
from flawmap.bench.results import Status, StoredCell
from flawmap.config import validate
from flawmap.errors import ConfigError


class Known:
    """What a results file holds.

    A stored cell measured the model of another one if nothing that decides the model differs. The
    metrics may: what was measured need not be measured again. So may options that are new since:
    their defaults leave everything as it was.

    Args:
        stored: The cells of the file.
    """

    def __init__(self, stored: Iterable[StoredCell]) -> None:
        self._by_key: dict[str, StoredCell] = {}
        self._done: dict[tuple[object, ...], list[StoredCell]] = {}
        self._measured: dict[str, list[StoredCell]] = {}
        self.add(stored)

    def add(self, stored: Iterable[StoredCell]) -> None:
        """Take in cells that it has not as finished ones."""
        for cell in stored:
            self._by_key[cell.key] = cell
            if cell.status == "done":
                self._done.setdefault(_facts(cell, cell.method), []).append(cell)
        self._measured.clear()

    @property
    def keys(self) -> Set[str]:
        """Of all cells."""
        return self._by_key.keys()

    def status(self, cell: Cell) -> Status | None:
        """How far the cell is; None if it was never begun. It is done if all was measured."""
        stored = self._by_key.get(cell.key)
        if self.measured(cell) and not self.missing(cell):
            return "done"
        return None if stored is None else stored.status

    def missing(self, cell: Cell) -> list[str]:
        """The metrics of the cell that no finished cell of its model has."""
        return _lacking(cell, self.measured(cell))

    def measured(self, cell: Cell) -> list[StoredCell]:
        """The finished cells of the same model; their options include those that are new."""
        if cell.key not in self._measured:
            named = cell.about.get("named")
            self._measured[cell.key] = [
                # Of older cells of `auto` it is not known.
                stored
                for stored in self._same(cell, deciding)
                if stored.environment.get("named", named) == named
            ]
        return self._measured[cell.key]

    def twin(self, cell: Cell) -> StoredCell | None:
        """The finished cell of another line that comes to the same fit, and has all metrics.

        What `auto` chooses is the fit of the line that names this method itself, and the other way
        round.
        """
        same = self._same(cell, _fit_of)
        return next((stored for stored in same if not _lacking(cell, [stored])), None)

    def _same(
        self, cell: Cell, what: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    ) -> Iterator[StoredCell]:
        """The finished cells of which `what` gives the same, with their options as of now."""
        wanted = what(cell.config.model_dump(mode="json"))
        for stored in self._done.get(_facts(cell, cell.config.method.name), []):
            # An option that is gone makes it another model.
            with contextlib.suppress(ConfigError):
                options = validate(stored.config).model_dump(mode="json")
                if what(options) == wanted:
                    yield replace(stored, config=options)

    def error(self, cell: Cell) -> Mapping[str, Any]:
        """Why the cell failed, as in `StoredCell`."""
        return self._by_key[cell.key].error or {}


def _lacking(cell: Cell, measured: Iterable[StoredCell]) -> list[str]:
    found = {name for c in measured for figures in c.figures.values() for name in figures}
    return [name for name in cell.metrics if name not in found]


def _facts(cell: Cell | StoredCell, method: str) -> tuple[object, ...]:
    return (method, cell.data, cell.fingerprint, cell.categories, cell.seed)


def _fit_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a fit: whether somebody or `auto` named the options does not."""
    return {name: value for name, value in deciding(options).items() if name != "chosen"}

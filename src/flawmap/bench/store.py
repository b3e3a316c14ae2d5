"""The results of benchmarks: one SQLite file, to which every finished cell is written at once.

Several processes may work on one file: a cell belongs to the one that claimed it for as long as
that one gives signs of life. What a killed process had claimed is free again a little later.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from flawmap.bench.grid import Cell, setting_of
from flawmap.bench.results import VERSION, Outcome, Score, Status, StoredCell, read_export
from flawmap.errors import BenchError

STALE_SECONDS = 40.0
"""A claim without a sign of life for so long is void."""

Claim = Literal["ours", "done", "failed", "taken"]

_MINE = "key = ? AND owner = ? AND status = 'running'"
"""A process that slept too long may have lost its claim: it must not touch another's cell."""

_TABLES = """
CREATE TABLE cells (
    key TEXT PRIMARY KEY,
    label TEXT NOT NULL, method TEXT NOT NULL, encoder TEXT NOT NULL,
    data TEXT NOT NULL, format TEXT NOT NULL, fingerprint TEXT NOT NULL,
    setting TEXT NOT NULL, categories TEXT NOT NULL, seed INTEGER NOT NULL,
    config TEXT NOT NULL,
    status TEXT NOT NULL, owner TEXT, alive REAL,
    error TEXT, cost TEXT, environment TEXT, finished REAL
);
CREATE TABLE figures (
    key TEXT NOT NULL, category TEXT NOT NULL, metric TEXT NOT NULL, value REAL,
    PRIMARY KEY (key, category, metric)
);
CREATE TABLE scores (
    key TEXT NOT NULL, category TEXT NOT NULL, path TEXT NOT NULL,
    label INTEGER NOT NULL, defect TEXT NOT NULL, score REAL NOT NULL
);
CREATE INDEX scores_of_cell ON scores (key)
"""

_FIGURES = "category, metric, value"
_SCORES = "category, path, label, defect, score"
"""Columns beside the key."""

_FACTS = ("key", "label", "data", "format", "fingerprint", "setting", "seed")
"""Columns that hold what a cell says of itself as it is."""


def read_cells(path: Path) -> list[StoredCell]:
    """The cells of a results file, or of the JSON file that `write_cells` wrote.

    Raises:
        BenchError: The file is missing or has another form.
    """
    if path.suffix.lower() == ".json":
        return read_export(path)
    with Store(path) as store:
        return store.cells()


def read_scored(path: Path) -> list[tuple[StoredCell, list[Score]]]:
    """The cells with their image scores, which an export does not have; see `read_cells`."""
    if path.suffix.lower() == ".json":
        return [(cell, []) for cell in read_export(path)]
    with Store(path) as store:
        return [(cell, store.scores(cell.key)) for cell in store.cells()]


def _about(stored: StoredCell, cell: Cell) -> dict[str, Any]:
    """The environment of a finished cell that is known as `cell` from now on."""
    kept = {name: value for name, value in stored.environment.items() if name != "named"}
    return {**kept, **cell.about}


def _stored(value: Any) -> Any:
    """A value as SQLite takes it: a name whose bytes are no UTF-8 as these bytes."""
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-8", "surrogatepass")
    return value


def _read(value: Any) -> Any:
    """What `_stored` was given."""
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else value


class Store:
    """A results file.

    Args:
        path: The file.
        create: Make it if it is not there.

    Raises:
        BenchError: The file is missing, is no results file, is newer than this version, or cannot
            be written.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = path
        if not create and not path.is_file():
            raise BenchError(
                "the results file does not exist",
                where=str(path),
                hint="name the file that 'flawmap bench' wrote",
            )
        with self._explained():
            if create:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=15, isolation_level=None)
            self._db.row_factory = sqlite3.Row
        try:
            with self._explained():
                self._check(create)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def claim(self, cell: Cell, owner: str, *, retry: bool = False) -> Claim:
        """Take a cell to run it, unless it is finished or another process is at it.

        Args:
            cell: The cell.
            owner: A name that no other process has.
            retry: Take it also if it failed before.
        """
        now = time.time()
        with self._transaction():
            row = self._db.execute(
                "SELECT status, owner, alive FROM cells WHERE key = ?", (cell.key,)
            ).fetchone()
            if row is not None:
                if row["status"] == "done":
                    return "done"
                if row["status"] == "failed" and not retry:
                    return "failed"
                alive = row["status"] == "running" and now - row["alive"] < STALE_SECONDS
                if alive and row["owner"] != owner:
                    return "taken"
            self._insert(cell, "running", owner=owner, alive=now)
        return "ours"

    def alive(self, keys: Sequence[str], owner: str) -> list[str]:
        """A sign of life for claimed cells.

        Returns:
            Those that another process has taken since, because no sign came for too long.
        """
        lost = []
        with self._transaction():
            for key in keys:
                done = self._db.execute(
                    f"UPDATE cells SET alive = ? WHERE {_MINE}", (time.time(), key, owner)
                )
                if not done.rowcount:
                    lost.append(key)
        return lost

    def release(self, key: str, owner: str) -> None:
        """Give a claimed cell back, as if it had never been begun."""
        with self._transaction():
            self._db.execute(f"DELETE FROM cells WHERE {_MINE}", (key, owner))

    def finish(self, key: str, owner: str, outcome: Outcome) -> bool:
        """Write what a cell measured.

        Returns:
            False if the cell has gone to another process: then nothing is written.
        """
        with self._transaction():
            done = self._db.execute(
                "UPDATE cells SET status = 'done', error = NULL, owner = NULL, cost = ?, "
                f"environment = ?, finished = ? WHERE {_MINE}",
                (
                    json.dumps(outcome.cost),
                    json.dumps(outcome.environment),
                    time.time(),
                    key,
                    owner,
                ),
            )
            if not done.rowcount:
                return False
            self._clear(key)
            self._write_figures(key, outcome.figures)
            self._write_scores(key, outcome.scores)
        return True

    def fail(
        self, key: str, owner: str, error: Mapping[str, Any], environment: Mapping[str, Any]
    ) -> bool:
        """Write why a cell failed; False if it has gone to another process."""
        with self._transaction():
            done = self._db.execute(
                "UPDATE cells SET status = 'failed', error = ?, owner = NULL, environment = ?, "
                f"finished = ? WHERE {_MINE}",
                (json.dumps(error), json.dumps(environment), time.time(), key, owner),
            )
            if done.rowcount:
                self._clear(key)
            return bool(done.rowcount)

    def adopt(self, pairs: Iterable[tuple[StoredCell, Cell]]) -> None:
        """Let finished cells be known as in this grid.

        Each gets the name that this grid has for it (the last one counts), its options as they are
        in what is given of it, and the versions of its data.
        """
        rows = []
        for stored, cell in pairs:
            about = _about(stored, cell)
            new = (_stored(cell.label), json.dumps(stored.config), json.dumps(about))
            rows.append((*new, stored.key, *new))
        with self._transaction():
            self._db.executemany(
                "UPDATE cells SET label = ?, config = ?, environment = ? WHERE key = ? "
                "AND status = 'done' AND (label, config, environment) IS NOT (?, ?, ?)",
                rows,
            )

    def copy(self, stored: StoredCell, cell: Cell) -> None:
        """Write a finished cell once more, as another line that comes to the same fit."""
        about = _about(stored, cell)
        with self._transaction():
            self._insert(cell, "done", owner=None, alive=None)
            self._db.execute(
                "UPDATE cells SET cost = ?, environment = ?, finished = ? WHERE key = ?",
                (json.dumps(stored.cost), json.dumps(about), time.time(), cell.key),
            )
            self._clear(cell.key)
            for table, columns in (("figures", _FIGURES), ("scores", _SCORES)):
                self._db.execute(
                    f"INSERT INTO {table} SELECT ?, {columns} FROM {table} WHERE key = ?",
                    (cell.key, stored.key),
                )

    def add(self, stored: Sequence[StoredCell], scores: Sequence[Sequence[Score]] = ()) -> int:
        """Write finished cells of another results file, or of an export.

        What this file has finished itself stays as it is, and counts as newer.

        Args:
            stored: The cells.
            scores: The image scores of each, in the same order; an export has none.

        Returns:
            How many are new here.
        """
        added = 0
        with self._transaction():
            (first,) = self._db.execute("SELECT min(rowid) FROM cells").fetchone()
            before = min(1, first or 1) - len(stored)
            scored = zip(stored, scores or [()] * len(stored), strict=True)
            for place, (cell, found) in enumerate(scored, start=before):
                row = self._db.execute(
                    "SELECT status FROM cells WHERE key = ?", (cell.key,)
                ).fetchone()
                if cell.status != "done" or (row is not None and row["status"] != "failed"):
                    continue
                self._insert_row(
                    {
                        "rowid": place,
                        **{name: getattr(cell, name) for name in (*_FACTS, "method", "encoder")},
                        "categories": json.dumps(list(cell.categories)),
                        "config": json.dumps(cell.config),
                        "status": "done",
                        "cost": json.dumps(cell.cost),
                        "environment": json.dumps(cell.environment),
                        "finished": time.time(),
                    }
                )
                self._clear(cell.key)
                self._write_figures(cell.key, cell.figures)
                self._write_scores(cell.key, found)
                added += 1
        return added

    def error(self, key: str) -> Mapping[str, Any]:
        """Why a cell failed; empty for one that did not."""
        with self._explained():
            row = self._db.execute("SELECT error FROM cells WHERE key = ?", (key,)).fetchone()
        found: dict[str, Any] = json.loads(row["error"]) if row and row["error"] else {}
        return found

    def forget_failed(self) -> int:
        """Remove the cells that failed, and the claims of dead processes.

        Returns:
            How many had failed.
        """
        with self._transaction():
            self._db.execute(
                "DELETE FROM cells WHERE status = 'running' AND alive < ?",
                (time.time() - STALE_SECONDS,),
            )
            return self._db.execute("DELETE FROM cells WHERE status = 'failed'").rowcount

    def under_way(self) -> int:
        """How many cells are claimed by processes that give signs of life."""
        with self._explained():
            (count,) = self._db.execute(
                "SELECT count(*) FROM cells WHERE status = 'running' AND alive >= ?",
                (time.time() - STALE_SECONDS,),
            ).fetchone()
        return int(count)

    def renew(self, keys: Sequence[str]) -> None:
        """Let finished cells stand behind all others: what they saw is the data as it is now."""
        with self._transaction():
            for key in keys:
                self._db.execute(
                    "UPDATE cells SET rowid = (SELECT max(rowid) FROM cells) + 1 WHERE key = ?",
                    (key,),
                )

    def cells(
        self, *, status: Status | None = None, besides: Container[str] = ()
    ) -> list[StoredCell]:
        """The cells with their figures, in the order in which they were first begun.

        Args:
            status: Only those with it.
            besides: Keys of cells that are not wanted.
        """
        # Both in one transaction: a cell that ends in between would have no figures.
        with self._transaction(write=False):
            found = [
                row
                for row in self._db.execute("SELECT * FROM cells ORDER BY data, rowid")
                if status in (None, row["status"]) and row["key"] not in besides
            ]
            figures: dict[str, dict[str, dict[str, float | None]]] = {}
            for row in found:
                of_cell = figures.setdefault(row["key"], {})
                for category, metric, value in self._db.execute(
                    f"SELECT {_FIGURES} FROM figures WHERE key = ? ORDER BY rowid", (row["key"],)
                ):
                    of_cell.setdefault(_read(category), {})[metric] = value
        rows = [{name: _read(value) for name, value in dict(row).items()} for row in found]
        return [
            StoredCell(
                key=row["key"],
                label=row["label"],
                method=row["method"],
                encoder=row["encoder"],
                data=row["data"],
                format=row["format"],
                fingerprint=row["fingerprint"],
                # Earlier versions stored what the grid said, and exports hold it.
                setting=setting_of(json.loads(row["categories"])),
                categories=tuple(json.loads(row["categories"])),
                seed=row["seed"],
                config=json.loads(row["config"]),
                status=row["status"],
                error=json.loads(row["error"]) if row["error"] else None,
                cost=json.loads(row["cost"]) if row["cost"] else {},
                environment=json.loads(row["environment"]) if row["environment"] else {},
                figures=figures[row["key"]],
            )
            for row in rows
        ]

    def scores(self, key: str) -> list[Score]:
        """The image scores of a cell; see `Outcome.scores`."""
        with self._explained():
            rows = self._db.execute(
                "SELECT category, path, label, defect, score FROM scores WHERE key = ?", (key,)
            )
            return [tuple(map(_read, row)) for row in rows]

    def _insert(
        self, cell: Cell, status: Status, *, owner: str | None, alive: float | None
    ) -> None:
        self._insert_row(
            {
                **{name: getattr(cell, name) for name in _FACTS},
                "method": cell.config.method.name,
                "encoder": cell.config.encoder.name,
                "categories": json.dumps(list(cell.categories)),
                "config": cell.config.model_dump_json(),
                "status": status,
                "owner": owner,
                "alive": alive,
            }
        )

    def _insert_row(self, row: Mapping[str, Any]) -> None:
        places = ", ".join("?" * len(row))
        self._db.execute(
            f"INSERT OR REPLACE INTO cells ({', '.join(row)}) VALUES ({places})",
            tuple(map(_stored, row.values())),
        )

    def _write_figures(self, key: str, figures: Mapping[str, Mapping[str, float | None]]) -> None:
        self._db.executemany(
            "INSERT INTO figures VALUES (?, ?, ?, ?)",
            [
                (key, _stored(category), metric, value)
                for category, metrics in figures.items()
                for metric, value in metrics.items()
            ],
        )

    def _write_scores(self, key: str, scores: Iterable[Score]) -> None:
        self._db.executemany(
            "INSERT INTO scores VALUES (?, ?, ?, ?, ?, ?)",
            [(key, *map(_stored, row)) for row in scores],
        )

    def _clear(self, key: str) -> None:
        self._db.execute("DELETE FROM figures WHERE key = ?", (key,))
        self._db.execute("DELETE FROM scores WHERE key = ?", (key,))

    @contextmanager
    def _transaction(self, *, write: bool = True) -> Iterator[None]:
        with self._explained(), closing(self._db.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            try:
                yield
                cursor.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    cursor.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise BenchError(
                f"the results file cannot be used: {error}",
                where=str(self.path),
                hint="check that it is a file that 'flawmap bench' wrote, that this user may "
                "write it, and that the disk is not full",
            ) from error

    def _check(self, create: bool) -> None:
        if create:
            # In one transaction: another process may be making the same file.
            with self._transaction():
                version, empty = self._form()
                if version == 0 and empty:
                    for statement in _TABLES.split(";\n"):
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA user_version = {VERSION}")
        version, _ = self._form()
        if version != VERSION:
            raise BenchError(
                "the results file has another form",
                where=str(self.path),
                given=f"version {version}" if version else "a file of another program",
                expected=f"version {VERSION}",
                hint="upgrade flawmap" if version > VERSION else "name another file",
            )

    def _form(self) -> tuple[int, bool]:
        """The version of the file's form, and whether nothing is in it."""
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        named = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        return int(version), named == 0

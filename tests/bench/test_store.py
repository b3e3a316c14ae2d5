from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
import threading
from pathlib import Path

import pytest

from flawmap.bench import store as stores
from flawmap.bench.grid import Cell, cells_of, make_grid
from flawmap.bench.known import Known
from flawmap.bench.results import Outcome, write_cells
from flawmap.bench.store import Store, read_cells, read_scored
from flawmap.errors import BenchError


@pytest.fixture
def cell(rings: Path) -> Cell:
    return cells_of(make_grid({"data": {"rings": str(rings)}, "methods": ["patchcore"]}))[0]


OUTCOME = Outcome(
    figures={"rings": {"image_auroc": 0.75, "aupro": None}},
    scores=[("rings", "test/good/0.png", 0, "good", 0.5), ("rings", "ä", 1, "stain", 2.5)],
    cost={"fit_seconds": 1.5},
    environment={"device": "2 cores"},
)


def test_a_finished_cell_is_there_when_the_file_is_opened_again(cell: Cell, tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    with Store(path, create=True) as store:
        assert store.claim(cell, "me") == "ours"
        assert [c.status for c in store.cells()] == ["running"]
        assert store.finish(cell.key, "me", OUTCOME)
    with Store(path) as store:
        (found,) = store.cells()
        assert found.status == "done"
        assert found.figures == OUTCOME.figures
        assert found.cost == OUTCOME.cost
        assert found.config["method"]["name"] == "patchcore"
        assert found.categories == ("rings",)
        assert store.scores(cell.key) == list(OUTCOME.scores)
        assert store.claim(cell, "another") == "done"


def test_cells_are_adopted_together_and_only_where_something_is_new(
    cell: Cell, tmp_path: Path
) -> None:
    cells = [dataclasses.replace(cell, fingerprint=f"{n}") for n in range(3)]
    said: list[str] = []
    with Store(tmp_path / "r.sqlite", create=True) as store:
        for one in cells:
            store.claim(one, "me")
            store.finish(one.key, "me", OUTCOME)
        named = [dataclasses.replace(one, label="new") for one in cells]
        store._db.set_trace_callback(said.append)
        store.adopt(zip(store.cells(), named, strict=True))
        assert said.count("COMMIT") == 2
        assert [c.label for c in store.cells()] == ["new"] * 3
        before = store._db.total_changes
        store.adopt(zip(store.cells(), named, strict=True))
        assert store._db.total_changes == before


def test_only_cells_that_are_not_known_are_read(cell: Cell, tmp_path: Path) -> None:
    cells = [dataclasses.replace(cell, fingerprint=f"{n}") for n in range(3)]
    known = Known(())
    with Store(tmp_path / "r.sqlite", create=True) as store:
        for n, one in enumerate(cells):
            assert store.claim(one, "me") == "ours"
            assert store.cells(status="done", besides=known.keys) == []
            store.finish(one.key, "me", OUTCOME)
            (new,) = store.cells(status="done", besides=known.keys)
            assert (new.key, new.figures) == (one.key, OUTCOME.figures)
            assert known.measured(one) == []
            known.add([new])
            assert [c.key for c in known.measured(one)] == [one.key]
            assert len(known.keys) == n + 1


def test_names_that_are_not_utf8(cell: Cell, tmp_path: Path) -> None:
    one, two = os.fsdecode(b"gr\xf6sse"), os.fsdecode(b"gr\xfcsse")
    odd = dataclasses.replace(cell, data=one, label=two, categories=(one, two))
    outcome = dataclasses.replace(
        OUTCOME,
        figures={one: {"image_auroc": 0.75}, two: {"image_auroc": 0.5}},
        scores=[(one, two, 0, "good", 0.5)],
    )
    with Store(tmp_path / "r.sqlite", create=True) as store:
        store.claim(odd, "me")
        assert store.finish(odd.key, "me", outcome)
        (found,) = store.cells()
        assert (found.data, found.label, found.categories) == (one, two, (one, two))
        assert found.figures == outcome.figures
        assert store.scores(odd.key) == list(outcome.scores)
        write_cells([found], tmp_path / "r.json")
    with Store(tmp_path / "other.sqlite", create=True) as other:
        assert other.add(read_cells(tmp_path / "r.json")) == 1
        assert other.cells()[0].figures == outcome.figures


def test_a_failure_is_kept_with_its_reason_until_it_is_tried_again(
    cell: Cell, tmp_path: Path
) -> None:
    with Store(tmp_path / "r.sqlite", create=True) as store:
        store.claim(cell, "me")
        assert store.fail(cell.key, "me", {"message": "no memory"}, {})
        assert store.cells()[0].error == {"message": "no memory"}
        assert store.claim(cell, "me") == "failed"
        assert store.claim(cell, "me", retry=True) == "ours"
        assert store.finish(cell.key, "me", OUTCOME)
        assert store.cells()[0].error is None


def test_a_cell_belongs_to_one_process_while_that_one_lives(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.sqlite"
    now = [1000.0]
    monkeypatch.setattr(stores.time, "time", lambda: now[0])
    with Store(path, create=True) as one, Store(path) as two:
        assert one.claim(cell, "one") == "ours"
        assert two.claim(cell, "two") == "taken"
        now[0] += stores.STALE_SECONDS - 1
        assert one.alive([cell.key], "one") == []
        now[0] += stores.STALE_SECONDS - 1
        assert two.claim(cell, "two") == "taken"
        now[0] += 2
        assert two.claim(cell, "two") == "ours"
        # The first one slept too long: it learns of it, and touches nothing.
        assert one.alive([cell.key], "one") == [cell.key]
        assert not one.finish(cell.key, "one", OUTCOME)
        assert not one.fail(cell.key, "one", {"message": "x"}, {})
        one.release(cell.key, "one")
        assert [(c.status, c.figures) for c in two.cells()] == [("running", {})]
        two.release(cell.key, "two")
        assert one.claim(cell, "one") == "ours"


def test_many_processes_claim_each_cell_once(rings: Path, tmp_path: Path) -> None:
    tree = {"data": {"rings": str(rings)}, "methods": ["patchcore"], "seeds": list(range(8))}
    cells = cells_of(make_grid(tree))
    path = tmp_path / "r.sqlite"
    claimed: list[str] = []

    def work(name: str) -> None:
        with Store(path, create=True) as store:
            claimed.extend(c.key for c in cells if store.claim(c, name) == "ours")

    threads = [threading.Thread(target=work, args=(str(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(c.key for c in cells)


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="does not exist"):
        Store(tmp_path / "none.sqlite")
    text = tmp_path / "text.sqlite"
    text.write_text("not a database, but long enough to look like a file of one" * 30)
    with pytest.raises(BenchError, match="cannot be used"):
        Store(text)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE mine (x)")
    with pytest.raises(BenchError, match="another form"):
        Store(other, create=True)
    newer = tmp_path / "newer.sqlite"
    Store(newer, create=True).close()
    with sqlite3.connect(newer) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(BenchError, match="upgrade flawmap"):
        Store(newer)


def test_cells_of_one_category_are_separate_however_they_were_stored(
    cell: Cell, tmp_path: Path
) -> None:
    path, text = tmp_path / "r.sqlite", tmp_path / "r.json"
    old = dataclasses.replace(cell, setting="unified")
    with Store(path, create=True) as store:
        store.claim(old, "me")
        store.finish(old.key, "me", OUTCOME)
    assert [c.setting for c in read_cells(path)] == ["separate"]
    write_cells([dataclasses.replace(read_cells(path)[0], setting="unified")], text)
    assert [c.setting for c in read_cells(text)] == ["separate"]


def test_failed_cells_can_be_forgotten_and_lose_their_logs_in_an_export(
    cell: Cell, tmp_path: Path
) -> None:
    path, text = tmp_path / "r.sqlite", tmp_path / "r.json"
    with Store(path, create=True) as store:
        store.claim(cell, "me")
        store.fail(cell.key, "me", {"message": "no", "log": "/home/x", "stage": "fit"}, {})
        write_cells(store.cells(), text)
        assert read_cells(text)[0].error == {"message": "no", "stage": "fit"}
        assert store.forget_failed() == 1
        assert store.cells() == []


def test_json_holds_the_same_cells(cell: Cell, tmp_path: Path) -> None:
    path, text = tmp_path / "r.sqlite", tmp_path / "r.json"
    with Store(path, create=True) as store:
        store.claim(cell, "me")
        assert store.finish(cell.key, "me", OUTCOME)
    write_cells(read_cells(path), text)
    assert read_cells(text) == read_cells(path)
    text.write_text('{"version": 1, "cells": [{"key": 3}]}')
    with pytest.raises(BenchError, match="cannot be read"):
        read_cells(text)


def test_an_export_is_taken_over_and_what_the_file_has_itself_stays(
    cell: Cell, tmp_path: Path
) -> None:
    ours, theirs, text = tmp_path / "a.sqlite", tmp_path / "b.sqlite", tmp_path / "b.json"
    other = dataclasses.replace(cell, data="other")
    with Store(theirs, create=True) as store:
        for each in (cell, other):
            store.claim(each, "me")
            store.finish(each.key, "me", OUTCOME)
        write_cells(store.cells(), text)
    better = dataclasses.replace(OUTCOME, figures={"rings": {"image_auroc": 1.0}})
    with Store(ours, create=True) as store:
        store.claim(cell, "me")
        store.finish(cell.key, "me", better)
        assert store.add(read_cells(text)) == 1
        assert store.add(read_cells(text)) == 0
        found = {c.data: c for c in store.cells()}
        # What was measured elsewhere counts as older.
        later = cell.config.model_copy(update={"seed": 9})
        assert store.claim(dataclasses.replace(cell, config=later), "me") == "ours"
        stored = dataclasses.replace(found[cell.data], key="older", seed=8)
        assert store.add([stored]) == 1
        assert [c.seed for c in store.cells() if c.data == cell.data] == [8, 0, 9]
        assert found[cell.data].figures == better.figures
        assert found["other"] == read_cells(text)[0]
        assert store.claim(other, "me") == "done"


def test_image_scores_come_with_the_cells_of_a_results_file(cell: Cell, tmp_path: Path) -> None:
    theirs, text = tmp_path / "b.sqlite", tmp_path / "b.json"
    with Store(theirs, create=True) as store:
        store.claim(cell, "me")
        store.finish(cell.key, "me", OUTCOME)
        write_cells(store.cells(), text)
    for path, wanted in ((theirs, list(OUTCOME.scores)), (text, [])):
        ((stored, scores),) = read_scored(path)
        with Store(tmp_path / f"{path.suffix}.sqlite", create=True) as ours:
            assert ours.add([stored], [scores]) == 1
            assert ours.scores(cell.key) == wanted
            # What is there is not written twice.
            assert ours.add([stored], [scores]) == 0
            assert ours.scores(cell.key) == wanted


def test_an_import_leaves_alone_what_runs_and_takes_no_failure_over(
    cell: Cell, tmp_path: Path
) -> None:
    failed, done = tmp_path / "a.sqlite", tmp_path / "b.sqlite"
    with Store(failed, create=True) as store:
        store.claim(cell, "me")
        store.fail(cell.key, "me", {"message": "no"}, {})
    with Store(done, create=True) as store:
        assert store.add(read_cells(failed)) == 0
        store.claim(cell, "me")
        store.finish(cell.key, "me", OUTCOME)
    with Store(failed) as store:
        assert store.add(read_cells(done)) == 1
        assert store.cells()[0].status == "done"
    with Store(tmp_path / "c.sqlite", create=True) as store:
        store.claim(cell, "me")
        assert store.add(read_cells(done)) == 0
        assert store.finish(cell.key, "me", OUTCOME)


def test_the_claim_of_a_dead_process_can_be_forgotten(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(tmp_path / "a.sqlite", create=True) as store:
        store.claim(cell, "me")
        assert store.under_way() == 1
        store.forget_failed()
        assert len(store.cells()) == 1
        monkeypatch.setattr("flawmap.bench.store.STALE_SECONDS", -1.0)
        assert store.under_way() == 0
        assert store.forget_failed() == 0
        assert store.cells() == []


def test_an_export_names_no_places_of_this_machine(cell: Cell, tmp_path: Path) -> None:
    encoder = cell.config.encoder.model_copy(update={"weights": tmp_path / "w.safetensors"})
    config = cell.config.model_copy(update={"encoder": encoder})
    cell = dataclasses.replace(cell, config=config)
    with Store(tmp_path / "a.sqlite", create=True) as store:
        store.claim(cell, "me")
        store.finish(cell.key, "me", OUTCOME)
        write_cells(store.cells(), tmp_path / "a.json")
    (found,) = read_cells(tmp_path / "a.json")
    assert found.config["encoder"]["weights"] == "w.safetensors"
    assert str(tmp_path) not in json.dumps(found.config)

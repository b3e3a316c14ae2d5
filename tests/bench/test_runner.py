"""The runner with a stand-in for the heavy part: a script that writes what it is told."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from flawmap.bench import runner
from flawmap.bench.grid import Cell, cells_of, make_grid
from flawmap.bench.runner import run_cells, work_folder
from flawmap.bench.store import Outcome, Store
from flawmap.errors import BenchError, ConfigError
from flawmap.files import FolderLock
from flawmap.training.interrupt import Interrupted

SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path

stage, job_path = sys.argv[1], Path(sys.argv[2])
job, folder = json.loads(job_path.read_text()), job_path.parent
seed = job["config"]["seed"]
plan = json.loads(os.environ["PLAN"]).get(f"{stage}-{seed}", "")
with open(os.environ["CALLS"], "a") as calls:
    calls.write(f"{stage}-{seed} ")
print(f"working on {stage}", flush=True)
if plan == "error":
    error = {"message": "the loss is not finite", "exit_code": 5}
    (folder / f"{stage}.error.json").write_text(json.dumps(error))
    sys.exit(5)
if plan == "crash":
    sys.exit("Traceback: something broke")
if plan == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if plan == "slow":
    for _ in range(600):
        time.sleep(0.05)
if stage == "fit":
    (folder / "model.flawmap").write_text("model")
    result = {"fit_seconds": 1.0}
else:
    result = {
        "cost": {"images_per_second": 3.0},
        "figures": {"rings": {"image_auroc": 0.5 + seed / 10}},
        "counts": {"rings": {"good": 4, "defect": 4}},
        "scores": [["rings", "a.png", 1, "stain", 0.5]],
        "environment": {"threads": os.environ.get("OMP_NUM_THREADS")},
    }
(folder / f"{stage}.json").write_text(json.dumps(result))
"""


class Stage:
    """What the stand-in does, and what was called."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.script, self.log = folder / "stage.py", folder / "calls"
        self.script.write_text(textwrap.dedent(SCRIPT))
        self.patch = monkeypatch
        monkeypatch.setenv("CALLS", str(self.log))
        monkeypatch.setattr(
            runner, "stage_command", lambda stage, job: [sys.executable, self.script, stage, job]
        )
        self.plan({})

    def plan(self, plan: dict[str, str]) -> None:
        self.patch.setenv("PLAN", json.dumps(plan))

    def calls(self) -> list[str]:
        found = self.log.read_text().split() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return found


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


@pytest.fixture
def cells(rings: Path) -> list[Cell]:
    tree = {"data": {"rings": str(rings)}, "methods": ["patchcore"], "seeds": [0, 1, 2]}
    return cells_of(make_grid(tree))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.sqlite"


def test_every_cell_is_stored_and_none_is_run_twice(
    stage: Stage, cells: list[Cell], path: Path
) -> None:
    with Store(path, create=True) as store:
        summary = run_cells(cells, store)
        assert (summary.done, summary.before, summary.failed) == (3, 0, [])
        assert stage.calls() == ["fit-0", "score-0", "fit-1", "score-1", "fit-2", "score-2"]
        found = store.cells()
        assert [c.figures["rings"]["image_auroc"] for c in found] == [0.5, 0.6, 0.7]
        assert found[0].figures["rings"]["n_defect"] == 4
        assert found[0].cost == {"fit_seconds": 1.0, "images_per_second": 3.0}
        assert store.scores(cells[0].key) == [("rings", "a.png", 1, "stain", 0.5)]
        assert run_cells(cells, store).before == 3
        assert stage.calls() == []
    assert not work_folder(path).exists()


def test_an_option_added_since_does_not_make_another_cell(
    stage: Stage, cells: list[Cell], path: Path
) -> None:
    def as_before(cell: Cell, option: str, value: object) -> Cell:
        """The cell of a version that had another option, or another default."""
        tree = cell.config.model_dump(mode="json")
        if value is None:
            del tree["scoring"][option]
        else:
            tree["scoring"][option] = value
        old = copy.copy(cell)
        config = SimpleNamespace(
            model_dump=lambda mode: copy.deepcopy(tree),
            model_dump_json=lambda: json.dumps(tree),
            method=cell.config.method,
            encoder=cell.config.encoder,
            seed=cell.config.seed,
        )
        object.__setattr__(old, "config", config)
        return old

    with Store(path, create=True) as store:
        before = [
            as_before(cells[0], "min_area", None),  # The option was not there yet,
            as_before(cells[1], "min_area", 7),  # had another value,
            as_before(cells[2], "zeal", 1),  # or there was one that is gone.
        ]
        for old in before:
            store.claim(old, "it")
            outcome = Outcome(
                {"rings": {"image_auroc": 0.9}}, [("rings", "a", 1, "d", 0.5)], {}, {}
            )
            assert store.finish(old.key, "it", outcome)
        summary = run_cells(cells, store)
        assert (summary.before, summary.done) == (1, 2)
        assert stage.calls() == ["fit-1", "score-1", "fit-2", "score-2"]
        assert store.scores(cells[0].key) == [("rings", "a", 1, "d", 0.5)]
        (kept,) = (c for c in store.cells() if c.key == cells[0].key)
        assert kept.figures["rings"]["image_auroc"] == 0.9
        # It is known by its new name from now on.
        assert run_cells(cells, store).before == 3
        assert len(store.cells()) == 5


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"fit-1": "error"}, "the loss is not finite"),
        ({"score-1": "crash"}, "exit code 1"),
        ({"fit-1": "killed"}, "killed, perhaps because the memory was full"),
    ],
)
def test_a_failing_cell_is_written_down_and_the_others_go_on(
    stage: Stage, cells: list[Cell], path: Path, plan: dict[str, str], words: str
) -> None:
    stage.plan(plan)
    with Store(path, create=True) as store:
        summary = run_cells(cells, store)
        assert summary.done == 2
        (reason,) = summary.failed
        assert words in reason
        assert "seed 1" in reason
        failed = [c for c in store.cells() if c.status == "failed"]
        assert [c.seed for c in failed] == [1]
        if "crash" in plan.values():
            assert "something broke" in str(failed[0].error)
        # It is left alone until it is asked for.
        stage.calls()
        stage.plan({})
        assert run_cells(cells, store).failed == [reason]
        assert stage.calls() == []
        summary = run_cells(cells, store, retry=True)
        assert (summary.done, summary.failed) == (1, [])
        # From the beginning: what was there may be what was wrong.
        assert stage.calls() == ["fit-1", "score-1"]


def test_ctrl_c_stops_politely_and_the_same_call_goes_on(
    stage: Stage, cells: list[Cell], path: Path
) -> None:
    stage.plan({"score-1": "slow"})

    def interrupt() -> None:
        while "score-1" not in (stage.log.read_text() if stage.log.exists() else ""):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    with Store(path, create=True) as store:
        thread.start()
        with pytest.raises(Interrupted, match="stopped after 1 of 3 cells"):
            run_cells(cells, store)
        thread.join()
        assert [c.status for c in store.cells()] == ["done"]
        stage.calls()
        stage.plan({})
        assert run_cells(cells, store).done == 2
        assert stage.calls() == ["score-1", "fit-2", "score-2"]


def test_a_cell_that_its_last_run_could_not_write_down_is_only_written_down(
    stage: Stage, cells: list[Cell], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> bool:
        raise BenchError("the disk is full")

    with Store(path, create=True) as store:
        with monkeypatch.context() as patch:
            patch.setattr(Store, "finish", full)
            with pytest.raises(BenchError, match="disk is full"):
                run_cells(cells[:1], store)
        assert stage.calls() == ["fit-0", "score-0"]
        assert run_cells(cells[:1], store).done == 1
        assert stage.calls() == []


def test_a_cell_whose_old_process_lives_is_waited_for(
    stage: Stage, cells: list[Cell], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_ALIVE_SECONDS", 0.2)
    folder = work_folder(path) / cells[0].key
    folder.mkdir(parents=True)
    lock = FolderLock(folder)
    assert lock.acquire()
    threading.Timer(1.5, lock.close).start()
    with Store(path, create=True) as store:
        assert run_cells(cells, store).done == 3
    assert stage.calls()[-2:] == ["fit-0", "score-0"]


def test_another_job_does_not_take_what_the_last_one_left(
    stage: Stage, cells: list[Cell], path: Path
) -> None:
    stage.plan({"score-0": "crash"})
    with Store(path, create=True) as store:
        run_cells(cells[:1], store)
        stage.calls()
        store.forget_failed()
        stage.plan({})
        assert run_cells(cells[:1], store, device="cpu").done == 1
        assert stage.calls() == ["fit-0", "score-0"]


def test_jobs_share_the_cores(stage: Stage, cells: list[Cell], path: Path) -> None:
    with Store(path, create=True) as store:
        assert run_cells(cells, store, jobs=3).done == 3
        (threads,) = {c.environment["threads"] for c in store.cells()}
        assert int(threads) >= 1
        with pytest.raises(ConfigError, match="at least one job"):
            run_cells(cells, store, jobs=0)


def test_what_a_killed_run_had_claimed_is_taken_up_later(
    stage: Stage, cells: list[Cell], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flawmap.bench import store as stores

    monkeypatch.setattr(stores, "STALE_SECONDS", 1.5)
    monkeypatch.setattr(runner, "_ALIVE_SECONDS", 0.3)
    with Store(path, create=True) as store:
        store.claim(cells[0], "a process that is gone")
        assert run_cells(cells, store).done == 3
        # What another one holds is left until the end.
        assert stage.calls()[-2:] == ["fit-0", "score-0"]


def test_models_are_kept_when_asked_for(stage: Stage, cells: list[Cell], path: Path) -> None:
    with Store(path, create=True) as store:
        run_cells(cells[:1], store, keep_models=True)
    kept = work_folder(path) / cells[0].key
    assert (kept / "model.flawmap").read_text() == "model"


def test_the_command_of_a_stage_can_be_run() -> None:
    command = runner.stage_command("fit", Path("nowhere.json"))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert b"nowhere.json" in process.stderr.read()
    assert process.returncode == 1


def test_a_stage_ends_when_the_benchmark_is_gone(tmp_path: Path) -> None:
    # A job that waits for ever, as its file is a pipe that nobody writes.
    os.mkfifo(tmp_path / "job.json")
    command = runner.stage_command("fit", tmp_path / "job.json")
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=60) == -signal.SIGTERM

"""The runner with a stand-in for the heavy part: a script that writes what it is told."""

from __future__ import annotations

import copy
import dataclasses
import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from flawmap.bench import child, runner
from flawmap.bench.grid import Cell, cells_of, make_grid
from flawmap.bench.groups import current
from flawmap.bench.results import Outcome
from flawmap.bench.runner import expected_seconds, run_cells
from flawmap.bench.store import Store
from flawmap.bench.work import forget_unfinished, work_folder
from flawmap.errors import BenchError, ConfigError
from flawmap.files import FolderLock
from flawmap.training.interrupt import Interrupted
from watching import Notes

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
    (folder / job.get("bundle", "model.flawmap")).read_text()
    asked = dict.fromkeys(job["metrics"], 0.25)
    result = {
        "cost": {"images_per_second": 3.0},
        "figures": {"rings": {"image_auroc": 0.5 + seed / 10, **asked}},
        "counts": {"rings": {"good": 4, "defect": 4}},
        "scores": [["rings", "a.png", 1, "stain", 0.5]],
        "environment": {"threads": os.environ.get("OMP_NUM_THREADS"), "jobs": job["jobs"]},
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
            child, "stage_command", lambda stage, job: [sys.executable, self.script, stage, job]
        )
        # Its own pace would be most of the time that these tests take.
        monkeypatch.setattr(runner, "_POLL_SECONDS", 0.02)
        self.plan({})

    def plan(self, plan: dict[str, str]) -> None:
        self.patch.setenv("PLAN", json.dumps(plan))

    @contextmanager
    def interrupted_at(self, call: str, match: str | None = None) -> Iterator[None]:
        """Presses Ctrl-C once the stand-in is called so, which had better be slow."""

        def interrupt() -> None:
            while call not in (self.log.read_text() if self.log.exists() else ""):
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(Interrupted, match=match):
            yield
        thread.join()

    def calls(self) -> list[str]:
        found = self.log.read_text().split() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return found


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


def cells_for(data: Path, **more: object) -> list[Cell]:
    tree = {"data": {"rings": str(data)}, "methods": ["patchcore"], "seeds": [0, 1, 2]}
    return cells_of(make_grid({**tree, **more}))


@pytest.fixture
def cells(rings: Path) -> list[Cell]:
    return cells_for(rings)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.sqlite"


@pytest.mark.parametrize("order", [["auto", "patchcore"], ["patchcore", "auto"]])
def test_what_auto_chooses_is_not_fitted_again_for_its_own_line(
    stage: Stage, rings: Path, path: Path, order: list[str]
) -> None:
    first, second = (cells_for(rings, methods=[name], seeds=[0, 1]) for name in order)
    with Store(path, create=True) as store:
        run_cells(first, store)
        assert len(stage.calls()) == 4
        notes = Notes()
        summary = run_cells(second, store, progress=notes)
        # Without auto in the grid nothing is looked for: two lines are two measurements.
        again = [] if "auto" in order[1] else ["fit-0", "score-0", "fit-1", "score-1"]
        assert stage.calls() == again
        assert summary.done == 2
        assert [f"the same fit as {order[0]}'s" in text for text in notes.texts] == (
            [] if again else [True, True]
        )
        found = store.cells()
        assert [(c.label, c.seed) for c in found] == [
            (name, seed) for name in order for seed in (0, 1)
        ]
        assert found[2].figures == found[0].figures
        assert store.scores(found[3].key) == store.scores(found[1].key) != []
        assert run_cells(second, store).before == 2


def test_another_choice_of_auto_is_fitted(stage: Stage, rings: Path, path: Path) -> None:
    with Store(path, create=True) as store:
        run_cells(cells_for(rings, seeds=[0]), store)
        stage.calls()
        other = {"method": "auto", "options": {"method.coreset_ratio": 0.5}}
        run_cells(cells_for(rings, methods=[other], seeds=[0]), store)
        assert stage.calls() == ["fit-0", "score-0"]
        # A metric that was not measured is no reason to take the figures.
        run_cells(cells_for(rings, methods=["auto"], seeds=[0], metrics=["aupro_crop"]), store)
        assert stage.calls() == ["fit-0", "score-0"]


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
        kept = next(c for c in store.cells() if c.key == before[0].key)
        assert kept.figures["rings"]["image_auroc"] == 0.9
        # Its options are those of the others from now on, so that it stands in their line.
        assert kept.config["scoring"]["min_area"] == cells[0].config.scoring.min_area
        assert run_cells(cells, store).before == 3
        assert len(store.cells()) == 5


def test_what_an_earlier_version_stored_as_unified_is_found(
    stage: Stage, cells: list[Cell], path: Path
) -> None:
    old = dataclasses.replace(cells[0], setting="unified", label="old name", data_versions={})
    assert old.key != cells[0].key
    with Store(path, create=True) as store:
        store.claim(old, "it")
        store.finish(old.key, "it", Outcome({"rings": {"image_auroc": 0.9}}, [], {}, {"jobs": 1}))
        assert run_cells(cells[:1], store).before == 1
        (kept,) = store.cells()
    assert stage.calls() == []
    assert (kept.setting, kept.label, kept.key) == ("separate", "patchcore", old.key)
    # What the data is beside the seed's split is known since the grid has listed it.
    assert kept.environment == {"jobs": 1, "data_versions": cells[0].data_versions}


def test_metrics_that_were_measured_are_not_measured_again(
    stage: Stage, rings: Path, path: Path
) -> None:
    def cells(*metrics: str) -> list[Cell]:
        return cells_for(rings, seeds=[0], metrics=list(metrics))

    with Store(path, create=True) as store:
        notes = Notes()
        assert run_cells(cells("segf1"), store, progress=notes).done == 1
        assert run_cells(cells(), store, progress=notes).before == 1
        assert run_cells(cells("aupro"), store, progress=notes).done == 1
        assert stage.calls() == ["fit-0", "score-0"] * 2
        said = "1 models were measured without aupro: 0 are scored again, 1 are fitted again"
        assert [said in text for text in notes.texts] == [False, True]
        # Together they have all of it.
        assert run_cells(cells("aupro", "segf1"), store).before == 1
        assert stage.calls() == []
        assert len(store.cells()) == 2


def test_a_kept_bundle_is_scored_for_further_metrics(stage: Stage, rings: Path, path: Path) -> None:
    first = cells_for(rings, seeds=[0])
    more = cells_for(rings, seeds=[0], metrics=["segf1"])
    with Store(path, create=True) as store:
        run_cells(first, store, keep_models=True)
        stage.calls()
        notes = Notes()
        assert run_cells(more, store, keep_models=True, progress=notes).done == 1
        assert stage.calls() == ["score-0"]
        assert any("1 are scored again, 0 are fitted again" in text for text in notes.texts)
        old, new = store.cells()
    assert old.cost == {"fit_seconds": 1.0, "images_per_second": 3.0}
    assert new.cost == {"images_per_second": 3.0}
    assert new.figures["rings"]["segf1"] == 0.25
    # One bundle of one model.
    assert [folder.name for folder in work_folder(path).iterdir()] == [first[0].key]


def test_a_bundle_that_could_not_be_scored_is_made_again_on_retry(
    stage: Stage, rings: Path, path: Path
) -> None:
    with Store(path, create=True) as store:
        run_cells(cells_for(rings, seeds=[0]), store, keep_models=True)
        stage.plan({"score-0": "error"})
        more = cells_for(rings, seeds=[0], metrics=["segf1"])
        assert len(run_cells(more, store).failed) == 1
        stage.calls()
        stage.plan({})
        assert run_cells(more, store, retry=True).done == 1
        assert stage.calls() == ["fit-0", "score-0"]


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
    with Store(path, create=True) as store:
        with stage.interrupted_at("score-1", match="stopped after 1 of 3 cells"):
            run_cells(cells, store)
        assert [c.status for c in store.cells()] == ["done"]
        stage.calls()
        stage.plan({})
        assert run_cells(cells, store).done == 2
        assert stage.calls() == ["score-1", "fit-2", "score-2"]


def test_a_retry_leaves_alone_what_had_only_been_stopped(
    stage: Stage, cells: list[Cell], path: Path
) -> None:
    stage.plan({"score-0": "error", "score-1": "slow"})
    with Store(path, create=True) as store:
        with stage.interrupted_at("score-1"):
            run_cells(cells[:2], store)
        stage.calls()
        stage.plan({})
        assert run_cells(cells[:2], store, retry=True).done == 2
        assert stage.calls() == ["fit-0", "score-0", "score-1"]


def test_a_stopped_cell_goes_on_with_other_jobs_but_not_on_another_device(
    stage: Stage, cells: list[Cell], path: Path
) -> None:
    def stop_in_scoring(device: str) -> list[str]:
        stage.plan({"score-0": "slow"})
        with stage.interrupted_at("score-0"):
            run_cells(cells[:1], store, jobs=2, device=device, progress=notes)
        stage.plan({})
        return stage.calls()

    notes = Notes()
    with Store(path, create=True) as store:
        stop_in_scoring("auto")
        # On another device it begins anew, and says so.
        assert stop_in_scoring("cpu") == ["fit-0", "score-0"]
        (said,) = [text for text in notes.texts if "begins anew" in text]
        assert "seed 0 begins anew: what was left of it had another config.training.device" in said
        assert run_cells(cells[:1], store, jobs=1, device="cpu", progress=notes).done == 1
        assert stage.calls() == ["score-0"]
        # Its fit may have shared the machine.
        assert store.cells()[0].environment["jobs"] == 2
    assert len([text for text in notes.texts if "begins anew" in text]) == 1


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


def test_a_cell_that_cannot_be_begun_is_left_to_others(
    stage: Stage, cells: list[Cell], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path) -> FolderLock:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Store(path, create=True) as store, Store(path) as other:
        with monkeypatch.context() as patch:
            patch.setattr(runner, "FolderLock", full)
            with pytest.raises(BenchError, match="cannot be begun: No space left"):
                run_cells(cells[:1], store)
        assert other.claim(cells[0], "another") == "ours"


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


def test_models_are_kept_when_asked_for_and_not_forgotten(
    stage: Stage, cells: list[Cell], path: Path
) -> None:
    stage.plan({"fit-1": "crash"})
    with Store(path, create=True) as store:
        run_cells(cells[:2], store, keep_models=True)
        kept, failed = (work_folder(path) / cell.key for cell in cells[:2])
        assert failed.is_dir()
        store.forget_failed()
        forget_unfinished(store)
        assert list(work_folder(path).iterdir()) == [kept]
    assert (kept / "model.flawmap").read_text() == "model"
    about = json.loads((kept / "cell.json").read_text())
    assert about["cell"] == "patchcore on rings/rings, separate, seed 0"
    assert about["config"]["method"]["name"] == "patchcore"


def test_the_command_of_a_stage_can_be_run() -> None:
    command = child.stage_command("fit", Path("nowhere.json"))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert b"nowhere.json" in process.stderr.read()
    assert process.returncode == 1


def test_a_stage_ends_when_the_benchmark_is_gone(tmp_path: Path) -> None:
    # A job that waits for ever, as its file is a pipe that nobody writes.
    os.mkfifo(tmp_path / "job.json")
    command = child.stage_command("fit", tmp_path / "job.json")
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=60) == -signal.SIGTERM


def test_the_time_left_is_not_reckoned_anew_in_every_round(
    stage: Stage, cells: list[Cell], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reckoned: list[Cell] = []

    def expected(cell: Cell, durations: runner.Durations) -> float:
        reckoned.append(cell)
        return 1.0

    monkeypatch.setattr(runner, "expected_seconds", expected)
    with Store(path, create=True) as store:
        run = runner._Run(cells, store, 1, False, False, "auto", Notes())
    assert run._seconds_left() == math.inf
    run.durations[("patchcore", "rings")] = [(1.0, 1)]
    assert [run._seconds_left() for _ in range(5)] == [len(cells)] * 5
    assert len(reckoned) == len(cells)
    run.waiting.popleft()
    assert run._seconds_left() == len(cells) - 1
    run.durations[("patchcore", "rings")].append((1.0, 1))
    run._seconds_left()
    assert len(reckoned) == 3 * len(cells) - 2


def test_the_time_of_a_cell_comes_from_the_nearest_that_have_run(rings: Path) -> None:
    tree = {"data": {"rings": str(rings)}, "methods": ["patchcore", "rd4ad"]}
    cell, other = cells_of(make_grid(tree))
    n = cell.images
    quick, slow = (
        {("rd4ad", "elsewhere"): [(8.0, 4 * n)]},
        {("patchcore", "elsewhere"): [(90.0, n)]},
    )
    # Another method elsewhere; the same method elsewhere; the same method here.
    assert expected_seconds(cell, quick) == pytest.approx(4.0)
    assert expected_seconds(cell, quick | slow) == pytest.approx(90.0)
    here = {("patchcore", "rings"): [(10.0, n), (20.0, n)]}
    assert expected_seconds(cell, quick | slow | here) == pytest.approx(15.0)
    assert expected_seconds(other, quick | slow | here) == pytest.approx(4.0)


def test_what_other_code_has_learnt_begins_anew(
    stage: Stage, cells: list[Cell], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.plan({"score-0": "slow"})
    notes = Notes()
    with Store(path, create=True) as store:
        with stage.interrupted_at("score-0"):
            run_cells(cells[:1], store)
        stage.calls()
        stage.plan({})
        monkeypatch.setattr(runner, "code", lambda: {"commit": "another", "versions": {}})
        assert run_cells(cells[:1], store, progress=notes).done == 1
        assert stage.calls() == ["fit-0", "score-0"]
    assert any("had another commit" in text for text in notes.texts)


def test_data_that_is_as_it_was_counts_again(
    stage: Stage, rings: Path, path: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "rings"
    shutil.copytree(rings, changed)
    with Store(path, create=True) as store:
        run_cells(cells_for(changed, seeds=[0]), store)
        spare = next((changed / "train" / "good").iterdir())
        spare.rename(tmp_path / "spare.png")
        run_cells(cells_for(changed, seeds=[0]), store)
        (tmp_path / "spare.png").rename(spare)
        back = cells_for(changed, seeds=[0])
        assert run_cells(back, store).before == 1
        assert [c.key for c in current(store.cells())] == [back[0].key]
        assert store.cells()[-1].key == back[0].key


def test_what_another_process_finished_or_failed_is_told(
    stage: Stage, cells: list[Cell], path: Path
) -> None:
    stage.plan({"fit-0": "slow"})
    with Store(path, create=True) as store, Store(path) as other:

        def meanwhile() -> None:
            while "fit-0" not in (stage.log.read_text() if stage.log.exists() else ""):
                time.sleep(0.02)
            with Store(path) as other:
                for cell in cells[1:]:
                    assert other.claim(cell, "another") == "ours"
                other.fail(cells[1].key, "another", {"message": "it broke"}, {})
                figures = {"rings": {"image_auroc": 0.5}}
                other.finish(cells[2].key, "another", Outcome(figures, [], {}, {}))
            stage.plan({})
            stop.set()

        stop = threading.Event()
        thread = threading.Thread(target=meanwhile)
        thread.start()
        stage.script.write_text(stage.script.read_text().replace("range(600)", "range(30)"))
        summary = run_cells(cells, store)
        thread.join()
        assert stop.is_set()
        assert (summary.done, summary.before) == (1, 1)
        assert ["it broke" in text for text in summary.failed] == [True]
        assert other.error(cells[0].key) == {}

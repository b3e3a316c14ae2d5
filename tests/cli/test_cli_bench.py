from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flawmap.bench import runner
from flawmap.bench.grid import Cell
from flawmap.bench.results import Outcome
from flawmap.bench.runner import Summary
from flawmap.bench.store import Store
from flawmap.cli.main import run


@pytest.fixture(autouse=True)
def fake_run(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """Cells that are finished at once, by data set: those of 'bad' fail."""
    seen: list[Cell] = []

    def run_cells(cells: Sequence[Cell], store: Store, **options: Any) -> Summary:
        summary = Summary()
        for cell in cells:
            seen.append(cell)
            if store.claim(cell, "test") != "ours":
                summary.before += 1
            elif cell.data == "bad":
                store.fail(cell.key, "test", {"message": "no luck"}, {})
                summary.failed.append(f"{cell}: no luck")
            else:
                figures = {c: {"image_auroc": 0.9} for c in cell.categories}
                scores = [(c, "0.png", 0, "good", 0.5) for c in cell.categories]
                store.finish(cell.key, "test", Outcome(figures, scores, {"fit_seconds": 2.0}, {}))
                summary.done += 1
        return summary

    monkeypatch.setattr(runner, "run_cells", run_cells)
    return seen


def results(tmp_path: Path) -> str:
    return str(tmp_path / "r.sqlite")


def test_a_grid_by_flags(
    two_products: Path, tmp_path: Path, fake_run: list[Cell], capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(
        [
            *("bench", "--data", f"parts={two_products}", "--category", "nut"),
            *("--method", "patchcore", "--method", "dinomaly", "--encoder", "lite0"),
            *("--seed", "1", "--seed", "2", "--set", "data.size=128"),
            *("--metric", "segf1", "--results", results(tmp_path)),
        ]
    )
    assert code == 0
    assert [(c.label, c.seed) for c in fake_run] == [
        *(("patchcore", 1), ("patchcore", 2), ("dinomaly", 1), ("dinomaly", 2)),
    ]
    assert {c.categories for c in fake_run} == {("nut",)}
    assert {c.config.data.size for c in fake_run} == {(128, 128)}
    assert {c.metrics for c in fake_run} == {("segf1",)}
    shown = capsys.readouterr()
    assert "90.00 ± 0.00" in shown.out
    assert "bench table" in shown.err


@pytest.mark.parametrize(("name", "called"), [("", "rings"), ("own=", "own")])
def test_a_sign_of_equality_in_a_path_names_nothing(
    name: str, called: str, rings: Path, tmp_path: Path, fake_run: list[Cell]
) -> None:
    folder = tmp_path / "run=3"
    folder.symlink_to(rings.parent)
    data = ["--data", f"{name}{folder}/rings", "--results", results(tmp_path)]
    assert run(["bench", *data, "--method", "patchcore"]) == 0
    assert [(c.data, c.path) for c in fake_run] == [(called, (str(rings.resolve()),))]


def test_the_command_line_replaces_what_the_file_says(
    rings: Path, tmp_path: Path, fake_run: list[Cell]
) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(f"data: {{rings: '{rings}'}}\nmethods: patchcore\nseeds: [0, 1, 2]\n")
    assert run(["bench", str(file), "--seed", "7", "--results", results(tmp_path)]) == 0
    assert [c.seed for c in fake_run] == [7]


def test_a_dry_run_runs_nothing(
    rings: Path, tmp_path: Path, fake_run: list[Cell], capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["bench", "--data", str(rings), "--method", "patchcore", "--results", results(tmp_path)]
    assert run([*base, "--dry-run"]) == 0
    assert fake_run == []
    assert "to do    patchcore on rings/rings, separate, seed 0" in capsys.readouterr().out
    assert not Path(results(tmp_path)).exists()
    run([*base, "--quiet"])
    capsys.readouterr()
    assert run([*base, "--dry-run", "--json"]) == 0
    (cell,) = json.loads(capsys.readouterr().out)
    assert cell["status"] == "done"


def test_a_dry_run_counts_what_a_run_would_do(
    rings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["bench", "--data", f"bad={rings}", "--method", "patchcore", "--seed", "0"]
    base += ["--results", results(tmp_path)]
    run([*base, "--quiet"])
    capsys.readouterr()
    run([*base, "--seed", "1", "--dry-run"])
    shown = capsys.readouterr()
    assert "failed   patchcore" in shown.out
    assert "2 cells, 1 to do; 1 failed before and are left alone without --retry" in shown.err
    run([*base, "--seed", "1", "--dry-run", "--retry"])
    assert "2 cells, 2 to do\n" in capsys.readouterr().err


def test_failures_show_in_the_exit_code_and_in_the_list(
    rings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["bench", "--method", "patchcore", "--results", results(tmp_path)]
    assert run([*base, "--data", f"ok={rings}", "--data", f"bad={rings}", "--json"]) == 9
    told = json.loads(capsys.readouterr().out)
    assert (told["done"], len(told["failed"])) == (1, 1)
    assert run(["bench", "status", results(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "no luck" in text
    assert "fit 2.0 s" in text
    assert run(["bench", "forget", results(tmp_path)]) == 0
    run(["bench", "status", results(tmp_path)])
    assert "no luck" not in capsys.readouterr().out


def test_tables_in_every_form(
    rings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = results(tmp_path)
    run(["bench", "--data", str(rings), "--method", "patchcore", "--results", file])
    capsys.readouterr()
    for ending, words in ((".md", "| rings |"), (".tex", "tabular"), (".csv", "image_auroc_std")):
        target = tmp_path / f"t{ending}"
        assert run(["bench", "table", file, "--output", str(target)]) == 0
        assert words in target.read_text(encoding="utf-8")
    export = tmp_path / "cells.json"
    assert run(["bench", "export", file, "--output", str(export)]) == 0
    capsys.readouterr()
    assert run(["bench", "table", str(export), "--format", "html", "--title", "T"]) == 0
    assert "<h1>T</h1>" in capsys.readouterr().out
    assert run(["bench", "table", str(export), "--column", "fit_seconds"]) == 0
    assert "2.0" in capsys.readouterr().out


def test_an_export_goes_on_elsewhere(
    rings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ["bench", "--data", str(rings), "--method", "patchcore", "--results"]
    export, elsewhere = str(tmp_path / "cells.json"), str(tmp_path / "elsewhere.sqlite")
    run([*grid, results(tmp_path)])
    run(["bench", "export", results(tmp_path), "--output", export])
    capsys.readouterr()
    assert run(["bench", "import", export, "--results", elsewhere]) == 0
    assert "1 of 1 cells are new" in capsys.readouterr().err
    assert run([*grid, elsewhere, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["done"], told["before"]) == (0, 1)


def test_a_results_file_is_taken_over_with_its_image_scores(rings: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.sqlite"
    run(["bench", "--data", str(rings), "--method", "patchcore", "--results", results(tmp_path)])
    assert run(["bench", "import", results(tmp_path), "--results", str(elsewhere)]) == 0
    with Store(elsewhere) as store:
        (cell,) = store.cells()
        assert store.scores(cell.key) == [("rings", "0.png", 0, "good", 0.5)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bench", "--method", "patchcore"], "the grid has no data"),
        (["bench", "--data", "."], "the grid has no methods"),
        (["bench", "nowhere.yaml"], "the grid file does not exist"),
        (["bench", "--category", "x"], "--category needs --data"),
        (["bench", "--data", "a=x", "--data", "a=y"], "two data sets are called 'a'"),
        (["bench", "--data", "x", "--set", "a=1"], "the grid has no methods"),
        (
            ["bench", "--data", "x", "--method", "patchcore", "--set", "training.device=cpu"],
            "use --device",
        ),
        (
            ["bench", "--data", "x", "--method", "patchcore", "--device", "gpu"],
            "unknown device 'gpu'",
        ),
        (["bench", "table", "none.sqlite"], "the results file does not exist"),
        (["bench", "tabel", "none.sqlite"], "table"),
    ],
)
def test_what_is_wrong_is_named(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) in (2, 9)
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_unknown_data_and_output(
    rings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = results(tmp_path)
    run(["bench", "--data", str(rings), "--method", "patchcore", "--results", file])
    assert run(["bench", "table", file, "--data", "ring"]) == 2
    assert "did you mean 'rings'" in capsys.readouterr().err
    assert run(["bench", "table", file, "--output", "t.doc"]) == 2
    assert ".md" in capsys.readouterr().err

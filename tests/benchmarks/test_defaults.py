"""Options judged by drawn defects."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

Load = Callable[[str], ModuleType]

LEVELS = ["blocks.2", "blocks.4"]


def written(folder: Path) -> list[dict[str, object]]:
    (path,) = folder.glob("*.json")
    rows: list[dict[str, object]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows


@pytest.mark.slow
def test_lines_that_are_known_are_kept_and_the_others_measured(
    script: Load, rings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = script("defaults")
    # The script sets both for its workers.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)

    def compare(*sizes: int) -> list[dict[str, object]]:
        lines = [("patchcore", {"method.levels": LEVELS, "data.size": n}) for n in sizes]
        study = defaults.Study(lines, ("method.levels", "data.size"), ("patch",))
        monkeypatch.setattr(defaults, "STUDIES", {"some": lambda: study})
        words = ["defaults", "some", f"--data=rings={rings}", f"--out={tmp_path}", "--jobs=1"]
        monkeypatch.setattr(sys, "argv", words)
        defaults.main()
        return written(tmp_path)

    (first,) = compare(64)
    assert list(first) == [
        *("data", "category", "levels", "size", "configuration", "fingerprint"),
        *("commit", "date", "device", "split"),
        *("image AUROC, patch", "image AUROC", "AUPRO"),
    ]
    (path,) = tmp_path.glob("*.json")
    found = json.loads(path.read_text(encoding="utf-8"))
    # A figure that no measurement gives tells whether the line was kept.
    changed = {**first, "AUPRO": 0.125, "commit": "earlier"}
    elsewhere = {**changed, "data": "elsewhere"}
    found["rows"] = [elsewhere, changed]
    path.write_text(json.dumps(found), encoding="utf-8")
    beside, kept, new = compare(64, 96)
    assert (beside, kept) == (elsewhere, changed)
    assert new["size"] == 96
    assert new["image AUROC"] == new["image AUROC, patch"]
    # Of other options that no column names it is another line.
    found["rows"] = [{**changed, "configuration": "another"}]
    path.write_text(json.dumps(found), encoding="utf-8")
    (again,) = compare(64)
    assert again == first
    # So it is with other images under the same name.
    found["rows"] = [{**changed, "fingerprint": "of others"}]
    path.write_text(json.dumps(found), encoding="utf-8")
    (again,) = compare(64)
    assert again == first
    # One that does not say which images it saw is kept.
    found["rows"] = [{k: v for k, v in changed.items() if k != "fingerprint"}]
    path.write_text(json.dumps(found), encoding="utf-8")
    assert compare(64) == found["rows"]


@pytest.mark.parametrize("name", ["patchcore", "distillation", "mkd"])
def test_no_two_lines_of_a_study_have_one_name(script: Load, name: str) -> None:
    from flawmap.config import make_config

    defaults = script("defaults")
    study = defaults.STUDIES[name]()
    named = [
        defaults.place(defaults.named(make_config(method=method, overrides=options), study.named))
        for method, options in study.lines
    ]
    assert len(set(named)) == len(named) > 3

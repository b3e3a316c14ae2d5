"""Tables of the pages, from results files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Load = Callable[[str], ModuleType]


@pytest.fixture
def tables(script: Load) -> ModuleType:
    return script("write_tables")


def cell(label: str, category: str, *, data: str = "parts", **figures: float) -> dict[str, Any]:
    """A finished cell of one category, measured on a machine called after its method."""
    about = {"commit": label, "device": f"the {label}", "versions": {"torch": label}}
    return {
        **{"key": f"{label} {data} {category}", "label": label, "method": label, "data": data},
        **{"encoder": "lite0", "format": "mvtec", "fingerprint": "f", "setting": "separate"},
        **{"categories": [category], "seed": 0, "config": {"method": {"name": label}}},
        **{"status": "done", "error": None, "cost": {}, "environment": about},
        "figures": {category: figures},
    }


def written(folder: Path, *cells: dict[str, Any]) -> Path:
    path = folder / "grid.json"
    path.write_text(json.dumps({"version": 1, "cells": cells}), encoding="utf-8")
    return path


def test_what_is_said_of_lines_that_are_left_out_is_left_out_too(
    tables: ModuleType, tmp_path: Path
) -> None:
    path = written(
        tmp_path,
        cell("a", "x", image_auroc=0.9, aupro=0.5),
        cell("b", "x", image_auroc=0.95),
    )
    text = tables.grid(path, columns="aupro,image_auroc")
    assert "| parts | separate | a | lite0 | 1 | 50.00 | 90.00 |" in text
    assert "| b |" not in text
    assert "Hardware: the a." in text
    assert "Commit: a." in text
    assert "torch b" not in text


def test_what_a_method_lacks_is_a_dash(tables: ModuleType, tmp_path: Path) -> None:
    path = written(
        tmp_path,
        cell("a", "x", image_auroc=0.9),
        cell("a", "y", image_auroc=0.8),
        cell("b", "x", image_auroc=0.7),
    )
    text = tables.grid(path, by="method", columns="image_auroc")
    assert "| a | 1 | 90.00 | 80.00 |" in text.replace("*", "")
    assert "| b<sup>1</sup> | 1 | 70.00 | – |" in text
    assert "1. incomplete: 1 of 2 categories" in text


def test_two_lines_of_one_method_and_category_do_not_fit_one_line(
    tables: ModuleType, tmp_path: Path
) -> None:
    cells = [cell("a", "x", data=name, image_auroc=0.9) for name in ("one", "two")]
    with pytest.raises(ValueError, match="'a' stands for both one/x, separate and two/x, separate"):
        tables.grid(written(tmp_path, *cells), by="method", columns="image_auroc")


def test_details_of_a_run_have_no_column(tables: ModuleType) -> None:
    row = {"what": "a", "seconds": 1.5, "fingerprint": "f", "split": "by part", "score_speedup": 2}
    assert tables.generic([row]).splitlines()[0] == "| what | seconds |"
    assert "plit" not in tables.caption({"split": "by part"}, [row], with_seeds=False)


def test_a_grid_measured_anew_is_split_by_part(
    tables: ModuleType, script: Load, tmp_path: Path
) -> None:
    """The footnote stays as long as any cell saw tiles that were split by image."""
    (old, *_) = sorted(script("splits").TILES_BY_IMAGE)

    def noted(*versions: str | None) -> bool:
        cells = [cell(f"{i}", "magnetic_tile", image_auroc=0.9) for i in range(len(versions))]
        for each, version in zip(cells, versions, strict=True):
            if version is not None:
                each["environment"]["data_versions"] = {"magnetic_tile": version}
        path = written(tmp_path, *cells).rename(tmp_path / "components.json")
        text = tables.table(path.parent, "components", {"columns": "image_auroc"}, tmp_path / "p")
        return "split by image here" in text

    assert noted(old, old)
    assert noted("new", old)
    assert noted(None, "new")
    assert not noted("new", "newer")


def test_a_file_of_rows_says_how_its_data_is_split(script: Load) -> None:
    splits = script("splits")
    by_part = {"split": splits.BY_PART}

    def by_image(meta: dict[str, str], *rows: dict[str, str | None]) -> bool:
        found: bool = splits.by_image("forgetting", {"meta": meta, "rows": rows})
        return found

    assert by_image({}, {})
    assert not by_image(by_part, {}, {})
    assert not by_image(by_part, by_part, by_part)
    # A row of an earlier run was kept.
    assert by_image(by_part, by_part, {"split": None})
    assert by_image(by_part, by_part, {})
    assert not splits.by_image("patchcore_defaults", {"meta": {}, "rows": [{}]})


def test_what_is_made_of_cells_is_split_as_they_were(script: Load) -> None:
    from flawmap.bench.results import StoredCell

    def split(*versions: str) -> str | None:
        cells = [StoredCell(**cell("a", "magnetic_tile")) for _ in versions]
        for each, version in zip(cells, versions, strict=True):
            about = {"date": "today", "data_versions": {"magnetic_tile": version}}
            each.environment.update(about)
        found: str | None = script("common").meta_of(cells[:1], cells[1:]).get("split")
        return found

    old = min(script("splits").TILES_BY_IMAGE)
    assert split("new", "new") == "by part"
    assert split("new", old) is None
    assert script("common").meta()["split"] == "by part"

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from flawmap.bench.published import FIGURES, dataset_of, published
from flawmap.metrics.catalog import HEADLINE

GRIDS = Path(__file__).parents[2] / "benchmarks" / "grids"


def test_every_line_names_its_source_and_holds_percents() -> None:
    lines = published()
    assert len(lines) == 94
    for line in lines:
        assert "arXiv" in line.source
        assert line.setting in ("unified", "separate")
        assert set(line.figures) <= set(FIGURES)
        assert line.figures
        assert all(0 < float(value) <= 100 for value in line.figures.values())


DATA_SETS = {"mvtec": "mvtec_ad", "visa": "visa", "real-iad": "real_iad"}
"""The published name of what grids call their data."""


def repeats_a_table(path: Path) -> bool:
    named = path.stem.startswith(("dinomaly_", "mkd_paper_"))
    return named or "--published-from" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "path", sorted(filter(repeats_a_table, GRIDS.glob("*.yaml"))), ids=lambda p: p.stem
)
def test_a_grid_of_a_published_table_has_its_lines(path: Path) -> None:
    """Lines of the same name, data and setting, with figures in columns that are measured."""
    text = path.read_text(encoding="utf-8")
    found = re.search(r"--published-from (\w+)", text)
    if found is None:
        assert path.stem == "dinomaly_constraint", "say which published table it repeats"
        return
    grid = yaml.safe_load(text)
    data_sets = {DATA_SETS.get(name) for name in grid["data"]}
    measured = {*HEADLINE, *grid.get("metrics", ())}
    printed = [
        p.method
        for p in published()
        if p.table == found[1]
        and p.dataset in data_sets
        and p.setting in grid.get("settings", ["unified"])
        and set(p.figures) <= measured
    ]
    for method in grid["methods"]:
        if method["name"].startswith("jitter"):
            continue
        assert any(p.startswith(method["name"]) for p in printed), method["name"]


def test_a_line_is_as_printed() -> None:
    (found,) = [
        p
        for p in published()
        if (p.table, p.dataset, p.method) == ("main", "mvtec_ad", "Dinomaly-B")
    ]
    assert found.setting == "unified"
    assert list(found.figures.values()) == ["99.6", "99.8", "99.0", "98.4", "69.3", "69.2", "94.8"]


def test_data_sets_are_known_by_their_categories_and_test_images() -> None:
    assert dataset_of("mvtec", {"bottle": 83, "zipper": 151}) == ("mvtec_ad", 15)
    assert dataset_of("visa", {"pcb1": 200}) == ("visa", 12)
    assert dataset_of("real-iad", {"usb": 9}) == ("real_iad", 30)
    assert dataset_of("mnist", {"0": 10_000, "7": 10_000}) == ("mnist", 10)
    assert dataset_of("fashion-mnist", {"bag": 10_000}) == ("fashion_mnist", 10)
    assert dataset_of("cifar-10", {"cat": 10_000}) == ("cifar_10", 10)


def test_data_of_ones_own_is_not_taken_for_a_public_set() -> None:
    assert dataset_of("mvtec", {"screw": 12}) is None
    assert dataset_of("folder", {"screw": 160}) is None
    assert dataset_of("mvtec", {"bottle": 83, "my part": 5}) is None
    assert dataset_of("real-iad-noisy", {"usb": 9}) is None
    assert dataset_of("folder", {}) is None
    assert dataset_of("cifar-10", {"cat": 60}) is None
    assert dataset_of("idx", {"0": 10_000}) is None


def test_means_over_one_class_tasks_are_as_printed() -> None:
    found = {p.dataset: p.figures for p in published() if (p.method, p.table) == ("MKD", "seed")}
    assert found == {
        "mvtec_ad": {"image_auroc": "87.74", "pixel_auroc_defects": "90.71"},
        "mnist": {"image_auroc": "98.71"},
        "fashion_mnist": {"image_auroc": "94.49"},
        "cifar_10": {"image_auroc": "87.18"},
    }

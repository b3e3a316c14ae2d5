"""The table of one model beside separate ones."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace


def cell(seed: int, **figures: dict[str, float | None]) -> SimpleNamespace:
    return SimpleNamespace(seed=seed, categories=tuple(figures), figures=figures)


def test_means_and_differences_over_the_seeds_of_both(script: Callable[[str], ModuleType]) -> None:
    one = [
        cell(0, a={"image_auroc": 0.90, "aupro": None}, b={"image_auroc": 0.8, "aupro": 0.5}),
        cell(1, a={"image_auroc": 0.92, "aupro": None}, b={"image_auroc": 0.8, "aupro": 0.6}),
    ]
    each = [
        cell(1, a={"image_auroc": 0.95, "aupro": None}),
        cell(2, a={"image_auroc": 0.10, "aupro": None}),
        cell(0, b={"image_auroc": 0.7, "aupro": 0.5}),
        cell(1, b={"image_auroc": 0.8, "aupro": 0.5}),
    ]
    first, second = script("unified").compare(one, each)
    assert first == {
        "category": "a",
        "image AUROC, one model": "92.00",
        "image AUROC, separate": "95.00",
        "image AUROC, difference": -3.0,
    }
    assert second["image AUROC, difference"] == 5.0
    assert second["AUPRO, one model"] == "55.00 ± 7.07"
    assert second["AUPRO, difference"] == 5.0

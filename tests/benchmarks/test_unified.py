"""The table of one model beside separate ones."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace


def cell(**figures: dict[str, float | None]) -> SimpleNamespace:
    return SimpleNamespace(categories=tuple(figures), figures=figures)


def test_means_over_seeds_and_their_differences(script: Callable[[str], ModuleType]) -> None:
    one = [
        cell(a={"image_auroc": 0.90, "aupro": None}, b={"image_auroc": 0.8, "aupro": 0.5}),
        cell(a={"image_auroc": 0.92, "aupro": None}, b={"image_auroc": 0.8, "aupro": 0.6}),
    ]
    each = [
        cell(a={"image_auroc": 0.95, "aupro": None}),
        cell(b={"image_auroc": 0.7, "aupro": 0.5}),
        cell(b={"image_auroc": 0.8, "aupro": 0.5}),
    ]
    first, second = script("unified").compare(one, each)
    assert first == {
        "category": "a",
        "image AUROC, one model": "91.00 ± 1.41",
        "image AUROC, separate": "95.00",
        "image AUROC, difference": -4.0,
    }
    assert second["image AUROC, difference"] == 5.0
    assert second["AUPRO, one model"] == "55.00 ± 7.07"
    assert second["AUPRO, difference"] == 5.0

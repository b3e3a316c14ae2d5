"""Effects of parts, from cells that differ by one of them."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace


def cell(label: str, seed: int, auroc: float) -> SimpleNamespace:
    figures = {"tile": {"image_auroc": auroc, "aupro": None}}
    return SimpleNamespace(label=label, seed=seed, categories=("tile",), figures=figures)


def test_a_part_is_judged_where_the_rest_is_the_same(script: Callable[[str], ModuleType]) -> None:
    cells = [
        cell("none", 0, 0.80),
        cell("none", 1, 0.82),
        cell("A", 0, 0.83),
        cell("A", 1, 0.81),
        cell("A+B", 0, 0.90),
        # Nothing is this without C: it is in no pair of C's.
        cell("A+C+D", 0, 0.99),
    ]
    found = {row["part"]: row for row in script("component_effects").effects(cells)}
    assert found["A"] == {"part": "A", "pairs": 2, "tile image AUROC": "+1.00 (1 of 2)"}
    assert found["B"] == {"part": "B", "pairs": 1, "tile image AUROC": "+7.00 (1 of 1)"}
    assert found["C"] == {"part": "C", "pairs": 0}

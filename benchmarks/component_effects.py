"""What each part of a method gives: differences between cells that differ by that part alone.

    python benchmarks/component_effects.py --results components.sqlite

Takes the cells of grids/cpu_components.yaml, whose lines are called after their parts ("NB+LC", or
"none"), from a results file of `flawmap bench` or from its export; fits nothing. A part is judged
wherever a line with it and the same line without it were run, seed by seed.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import meta_of, say, write_results
from flawmap.bench.results import StoredCell
from flawmap.bench.store import read_cells

METRICS = {"image_auroc": "image AUROC", "aupro": "AUPRO"}
NONE = "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    cells = [cell for cell in read_cells(args.results) if cell.status == "done"]
    rows = effects(cells)
    for row in rows:
        say(str(row))
    write_results(args.out / "component_effects.json", rows, meta_of(cells))


def effects(cells: Sequence[StoredCell]) -> list[dict[str, Any]]:
    """A row for each part: the mean difference in points, and in how many pairs it is above 0."""
    found = {(parts_of(cell.label), cell.seed): cell for cell in cells}
    parts = list(dict.fromkeys(part for cell in cells for part in cell.label.split("+")))
    rows = []
    for part in parts:
        if part == NONE:
            continue
        pairs = [
            (found[without, seed], cell)
            for (names, seed), cell in found.items()
            if part in names and ((without := names - {part}), seed) in found
        ]
        row: dict[str, Any] = {"part": part, "pairs": len(pairs)}
        for metric, name in METRICS.items():
            for category in cells[0].categories:
                differences = [
                    100 * (b - a)
                    for before, after in pairs
                    if (a := before.figures[category].get(metric)) is not None
                    and (b := after.figures[category].get(metric)) is not None
                ]
                if differences:
                    better = sum(d > 0 for d in differences)
                    mean = statistics.fmean(differences)
                    row[f"{category} {name}"] = f"{mean:+.2f} ({better} of {len(differences)})"
        rows.append(row)
    return rows


def parts_of(label: str) -> frozenset[str]:
    """The parts that a line is called after."""
    return frozenset() if label == NONE else frozenset(label.split("+"))


if __name__ == "__main__":
    main()

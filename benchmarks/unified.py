"""One model for several data sets beside a model for each category: how much it gives away.

    python benchmarks/unified.py --unified unified.sqlite --separate results.sqlite

Takes the cells of grids/cpu_unified.yaml from one results file of `flawmap bench`, and Dinomaly's
separate models of grids/accuracy.yaml from another one (or from the same); fits nothing.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unified", type=Path, required=True)
    parser.add_argument("--separate", type=Path, required=True)
    parser.add_argument("--line", default="15 min", help="of the unified models")
    parser.add_argument("--method", default="dinomaly", help="the line of the separate models")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    one = chosen(read_cells(args.unified), args.line, "unified")
    each = chosen(read_cells(args.separate), args.method, "separate")
    rows = compare(one, each)
    for row in rows:
        say(str(row))
    write_results(args.out / f"unified_{args.method}.json", rows, meta_of(one, each))


def chosen(cells: Sequence[StoredCell], line: str, setting: str) -> list[StoredCell]:
    """The finished cells of a line."""
    found = [c for c in cells if (c.status, c.label, c.setting) == ("done", line, setting)]
    if not found:
        raise SystemExit(f"there is no finished cell called '{line}' with {setting} models")
    return found


def compare(one: Sequence[StoredCell], each: Sequence[StoredCell]) -> list[dict[str, Any]]:
    """A row per category of the unified models: means in percent over the seeds that both have,
    and differences."""
    rows = []
    for category in one[0].categories:
        row: dict[str, Any] = {"category": category}
        for metric, name in METRICS.items():
            together, apart = (values(cells, category, metric) for cells in (one, each))
            if seeds := together.keys() & apart.keys():
                found = [[side[seed] for seed in seeds] for side in (together, apart)]
                row[f"{name}, one model"], row[f"{name}, separate"] = map(spread, found)
                difference = statistics.mean(found[0]) - statistics.mean(found[1])
                row[f"{name}, difference"] = round(difference, 2)
        rows.append(row)
    return rows


def values(cells: Sequence[StoredCell], category: str, metric: str) -> dict[int, float]:
    """A metric in percent by seed, where it is defined."""
    found = {
        cell.seed: cell.figures.get(category, {}).get(metric)
        for cell in cells
        if category in cell.categories
    }
    return {seed: 100 * value for seed, value in found.items() if value is not None}


def spread(found: Sequence[float]) -> str:
    """Mean and sample standard deviation."""
    deviation = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.2f}{deviation}"


if __name__ == "__main__":
    main()

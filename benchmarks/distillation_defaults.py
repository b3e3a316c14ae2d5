"""How long RD4AD and DMDD learn, and from which levels, judged without any flawed picture.

    python benchmarks/distillation_defaults.py --data cookie=DIR --data magnetic-tile=DIR

Only good training images are looked at: a third of each category's is held out, and stands there as
it is and with drawn defects. DMDD learns from blended textures, so it is judged by the other kinds
alone, pasted patches and scars, which neither method has seen. Lines whose figures are in the
results file are kept, and only the others are measured.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import drawn
from common import meta, say, write_results
from drawn import drawn_tables
from flawmap.data.samples import SampleTable

NAMED = ("method", "levels", "iterations")
"""What tells a line of the results from others of the same data."""

Place = tuple[Any, ...]

UNSEEN = ("patch", "scar")
"""Kinds of drawn defects that no method learns from."""

FINER = ("blocks.1", "blocks.2", "blocks.4")
COARSER = ("blocks.2", "blocks.4", "blocks.6")
"""Levels of an EfficientNet at 4, 8 and 16 px, and at 8, 16 and 32."""

ITERATIONS = (
    *((n, COARSER) for n in (100, 250, 600, 1200)),
    *((n, FINER) for n in (100, 250)),
)
"""How long is learnt, from which levels."""


def lines() -> Iterator[dict[str, Any]]:
    """The methods and options that are compared."""
    for method in ("rd4ad", "dmdd"):
        for iterations, levels in ITERATIONS:
            yield {
                "method": method,
                "training.iterations": iterations,
                "training.max_epochs": None,
                "method.levels": list(levels),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", action="append", required=True, metavar="NAME=DIR")
    parser.add_argument("--images", type=int, default=150, help="of each category, at most")
    parser.add_argument("--encoder", default="lite0")
    parser.add_argument("--jobs", type=int, default=2, help="lines at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    # One thread for each line, however many processors there are.
    os.environ["OMP_NUM_THREADS"] = "1"
    path = args.out / "distillation_defaults.json"
    about = meta(weights=args.encoder, seed=0, images=args.images)
    known, commits = kept(path, about)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tables = [
            (name, category, without_seen(table))
            for name, category, table in drawn_tables(args.data, args.images, Path(folder))
        ]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(args.jobs, context) as pool:
            under_way = []
            for name, category, table in tables:
                for options in lines():
                    row = {"data": name, "category": category, **named(options)}
                    missing = tuple(row.values()) not in known
                    found = pool.submit(judge, table, options, args.encoder) if missing else None
                    under_way.append((row, found))
            for row, found in under_way:
                figures = known[tuple(row.values())] if found is None else found.result()
                rows.append({**row, **figures})
                say(str(rows[-1]))
    write_results(path, rows, {**about, "commit": "; ".join(sorted(commits))})


def kept(path: Path, about: dict[str, Any]) -> tuple[dict[Place, dict[str, float]], set[str]]:
    """The figures of a results file of the same settings by their line, and all commits."""
    commits = {str(about["commit"])}
    if not path.is_file():
        return {}, commits
    old = json.loads(path.read_text(encoding="utf-8"))
    if any(old["meta"].get(key) != about[key] for key in ("weights", "seed", "images")):
        return {}, commits
    found = {}
    for row in old["rows"]:
        named_by = ("data", "category", *NAMED)
        place = tuple(row[key] for key in named_by)
        found[place] = {key: value for key, value in row.items() if key not in named_by}
    return found, commits | set(old["meta"]["commit"].split("; "))


def without_seen(table: SampleTable) -> SampleTable:
    """Good images, and defects of the kinds that are not learnt from."""
    samples = tuple(s for s in table.samples if s.defect in ("good", *UNSEEN))
    return SampleTable(table.root, table.format, samples)


def named(options: dict[str, Any]) -> dict[str, Any]:
    """How a line is told from others of its data."""
    levels = " + ".join(options["method.levels"])
    found = (options["method"], levels, options["training.iterations"])
    return dict(zip(NAMED, found, strict=True))


def judge(table: SampleTable, options: dict[str, Any], encoder: str) -> dict[str, float]:
    """The figures of one line on one category."""
    options = dict(options)
    _, result = drawn.judge(table, options.pop("method"), encoder, options)
    return {
        **{f"image AUROC, {kind}": round(result.by_defect[kind], 4) for kind in UNSEEN},
        "image AUROC": round(result.metrics["image_auroc"], 4),
        "AUPRO": round(result.metrics["aupro"], 4),
    }


if __name__ == "__main__":
    main()

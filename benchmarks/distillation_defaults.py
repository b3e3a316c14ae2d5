"""How long RD4AD and DMDD learn, and from which levels, judged without any flawed picture.

    python benchmarks/distillation_defaults.py --data cookie=DIR --data magnetic-tile=DIR

Only good training images are looked at: a third of each category's is held out, and stands there as
it is and with drawn defects. DMDD learns from blended textures, so it is judged by the other kinds
alone, pasted patches and scars, which neither method has seen.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import flawmap
from common import meta, say, write_results
from drawn import drawn_tables
from flawmap.data.samples import SampleTable

UNSEEN = ("patch", "scar")
"""Kinds of drawn defects that no method learns from."""


FINER = ("blocks.1", "blocks.2", "blocks.4")
COARSER = ("blocks.2", "blocks.4", "blocks.6")
"""Levels of an EfficientNet at 4, 8 and 16 px, and at 8, 16 and 32."""

ITERATIONS = ((100, COARSER), (250, COARSER), (600, COARSER), (100, FINER), (250, FINER))
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
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tables = [
            (name, category, without_seen(table))
            for name, category, table in drawn_tables(args.data, args.images, Path(folder))
        ]
        # One thread for each line, however many processors there are.
        os.environ["OMP_NUM_THREADS"] = "1"
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(args.jobs, context) as pool:
            under_way = [
                ({"data": name, "category": category}, pool.submit(judge, *job))
                for name, category, table in tables
                for job in ((table, options, args.encoder) for options in lines())
            ]
            for place, found in under_way:
                rows.append({**place, **found.result()})
                say(str(rows[-1]))
    about = meta(weights=args.encoder, seed=0, images=args.images)
    write_results(args.out / "distillation_defaults.json", rows, about)


def without_seen(table: SampleTable) -> SampleTable:
    """Good images, and defects of the kinds that are not learnt from."""
    samples = tuple(s for s in table.samples if s.defect in ("good", *UNSEEN))
    return SampleTable(table.root, table.format, samples)


def judge(table: SampleTable, options: dict[str, Any], encoder: str) -> dict[str, Any]:
    """The figures of one line on one category."""
    options = dict(options)
    method = options.pop("method")
    detector = flawmap.fit(
        table,
        method=method,
        encoder=encoder,
        options={"calibration.strategy": "off", **options},
    )
    result = flawmap.evaluate(detector, table).categories["drawn"]
    return {
        "method": method,
        "levels": " + ".join(options["method.levels"]),
        "iterations": detector.config.training.iterations,
        **{f"image AUROC, {kind}": round(result.by_defect[kind], 4) for kind in UNSEEN},
        "image AUROC": round(result.metrics["image_auroc"], 4),
        "AUPRO": round(result.metrics["aupro"], 4),
    }


if __name__ == "__main__":
    main()

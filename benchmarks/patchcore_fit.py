"""PatchCore's fit and scoring beside anomalib's: same images, encoder, levels, size and bank.

    python benchmarks/patchcore_fit.py MAGNETIC_TILE --peer-python PEER/bin/python

fits on the first 100 free tiles (sorted by name, 256 px, Lite-0 levels blocks.2 and blocks.4,
coreset 10% = 10,240 patches). The peer runs in its own environment, in the same run. Both coresets
are judged on the same patches by the greedy objective: the largest distance of any patch to the
coreset, in float64.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import flawmap
from common import (
    PEER_SCRIPT,
    free_tiles,
    good_table,
    meta,
    peer_job,
    peer_versions,
    run_cell,
    write_results,
)
from flawmap.methods.coreset import covering_radius, greedy_coreset
from flawmap.types import Sample

LEVELS = ["blocks.2", "blocks.4"]
SIZE = 256
RATIO = 0.1
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="the magnetic-tile data set")
    parser.add_argument("--peer-python", type=Path, help="the interpreter that has anomalib")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--test-images", type=int, default=60, help="of each: free and defective")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    free = free_tiles(args.data)
    defects = sorted(args.data.glob("MT_[!F]*/Imgs/*.jpg"))
    train, test_good = free[: args.images], free[-args.test_images :]
    test_bad = defects[:: max(1, len(defects) // args.test_images)][: args.test_images]
    rows = []
    table = good_table(train, "tile", args.data)
    options = {
        "method.levels": LEVELS,
        "data.size": SIZE,
        "method.coreset_ratio": RATIO,
        "method.max_bank": 20_000,
        "training.batch_size": BATCH,
        "training.precision": "float32",
    }
    times, stages = [], {}
    for _ in range(args.repeats):
        began = time.perf_counter()
        detector = flawmap.fit(table, method="patchcore", options=options)
        times.append(time.perf_counter() - began)
        stages = dict(detector.fitted.seconds)
    tests = [Sample(str(p), "tile", "test", None) for p in [*test_good, *test_bad]]
    scoring = []
    for _ in range(args.repeats):
        began = time.perf_counter()
        n = sum(1 for _ in detector.predict_samples(tests))
        scoring.append(time.perf_counter() - began)
    ours = {
        "library": "flawmap",
        "bank": int(next(iter(detector.models.values())).bank.shape[0]),
        "fit_seconds": round(statistics.median(times), 2),
        "score_images_per_second": round(n / statistics.median(scoring), 1),
        "stages": stages,
    }
    rows.append(ours)
    print(ours, flush=True)
    if args.peer_python:
        rows += peer(args, train, test_good, test_bad)
        ours["fit_speedup"] = round(rows[-1]["fit_seconds"] / ours["fit_seconds"], 1)
        ours["coreset_seconds_same_patches"] = rows[-1].pop("ours_seconds")
        ours["covering_radius_same_patches"] = rows[-1].pop("ours_radius")
    for row in rows:
        print(row)
    write_results(
        args.out / "patchcore_fit.json", rows, meta(images=len(train), data="magnetic tile")
    )


def peer(args: argparse.Namespace, train: list[Path], good: list[Path], bad: list[Path]) -> list:
    peer_versions(args.peer_python)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        common = peer_job(
            "lite0",
            SIZE,
            weights_folder=root,
            train=[str(path) for path in train],
            test=[str(path) for path in [*good, *bad]],
            labels=[0] * len(good) + [1] * len(bad),
            batch_size=BATCH,
        )
        job = {
            **common,
            "class": "Patchcore",
            "options": {
                "backbone": common["backbone"],
                "layers": LEVELS,
                "coreset_sampling_ratio": RATIO,
                "num_neighbors": 9,
            },
            "keep_coreset": True,
            "own_metrics": False,
        }
        found = run_cell(args.peer_python, PEER_SCRIPT, job, root)
        if "reason" in found:
            raise SystemExit(f"anomalib: {found['reason']}")
        arrays = np.load(root / "coreset.npz")
        points = torch.from_numpy(arrays["embedding"])
        theirs = torch.from_numpy(arrays["indices"])
        began = time.perf_counter()
        ours = greedy_coreset(points, len(theirs), start=int(theirs[0]))
        seconds = time.perf_counter() - began
        return [
            {
                "library": f"anomalib {found['version']}",
                "bank": len(theirs),
                "fit_seconds": round(found["fit_seconds"], 2),
                "coreset_seconds_same_patches": round(found["coreset_seconds"], 2),
                "covering_radius_same_patches": round(covering_radius(points, theirs), 4),
                "score_images_per_second": round(
                    (len(good) + len(bad)) / found["score_seconds"], 2
                ),
                "ours_seconds": round(seconds, 2),
                "ours_radius": round(covering_radius(points, ours), 4),
            }
        ]


if __name__ == "__main__":
    main()

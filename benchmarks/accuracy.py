"""Both methods on real images, over several seeds: one row for each category and their mean.

    python benchmarks/accuracy.py --cookie DIR --magnetic-tile DIR --elpv DIR --seeds 0 1 2

Everything that was chosen (levels, normalisation, size, pooling) was chosen on one half of the test
images, those whose file name's SHA-1 is even; `image_auroc_unseen_half` is the figure on the other
half, which was never looked at while choosing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from pathlib import Path
from typing import Any

import flawmap
from common import commit, meta, write_results
from flawmap.data import read_data
from flawmap.evaluation import CategoryResult
from flawmap.metrics import auroc
from flawmap.progress import Plain

METRICS = (
    "image_auroc",
    "image_auroc_unseen_half",
    "image_ap",
    "image_f1max",
    "pixel_auroc",
    "pixel_ap",
    "pixel_f1max",
    "aupro",
    "f1",
    "false_reject_rate",
    "escape_rate",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cookie", type=Path)
    parser.add_argument("--magnetic-tile", type=Path)
    parser.add_argument("--elpv", type=Path)
    parser.add_argument("--methods", nargs="+", default=["patchcore", "dinomaly"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], help="options, a.b=c")
    parser.add_argument("--name", default="default", help="a name for these options")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    places = {"cookie": args.cookie, "magnetic tile": args.magnetic_tile, "elpv": args.elpv}
    target = args.out / "accuracy.json"
    rows = json.loads(target.read_text())["rows"] if target.exists() else []
    for name, place in places.items():
        if place is None:
            continue
        for method in args.methods:
            for seed in args.seeds:
                found = run(name, place, method, seed, args.set, args.name)
                key = (name, method, seed, args.name)
                rows = [r for r in rows if (r["data"], r["method"], r["seed"], r["options"]) != key]
                rows += found
                # Stored at once: a stopped run loses nothing.
                write_results(target, rows, meta())


def run(
    name: str, place: Path, method: str, seed: int, options: list[str], label: str
) -> list[dict[str, Any]]:
    table = read_data(place, seed=seed)
    began = time.perf_counter()
    detector = flawmap.fit(table, method=method, seed=seed, options=options, progress=Plain())
    seconds = time.perf_counter() - began
    result = flawmap.evaluate(detector, table)
    figures = {
        category: {**found.metrics, "image_auroc_unseen_half": unseen_auroc(found)}
        for category, found in result.categories.items()
    }
    if len(figures) > 1:
        figures["mean"] = {
            metric: statistics.fmean(f[metric] for f in figures.values()) for metric in METRICS
        }
    rows = []
    for category, metrics in figures.items():
        rows.append(
            {
                "data": name,
                "method": method,
                "options": label,
                "encoder": detector.config.encoder.name,
                "size": detector.config.data.size[0],
                "setting": "unified",
                "seed": seed,
                "category": category,
                **{m: none_if_nan(metrics[m]) for m in METRICS},
                "fit_seconds": round(seconds, 1),
                "images_per_second": round(result.n_images / result.seconds, 1),
                # Rows of several runs share the file.
                "commit": commit(),
            }
        )
        shown = ("data", "method", "category", "image_auroc", "aupro", "fit_seconds")
        print({k: rows[-1][k] for k in shown}, flush=True)
    return rows


def unseen_auroc(result: CategoryResult) -> float:
    """Image AUROC of the test images that no choice was made on."""
    kept = [
        r
        for r in result.images
        if int(hashlib.sha1(Path(r.sample.path).name.encode()).hexdigest(), 16) % 2 == 1
    ]
    return auroc([r.sample.label for r in kept], [r.score for r in kept])


def none_if_nan(value: float) -> float | None:
    return None if value != value else round(value, 4)


if __name__ == "__main__":
    main()

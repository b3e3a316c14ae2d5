"""What a detector still knows of its old products after a new one has been added.

    python benchmarks/forgetting.py --cookie COOKIE --magnetic-tile TILE --elpv ELPV

Dinomaly learns two products. A third one is then added from its bundle (`fit --start`), once with
the new product's images alone and once with all images; beside them stands a model of all three
from scratch. Every model is judged on every product that it should know.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import flawmap
from common import meta, say, write_results
from flawmap.data.detect import read_joined
from flawmap.data.samples import SampleTable
from flawmap.detector import Detector

NEW, LEFT_OUT = "mono", "poly"
"""Kinds of solar cells of ELPV."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cookie", type=Path, required=True)
    parser.add_argument("--magnetic-tile", type=Path, required=True)
    parser.add_argument("--elpv", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--test-images", type=int, default=100, help="good and defect each, drawn")
    parser.add_argument("--models", type=Path, help="keep models here; those that are here stay")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    rows = [row for seed in args.seeds for row in compare(args, seed)]
    about = meta(
        data="cookie, magnetic tile, ELPV mono",
        iterations=args.iterations,
        test_images=f"at most {args.test_images} good and {args.test_images} defects of each",
    )
    write_results(args.out / "forgetting.json", rows, about)


def compare(args: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    whole = read_joined([args.cookie, args.magnetic_tile, args.elpv], seed=seed)
    both = whole.only([name for name in whole.categories if name != LEFT_OUT])
    old = both.only([name for name in both.categories if name != NEW])
    new = both.only([NEW])
    test = drawn(both, args.test_images, seed)
    rows = []

    def row(what: str, table: SampleTable, start: Path | None, output: Path) -> None:
        say(f"seed {seed}: {what}")
        fingerprint = table.fingerprint()
        if output.is_file():
            detector = flawmap.load(output)
            if detector.config.training.iterations != args.iterations:
                raise SystemExit(
                    f"{output}: learnt for {detector.config.training.iterations} iterations, "
                    f"--iterations is {args.iterations}; name another folder with --models"
                )
            if detector.fitted.data["fingerprint"] != fingerprint:
                raise SystemExit(
                    f"{output}: learnt other images than these; name another folder with --models"
                )
        else:
            detector = flawmap.fit(
                table,
                method="dinomaly",
                output=output,
                start=start,
                seed=seed,
                options={"training.iterations": args.iterations},
            )
        known = old.categories if table is old else both.categories
        rows.append(
            {
                "what": what,
                "seed": seed,
                "fingerprint": fingerprint,
                "learnt_images": detector.fitted.data["learnt_images"],
                "fit_seconds": round(sum(detector.fitted.seconds.values()), 1),
                **figures(detector, test.only(known)),
            }
        )
        say(str(rows[-1]))

    with tempfile.TemporaryDirectory(prefix="flawmap-") as temporary:
        folder = (args.models or Path(temporary)) / str(seed)
        folder.mkdir(parents=True, exist_ok=True)
        before = folder / "old.flawmap"
        row("two products", old, None, before)
        row("third added, its images alone", new, before, folder / "alone.flawmap")
        row("third added, with all images", both, before, folder / "all.flawmap")
        row("all three from scratch", both, None, folder / "scratch.flawmap")
    return rows


def drawn(table: SampleTable, most: int, seed: int) -> SampleTable:
    """At most so many test images of each product and label; the same for every model."""
    generator = np.random.default_rng(seed)
    groups: dict[tuple[str, int | None], list[int]] = {}
    for number, sample in enumerate(table.samples):
        if sample.split == "test":
            groups.setdefault((sample.category, sample.label), []).append(number)
    kept = {int(n) for g in groups.values() for n in generator.permutation(g)[:most]}
    return replace(table, samples=tuple(s for n, s in enumerate(table.samples) if n in kept))


def figures(detector: Detector, test: SampleTable) -> dict[str, float]:
    """Image AUROC, and AUPRO where there are masks, of each product."""
    found: dict[str, float] = {}
    for name in test.categories:
        # By itself: among products that it knows, one that it was not shown last is left out.
        result = flawmap.evaluate(detector, test.only([name])).categories[name]
        found[f"{name} image_auroc"] = round(result.metrics["image_auroc"], 4)
        if result.counts["defects_with_mask"]:
            found[f"{name} aupro"] = round(result.metrics["aupro"], 4)
    return found


if __name__ == "__main__":
    main()

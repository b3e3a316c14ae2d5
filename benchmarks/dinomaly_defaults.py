"""Dinomaly's short training judged without any flawed picture: on synthetic defects.

    python benchmarks/dinomaly_defaults.py --data magnetic-tile=DIR --data elpv=DIR

Lines that cost about the same are compared: whole images, or a share of the places of more images.
Only good training images are looked at; see `drawn`. What is chosen by these figures has seen no
test image.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import flawmap
from common import meta, say, write_results
from drawn import drawn_tables
from flawmap.data.samples import SampleTable

LINES: tuple[dict[str, Any], ...] = (
    {},
    {"method.token_share": 0.5, "training.batch_size": 16},
    {"method.token_share": 0.5, "training.iterations": 600},
    {"method.token_share": 0.25, "training.batch_size": 16, "training.iterations": 600},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", action="append", required=True, metavar="NAME=DIR")
    parser.add_argument("--category", action="append", help="only these")
    parser.add_argument("--images", type=int, default=500, help="of each category, at most")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--encoder", default="vit-s14")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, category, drawn in drawn_tables(
            args.data, args.images, Path(folder), only=args.category, most=50
        ):
            for seed in args.seeds:
                for options in LINES:
                    found = judge(drawn, options, args.encoder, seed)
                    rows.append({"data": name, "category": category, "seed": seed, **found})
                    say(str(rows[-1]))
    about = meta(weights=args.encoder, images=args.images)
    write_results(args.out / "dinomaly_defaults.json", rows, about)


def judge(table: SampleTable, options: dict[str, Any], encoder: str, seed: int) -> dict[str, Any]:
    """The figures of one line on one category."""
    detector = flawmap.fit(
        table,
        method="dinomaly",
        encoder=encoder,
        seed=seed,
        options={"calibration.strategy": "off", **options},
    )
    result = flawmap.evaluate(detector, table).categories["drawn"]
    training = detector.config.training
    return {
        "share of places": options.get("method.token_share", 1.0),
        "batch": training.batch_size,
        "iterations": training.iterations,
        "fit, s": round(sum(detector.fitted.seconds.values())),
        **{f"image AUROC, {kind}": round(v, 4) for kind, v in result.by_defect.items()},
        **{name: round(result.metrics[key], 4) for key, name in FIGURES.items()},
    }


FIGURES = {"image_auroc": "image AUROC", "aupro": "AUPRO", "pixel_ap": "pixel AP"}


if __name__ == "__main__":
    main()

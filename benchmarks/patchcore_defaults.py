"""PatchCore's options judged without any flawed picture: on synthetic defects.

    python benchmarks/patchcore_defaults.py --data cookie=DIR --data magnetic-tile=DIR

Only good training images are looked at. A third of each category's is held out; each of these
stands there as it is and with a defect of each kind (blended textures, a pasted patch, a scar),
faint ones among them. What is chosen for PatchCore by these figures has seen no test image.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any

import drawn
from common import meta, say, write_results
from drawn import KINDS, drawn_tables
from flawmap.data.samples import SampleTable

LEVELS = (("blocks.2", "blocks.4"), ("blocks.3", "blocks.5"), ("blocks.2", "blocks.4", "blocks.5"))
SIZES = (256, 384)
DEFAULT = {"method.levels": list(LEVELS[0]), "data.size": SIZES[0]}


def lines() -> list[dict[str, Any]]:
    """The options that are compared."""
    found = [
        {"method.levels": list(levels), "data.size": size}
        for levels, size in itertools.product(LEVELS, SIZES)
    ]
    for change in (
        {"method.normalise": "level"},
        {"method.border": "inside"},
        {"method.normalise": "level", "method.border": "inside"},
        {"scoring.top_fraction": 0.01},
        {"scoring.pooling": "max"},
        {"scoring.sigma": 6.0},
    ):
        found.append({**DEFAULT, **change})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", action="append", required=True, metavar="NAME=DIR")
    parser.add_argument("--images", type=int, default=150, help="of each category, at most")
    parser.add_argument("--encoder", default="lite0")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, category, table in drawn_tables(args.data, args.images, Path(folder)):
            for options in lines():
                rows.append({"data": name, "category": category, **judge(table, options, args)})
                say(str(rows[-1]))
    about = meta(weights=args.encoder, seed=0, images=args.images)
    write_results(args.out / "patchcore_defaults.json", rows, about)


def judge(table: SampleTable, options: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one line on one category."""
    config, result = drawn.judge(table, "patchcore", args.encoder, options)
    return {
        "levels": " + ".join(options["method.levels"]),
        "size": config.data.size[0],
        **{name: config.method.model_dump()[name] for name in ("normalise", "border")},
        "sigma": config.scoring.sigma,
        "pooling": "max"
        if config.scoring.pooling == "max"
        else f"highest {100 * config.scoring.top_fraction:g}%",
        **{f"image AUROC, {kind}": round(result.by_defect[kind], 4) for kind in KINDS},
        "image AUROC": round(result.metrics["image_auroc"], 4),
        "AUPRO": round(result.metrics["aupro"], 4),
    }


if __name__ == "__main__":
    main()

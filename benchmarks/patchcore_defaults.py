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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import flawmap
from common import meta, say, write_results
from flawmap.data import read_data, read_image
from flawmap.data.images import as_float
from flawmap.data.samples import SampleTable
from flawmap.data.synthesis import Kind, Synthesis, SynthesisConfig
from flawmap.data.transform import Transform
from flawmap.types import Sample

LEVELS = (("blocks.2", "blocks.4"), ("blocks.3", "blocks.5"), ("blocks.2", "blocks.4", "blocks.5"))
SIZES = (256, 384)
DEFAULT = {"method.levels": list(LEVELS[0]), "data.size": SIZES[0]}
KINDS: dict[Kind, tuple[float, float]] = {
    "perlin": (0.15, 0.5),
    "patch": (0.2, 1),
    "scar": (0.2, 1),
}
"""Kinds of defects, with their opacities."""

SIDE = 448
"""Height and width in px of the images that defects are drawn on."""


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
        for place in args.data:
            name, _, path = place.partition("=")
            table = read_data(path)
            for category in table.categories:
                good = [s.path for s in table.only([category]).select(split="train")]
                drawn = draw(good, args.images, Path(folder) / name / category)
                for options in lines():
                    rows.append({"data": name, "category": category, **judge(drawn, options, args)})
                    say(str(rows[-1]))
    about = meta(weights=args.encoder, seed=0, images=args.images)
    write_results(args.out / "patchcore_defaults.json", rows, about)


def draw(paths: Sequence[str], images: int, folder: Path) -> SampleTable:
    """Some good images to learn, and others with and without drawn defects to test."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    chosen = [paths[i] for i in generator.permutation(len(paths))[:images]]
    tested = chosen[: max(10, len(chosen) // 3)]
    samples = [Sample(path, "drawn", "train", 0, "good") for path in chosen[len(tested) :]]
    transform = Transform((SIDE, SIDE))
    pictures = [as_float(transform(read_image(path))[0]) for path in tested]
    for i, picture in enumerate(pictures):
        samples.append(Sample(save(picture, folder / f"{i}.png"), "drawn", "test", 0, "good"))
        for kind, opacity in KINDS.items():
            draws = Synthesis(SynthesisConfig(kinds=(kind,), opacity=opacity))
            other = pictures[(i + 7) % len(pictures)]
            defect, mask = draws(picture, np.random.default_rng(1000 + i), [other])
            path = save(defect, folder / f"{i}_{kind}.png")
            masks = (save(mask.astype(np.float32), folder / f"{i}_{kind}_mask.png"),)
            samples.append(Sample(path, "drawn", "test", 1, kind, masks))
    return SampleTable(str(folder), "benchmark", tuple(samples))


def save(values: np.ndarray, path: Path) -> str:
    """Write values in [0, 1]; gives the path as text."""
    Image.fromarray((values * 255).round().astype(np.uint8)).save(path)
    return str(path)


def judge(table: SampleTable, options: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one line on one category."""
    detector = flawmap.fit(
        table,
        method="patchcore",
        encoder=args.encoder,
        options={"calibration.strategy": "off", **options},
    )
    found = flawmap.evaluate(detector, table)
    result = found.categories["drawn"]
    config = detector.config
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

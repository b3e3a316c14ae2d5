"""InTra: how well a covered patch is painted, beside the mean of its neighbours.

    python benchmarks/intra_inpainting.py tiles=DIR --minutes 15

fits the preset for a CPU on the good training images of a data set for the time given, and paints
every patch of good test images. Each of the data has a fit of its own. Told is the PSNR over all
their pixels (of a range of 1), beside two guesses that know only the eight patches around the
covered one: their mean px by px, and their mean colour.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import flawmap
from common import good_table, meta, say, write_results
from flawmap.data import read_data
from flawmap.data.loader import load_batches
from flawmap.data.transform import Transform
from flawmap.methods.intra import InTra
from flawmap.types import Sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "data", nargs="+", metavar="NAME=DIR", help="a data set with good test images"
    )
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--iterations", type=int, default=100_000, help="never more than this")
    parser.add_argument("--position", default="local")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--images", type=int, default=600, help="to learn, at most")
    parser.add_argument("--test-images", type=int, default=12, help="to paint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    rows = []
    for place in args.data:
        name, _, path = place.rpartition("=")
        data = Path(path)
        rows.append({"data": name or data.stem, **fitted(args, data, *files_of(args, data))})
        say(str(rows[-1]))
    about = meta(size=args.size, seed=args.seed, minutes=args.minutes)
    write_results(args.out / "intra_inpainting.json", rows, about)


def files_of(args: argparse.Namespace, data: Path) -> tuple[list[Path], list[Path]]:
    """Files to learn and others to be painted, from both splits of a data set.

    Raises:
        SystemExit: There are none to paint.
    """
    table = read_data(data, seed=args.seed)
    drawn = []
    for split, most in (("train", args.images), ("test", args.test_images)):
        files = [Path(sample.path) for sample in table.select(split=split, label=0)]
        order = np.random.default_rng(args.seed).permutation(len(files))
        drawn.append([files[i] for i in order[:most]])
    if not drawn[1]:
        raise SystemExit(f"{data}: there are no good test images to paint, see 'flawmap split'")
    return drawn[0], drawn[1]


def fitted(
    args: argparse.Namespace, data: Path, train: list[Path], test: list[Path]
) -> dict[str, Any]:
    table = good_table(train, "texture", data)
    options = {
        "method.position": args.position,
        "data.size": args.size,
        "training.iterations": args.iterations,
        "training.time_budget_seconds": 60 * args.minutes,
        "calibration.strategy": "off",
    }
    detector = flawmap.fit(table, method="intra", seed=args.seed, options=options)
    curve = detector.fitted.curves["*"]
    return {
        "position": args.position,
        "learnt_images": len(train),
        "painted_images": len(test),
        "iterations": curve["steps"],
        "fit_seconds": round(sum(detector.fitted.seconds.values()), 1),
        "precision": detector.fitted.precision,
        "values": curve["validation"]["losses"],
        **compared(detector, test),
    }


def compared(detector: flawmap.Detector, files: list[Path]) -> dict[str, float]:
    """PSNR of what is painted and of both guesses, in dB."""
    method = detector.models["*"]
    assert isinstance(method, InTra)
    errors: dict[str, list[float]] = {"inpainted": [], "mean_patch": [], "mean_colour": []}
    samples = [Sample(str(p), "texture", "test", None) for p in files]
    for batch in load_batches(samples, Transform(detector.config.data.size), 1):
        images = batch.images.to(detector.fabric.device)
        patches = method.to_patches(images)[0]
        with torch.inference_mode(), detector.fabric.autocast():
            painted = method.inpaint(images)[0]
        near = neighbours(patches, method.grid)
        colour = near.view(len(near), 3, -1).mean(dim=-1, keepdim=True)
        flat = colour.expand(-1, -1, patches.shape[1] // 3).flatten(1)
        guesses = (("inpainted", painted), ("mean_patch", near), ("mean_colour", flat))
        for name, guess in guesses:
            errors[name].append(float((guess - patches).square().mean()))
    psnr = {f"psnr_{n}": round(-10 * math.log10(np.mean(e)), 3) for n, e in errors.items()}
    best = max(psnr["psnr_mean_patch"], psnr["psnr_mean_colour"])
    return {**psnr, "gain_db": round(psnr["psnr_inpainted"] - best, 3)}


def neighbours(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """The mean of the up to eight patches around each, (N * M, pixels)."""
    maps = patches.T.reshape(1, -1, *grid)
    kernel = torch.ones(1, 1, 3, 3, device=patches.device)
    kernel[..., 1, 1] = 0
    total = F.conv2d(maps.transpose(0, 1), kernel, padding=1)
    count = F.conv2d(torch.ones(1, 1, *grid, device=patches.device), kernel, padding=1)
    return (total / count).transpose(0, 1)[0].flatten(1).T


if __name__ == "__main__":
    main()

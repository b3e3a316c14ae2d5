"""InTra: which map and which score, judged without any flawed picture.

    python benchmarks/intra_maps.py cookie=cookie.flawmap=DIR magnetic-tile=tile.flawmap=DIR

takes models that InTra has fitted and the data of each fit. Defects are drawn on those good images
that a model has not learnt: blended textures, faint ones among them, a pasted patch, a scar, on the
object where one stands out. What is chosen by these figures has seen no test image. An image is
painted once and then mapped in every way.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import flawmap
from common import meta, say, write_results
from drawn_defects import SIDE, draw
from flawmap.data import read_data, read_image
from flawmap.data.loader import load_batches
from flawmap.data.masks import read_mask
from flawmap.data.transform import Transform
from flawmap.data.verify import picture_of
from flawmap.methods.intra import InTra
from flawmap.metrics import aupro, auroc, resize_mask_nearest
from flawmap.scoring import pool
from flawmap.types import Sample

MAPS = ("squared", "standardised", "difference")
FILTERS = (21, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL=DIR")
    parser.add_argument("--images", type=int, default=16, help="that defects are drawn on, at most")
    parser.add_argument("--taught", type=int, default=200, help="that give the mean map, at most")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    rows = []
    for place in args.models:
        name, model, data = place.split("=", 2)
        for row in judged(Path(model), Path(data), args.images, args.taught):
            rows.append({"data": name, **row})
            say(str(rows[-1]))
    about = meta(models="the preset for a CPU, seed 0", images=args.images, taught=args.taught)
    write_results(args.out / "intra_maps.json", rows, about)


def judged(model: Path, data: Path, images: int, taught: int) -> list[dict[str, Any]]:
    """The figures of each way to map what one model paints."""
    # What is painted once is mapped on the processor.
    detector = flawmap.load(model, device="cpu")
    method = detector.models["*"]
    assert isinstance(method, InTra)
    size = detector.config.data.size
    learnt = set(detector.fitted.data["learnt_pictures"])
    good = read_data(data, seed=detector.config.seed).select(split="train", label=0)
    known = [s for s in good if picture_of(read_image(s.path)).hex() in learnt]
    parts = {s.part for s in known}
    held_out = [s for s in good if s.part not in parts]
    n = min(images, len(held_out))
    chosen = np.linspace(0, len(known) - 1, min(taught, len(known))).astype(int)
    with tempfile.TemporaryDirectory() as folder:
        drawn = draw(held_out, n, Path(folder) / "drawn", tested=n, foreground="auto")
        usual = painted(detector, [known[i] for i in chosen])
        tested = painted(detector, drawn.samples)
        masks = [mask_of(sample, size) for sample in drawn.samples]
    rows = []
    for compared, kind, side in itertools.product(("gms", "colour"), MAPS, FILTERS):
        found = {"compared": compared, "map": kind, "mean_filter": side}
        method.config = method.config.model_copy(update=found)
        counts = {"taught": len(usual.images), "held_out": sum(m is None for m in masks)}
        rows.append({**found, **counts, **figures(method, usual, tested, masks)})
    return rows


@dataclass(frozen=True)
class Painted:
    """Pictures, and what a model painted of them.

    Attributes:
        images: (n, 3, H, W) float32.
        painted: The same shape.
    """

    images: Tensor
    painted: Tensor


def painted(detector: flawmap.Detector, samples: Sequence[Sample]) -> Painted:
    """What a detector paints of images."""
    method = detector.models["*"]
    assert isinstance(method, InTra)
    images, found = [], []
    for batch in load_batches(samples, Transform(detector.config.data.size), 4):
        with torch.inference_mode(), detector.fabric.autocast():
            features = method.extract(batch.images.to(detector.fabric.device))
            found.append(method.reconstruction(features).float().cpu())
        images.append(batch.images)
    return Painted(torch.cat(images), torch.cat(found))


def mask_of(sample: Sample, size: tuple[int, int]) -> np.ndarray | None:
    """(H, W) bool of the input's size; None of a good image."""
    if not sample.masks:
        return None
    return resize_mask_nearest(read_mask(sample.masks, (SIDE, SIDE)), size)


def figures(
    method: InTra, usual: Painted, tested: Painted, masks: Sequence[np.ndarray | None]
) -> dict[str, float]:
    """Image AUROC by the highest px and by the highest hundredth, and AUPRO."""
    batches = ((usual.images[i : i + 1],) for i in range(len(usual.images)))
    with repainted(method, usual):
        method.finalise(batches)
    with repainted(method, tested), torch.inference_mode():
        maps = [method.anomaly_map((image[None],))[0, 0].numpy() for image in tested.images]
    labels = np.array([mask is not None for mask in masks]).astype(int)
    scores = {
        "highest px": [float(m.max()) for m in maps],
        "highest 1%": [pool(m, top_fraction=0.01) for m in maps],
    }
    return {
        **{
            f"image AUROC, {name}": round(auroc(labels, np.array(values)), 4)
            for name, values in scores.items()
        },
        "AUPRO": round(aupro(maps, masks), 4),
    }


@contextmanager
def repainted(method: InTra, of: Painted) -> Iterator[None]:
    """Let a method give, one image after the other, what it has painted before."""
    order = iter(of.painted)
    method.reconstruction = lambda features: next(order)[None]  # type: ignore[method-assign]
    try:
        yield
    finally:
        del method.reconstruction


if __name__ == "__main__":
    main()

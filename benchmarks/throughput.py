"""Scoring from files to maps and scores, against the encoder's bare forward pass.

    python benchmarks/throughput.py MAGNETIC_TILE

The bare pass runs the encoder of the detector, at the same precision, on the same images already
decoded into tensors, and throws its output away. A ratio of 1 would mean that decoding, the method,
smoothing, thresholds and regions cost nothing. The bare pass of timm's own unmodified network in
float32, up to the same block, stands beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import flawmap
from common import free_tiles, good_table, meta, write_results
from flawmap.config import EncoderConfig
from flawmap.data.loader import load_batches
from flawmap.data.samples import SampleTable
from flawmap.data.transform import Transform
from flawmap.detector import Detector
from flawmap.encoders.encoder import pretrained, resolve
from flawmap.training.device import precision_of
from flawmap.types import Sample

CASES: dict[str, dict[str, Any]] = {
    "patchcore": {
        "method.levels": ["blocks.2", "blocks.4"],
        "method.max_bank": 20_000,
        "data.size": 256,
        "training.batch_size": 16,
        "training.precision": "float32",
    },
    "dinomaly": {
        "data.size": 392,
        "training.iterations": 2,
        "training.batch_size": 8,
        "method.depth": 8,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="the magnetic-tile data set")
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    free = free_tiles(args.data)
    table = good_table(free[:100], "tile", args.data)
    tests = [Sample(str(p), "tile", "test", None) for p in free[-args.images :]]
    rows = [run(name, options, table, tests, args.repeats) for name, options in CASES.items()]
    for row in rows:
        print(row)
    write_results(args.out / "throughput.json", rows, meta(data="magnetic tile", images=len(tests)))


def run(
    name: str, options: dict[str, Any], table: SampleTable, tests: list[Sample], repeats: int
) -> dict[str, Any]:
    detector = flawmap.fit(table, method=name, options=options)
    config = detector.config
    tests = tests if name == "patchcore" else tests[:48]
    batches = [
        b.images
        for b in load_batches(tests, Transform(config.data.size), config.training.batch_size)
    ]
    whole = plain_timm(detector)

    def bare() -> None:
        with torch.inference_mode(), detector.fabric.autocast():
            for images in batches:
                detector.encoder.tokens(images) if name == "dinomaly" else detector.encoder(images)

    def timm_float32() -> None:
        with torch.inference_mode():
            for images in batches:
                whole(images)

    def end_to_end() -> None:
        for _ in detector.predict_samples(tests):
            pass

    # In turn, so that a drifting machine disturbs all alike.
    seconds: dict[str, list[float]] = {"bare": [], "timm": [], "end": []}
    for _ in range(repeats):
        seconds["bare"].append(timed(bare))
        seconds["timm"].append(timed(timm_float32))
        seconds["end"].append(timed(end_to_end))
    n = len(tests)
    ratio = [b / e for b, e in zip(seconds["bare"], seconds["end"], strict=True)]
    plain = [b / e for b, e in zip(seconds["timm"], seconds["end"], strict=True)]
    return {
        "method": name,
        "encoder": config.encoder.name,
        "size": config.data.size[0],
        "precision": precision_of(detector.fabric),
        "end_to_end_images_per_second": round(n / statistics.median(seconds["end"]), 1),
        "bare_images_per_second": round(n / statistics.median(seconds["bare"]), 1),
        "timm_float32_images_per_second": round(n / statistics.median(seconds["timm"]), 1),
        "ratio_to_bare": round(statistics.median(ratio), 3),
        "ratio_to_timm_float32": round(statistics.median(plain), 3),
    }


def plain_timm(detector: Detector) -> Callable[[torch.Tensor], Any]:
    """timm's own network, unmodified, up to the last level that the method reads."""
    spec = resolve(detector.config.encoder.name)
    network = pretrained(spec, EncoderConfig(name=spec.name)).eval()
    last = max(int(level.split(".")[1]) for level in detector.encoder.levels)
    mean, std = detector.encoder.mean, detector.encoder.std

    def forward(images: torch.Tensor) -> torch.Tensor:
        x = (images - mean) / std
        if spec.family == "vit":
            x = network._pos_embed(network.patch_embed(x))
        else:
            x = network.bn1(network.conv_stem(x))
        for block in network.blocks[: last + 1]:
            x = block(x)
        return x

    return forward


def timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

"""Dinomaly: training iterations/s and scoring images/s, against a plain loop and against anomalib.

    python benchmarks/dinomaly_speed.py MAGNETIC_TILE --peer-python PEER/bin/python

All learn the same images with the same encoder weights, input size and batch. The plain loop is
what one would write first: float32, the whole encoder in every step, an optimiser that goes from
tensor to tensor. flawmap keeps the frozen encoder's features and computes in bfloat16 where the
device does. On a CUDA device the rate of the network alone is told as well.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import flawmap
from common import (
    PEER_SCRIPT,
    free_tiles,
    good_table,
    meta,
    peer_job,
    run_cell,
    say,
    write_results,
)
from flawmap.config import EncoderConfig
from flawmap.data.loader import load_batches
from flawmap.data.transform import Transform
from flawmap.detector import Detector
from flawmap.encoders.encoder import build, pretrained, resolve
from flawmap.methods.dinomaly import Dinomaly, DinomalyConfig
from flawmap.methods.layers import mixers
from flawmap.methods.layers.dropout import Dropout
from flawmap.types import Sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="the magnetic-tile data set")
    parser.add_argument("--peer-python", type=Path, help="an interpreter that has anomalib")
    parser.add_argument("--encoder", default="vit-s14")
    parser.add_argument("--size", type=int, default=392)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument(
        "--whole-run", type=int, default=1000, help="iterations over which features are amortised"
    )
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--peer-seconds", type=float, default=240.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    free = free_tiles(args.data)
    train, test = free[: args.images], free[-args.images :]
    rows = [ours(args, train, test), plain(args, train)]
    if args.peer_python:
        rows.append(peer(args, train, test))
    for row in rows[1:]:
        row["flawmap trains faster by"] = ratio(rows[0], row, "iterations_per_second")
        row["flawmap scores faster by"] = ratio(rows[0], row, "images_per_second")
    for row in rows:
        say(str(row))
    write_results(
        args.out / "dinomaly_speed.json",
        rows,
        meta(data="magnetic tile", encoder=args.encoder, size=args.size, batch=args.batch_size),
    )


def ratio(a: dict[str, Any], b: dict[str, Any], key: str) -> float | None:
    return round(a[key] / b[key], 2) if a.get(key) and b.get(key) else None


def ours(args: argparse.Namespace, train: list[Path], test: list[Path]) -> dict[str, Any]:
    table = good_table(train, "tile", args.data)
    options = {
        "encoder.name": args.encoder,
        "data.size": args.size,
        "training.batch_size": args.batch_size,
        "training.iterations": args.iterations,
        "calibration.strategy": "off",
    }
    rates, amortised = [], []
    for _ in range(args.repeats):
        detector = flawmap.fit(table, method="dinomaly", preset="gpu", options=options)
        seconds = detector.fitted.seconds
        rates.append(args.iterations / seconds["learn"])
        # The encoder's share: every image once, however many iterations follow.
        whole = args.whole_run / rates[-1] + seconds.get("features", 0.0)
        amortised.append(args.whole_run / whole)
    samples = [Sample(str(p), "tile", "test", None) for p in test]
    scoring = []
    for _ in range(args.repeats):
        began = time.perf_counter()
        n = sum(1 for _ in detector.predict_samples(samples))
        scoring.append(n / (time.perf_counter() - began))
    row = {
        "what": "flawmap",
        "precision": detector.fitted.precision,
        "iterations_per_second": round(statistics.median(rates), 3),
        f"iterations_per_second_of_{args.whole_run}_with_features": round(
            statistics.median(amortised), 3
        ),
        "features_once_seconds": round(detector.fitted.seconds.get("features", 0.0), 1),
        "images_per_second": round(statistics.median(scoring), 2),
        "largest_difference_of_maps_to_float32": difference(detector, samples[:16]),
    }
    if detector.fabric.device.type == "cuda":
        row |= on_gpu(detector, args.batch_size)
    return row


def difference(detector: Detector, samples: list[Sample]) -> float:
    """Largest absolute difference between maps as scored and in float32; maps lie in 0..2."""
    exact = Detector(
        config=detector.config,
        encoder=detector.encoder,
        models=detector.models,
        fabric=float32(detector),
        fitted=detector.fitted,
    )
    pairs = zip(detector.raw_maps(samples), exact.raw_maps(samples), strict=True)
    return round(max(float(np.abs(a.values - b.values).max()) for (_, _, a), (_, _, b) in pairs), 5)


def float32(detector: Detector) -> Any:
    from flawmap.training.device import make_fabric

    config = detector.config.training.model_copy(update={"precision": "float32"})
    return make_fabric(config)


def on_gpu(detector: Detector, batch_size: int) -> dict[str, Any]:
    """Images/s of the network alone at full batches, the operations that this is, and memory."""
    method = next(iter(detector.models.values()))
    device = detector.fabric.device
    size = detector.config.data.size
    images = torch.rand(4 * batch_size, 3, *size, device=device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        method(images[:1])
    per_image = counter.get_total_flops()
    with torch.inference_mode(), detector.fabric.autocast():
        for _ in range(5):
            method(images)
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        for _ in range(20):
            method(images)
        torch.cuda.synchronize(device)
    rate = 20 * len(images) / (time.perf_counter() - began)
    return {
        "network_images_per_second": round(rate, 1),
        "network_teraflops_per_second": round(rate * per_image / 1e12, 1),
        "peak_gpu_memory_mib": round(torch.cuda.max_memory_allocated(device) / 2**20),
    }


def plain(args: argparse.Namespace, train: list[Path]) -> dict[str, Any]:
    """What one would write first."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec = resolve(args.encoder)
    network = pretrained(spec, EncoderConfig(name=args.encoder)).eval().to(device)
    names = Dinomaly.default_levels(spec)
    wanted = [int(name.removeprefix("blocks.")) for name in names]
    encoder = build(EncoderConfig(name=args.encoder), names)
    size = (args.size, args.size)
    method = Dinomaly.build(DinomalyConfig(), encoder, size, torch.Generator().manual_seed(0))
    method.train().to(device)
    # torch's own, without flawmap's shortcuts.
    for index, layer in enumerate(method.bottleneck):
        if isinstance(layer, Dropout):
            method.bottleneck[index] = nn.Dropout(layer.p)
    mean = torch.tensor(spec.mean, device=device).view(1, 3, 1, 1)
    std = torch.tensor(spec.std, device=device).view(1, 3, 1, 1)
    samples = [Sample(str(p), "tile", "train", 0) for p in train]
    batches = [b.images.to(device) for b in load_batches(samples, Transform(size), args.batch_size)]
    state: dict[nn.Parameter, list[torch.Tensor]] = {}
    steps = max(6, args.iterations // 4)
    times = []
    for step in range(steps):
        began = time.perf_counter()
        with torch.no_grad():
            x = (batches[step % len(batches)] - mean) / std
            x = network._pos_embed(network.patch_embed(x))
            levels = []
            for block in network.blocks:
                x = block(x)
                levels.append(x)
            targets = [levels[i] for i in wanted]
            features = tuple(torch.stack(half).mean(0) for half in (targets[:4], targets[4:]))
        with patch.object(mixers, "positive", lambda x: F.elu(x) + 1):
            loss = method.loss(features, step)
        loss.backward()
        nn.utils.clip_grad_norm_(method.parameters(), 0.1)
        update(method, state, step + 1)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    each = statistics.median(times[2:])
    return {"what": "plain float32 loop", "iterations_per_second": round(1 / each, 3)}


@torch.no_grad()
def update(method: nn.Module, state: dict[nn.Parameter, list[torch.Tensor]], t: int) -> None:
    """StableAdamW, tensor by tensor."""
    for p in method.parameters():
        assert p.grad is not None
        if p not in state:
            state[p] = [torch.zeros_like(p) for _ in range(3)]
        m, v, top = state[p]
        p.mul_(1 - 2e-3 * 1e-4)
        m.copy_(0.9 * m + 0.1 * p.grad)
        v.copy_(0.999 * v + 0.001 * p.grad**2)
        top.copy_(torch.maximum(top, v))
        below = top.sqrt() / math.sqrt(1 - 0.999**t) + 1e-10
        scale = max(1.0, float((p.grad / below).pow(2).mean().sqrt()))
        p.sub_(2e-3 / (1 - 0.9**t) / scale * m / below)
        p.grad = None


def peer(args: argparse.Namespace, train: list[Path], test: list[Path]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        job = peer_job(
            args.encoder,
            args.size,
            weights_folder=Path(folder),
            train=[str(p) for p in train],
            test=[str(p) for p in test],
            # It wants defects to be there; no figure here looks at them.
            labels=[number % 2 for number in range(len(test))],
            batch_size=args.batch_size,
        )
        job |= {
            "class": "Dinomaly",
            "options": {"encoder_name": job["backbone"]},
            "train_seconds": args.peer_seconds,
            "plan_steps": True,
            "own_metrics": False,
        }
        found = run_cell(args.peer_python, PEER_SCRIPT, job, Path(folder) / "cell")
    if found.get("reason"):
        return {"what": "anomalib", "reason": found["reason"]}
    return {
        "what": f"anomalib {found['version']}",
        "precision": "32-true",
        "iterations_per_second": round(found["steps"] / found["fit_seconds"], 3),
        "images_per_second": round(len(test) / found["score_seconds"], 2),
    }


if __name__ == "__main__":
    main()

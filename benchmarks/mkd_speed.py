"""MKD: images localised per second, together and one by one, and the seconds of a fit.

    python benchmarks/mkd_speed.py --cookie COOKIE

Gradients take a forward and a backward pass through the source and the cloner, distances a forward
pass alone. "together" is how flawmap does it: one pass for the whole batch, gradients for the px
alone. "one by one" does the same for each image by itself. "plain" is what one would write first
for gradients: a loop over images that calls `backward`, which computes gradients of the cloner's
weights as well. In float32 their maps differ a
little where rounding puts a unit on the other side of its ReLU; in float64 none does. VGG16 has
drawn weights: its speed is that of any others. With --cookie, the CPU preset is fitted on that data
set.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

import flawmap
from common import median_seconds, meta, say, write_results
from flawmap.config import EncoderConfig
from flawmap.encoders.encoder import Encoder, build, create, resolve, wrap
from flawmap.methods.mkd import MKD, MKDConfig, distances


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", action="append", help="[default: lite0 and vgg16]")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cookie", type=Path, help="the cookie data set, to time a fit")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    rows = [
        row
        for name in args.encoder or ["lite0", "vgg16"]
        for attribution in ("gradients", "distances")
        for row in localising(name, attribution, args)
    ]
    if args.cookie:
        rows.append(fitting(args.cookie))
    for row in rows:
        say(str(row))
    about = meta(size=args.size, batch=args.batch_size, threads=torch.get_num_threads())
    write_results(args.out / "mkd_speed.json", rows, about)


def encoder_of(name: str) -> Encoder:
    spec = resolve(name)
    levels = MKD.default_levels(spec)
    if spec.package is not None:
        return build(EncoderConfig(name=name), levels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = wrap(spec, create(spec, levels), levels)
    encoder.freeze()
    return encoder


def localising(name: str, attribution: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = encoder_of(name).to(device)
    size = (args.size, args.size)
    config = MKDConfig.model_validate(
        {"value_weight": 0.5, "terms": "both", "score": "whole", "attribution": attribution}
    )
    generator = torch.Generator().manual_seed(0)
    method = MKD.build(config, encoder, size, generator).to(device).eval()
    images = torch.rand(args.batch_size, 3, *size, generator=generator).to(device)

    def together() -> torch.Tensor:
        return method.scored_maps(images)[0]

    def one_by_one() -> torch.Tensor:
        return torch.cat([method.scored_maps(image[None])[0] for image in images])

    def plain() -> torch.Tensor:
        return torch.cat([_plain(method, image[None]) for image in images])

    ways = (together, one_by_one, plain)[: 3 if attribution == "gradients" else 2]
    found = {f.__name__: f for f in ways}

    def differences() -> dict[str, float]:
        whole = together()
        return {k: float((f() - whole).abs().max() / whole.max()) for k, f in found.items()}

    repeats = args.repeats
    rates = {k: args.batch_size / median_seconds(f, repeats, device) for k, f in found.items()}
    single = differences()
    method.double()
    encoder.double()
    images = images.double()
    double = differences()
    return [
        {
            "what": f"{attribution}, {name}, {what.replace('_', ' ')}",
            "images_per_second": round(rate, 2),
            "together is faster by": round(rates["together"] / rate, 2),
            "largest relative difference of maps": single[what],
            "the same in float64": double[what],
        }
        for what, rate in rates.items()
    ]


def _plain(method: MKD, image: torch.Tensor) -> torch.Tensor:
    image = image.clone().requires_grad_()
    source = method._source(image)
    x, clones = (image - method.encoder.mean) / method.encoder.std, []
    for stage, critical in zip(method.cloner.stages, method.cloner.critical, strict=True):
        x = stage(x)
        if critical:
            clones.append(x)
    scored = method.critical[-method.config.scored_layers :]
    direction, value = distances([source[i] for i in scored], [clones[i] for i in scored])
    method.zero_grad()
    (direction + method.value_weight * value).sum().backward()
    assert image.grad is not None
    return image.grad.abs().sum(dim=1, keepdim=True)


def fitting(data: Path) -> dict[str, Any]:
    began = time.perf_counter()
    detector = flawmap.fit(data, method="mkd", preset="cpu")
    return {
        "what": "fit of the CPU preset on cookie",
        "seconds": round(time.perf_counter() - began, 1),
        "stages": dict(detector.fitted.seconds),
    }


if __name__ == "__main__":
    main()

"""InTra: what it gains that visible patches are embedded once an image and windows go together.

    python benchmarks/intra_speed.py

times, at 256 px (256 windows an image), the making of the windows' token sequences (embedding and
gathering) and the whole inpainting, each beside the loop that one would write first: window by
window, its 49 patches cut, embedded and passed through the network alone. Both give the same
patches, which is checked. Training steps and maps are timed too, in float32 and, where the device
computes it natively, in bfloat16. The data are random: nothing here depends on what is seen.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import medians_in_turn, meta, say, write_results
from flawmap.config import EncoderConfig, TrainingConfig, make_config
from flawmap.encoders.encoder import build
from flawmap.methods.intra import InTra
from flawmap.training.device import computes_bfloat16, make_fabric


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--preset", choices=("cpu", "gpu"), action="append")
    parser.add_argument("--images", type=int, default=1, help="in a batch that is inpainted")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-training", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    precisions = ["float32"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if computes_bfloat16(device):
        precisions.append("bfloat16")
    rows = []
    for preset in args.preset or ["cpu", "gpu"]:
        for precision in precisions:
            rows.append(measured(args, preset, precision))
            say(str(rows[-1]))
    write_results(args.out / "intra_speed.json", rows, meta(size=args.size, images=args.images))


def measured(args: argparse.Namespace, preset: str, precision: str) -> dict[str, Any]:
    # As published: the loop knows no other form.
    form = {"method.position": "global", "method.start": "grey"}
    overrides = {"data.size": args.size, **form}
    config = make_config(method="intra", preset=preset, overrides=overrides)
    fabric = make_fabric(TrainingConfig(precision=precision))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    encoder = build(EncoderConfig(name="none"))
    method = InTra.build(config.method, encoder, config.data.size, generator)  # type: ignore[arg-type]
    method.to(fabric.device).eval()
    images = torch.rand(args.images, 3, args.size, args.size, generator=generator)
    images = images.to(fabric.device)

    def timed(*runs: Callable[[], Any]) -> list[float]:
        return medians_in_turn(runs, args.repeats, fabric.device)

    row: dict[str, Any] = {"preset": preset, "precision": precision}
    with torch.inference_mode(), fabric.autocast():
        once, each = timed(lambda: together(method, images), lambda: alone(method, images))
        row["embed_and_gather_ms"] = round(1000 * once, 2)
        row["embed_and_gather_loop_ms"] = round(1000 * each, 2)
        row["embed_and_gather_gain"] = round(each / once, 1)
        whole, loop, maps = timed(
            lambda: method.inpaint(images),
            lambda: painted_alone(method, images),
            lambda: method.anomaly_map((images,)),
        )
        row["inpaint_ms"] = round(1000 * whole, 1)
        row["inpaint_loop_ms"] = round(1000 * loop, 1)
        row["inpaint_gain"] = round(loop / whole, 2)
        wanted, found = painted_alone(method, images[:1]), method.inpaint(images[:1])
        row["largest_difference"] = float((wanted - found).abs().max())
        row["maps_per_second"] = round(len(images) / maps, 3)
    if not args.no_training:
        row["steps_per_second"] = round(1 / timed(step(method, config, fabric))[0], 3)
        row["windows_a_step"] = config.training.batch_size * config.method.windows  # type: ignore[attr-defined]
    return row


def together(method: InTra, images: Tensor) -> list[Tensor]:
    """Sequences of all windows of all images as the method makes them, some at a time."""
    patches = method.to_patches(images)
    table = method.table(patches)
    n = patches.shape[1]
    found = []
    for part in torch.arange(len(images) * n, device=images.device).split(
        method.config.windows_at_once
    ):
        index = method.in_window(method.starts[part % n])
        found.append(method.sequences(table, part // n, index, method.covered[part % n]))
    return found


def alone(method: InTra, images: Tensor) -> list[Tensor]:
    """The same sequences, each window cut and embedded by itself."""
    side, (_, columns), k = method.config.window, method.grid, method.config.patch
    found = []
    for image in images:
        for start, place in zip(method.starts.tolist(), method.covered.tolist(), strict=True):
            top, left = divmod(start, columns)
            cut = image[:, top * k : (top + side) * k, left * k : (left + side) * k]
            patches = cut.reshape(3, side, k, side, k).permute(1, 3, 0, 2, 4)
            tokens = method.embed(patches.reshape(side * side, -1)).float()
            rows = torch.arange(top, top + side, device=image.device)[:, None] * columns
            at = (rows + torch.arange(left, left + side, device=image.device)).flatten()
            tokens[place] = method.hidden
            found.append(tokens + method.positions[at])
    return found


def painted_alone(method: InTra, images: Tensor) -> Tensor:
    """What `InTra.inpaint` gives, window by window."""
    places = method.covered.repeat(len(images))
    patches = [
        method.paint(x[None], places[i : i + 1]).float()
        for i, x in enumerate(alone(method, images))
    ]
    return torch.cat(patches).view(len(images), -1, patches[0].shape[-1])


def step(method: InTra, config: Any, fabric: Any) -> Callable[[], None]:
    optimizer = method.train().optimizer()
    size = config.data.size
    images = torch.rand(config.training.batch_size, 3, *size, device=fabric.device).half()

    def one() -> None:
        with fabric.autocast():
            loss = method.loss((images,), 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return one


if __name__ == "__main__":
    main()

"""How many synthetic defects are drawn in a second.

    python benchmarks/synthesis_speed.py --data DIR --textures DIR

Worker processes draw on good images of one data set that lie in memory, as a training does.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common import meta, say, write_results
from flawmap.data import read_data, read_image
from flawmap.data.images import as_float
from flawmap.data.synthesis import Synthesis, list_textures, make_synthesis
from flawmap.data.transform import Transform
from flawmap.resources import one_blas_thread, usable_cores

KINDS: dict[str, dict[str, Any]] = {
    "blended textures, the default": {},
    "drawn textures": {"textures": ["procedural"]},
    "pieces of other images": {"textures": ["images"]},
    "patch": {"kinds": ["patch"]},
    "scar": {"kinds": ["scar"]},
    "all kinds, on the object": {"kinds": ["perlin", "patch", "scar"], "foreground": "auto"},
}

_pictures: list[npt.NDArray[np.float32]] = []
"""Of a worker process."""
_made: dict[str, Synthesis] = {}
_limit = ExitStack()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--textures", type=Path, help="a folder of pictures, for one more line")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--pictures", type=int, default=16, help="good images to draw on")
    parser.add_argument("--defects", type=int, default=1000, help="drawn in each repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=usable_cores())
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    table = read_data(args.data)
    paths = [s.path for s in table.select(split="train")][: args.pictures]
    rows = []
    kinds = dict(KINDS)
    if args.textures:
        kinds["pictures of a folder"] = {"textures": ["folder"], "texture_folder": args.textures}
    start = partial(load, paths, args.size)
    with ProcessPoolExecutor(args.workers, initializer=start) as workers:
        for name, options in kinds.items():
            job = partial(draw, options)
            numbers = range(args.defects)
            rates = []
            # The first round also starts the workers.
            for _ in range(args.repeats + 1):
                began = time.perf_counter()
                found = sum(workers.map(job, numbers, chunksize=25))
                rates.append(found / (time.perf_counter() - began))
            kept = rates[1:]
            row = {
                "defects": name,
                "images_per_second": round(statistics.median(kept), 1),
                "slowest": round(min(kept), 1),
                "fastest": round(max(kept), 1),
            }
            say(str(row))
            rows.append(row)
    about = meta(data=args.data.name, size=args.size, processes=args.workers, seed=0)
    if args.textures:
        about["folder"] = described(args.textures)
    write_results(args.out / "synthesis_speed.json", rows, about)


def described(folder: Path) -> str:
    """How many pictures a folder holds, and how large they are."""
    files = list_textures(folder)
    areas = [math.prod(read_image(file).shape[:2]) for file in files]
    total = sum(Path(file).stat().st_size for file in files) / 2**20
    side = round(math.sqrt(statistics.median(areas)))
    return f"{len(files)} pictures, {total:.1f} MiB, about {side} x {side} px"


def load(paths: list[str], size: int) -> None:
    """Read the pictures, once in each worker, which has one thread as a worker should."""
    _limit.enter_context(one_blas_thread())
    transform = Transform((size, size))
    _pictures.extend(as_float(transform(read_image(path))[0]) for path in paths)


def draw(options: dict[str, Any], number: int) -> bool:
    """One defect; whether any px is one."""
    if repr(options) not in _made:
        _made[repr(options)] = Synthesis(make_synthesis(options))
    synthesis = _made[repr(options)]
    image = _pictures[number % len(_pictures)]
    _, mask = synthesis(image, np.random.default_rng([0, number]), _pictures)
    return bool(mask.any())


if __name__ == "__main__":
    main()

"""Times exact AUPRO: flawmap, anomalib, and one global sort in float64 as the judge of the value.

Each runs in a process of its own, on one core with one thread, on the same seeded arrays. Time
covers everything from arrays to value, connected components included, imports and loading excluded.

    python benchmarks/aupro_speed.py --peer-python /path/to/an/environment/with/anomalib/bin/python

Without --peer-python, or if anomalib does not import there, the peer's row is left out.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_OUTPUT = ROOT / "benchmarks" / "results" / "aupro_speed.json"
FPR_LIMIT = 0.3
PEER_BATCH = 32


def make_arrays(n_images: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth noise with blobs: (N, size, size) float32 maps and bool masks.

    Three images in ten are good. On the others the map answers to most defects, but shifted, wider
    and with varying strength, and some texture scores as high as a weak defect.
    """
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    maps = np.empty((n_images, size, size), dtype=np.float32)
    masks = np.zeros((n_images, size, size), dtype=bool)
    for anomaly_map, mask in zip(maps, masks, strict=True):
        noise = gaussian_filter(rng.standard_normal((size, size), dtype=np.float32), 4)
        anomaly_map[:] = noise / noise.std()
        n_blobs = 0 if rng.random() < 0.3 else int(rng.integers(1, 5))
        for _ in range(n_blobs):
            y, x = rng.uniform(0, size, 2)
            height, width = rng.uniform(0.01, 0.1, 2) * size
            mask |= ((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 < 1
            dy, dx = rng.normal(0, 0.3, 2) * (height, width)
            distance = ((rows - y - dy) / height) ** 2 + ((columns - x - dx) / width) ** 2
            anomaly_map += rng.gamma(2, 1.5) * np.exp(-distance / 2)
    return maps, masks


def prepare_flawmap() -> tuple[Callable[[np.ndarray, np.ndarray], float], list[str]]:
    from flawmap.metrics import aupro

    return lambda maps, masks: aupro(maps, masks, FPR_LIMIT), ["numpy", "scipy"]


def prepare_anomalib() -> tuple[Callable[[np.ndarray, np.ndarray], float], list[str]]:
    import torch

    # The public AUPRO only adds the unpacking of anomalib's own batches to this class.
    from anomalib.metrics.aupro import _AUPRO

    torch.set_num_threads(1)

    def compute(maps: np.ndarray, masks: np.ndarray) -> float:
        metric = _AUPRO(fpr_limit=FPR_LIMIT)
        for start in range(0, len(maps), PEER_BATCH):
            batch = slice(start, start + PEER_BATCH)
            metric.update(torch.from_numpy(maps[batch]), torch.from_numpy(masks[batch]).int())
        return float(metric.compute())

    return compute, ["anomalib", "torch", "numpy"]


def prepare_global_sort() -> tuple[Callable[[np.ndarray, np.ndarray], float], list[str]]:
    from scipy.ndimage import label

    def compute(maps: np.ndarray, masks: np.ndarray) -> float:
        weights = np.zeros(masks.shape)
        n_regions = 0
        for mask, weight in zip(masks, weights, strict=True):
            regions, n = label(mask, structure=np.ones((3, 3)))
            weight[mask] = 1 / np.bincount(regions.ravel())[regions[mask]]
            n_regions += n
        order = np.argsort(maps, axis=None)[::-1]
        scores = maps.ravel()[order]
        last_of_ties = np.append(scores[1:] != scores[:-1], True)
        fpr = np.cumsum(~masks.ravel()[order])[last_of_ties] / np.count_nonzero(~masks)
        pro = np.cumsum(weights.ravel()[order])[last_of_ties] / n_regions
        fpr, pro = np.append(0.0, fpr), np.append(0.0, pro)
        at_limit = np.interp(FPR_LIMIT, fpr, pro)
        inside = fpr < FPR_LIMIT
        fpr, pro = np.append(fpr[inside], FPR_LIMIT), np.append(pro[inside], at_limit)
        return float(np.sum(np.diff(fpr) * (pro[1:] + pro[:-1]) / 2) / FPR_LIMIT)

    return compute, ["numpy", "scipy"]


CONTENDERS = {
    "flawmap": prepare_flawmap,
    "anomalib": prepare_anomalib,
    "global sort, float64": prepare_global_sort,
}


def peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def work(name: str, arrays: Path, repeats: int) -> None:
    """Runs one contender in this process and prints its result as a line of JSON."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    compute, packages = CONTENDERS[name]()
    with np.load(arrays) as stored:
        maps, masks = stored["maps"], stored["masks"]
    before = peak_mb()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        value = compute(maps, masks)
        seconds.append(time.perf_counter() - start)
    result = {
        "value": value,
        "seconds": statistics.median(seconds),
        "seconds_each": seconds,
        "peak_mb": peak_mb(),
        "peak_mb_before": before,
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }
    print(json.dumps(result))


def run(name: str, python: str, arrays: Path, repeats: int) -> dict[str, object] | None:
    """Starts a contender; None, with the reason on stderr, if it cannot run."""
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
    command = [python, __file__, "--worker", name, "--arrays", arrays, "--repeats", repeats]
    try:
        done = subprocess.run(
            [str(part) for part in command],
            env=os.environ | threads,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        print(f"{name}: left out: {reason.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def print_table(results: dict[str, dict[str, object]]) -> None:
    print(f"{'':22}{'AUPRO':>14}{'seconds':>10}{'peak MB':>10}{'of it arrays, imports':>24}")
    for name, result in results.items():
        print(
            f"{name:22}{result['value']:14.10f}{result['seconds']:10.2f}"
            f"{result['peak_mb']:10.0f}{result['peak_mb_before']:24.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", help="interpreter of an environment with anomalib")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--size", type=int, default=256, help="height and width in px")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3, help="the median counts")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--arrays", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.arrays, options.repeats)
        return

    # Not above: the peer's environment, which runs the workers, has no flawmap.
    from common import commit

    maps, masks = make_arrays(options.images, options.size, options.seed)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        arrays = Path(folder) / "arrays.npz"
        np.savez(arrays, maps=maps, masks=masks)
        for name in CONTENDERS:
            python = options.peer_python if name == "anomalib" else sys.executable
            if python is None:
                print(f"{name}: left out: no --peer-python given", file=sys.stderr)
                continue
            result = run(name, python, arrays, options.repeats)
            if result is not None:
                results[name] = result
    report = {
        "what": "exact AUPRO, one core, one thread; seconds are the median of the repeats",
        "images": options.images,
        "size": options.size,
        "seed": options.seed,
        "fpr_limit": FPR_LIMIT,
        "good_images": int(np.count_nonzero(~masks.any(axis=(1, 2)))),
        "defect_pixel_share": float(masks.mean()),
        "cpu": cpu_name(),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "results": results,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    print_table(results)


if __name__ == "__main__":
    main()

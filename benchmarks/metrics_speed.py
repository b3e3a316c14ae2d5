"""Times the seven exact metrics against the number of maps: flawmap, anomalib, and a global sort.

The global sort in float64 is the judge of the values. Each implementation runs in a process of its
own on the same drawn maps, at each number of maps. Time covers everything from arrays to values,
connected components included, imports and loading excluded. A process that takes too much memory or
time is stopped, and that is what its row says.

    python benchmarks/metrics_speed.py --peer-python ENVIRONMENT/bin/python

The environment is one with anomalib; without it the rows of anomalib are left out.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_OUTPUT = ROOT / "benchmarks" / "results" / "metrics_speed.json"
COUNTS = (100, 250, 500, 1000, 1725, 3450)
HEADLINE_COUNT = 1725
"""MVTec AD's test images."""
FPR_LIMIT = 0.3
PEER_BATCH = 32
SEVEN = (
    "image_auroc",
    "image_ap",
    "image_f1max",
    "pixel_auroc",
    "pixel_ap",
    "pixel_f1max",
    "aupro",
)

Values = dict[str, float]
Compute = Callable[[np.ndarray, np.ndarray], Values]


def draw(n_images: int, size: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Smooth noise with blobs: (size, size) float32 maps and bool masks.

    Three images in ten are good. On the others the map answers to most defects, but shifted, wider
    and with varying strength, and some texture scores as high as a weak defect. A larger number of
    images begins with those of a smaller one.
    """
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    for _ in range(n_images):
        noise = gaussian_filter(rng.standard_normal((size, size), dtype=np.float32), 4)
        anomaly_map = noise / noise.std()
        mask = np.zeros((size, size), dtype=bool)
        n_blobs = 0 if rng.random() < 0.3 else int(rng.integers(1, 5))
        for _ in range(n_blobs):
            y, x = rng.uniform(0, size, 2)
            height, width = rng.uniform(0.01, 0.1, 2) * size
            mask |= ((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 < 1
            dy, dx = rng.normal(0, 0.3, 2) * (height, width)
            distance = ((rows - y - dy) / height) ** 2 + ((columns - x - dx) / width) ** 2
            anomaly_map += (rng.gamma(2, 1.5) * np.exp(-distance / 2)).astype(np.float32)
        yield anomaly_map, mask


def prepare_flawmap() -> tuple[Compute, list[str]]:
    from flawmap.metrics import PixelScores, auroc, average_precision, f1_max

    def compute(maps: np.ndarray, masks: np.ndarray) -> Values:
        labels, scores = masks.any(axis=(1, 2)), maps.max(axis=(1, 2))
        with PixelScores() as pixels:
            for anomaly_map, mask, is_defect in zip(maps, masks, labels, strict=True):
                pixels.add(anomaly_map, mask if is_defect else None)
            found = pixels.compute(FPR_LIMIT)
        return {
            "image_auroc": auroc(labels, scores),
            "image_ap": average_precision(labels, scores),
            "image_f1max": f1_max(labels, scores)[0],
            **{name: getattr(found, name) for name in SEVEN[3:]},
        }

    return compute, ["numpy", "scipy"]


def prepare_anomalib(metric: str) -> tuple[Compute, list[str]]:
    import torch

    # The public classes only add the unpacking of anomalib's own batches to these.
    from anomalib.metrics.aupro import _AUPRO
    from anomalib.metrics.auroc import _AUROC
    from anomalib.metrics.f1_score import _F1Max

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    made = {
        "pixel_auroc": _AUROC,
        "pixel_f1max": _F1Max,
        "aupro": lambda: _AUPRO(fpr_limit=FPR_LIMIT),
    }[metric]

    def compute(maps: np.ndarray, masks: np.ndarray) -> Values:
        found = made()
        for start in range(0, len(maps), PEER_BATCH):
            batch = slice(start, start + PEER_BATCH)
            scores = torch.from_numpy(maps[batch])
            labels = torch.from_numpy(masks[batch]).int()
            if metric == "aupro":
                found.update(scores, labels)
            else:
                found.update(scores.flatten(), labels.flatten())
        return {metric: float(found.compute())}

    return compute, ["anomalib", "torch", "torchmetrics"]


def prepare_global_sort() -> tuple[Compute, list[str]]:
    from scipy.ndimage import label

    def steps(
        scores: np.ndarray, is_defect: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The order from the top, where each distinct score ends, and the counts there."""
        order = np.argsort(scores, axis=None)[::-1]
        ordered = scores.ravel()[order]
        ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
        found = np.cumsum(is_defect.ravel()[order])[ends]
        return order, ends, found, ends + 1 - found

    def ranking(found: np.ndarray, false: np.ndarray) -> tuple[float, float, float]:
        recall = np.append(0.0, found / found[-1])
        fpr = np.append(0.0, false / false[-1])
        area = float(np.sum(np.diff(fpr) * (recall[1:] + recall[:-1]) / 2))
        ap = float(np.sum(np.diff(recall) * (found / (found + false))))
        return area, ap, float(np.max(2 * found / (found[-1] + found + false)))

    def compute(maps: np.ndarray, masks: np.ndarray) -> Values:
        *_, found, false = steps(maps.max(axis=(1, 2)), masks.any(axis=(1, 2)))
        values = ranking(found, false)
        order, ends, found, false = steps(maps, masks)
        values += ranking(found, false)
        fpr = np.append(0.0, false / false[-1])
        del found, false
        weights = np.zeros(masks.shape)
        n_regions = 0
        for mask, weight in zip(masks, weights, strict=True):
            regions, n = label(mask, structure=np.ones((3, 3)))
            weight[mask] = 1 / np.bincount(regions.ravel())[regions[mask]]
            n_regions += n
        pro = np.append(0.0, np.cumsum(weights.ravel()[order])[ends] / n_regions)
        at_limit = np.interp(FPR_LIMIT, fpr, pro)
        inside = fpr < FPR_LIMIT
        fpr, pro = np.append(fpr[inside], FPR_LIMIT), np.append(pro[inside], at_limit)
        area = float(np.sum(np.diff(fpr) * (pro[1:] + pro[:-1]) / 2) / FPR_LIMIT)
        return dict(zip(SEVEN, (*values, area), strict=True))

    return compute, ["numpy", "scipy"]


JUDGE = "global sort, float64"
CONTENDERS: Mapping[str, tuple[str, Callable[[], tuple[Compute, list[str]]]]] = {
    "flawmap": ("all seven", prepare_flawmap),
    JUDGE: ("all seven", prepare_global_sort),
    "anomalib AUROC": ("pixel AUROC", lambda: prepare_anomalib("pixel_auroc")),
    "anomalib F1Max": ("pixel F1-max", lambda: prepare_anomalib("pixel_f1max")),
    "anomalib AUPRO": ("AUPRO", lambda: prepare_anomalib("aupro")),
}
"""Name: what it computes, and how; the judge before those that are judged by it."""


def peak_mb() -> float:
    """The most memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: a process starts with the peak of the one that forked it.
        return _kilobytes(status, "VmHWM") / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _kilobytes(status: Path, field: str) -> int:
    try:
        lines = status.read_text().splitlines()
    except OSError:  # the process has just ended
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(field)), 0)


def work(name: str, folder: Path, size: int, n_images: int, repeats: int, threads: int) -> None:
    """Runs one contender in this process and prints its result as a line of JSON."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[-threads:]))
    compute, packages = CONTENDERS[name][1]()
    shape = (n_images, size, size)
    n_items = n_images * size * size
    # Not mapped: pages of a mapped file would count as the contender's memory.
    maps = np.fromfile(folder / "maps", dtype=np.float32, count=n_items).reshape(shape)
    masks = np.fromfile(folder / "masks", dtype=np.bool_, count=n_items).reshape(shape)
    before = peak_mb()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        values = compute(maps, masks)
        seconds.append(time.perf_counter() - start)
    result = {
        "values": values,
        "seconds": statistics.median(seconds),
        "peak_mb": peak_mb(),
        "before_mb": before,
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }
    print(json.dumps(result))


def run_limited(
    command: Sequence[str], *, seconds: float, megabytes: float, threads: int
) -> dict[str, Any]:
    """The last line of a process' output as JSON, or {"failed": why} for one that gave none."""
    variables = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            process = subprocess.Popen(command, env=os.environ | variables, stdout=out, stderr=err)
        except OSError as error:
            return {"failed": str(error)}
        deadline = time.monotonic() + seconds
        status = Path(f"/proc/{process.pid}/status")
        stopped = ""
        while not stopped:
            try:
                process.wait(timeout=0.1)
                break
            except subprocess.TimeoutExpired:
                if time.monotonic() > deadline:
                    stopped = f"over {seconds:g} s"
                elif _kilobytes(status, "VmRSS") / 2**10 > megabytes:
                    stopped = f"over {megabytes / 2**10:g} GB"
        if stopped:
            process.kill()
            process.wait()
            return {"failed": stopped}
        if process.returncode:
            err.seek(0)
            reason = err.read().strip().splitlines()
            return {"failed": reason[-1] if reason else f"exit status {process.returncode}"}
        out.seek(0)
        result: dict[str, Any] = json.loads(out.read().splitlines()[-1])
        return result


def row_of(name: str, n_images: int, result: Mapping[str, Any], judge: Values) -> dict[str, Any]:
    """A row of the results; `judge` holds the right values, as far as they are known."""
    row = {"implementation": name, "computes": CONTENDERS[name][0], "maps": n_images}
    if "failed" in result:
        return {**row, "stopped": result["failed"]}
    values = result["values"]
    differences = [abs(values[key] - judge[key]) for key in values if key in judge]
    return {
        **row,
        "seconds": round(result["seconds"], 2),
        "peak_memory_MB": round(result["peak_mb"]),
        "of_it_before_the_call_MB": round(result["before_mb"]),
        "largest_difference": max(differences) if differences and name != JUDGE else None,
        "values": values,
    }


def chart(rows: Sequence[Mapping[str, Any]], path: Path, caption: str) -> None:
    """Seconds and peak memory against the number of maps, as an SVG file."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    style = {"svg.hashsalt": "flawmap", "svg.fonttype": "none", "font.family": "sans-serif"}
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
        panels = (("seconds", "seconds", 1.0), ("peak_memory_MB", "peak memory, GB", 2**10))
        for axis, (key, label, unit) in zip(axes, panels, strict=True):
            for name in dict.fromkeys(row["implementation"] for row in rows):
                mine = [row for row in rows if row["implementation"] == name]
                done = [row for row in mine if key in row]
                stopped = [row for row in mine if row.get("stopped")]
                shown = f"{name} ({mine[0]['computes']})"
                if stopped:
                    shown += f", stopped at {stopped[0]['maps']}: {stopped[0]['stopped']}"
                axis.plot(
                    [row["maps"] for row in done],
                    [row[key] / unit for row in done],
                    marker="o",
                    linewidth=2.5 if name == "flawmap" else 1.2,
                    linestyle="--" if name == JUDGE else "-",
                    label=shown,
                )
            counts = sorted({row["maps"] for row in rows})
            axis.set(xscale="log", yscale="log", xlabel="maps of a category", ylabel=label)
            axis.set_xticks(counts, [f"{n:,}" for n in counts])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
        figure.suptitle(caption, fontsize=10)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})
        pyplot.close(figure)


def options_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", help="interpreter of an environment with anomalib")
    parser.add_argument("--maps", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--size", type=int, default=256, help="height and width in px")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3, help="the median counts")
    parser.add_argument("--threads", type=int, default=2, help="cores, and threads of libraries")
    parser.add_argument("--seconds", type=float, default=600, help="limit of one repeat")
    parser.add_argument("--memory-gb", type=float, default=16, help="limit of one process")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="the chart lies beside")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = options_of()
    if options.worker:
        (n_images,) = options.maps
        work(
            options.worker,
            options.folder,
            options.size,
            n_images,
            options.repeats,
            options.threads,
        )
        return

    # Not above: the peer's environment, which runs the workers, has no flawmap.
    from common import meta, write_results

    about = meta(threads=options.threads)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        good = n_defects = 0
        with (folder / "maps").open("wb") as maps, (folder / "masks").open("wb") as masks:
            for anomaly_map, mask in draw(max(options.maps), options.size, options.seed):
                anomaly_map.tofile(maps)
                mask.tofile(masks)
                good += not mask.any()
                n_defects += int(mask.sum())
        n_all = max(options.maps)
        about |= {
            "what": "the seven metrics from arrays to values, exact; each implementation in a "
            "process of its own; seconds are the median of the repeats; flawmap uses one thread",
            "data": f"drawn maps of {options.size} x {options.size}; of {n_all:,}, {good:,} are "
            f"without a defect, and {n_defects / (n_all * options.size**2):.2%} of the px are "
            "defects",
            "seeds": options.seed,
            "repeats": options.repeats,
            "limits": f"{options.seconds:g} s and {options.memory_gb:g} GB",
            "headline_maps": HEADLINE_COUNT if HEADLINE_COUNT in options.maps else n_all,
        }
        for n_images in sorted(options.maps):
            found: dict[str, dict[str, Any]] = {}
            for name in CONTENDERS:
                python = options.peer_python if name.startswith("anomalib") else sys.executable
                if python is None:
                    continue
                command = [python, __file__, "--worker", name, "--folder", folder]
                for key in ("size", "repeats", "threads"):
                    command += [f"--{key}", getattr(options, key)]
                found[name] = run_limited(
                    [str(part) for part in (*command, "--maps", n_images)],
                    seconds=options.seconds * options.repeats,
                    megabytes=options.memory_gb * 2**10,
                    threads=options.threads,
                )
                versions = found[name].get("versions", {})
                if name.startswith("anomalib"):
                    # Its environment has libraries of its own.
                    own = versions.items()
                    versions = {k if k == "anomalib" else f"{k} of anomalib": v for k, v in own}
                about["versions"] |= versions
            judge = found[JUDGE].get("values", {})
            for name, result in found.items():
                rows.append(row_of(name, n_images, result, judge))
                print({key: value for key, value in rows[-1].items() if key != "values"})
            # After each number of maps: what is done is kept if the rest is interrupted.
            write_results(options.output, rows, about)
    caption = f"Exact metrics of {options.size} x {options.size} maps, {about['device']}"
    chart(rows, options.output.with_suffix(".svg"), caption)


if __name__ == "__main__":
    main()

"""What one cell costs and how good it is. Each stage runs in a process of its own:

    python -m flawmap.bench.measure fit JOB.json
    python -m flawmap.bench.measure score JOB.json

Fitting writes a bundle, scoring begins with that file alone: its memory and its times are those of
a machine that only inspects. A stage writes its result beside the job, or the error that ended it.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flawmap.bench.environment import environment, peak_memory_mib
from flawmap.config import validate
from flawmap.data.detect import read_joined
from flawmap.data.samples import SampleTable
from flawmap.errors import DataError, FlawmapError
from flawmap.files import write_text
from flawmap.progress import Plain

if TYPE_CHECKING:
    from flawmap.detector import Detector
    from flawmap.types import Sample

STAGES = ("fit", "score")

BUNDLE = "model.flawmap"
"""What a fit writes beside its job."""

_LAST_SECONDS = 15.0

_LATENCY_IMAGES = 50
_WARM_UP = 5
_THROUGHPUT_IMAGES = 256


def main() -> None:
    """Run one stage of a job."""
    stage, job_path = sys.argv[1], Path(sys.argv[2])
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    job = json.loads(job_path.read_text(encoding="utf-8"))
    target = job_path.with_name(f"{stage}.json")
    try:
        result = {"fit": fit, "score": score}[stage](job, job_path.parent)
    except FlawmapError as error:
        result = {**error.to_dict(), "exit_code": error.exit_code}
        target = job_path.with_name(f"{stage}.error.json")
        _write(target, result)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    _write(target, result)


def _end_with_the_parent() -> None:
    """Standard input is a pipe that closes when the benchmark is gone: nobody wants this then."""
    # Not through sys.stdin: its lock, held by this thread, would spoil the end of the process.
    while os.read(0, 1):
        pass
    # Politely first: a fit saves a checkpoint.
    signal.raise_signal(signal.SIGTERM)
    time.sleep(_LAST_SECONDS)
    os._exit(1)


def fit(job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Fit and write the bundle.

    Returns:
        fit_seconds (with reading and calibration), whether an earlier process had begun it (then
        the seconds are those of the last one alone), fit_peak_memory_mib, bundle_bytes, the stages'
        seconds, and of each model (iteration, loss of held-out images).
    """
    from flawmap.api import fit as fit_detector
    from flawmap.training.fit import run_folder_of

    config = validate(job["config"])
    table = _table(job)
    bundle = folder / BUNDLE
    resumed = run_folder_of(bundle).exists()
    began = time.perf_counter()
    detector = fit_detector(table, output=bundle, config=config, resume=True, progress=Plain())
    return {
        "fit_seconds": time.perf_counter() - began,
        "fit_resumed": resumed,
        "stage_seconds": dict(detector.fitted.seconds),
        "fit_peak_memory_mib": peak_memory_mib(),
        "fit_peak_gpu_memory_mib": _gpu_memory_mib(),
        "learnt_images": detector.fitted.data["learnt_images"],
        "validation_losses": {
            name: curve["validation"]["losses"]
            for name, curve in detector.fitted.curves.items()
            if curve["validation"]["losses"]
        },
        "bundle_bytes": bundle.stat().st_size,
    }


def score(job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Load the bundle, time it, and evaluate it.

    Returns:
        cost, figures and scores as in `results.Outcome`, and the environment.
    """
    from flawmap.evaluation import evaluate_table
    from flawmap.loading import load

    config = validate(job["config"])
    bundle = folder / job.get("bundle", BUNDLE)
    detector = load(bundle, device=config.training.device)
    table = _table(job)
    test = table.require_tested()
    cost: dict[str, Any] = {**networks(detector, test[0]), **latency(detector, test)}
    cost["images_per_second"] = throughput(detector, test)
    # Before the metrics, which keep all scores of a category.
    cost["score_peak_memory_mib"] = peak_memory_mib()
    cost["score_peak_gpu_memory_mib"] = _gpu_memory_mib()
    result = evaluate_table(detector, table, metrics=job["metrics"], progress=Plain())
    about = environment(detector.fabric.device)
    # Those that the cell began and ended with, which differ if one was made in between.
    commits = [commit for commit in (job.get("commit"), about["commit"]) if commit]
    return {
        "cost": cost,
        "figures": {
            name: {metric: _number(value) for metric, value in found.metrics.items()}
            for name, found in result.categories.items()
        },
        "counts": {name: dict(found.counts) for name, found in result.categories.items()},
        "scores": [
            (name, table.relative(r.sample.path), r.sample.label, r.sample.defect, r.score)
            for name, found in result.categories.items()
            for r in found.images
        ],
        "environment": {
            **about,
            "commit": "; ".join(dict.fromkeys(commits)) or None,
            "jobs": job["jobs"],
            "encoder_sha256": detector.encoder.fingerprint,
            "precision": detector.fitted.precision,
        },
    }


def networks(detector: Detector, sample: Sample) -> dict[str, float]:
    """Parameters, and multiply-accumulates of scoring one image.

    The encoder counts with the blocks that are computed; of several separate models one counts,
    since one scores an image. Multiply-accumulates are those of torch's matrix products and
    convolutions as they are done here, a search among stored neighbours included.
    """
    from torch.utils.flop_counter import FlopCounterMode

    method = next(iter(detector.models.values()))
    parameters = sum(
        p.numel() for module in (detector.encoder, method) for p in module.parameters()
    )
    with FlopCounterMode(display=False) as counter:
        detector.predict(sample.path, category=sample.category)
    return {"parameters": parameters, "macs": counter.get_total_flops() // 2}


def latency(detector: Detector, samples: Sequence[Sample]) -> dict[str, float]:
    """Milliseconds from a file's name to its prediction, one image at a time.

    Returns:
        latency_p50_ms and latency_p95_ms.
    """
    import numpy as np

    times = []
    for sample in _taken(samples, _LATENCY_IMAGES + _WARM_UP):
        began = time.perf_counter()
        detector.predict(sample.path, category=sample.category, batch_size=1)
        times.append(1000 * (time.perf_counter() - began))
    p50, p95 = np.percentile(times[_WARM_UP:], [50, 95])
    return {"latency_p50_ms": float(p50), "latency_p95_ms": float(p95)}


def throughput(detector: Detector, samples: Sequence[Sample]) -> float:
    """Images/s from files to predictions, in batches, after one batch that does not count."""
    batch = detector.config.training.batch_size
    for _ in detector.predict_samples(_taken(samples, batch)):
        pass
    chosen = _taken(samples, max(_THROUGHPUT_IMAGES, 4 * batch))
    began = time.perf_counter()
    n = sum(1 for _ in detector.predict_samples(chosen))
    return n / (time.perf_counter() - began)


def _table(job: Mapping[str, Any]) -> SampleTable:
    table = read_joined(
        job["path"], format=job["format"], categories=job["categories"], seed=job["config"]["seed"]
    )
    if table.fingerprint() != job["fingerprint"]:
        raise DataError(
            "the data changed since the grid was listed",
            where=table.root,
            hint="start the benchmark again; finished cells of the old data stay",
        )
    return table


def _taken(samples: Sequence[Sample], n: int) -> list[Sample]:
    """n samples, evenly over the list, so good and defective ones; a short list is repeated."""
    step = max(1, math.ceil(len(samples) / n))
    return list(itertools.islice(itertools.cycle(samples[::step]), n))


def _gpu_memory_mib() -> float | None:
    import torch

    # Nothing was ever allocated there when the CPU computed.
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return peak / 2**20 or None


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _write(path: Path, result: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(result), error=FlawmapError)


if __name__ == "__main__":
    main()

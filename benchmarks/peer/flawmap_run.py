"""flawmap's side of a cell: fits, scores from files, and writes times, memory, maps and scores.

    python benchmarks/peer/flawmap_run.py JOB.json

The counterpart of anomalib_run.py: a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    answer = Path(job["out"]) / "result.json"
    try:
        found = run(job)
    except Exception as error:  # The cell fails, the others go on.
        traceback.print_exc()
        found = {"reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    answer.with_suffix(".part").write_text(json.dumps(found))
    answer.with_suffix(".part").replace(answer)


def run(job: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    import torch

    import flawmap
    from flawmap.bench.environment import peak_memory_mib
    from flawmap.data.samples import SampleTable
    from flawmap.pixels import STANDARD_SIZE
    from flawmap.types import Sample

    torch.set_num_threads(job["threads"])
    out = Path(job["out"])
    train, test = (
        [Sample(**{**s, "masks": tuple(s["masks"])}) for s in job[name]]
        for name in ("train", "test")
    )
    table = SampleTable(root=job["root"], format="benchmark", samples=tuple(train))
    began = time.perf_counter()
    detector = flawmap.fit(
        table,
        method=job["method"],
        seed=job["seed"],
        options=job["options"],
        time_budget=job.get("train_seconds"),
    )
    fit_seconds = time.perf_counter() - began
    scores = np.empty(len(test), np.float32)
    began = time.perf_counter()
    with (out / "maps.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (len(test), *STANDARD_SIZE)}
        )
        for index, (_, geometry, raw) in enumerate(detector.raw_maps(test)):
            scores[index], _ = detector.scorer.score(raw, geometry)
            file.write(detector.scorer.map(raw, geometry, STANDARD_SIZE).tobytes())
    score_seconds = time.perf_counter() - began
    np.save(out / "scores.npy", scores)
    curves = detector.fitted.curves.values()
    return {
        "version": flawmap.__version__,
        "fit_seconds": fit_seconds,
        "score_seconds": score_seconds,
        "peak_memory_mb": round(peak_memory_mib() or 0),
        "encoder": detector.config.encoder.name,
        "size": detector.config.data.size[0],
        "steps": max((curve.get("steps") or 0 for curve in curves), default=0) or None,
    }


if __name__ == "__main__":
    main()

"""What several benchmarks share: what stands beside figures, cells in processes, weights."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splits import BY_PART, split_by_part

if TYPE_CHECKING:
    import numpy as np
    import torch

    from flawmap.bench.results import StoredCell
    from flawmap.data.samples import SampleTable
    from flawmap.types import Sample

PEER_VERSION = "2.7.0"
"""Of anomalib, where an environment for it is made."""

KILLED = "killed by the system"
"""How the reason of a process begins that was ended from outside, as for want of memory."""

PEER_SCRIPT = Path(__file__).parent / "peer" / "anomalib_run.py"


def meta(**more: Any) -> dict[str, Any]:
    """Device, versions, commit and date, and how data is split."""
    from flawmap.bench.environment import environment

    return {**environment(), "split": BY_PART, **more}


def meta_of(cells: Sequence[StoredCell], beside: Sequence[StoredCell] = ()) -> dict[str, Any]:
    """What a results file says of figures that come from cells of `flawmap bench`.

    Args:
        cells: Whose seeds and encoder are told.
        beside: Others, whose commits, devices, dates and versions count too.
    """

    def of_all(key: str) -> str:
        return "; ".join(sorted({str(c.environment[key]) for c in (*cells, *beside)}))

    def of_versions(cell: StoredCell) -> str:
        return ", ".join(f"{k} {v}" for k, v in cell.environment["versions"].items())

    about = {
        **cells[0].environment,
        **{key: of_all(key) for key in ("commit", "device", "date")},
        "versions": "; ".join(sorted({of_versions(c) for c in (*cells, *beside)})),
        "seeds": sorted({cell.seed for cell in cells}),
        "encoder": cells[0].encoder,
    }
    if split_by_part(c.environment for c in (*cells, *beside)):
        about["split"] = BY_PART
    for key in ("data_versions", "jobs", "encoder_sha256", "precision"):
        about.pop(key, None)
    return about


def of_images(row: Mapping[str, Any], fingerprint: str, *, what: str) -> bool:
    """Whether a stored row was measured on the images with this fingerprint.

    A row of an earlier version does not say on which: it counts, and a note names it.
    """
    if "fingerprint" not in row:
        say(f"{what}: kept, without a word of which images it saw")
    return row.get("fingerprint", fingerprint) == fingerprint


def write_results(path: Path, rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """A small JSON file: {"meta": ..., "rows": [...]}; an old one stays whole until then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"meta": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
    print(f"wrote {path}")


def run_cell(
    python: str | os.PathLike[str],
    script: Path,
    job: dict[str, Any],
    folder: Path,
    *,
    limit_seconds: float | None = None,
    pythonpath: Path | None = None,
) -> dict[str, Any]:
    """A job in a process of its own; what it prints goes to `folder`/log.txt.

    Args:
        python: The interpreter.
        script: Called with the path of the job, writes result.json into the job's `out`.
        job: What the script is told; `out` is added.
        folder: Where the job, its log and its outputs lie.
        limit_seconds: After this time the process and its children are ended.
        pythonpath: For flawmap's own code; None for another library's environment.

    Returns:
        What the script wrote; {"reason": ...} if it failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    answer = folder / "result.json"
    answer.unlink(missing_ok=True)
    (folder / "job.json").write_text(json.dumps({**job, "out": str(folder)}), encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if pythonpath is not None:
        environment["PYTHONPATH"] = str(pythonpath)
    over = False
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [python, script, folder / "job.json"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            over = True
        finally:
            # Its helpers too; nothing is left of it when this benchmark is stopped.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if answer.is_file():
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return found
    if over:
        return {"reason": f"over the limit of {limit_seconds / 60:.3g} minutes"}
    if process.returncode == -signal.SIGKILL:
        return {"reason": f"{KILLED}, probably because the memory was full"}
    return {"reason": f"ended with status {process.returncode} and no result, see its log"}


def peer_versions(python: Path) -> dict[str, str]:
    """Versions of anomalib and its torch in another environment.

    Raises:
        SystemExit: There is no such interpreter, or it has no anomalib.
    """
    code = (
        "import json; from importlib.metadata import version; import anomalib; "
        "print(json.dumps([version('anomalib'), version('torch')]))"
    )
    hint = "give an interpreter whose environment has anomalib, or leave --peer-python out"
    try:
        done = subprocess.run(
            [python, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise SystemExit(f"--peer-python: {python} cannot be run ({error}); {hint}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SystemExit(f"--peer-python: {python} cannot import anomalib ({last}); {hint}")
    anomalib, torch = json.loads(done.stdout.strip().splitlines()[-1])
    return {"anomalib": anomalib, "torch of anomalib": torch}


def set_up_peer(folder: Path) -> Path:
    """The interpreter of an environment with anomalib, made if it is not there.

    Raises:
        SystemExit: It could not be installed.
    """
    folder = folder.resolve()
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    done = folder / ".complete"
    if done.is_file():
        return python
    say(f"installing anomalib {PEER_VERSION} into {folder} (some minutes, needs the package index)")
    venv.create(folder, with_pip=True, clear=True)
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # torch and torchvision from the same place in one command: separate builds do not fit.
    packages = [f"anomalib=={PEER_VERSION}", "torch", "torchvision", "safetensors"]
    if subprocess.run([*command, *packages], check=False).returncode:
        raise SystemExit(
            f"anomalib could not be installed into {folder}: the package index is needed once; "
            "or name an environment that has anomalib with --peer-python"
        )
    done.touch()
    return python


def peer_job(
    encoder: str,
    size: int,
    *,
    weights_folder: Path,
    train: Sequence[str],
    test: Sequence[str],
    labels: Sequence[int],
    seed: int = 0,
    batch_size: int = 16,
    workers: int = 2,
    limit_seconds: float = math.inf,
) -> dict[str, Any]:
    """What peer/anomalib_run.py needs to know of every method, beside its class and options.

    Args:
        encoder: flawmap's name of the encoder whose weights are put in.
        size: Height and width of the network input in px.
        weights_folder: Where the weights are written under timm's names.
        train: Good images.
        test: Test images.
        labels: 0 good, 1 defect, for each test image.
        seed: Decides everything random.
        batch_size: Training images at a time.
        workers: Processes that load images.
        limit_seconds: What cannot end within this time gives up as soon as that is foreseen.
    """
    import torch

    from flawmap.encoders.table import ENCODERS

    spec = ENCODERS[encoder]
    return {
        "backbone": spec.timm_name,
        "weights": str(save_weights(encoder, weights_folder)),
        "size": size,
        "mean": spec.mean,
        "std": spec.std,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "workers": workers,
        "batch_size": batch_size,
        "eval_batch_size": 16,
        "limit_seconds": limit_seconds,
        "train": list(train),
        "test": list(test),
        "labels": list(labels),
        "masks": None,
    }


def save_weights(encoder: str, folder: Path) -> Path:
    """An encoder's weights under timm's own names, for a library that knows timm only."""
    from safetensors.torch import save_file

    from flawmap.config import EncoderConfig
    from flawmap.encoders.encoder import pretrained, resolve

    path = folder / f"{encoder}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    state = pretrained(resolve(encoder), EncoderConfig(name=encoder)).state_dict()
    save_file({name: value.contiguous().clone() for name, value in state.items()}, path)
    return path


def free_tiles(place: Path) -> list[Path]:
    """The good images of the magnetic-tile data set, by name."""
    return sorted((place / "MT_Free" / "Imgs").glob("*.jpg"))


def good_table(paths: Iterable[Path], category: str, root: Path) -> SampleTable:
    """Good images to learn."""
    from flawmap.data.samples import SampleTable
    from flawmap.types import Sample

    samples = tuple(Sample(str(path), category, "train", 0, "good") for path in paths)
    return SampleTable(root=str(root), format="benchmark", samples=samples)


def median_seconds(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """The median time of a run, after one to warm up."""
    return medians_in_turn([run], repeats, device)[0]


def medians_in_turn(
    runs: Sequence[Callable[[], object]], repeats: int, device: torch.device
) -> list[float]:
    """The median time of each run, one after the other again and again, after one to warm up."""
    import torch

    times: list[list[float]] = []
    for _ in range(repeats + 1):
        times.append([])
        for run in runs:
            began = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[-1].append(time.perf_counter() - began)
    return [statistics.median(each) for each in zip(*times[1:], strict=True)]


def full_mask(sample: Sample) -> np.ndarray | None:
    """The mask of a defect at its image's size; None for a good image."""
    from flawmap.data.images import read_image
    from flawmap.data.masks import read_mask

    if not sample.label:
        return None
    return read_mask(sample.masks, read_image(sample.path).shape[:2])


def judged(
    samples: Sequence[Sample], scores: np.ndarray, maps: Iterable[np.ndarray]
) -> dict[str, float]:
    """The seven metrics of one category by flawmap's rules, from any library's outputs.

    Args:
        samples: N labelled images of one category.
        scores: (N,) float32 raw image scores.
        maps: N raw maps (H, W) float32 over the whole images; brought to 256 x 256 bilinearly.
    """
    import numpy as np
    import torch
    import torch.nn.functional as F

    from flawmap.metrics import (
        PixelScores,
        auroc,
        average_precision,
        f1_max,
        resize_mask_nearest,
    )
    from flawmap.metrics.catalog import HEADLINE
    from flawmap.pixels import STANDARD_SIZE

    labels = np.array([sample.label for sample in samples])
    with PixelScores() as pixels:
        for sample, anomaly_map in zip(samples, maps, strict=True):
            if sample.label and not sample.masks:
                continue
            mask = full_mask(sample)
            raw = torch.from_numpy(np.array(anomaly_map))[None, None]
            pixels.add(
                F.interpolate(raw, STANDARD_SIZE, mode="bilinear", align_corners=False)[
                    0, 0
                ].numpy(),
                None if mask is None else resize_mask_nearest(mask, STANDARD_SIZE),
            )
        found = pixels.compute()
    figures = {
        "image_auroc": auroc(labels, scores),
        "image_ap": average_precision(labels, scores),
        "image_f1max": f1_max(labels, scores)[0],
    }
    return {name: figures[name] if name in figures else getattr(found, name) for name in HEADLINE}


def say(text: str) -> None:
    """A line of progress, with the time."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)

"""flawmap against anomalib: same images, same encoder weights, same metrics, no network.

    python benchmarks/vs_anomalib.py --cookie DIR --magnetic-tile DIR --elpv DIR --seeds 0 \\
        --peer-python PEER/bin/python

Without --peer-python, anomalib is installed into an environment of its own; only that needs the
package index. Every cell (data, category, library, method, settings, seed) runs in a process of its
own under a time limit, and is stored at once: a run that was stopped goes on where it was. A cell
that fails is stored with its reason. Cells of flawmap run again when its defaults have changed, and
all cells when their images have.

Both libraries get the files that `read_data(place, seed=seed)` lists. anomalib gets flawmap's
offline encoders as its pretrained weights. Both write raw maps and image scores, which the same
code judges; anomalib's own figures, after its post-processing, stand beside.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cells import KEY, PEER, PEER_METHODS, Cell, plan, wanted
from common import (
    KILLED,
    PEER_SCRIPT,
    full_mask,
    judged,
    meta,
    of_images,
    peer_job,
    peer_versions,
    run_cell,
    say,
    set_up_peer,
    write_results,
)
from flawmap.bench.environment import source_commit
from flawmap.data import read_data
from flawmap.data.samples import SampleTable
from flawmap.errors import FlawmapError
from flawmap.metrics import resize_mask_nearest
from flawmap.types import Sample

HERE = Path(__file__).parent
OUR_SCRIPT = HERE / "peer" / "flawmap_run.py"
TOO_LARGE = ("over the limit", KILLED)
"""How the reason begins where a smaller coreset may help."""


def main() -> None:
    args = parse()
    places = {"cookie": args.cookie, "magnetic tile": args.magnetic_tile, "elpv": args.elpv}
    places = {name: place for name, place in places.items() if place is not None}
    try:
        tables = {
            (name, seed): subset(read_data(place, seed=seed), args)
            for name, place in places.items()
            for seed in args.seeds
        }
    except FlawmapError as error:
        raise SystemExit(str(error)) from error
    chosen = [cell for cell in plan(tables, args) if wanted(cell, args.only)]
    if not chosen:
        raise SystemExit("no cell to run: --only fits none of them, see --list")
    if args.list:
        print("\n".join(cell.name for cell in chosen))
        return
    python, versions = None, {}
    if any(cell.library == PEER for cell in chosen):
        python = args.peer_python or set_up_peer(args.peer_env or args.work / "peer-env")
        versions = peer_versions(python)
    runner = Runner(args, tables, python, versions)
    for cell in chosen:
        runner.run(cell)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cookie", type=Path)
    parser.add_argument("--magnetic-tile", type=Path)
    parser.add_argument("--elpv", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="run cells that contain one of these; a TEXT may hold several parts joined by +, "
        "such as cookie+anomalib+padim (see --list)",
    )
    parser.add_argument("--list", action="store_true", help="name the cells and stop")
    parser.add_argument("--retry", action="store_true", help="run cells again that failed before")
    parser.add_argument("--limit-minutes", type=float, default=15.0, help="of each cell")
    parser.add_argument("--train-minutes", type=float, default=5.0, help="of trained methods")
    parser.add_argument(
        "--ratios",
        nargs="+",
        type=float,
        default=[0.1, 0.01, 0.001],
        help="of the coreset in both libraries; each further one only if anomalib could not do "
        "those before within the limit and the memory",
    )
    parser.add_argument("--train-images", type=int, help="the first of each category, for a trial")
    parser.add_argument("--test-images", type=int, help="good and defect each, for a trial")
    parser.add_argument("--workers", type=int, default=2, help="of anomalib's loaders")
    parser.add_argument("--peer-python", type=Path, help="an interpreter that has anomalib")
    parser.add_argument("--peer-env", type=Path, help="where anomalib's environment is made")
    parser.add_argument("--work", type=Path, default=HERE / ".vs_anomalib", help="logs, weights")
    parser.add_argument("--keep-outputs", action="store_true", help="keep the maps on disk")
    parser.add_argument("--out", type=Path, help="benchmarks/results; for a trial in --work")
    args = parser.parse_args()
    if args.cookie is args.magnetic_tile is args.elpv is None:
        parser.error("name a data set: --cookie, --magnetic-tile or --elpv")
    for name in ("limit_minutes", "train_minutes", "train_images", "test_images"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            parser.error(f"--{name.replace('_', '-')}: got {value}, expected more than 0")
    if not all(0 < ratio <= 1 for ratio in args.ratios):
        parser.error(f"--ratios: got {args.ratios}, expected numbers from 0 to 1")
    if args.peer_python is not None and args.peer_env is not None:
        parser.error("give --peer-python (an environment that is there) or --peer-env, not both")
    args.work = args.work.resolve()
    trial = args.train_images is not None or args.test_images is not None
    # Figures of a few images must not stand among the real ones.
    args.out = args.out or (args.work / "trial" if trial else HERE / "results")
    return args


def subset(table: SampleTable, args: argparse.Namespace) -> SampleTable:
    """The good training images and the labelled test images; the first of each for a trial."""
    kept: list[Sample] = []
    seen: dict[tuple[str, str, int], int] = {}
    for sample in table.samples:
        if sample.label is None or sample.split not in ("train", "test"):
            continue
        group = (sample.category, sample.split, sample.label)
        seen[group] = seen.get(group, 0) + 1
        most = args.train_images if sample.split == "train" else args.test_images
        if most is None or seen[group] <= most:
            kept.append(sample)
    return replace(table, samples=tuple(kept))


class Runner:
    """Runs cells and stores their rows."""

    def __init__(
        self,
        args: argparse.Namespace,
        tables: dict[tuple[str, int], SampleTable],
        python: Path | None,
        versions: dict[str, str],
    ) -> None:
        self.args = args
        self.tables = tables
        self.python = python
        self.versions = versions
        self.target = args.out / "vs_anomalib.json"
        stored = json.loads(self.target.read_text()) if self.target.exists() else {"rows": []}
        self.rows: list[dict[str, Any]] = stored["rows"]
        self.versions = {**self._peer_part(stored), **versions}

    @staticmethod
    def _peer_part(stored: dict[str, Any]) -> dict[str, str]:
        found = stored.get("meta", {}).get("versions", {})
        return {name: value for name, value in found.items() if PEER in name}

    def run(self, cell: Cell) -> None:
        """Run a cell unless its rows are there, or a larger coreset was within the limit."""
        old = self._rows(cell)
        failed = any(row.get("reason") for row in old)
        fingerprint = self._table(cell).fingerprint()
        if old and self._current(cell, old, fingerprint) and not (self.args.retry and failed):
            say(f"{cell.name}: stored")
            return
        if cell.ratio is not None and not self._needs(cell):
            # Of older defaults, and not to be run again.
            self.rows = [row for row in self.rows if row not in old]
            return
        say(f"{cell.name}: running")
        began = time.perf_counter()
        folder = self.args.work / "cells" / re.sub(r"[^\w.-]+", "_", cell.name)
        samples = self._table(cell).samples
        train = [s for s in samples if s.split == "train"]
        test = [s for s in samples if s.split == "test"]
        try:
            found = self._outputs(cell, train, test, folder)
            rows = [self._row(cell, found, train, test, folder)]
            if "reason" not in found:
                rows = self._judged(cell, found, train, test, folder)
        finally:
            if not self.args.keep_outputs:
                for outputs in folder.glob("*.npy"):
                    outputs.unlink()
        self.rows = [row for row in self.rows if row not in old] + rows
        about = meta(
            what="both libraries on the same files with the same encoder weights, each cell in a "
            "process of its own on the CPU; metrics are flawmap's, from raw maps at 256 x 256 and "
            "raw image scores; 'own' are anomalib's figures after its own post-processing, from "
            "the same outputs, where they differ",
            fit="anomalib without validation; flawmap's default settings include its threshold, "
            "'same settings' do not",
            memory="highest resident memory of the main process, without anomalib's data loaders",
            training="trained methods of anomalib, and flawmap's Dinomaly with the same settings, "
            "end after the minutes that stand there",
        )
        # Rows may be of several days and machines: each says its own.
        about["versions"].update(self.versions)
        versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
        for row in rows:
            row.update({name: about[name] for name in ("date", "device")}, versions=versions)
        about = {k: v for k, v in about.items() if k not in ("date", "device", "threads")}
        write_results(self.target, self.rows, about)
        seconds = time.perf_counter() - began
        outcome = rows[0].get("reason") or ", ".join(
            f"{row['category']} image AUROC {row['image_auroc']}" for row in rows
        )
        say(f"{cell.name}: {seconds:.0f} s, {outcome}")

    def _rows(self, cell: Cell) -> list[dict[str, Any]]:
        """What is stored of a cell."""
        return [r for r in self.rows if tuple(r.get(name) for name in KEY) == cell.key]

    @staticmethod
    def _current(cell: Cell, rows: Sequence[dict[str, Any]], fingerprint: str) -> bool:
        """Whether flawmap would do the same today, with the same images."""
        return all(
            row.get("configuration") == cell.configuration
            and of_images(row, fingerprint, what=cell.name)
            for row in rows
        )

    def _needs(self, cell: Cell) -> bool:
        """Whether the peer could do no larger coreset."""
        earlier = [
            row
            for row in self.rows
            if row["library"] == PEER
            and all(
                row.get(name) == value
                for name, value in zip(KEY, cell.key, strict=True)
                if name not in ("settings", "library")
            )
            and (row.get("coreset_ratio") or 0) > cell.ratio
        ]
        return all(str(row.get("reason", "")).startswith(TOO_LARGE) for row in earlier)

    def _table(self, cell: Cell) -> SampleTable:
        table = self.tables[cell.data, cell.seed]
        return table if cell.category == "all" else table.only([cell.category])

    def _outputs(
        self, cell: Cell, train: list[Sample], test: list[Sample], folder: Path
    ) -> dict[str, Any]:
        limit = self.args.limit_minutes * 60
        if cell.library == PEER:
            assert self.python is not None
            job = self._peer_job(cell, train, test, folder)
            return run_cell(self.python, PEER_SCRIPT, job, folder, limit_seconds=limit)
        trained = cell.method == "dinomaly" and cell.settings != "default"
        job = {
            "method": cell.method,
            "seed": cell.seed,
            "threads": torch.get_num_threads(),
            "options": cell.options,
            "train_seconds": self.args.train_minutes * 60 if trained else None,
            "root": str(Path(train[0].path).parent),
            "train": [asdict(s) for s in train],
            "test": [asdict(s) for s in test],
        }
        return run_cell(
            sys.executable,
            OUR_SCRIPT,
            job,
            folder,
            limit_seconds=limit,
            pythonpath=HERE.parent / "src",
        )

    def _peer_job(
        self, cell: Cell, train: list[Sample], test: list[Sample], folder: Path
    ) -> dict[str, Any]:
        method = PEER_METHODS[cell.method]
        encoder, size = method.encoder
        job = peer_job(
            encoder,
            size,
            weights_folder=self.args.work / "weights",
            train=[s.path for s in train],
            test=[s.path for s in test],
            labels=[s.label or 0 for s in test],
            seed=cell.seed,
            batch_size=method.batch_size,
            workers=self.args.workers,
            limit_seconds=self.args.limit_minutes * 60,
        )
        options = dict(method.options)
        if method.cls == "EfficientAd":
            # It brings networks of its own, and wants pictures that are no part of the data.
            options["imagenet_dir"] = str(self.args.work / "imagenette")
            job["mean"] = None
        else:
            options["encoder_name" if method.cls == "Dinomaly" else "backbone"] = job["backbone"]
        if cell.ratio is not None:
            options["coreset_sampling_ratio"] = cell.ratio
        folder.mkdir(parents=True, exist_ok=True)
        return {
            **job,
            "class": method.cls,
            "options": options,
            "schedule": cell.schedule,
            "train_seconds": self.args.train_minutes * 60 if method.trained else None,
            "plan_steps": method.plan_steps,
            "masks": save_masks(test, size, folder),
        }

    def _row(
        self,
        cell: Cell,
        found: dict[str, Any],
        train: list[Sample],
        test: list[Sample],
        folder: Path,
    ) -> dict[str, Any]:
        """What a row says beside its figures."""
        row: dict[str, Any] = dict(zip(KEY, cell.key, strict=True))
        encoder, size = PEER_METHODS[cell.method].encoder if cell.library == PEER else (None, None)
        version = found.get("version") or (
            self.versions.get(PEER) if cell.library == PEER else None
        )
        if cell.method == "efficient-ad":
            encoder = None
        row.update(
            category=cell.category,
            version=version,
            encoder=found.get("encoder", encoder),
            size=found.get("size", size),
            coreset_ratio=cell.ratio,
            train_images=len(train),
            test_images=len(test),
            commit=source_commit(),
            configuration=cell.configuration,
            fingerprint=self._table(cell).fingerprint(),
        )
        if "reason" in found:
            row["reason"] = found["reason"]
            if found["reason"].startswith("ended"):
                row["reason"] += f" ({tail(folder / 'log.txt')})"
            return row
        row.update(
            steps=found.get("steps") if PEER_METHODS[cell.method].trained else None,
            fit_seconds=round(found["fit_seconds"], 1),
            images_per_second=round(len(test) / found["score_seconds"], 1),
            peak_memory_mb=found["peak_memory_mb"],
        )
        for name, value in found.get("own", {}).items():
            row[f"own_{name}"] = None if value is None else rounded(value)
        return row

    def _judged(
        self,
        cell: Cell,
        found: dict[str, Any],
        train: list[Sample],
        test: list[Sample],
        folder: Path,
    ) -> list[dict[str, Any]]:
        """A row per category."""
        scores = np.load(folder / "scores.npy")
        maps = np.load(folder / "maps.npy", mmap_mode="r")
        rows = []
        for category in sorted({s.category for s in test}):
            at = [i for i, s in enumerate(test) if s.category == category]
            figures = judged([test[i] for i in at], scores[at], (maps[i] for i in at))
            row = self._row(cell, found, train, test, folder)
            row["category"] = category
            row.update({name: rounded(value) for name, value in figures.items()})
            rows.append(row)
        return rows


def save_masks(test: list[Sample], size: int, folder: Path) -> str | None:
    """The masks at the size of the peer's maps, for its own metrics; None without any."""
    if not any(sample.masks for sample in test):
        return None
    masks = np.zeros((len(test), size, size), np.bool_)
    for mask, sample in zip(masks, test, strict=True):
        full = full_mask(sample)
        if full is not None:
            mask[:] = resize_mask_nearest(full, (size, size))
    path = folder / "masks.npy"
    np.save(path, masks)
    return str(path)


def rounded(value: float) -> float | None:
    return None if value != value else round(value, 4)


def tail(log: Path) -> str:
    """The last line of a log, shortened."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        lines = file.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")
    return last[-200:]


if __name__ == "__main__":
    main()

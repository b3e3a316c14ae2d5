"""Options of a method judged without any flawed picture: by drawn defects.

    python benchmarks/defaults.py patchcore --data cookie=DIR --data magnetic-tile=DIR

Only good training images are looked at. A third of each category's is held out; each of these
stands there as it is and with a defect of each kind: blended textures, faint ones among them, a
pasted patch, a scar. What is chosen by these figures has seen no test image. Lines whose figures
are in the results file are kept, and only the others are measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import flawmap
from common import meta, of_images, say, write_results
from drawn_defects import KINDS, drawn_tables
from flawmap.config import Config, make_config
from flawmap.data.samples import SampleTable

Options = dict[str, Any]

OF_A_RUN = ("commit", "date", "device", "split")
"""What each row says of the run that measured it."""

UNSEEN = ("patch", "scar")
"""Kinds of defects that no method learns from."""


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        lines: Method and options of each.
        named: What tells a line from others of its data, as paths in the configuration.
        kinds: The kinds of drawn defects that judge; None for all.
    """

    lines: Sequence[tuple[str, Options]]
    named: Sequence[str]
    kinds: Sequence[str] | None = None


def patchcore() -> Study:
    """Levels and sizes, then one change at a time."""
    levels = (
        ("blocks.2", "blocks.4"),
        ("blocks.3", "blocks.5"),
        ("blocks.2", "blocks.4", "blocks.5"),
    )
    grid = [{"method.levels": list(some), "data.size": n} for some in levels for n in (256, 384)]
    changes: tuple[Options, ...] = (
        {"method.normalise": "level"},
        {"method.border": "inside"},
        {"method.normalise": "level", "method.border": "inside"},
        {"scoring.top_fraction": 0.01},
        {"scoring.pooling": "max"},
        {"scoring.sigma": 6.0},
    )
    lines = [*grid, *({**grid[0], **change} for change in changes)]
    named = ("method.levels", "data.size", "method.normalise", "method.border")
    return Study(
        [("patchcore", options) for options in lines],
        (*named, "scoring.sigma", "scoring.pooling"),
    )


def distillation() -> Study:
    """How long RD4AD and DMDD learn, and from levels at 4, 8 and 16 px or at 8, 16 and 32.

    DMDD learns from blended textures, so both are judged by the other kinds.
    """
    fine, coarse = ("blocks.1", "blocks.2", "blocks.4"), ("blocks.2", "blocks.4", "blocks.6")
    lengths = (*((n, coarse) for n in (100, 250, 600, 1200)), *((n, fine) for n in (100, 250)))
    lines = [
        (method, {"training.iterations": n, "training.max_epochs": None, "method.levels": levels})
        for method in ("rd4ad", "dmdd")
        for n, levels in lengths
    ]
    return Study(lines, ("method.name", "method.levels", "training.iterations"), UNSEEN)


def mkd() -> Study:
    """MKD's maps and score, the published ones among them, and what is compared."""
    published: Options = {"method.attribution": "gradients"}
    lines: tuple[Options, ...] = (
        published,
        {},
        {**published, "method.score": "whole"},
        {"method.compared": "places"},
        {"method.terms": "value"},
        {"method.terms": "both"},
        {"method.terms": "both", "method.value_weight": 0.01},
    )
    return Study(
        [("mkd", options) for options in lines],
        (
            "method.attribution",
            "method.score",
            "method.compared",
            "method.terms",
            "method.value_weight",
        ),
    )


STUDIES = {"patchcore": patchcore, "distillation": distillation, "mkd": mkd}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--data", action="append", required=True, metavar="NAME=DIR")
    parser.add_argument("--images", type=int, default=150, help="of each category, at most")
    parser.add_argument("--encoder", default="lite0")
    parser.add_argument("--jobs", type=int, default=2, help="lines at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    # One thread for each line, however many processors there are.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    study = STUDIES[args.study]()
    path = args.out / f"{args.study}_defaults.json"
    about = meta(weights=args.encoder, seed=0, images=args.images)
    # In the order of the study; None until it is measured.
    rows: dict[str, dict[str, Any] | None] = {place(row): row for row in kept(path, about)}
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(args.jobs, context) as pool,
    ):
        under_way = {}
        for name, category, fingerprint, table in drawn_tables(
            args.data, args.images, Path(folder)
        ):
            judged = with_kinds(table, study.kinds)
            for method, options in study.lines:
                options = {"calibration.strategy": "off", "encoder.name": args.encoder, **options}
                config = make_config(method=method, overrides=options)
                row = {
                    "data": name,
                    "category": category,
                    **named(config, study.named),
                    "configuration": digest(config),
                    "fingerprint": fingerprint,
                    **{key: about[key] for key in OF_A_RUN},
                }
                old = rows.setdefault(place(row), None)
                if old is None or not current(old, row):
                    under_way[pool.submit(judge, judged, method, options)] = row
        # Each as it ends: what was measured is kept if a later line fails.
        for found in as_completed(under_way):
            row = {**under_way[found], **found.result()}
            rows[place(row)] = row
            say(str(row))
            write_results(path, [row for row in rows.values() if row is not None], about)


def kept(path: Path, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a results file of the same settings, of whatever data."""
    if not path.is_file():
        return []
    old = json.loads(path.read_text(encoding="utf-8"))
    if any(old["meta"].get(key) != about[key] for key in ("weights", "seed", "images")):
        return []
    # Earlier versions told these of all rows together.
    return [{**{key: old["meta"].get(key) for key in OF_A_RUN}, **row} for row in old["rows"]]


def current(old: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether a row that is there has these options, and saw these images."""
    same = old.get("configuration") == row["configuration"]
    return same and of_images(old, row["fingerprint"], what=place(row))


def digest(config: Config) -> str:
    """Of all options: a line of other defaults is another line."""
    return hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:12]


def place(row: Mapping[str, Any]) -> str:
    """What tells a line from all others, of any data."""
    about = ("configuration", "fingerprint", *OF_A_RUN, "AUPRO")
    return json.dumps(
        {k: v for k, v in row.items() if k not in about and not k.startswith("image AUROC")}
    )


def with_kinds(table: SampleTable, kinds: Sequence[str] | None) -> SampleTable:
    """Good images, and defects of these kinds."""
    if kinds is None:
        return table
    samples = tuple(s for s in table.samples if s.defect in ("good", *kinds))
    return SampleTable(table.root, table.format, samples)


def named(config: Config, paths: Sequence[str]) -> dict[str, Any]:
    """The columns that name a line."""
    found: dict[str, Any] = {}
    for path in paths:
        part, key = path.split(".")
        value = getattr(getattr(config, part), key)
        if path == "method.levels":
            value = " + ".join(value)
        elif path == "data.size":
            value = value[0]
        elif path == "scoring.pooling" and value == "top":
            value = f"highest {100 * config.scoring.top_fraction:.3g}%"
        found["method" if path == "method.name" else key] = value
    return found


def judge(table: SampleTable, method: str, options: Options) -> dict[str, float]:
    """The figures of one line on one category; no threshold is set."""
    detector = flawmap.fit(table, method=method, options=options)
    result = flawmap.evaluate(detector, table).categories["drawn"]
    kinds = [kind for kind in KINDS if kind in result.by_defect]
    return {
        **{f"image AUROC, {kind}": round(result.by_defect[kind], 4) for kind in kinds},
        "image AUROC": round(result.metrics["image_auroc"], 4),
        "AUPRO": round(result.metrics["aupro"], 4),
    }


if __name__ == "__main__":
    main()

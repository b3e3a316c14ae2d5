"""Good images kept for a test, and the table that says which."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from flawmap.data.samples import SampleTable
from flawmap.errors import DataError, ExportError
from flawmap.files import write_text
from flawmap.types import Sample
from flawmap.wording import shown

COLUMNS = ("path", "category", "split", "label", "defect", "mask", "part_id")
_LABELS = {0: "good", 1: "defect", None: ""}


def hold_out(table: SampleTable, share: float, seed: int) -> SampleTable:
    """The same images, of which some good ones to learn are kept for the test.

    Args:
        table: The images.
        share: Of each category's good parts to learn, in (0, 1); an image that nobody says more
            of is a part.
        seed: Decides which.

    Raises:
        DataError: A category has good images of a single part to learn, so that none can be
            spared, or the data set knows of its images what a table cannot say.
    """
    for told, what in (
        (table.one_vs_rest, "that each class is a task of its own"),
        (table.saturation, "how much of a flaw must be found"),
        (table.judged_apart, "which kinds of defects are judged apart"),
    ):
        if told:
            raise DataError(
                f"the data set says {what}, and a table cannot",
                where=shown(table.root),
                hint="its own layout has a test split",
            )
    kept: set[str] = set()
    for number, category in enumerate(table.categories):
        good = parts_of(table.select(category=category, split="train", label=0))
        if len(good) < 2:
            raise DataError(
                f"'{shown(category)}' has good images of {len(good)} part to learn: none can be "
                "spared",
                where=shown(table.root),
                expected="at least two",
                hint="add good images",
            )
        n = min(len(good) - 1, max(1, round(share * len(good))))
        order = np.random.default_rng([seed, number]).permutation(len(good))
        kept.update(path for i in order[:n] for path in good[i])
    return replace(
        table,
        samples=tuple(replace(s, split="test") if s.path in kept else s for s in table.samples),
    )


def parts_of(samples: Sequence[Sample]) -> list[list[str]]:
    """Images of one part together, as the table says, or as files are the same byte for byte; in
    the order of the first of each."""
    sizes = {s.path: Path(s.path).stat().st_size for s in samples}
    several = {size for size, n in Counter(sizes.values()).items() if n > 1}
    groups: dict[tuple[str, str], list[str]] = {}
    for sample in samples:
        same = ("", sample.path)
        if sample.group:
            same = ("part", sample.group)
        elif sizes[sample.path] in several:
            same = ("copy", hashlib.sha256(Path(sample.path).read_bytes()).hexdigest())
        groups.setdefault(same, []).append(sample.path)
    return list(groups.values())


def write_table(samples: Sequence[Sample], path: Path) -> None:
    """Write a CSV table that `flawmap.read_data` reads, with paths relative to its folder.

    Raises:
        DataError: A mask's name holds a semicolon, which parts masks in a table; or a name is no
            UTF-8.
        ExportError: The file cannot be written.
    """
    base = path.resolve().parent
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for sample in samples:
        masks = [_beside(mask, base) for mask in sample.masks]
        if unclear := [mask for mask in masks if ";" in mask]:
            raise DataError(
                "the name of a mask holds ';', which parts masks in a table",
                where=shown(unclear[0]),
                hint="rename it",
            )
        row = (
            _beside(sample.path, base),
            sample.category,
            sample.split,
            _LABELS[sample.label],
            sample.defect if sample.label == 1 else "",
            ";".join(masks),
            sample.group,
        )
        if any(shown(cell) != cell for cell in row):
            raise DataError(
                "a table cannot name this file: its name, or that of a folder, is not plain text",
                where=shown(sample.path),
                hint="rename it",
            )
        table.writerow(row)
    write_text(path, text.getvalue(), error=ExportError)


def _beside(path: str, base: Path) -> str:
    """Relative to the table's folder, as long as both lie on one drive."""
    whole = os.path.abspath(path)  # noqa: PTH100
    try:
        return os.path.relpath(whole, base)
    except ValueError:
        return whole

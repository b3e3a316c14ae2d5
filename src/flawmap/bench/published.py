"""Figures that papers print, to stand beside ours. Every one names its source."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from flawmap.metrics.catalog import HEADLINE

_SETTINGS = {"muad": "unified", "sep": "separate"}

_MVTEC_AD = frozenset(
    [
        "bottle",
        "cable",
        "capsule",
        "carpet",
        "grid",
        "hazelnut",
        "leather",
        "metal_nut",
        "pill",
        "screw",
        "tile",
        "toothbrush",
        "transistor",
        "wood",
        "zipper",
    ]
)
_VISA = frozenset(
    [
        "candle",
        "capsules",
        "cashew",
        "chewinggum",
        "fryum",
        "macaroni1",
        "macaroni2",
        "pcb1",
        "pcb2",
        "pcb3",
        "pcb4",
        "pipe_fryum",
    ]
)
_REAL_IAD_SIZE = 30

MAIN_TABLES = ("main", "separate", "seed")
"""Tables that compare methods; the others compare options of one."""


@dataclass(frozen=True)
class Published:
    """A line of a paper's table.

    Attributes:
        table: Which kind of comparison it is from.
        dataset: "mvtec_ad", "visa" or "real_iad".
        method: As the paper calls it.
        setting: "unified" or "separate".
        figures: Metric to its text in percent, as printed; metrics that are not printed lack.
        source: The paper that prints it.
        note: What is odd about it.
    """

    table: str
    dataset: str
    method: str
    setting: str
    figures: dict[str, str]
    source: str
    note: str


@lru_cache(maxsize=1)
def published() -> tuple[Published, ...]:
    """Every published line that is known."""
    text = files("flawmap.bench").joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(
        Published(
            table=row["table"],
            dataset=row["dataset"],
            method=row["method"],
            setting=_SETTINGS[row["setting"]],
            figures={name: row[name] for name in HEADLINE if row[name]},
            source=row["source"],
            note=row["note"],
        )
        for row in csv.DictReader(text.splitlines())
    )


def dataset_of(data_format: str, categories: Iterable[str]) -> tuple[str, int] | None:
    """Which published data set this is, and how many categories the whole of it has.

    Args:
        data_format: The name of the data's reader.
        categories: Those that were measured, all or some.

    Returns:
        None for data of one's own.
    """
    found = set(categories)
    if data_format.startswith("real-iad"):
        return "real_iad", _REAL_IAD_SIZE
    for name, known in (("mvtec_ad", _MVTEC_AD), ("visa", _VISA)):
        if found and found <= known:
            return name, len(known)
    return None

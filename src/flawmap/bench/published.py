"""Figures that papers print, to stand beside ours. Every one names its source."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from flawmap.data.mvtec import MVTEC_AD_TEST_IMAGES
from flawmap.errors import unknown_name
from flawmap.metrics.catalog import HEADLINE

FIGURES = (*HEADLINE, "pixel_auroc_defects")
"""The metrics that papers print."""

_CROPPED = "Dinomaly"
"""The paper whose method, and whose every table of its own options, sees the centre crop alone."""

_SETTINGS = {"muad": "unified", "sep": "separate"}

_VISA_SIZE = 12
_REAL_IAD_SIZE = 30

_ONE_VS_REST = {"mnist": "mnist", "fashion-mnist": "fashion_mnist", "cifar-10": "cifar_10"}
_ONE_VS_REST_SIZE = 10
_ONE_VS_REST_TEST_IMAGES = 10_000
"""In the test split of each, and so of each category: a part of it is not what papers measure."""

MAIN_TABLES = ("main", "separate", "seed")
"""Tables that compare methods; the others compare options of one."""


TABLES = (
    *MAIN_TABLES,
    *("components", "mixer", "dropout", "model_size", "input_size", "encoder", "attribution"),
)
"""Every kind of table in `published`."""


@dataclass(frozen=True)
class Published:
    """A line of a paper's table.

    Attributes:
        table: Which kind of comparison it is from.
        dataset: "mvtec_ad", "visa", "real_iad", "mnist", "fashion_mnist" or "cifar_10".
        method: As the paper calls it.
        setting: "unified" or "separate".
        figures: Metric to its text in percent, as printed; metrics that are not printed lack.
        source: The paper that prints it.
        note: What is odd about it.
        cropped: Whether its pixel metrics are over the centre crop alone that the network sees.
    """

    table: str
    dataset: str
    method: str
    setting: str
    figures: dict[str, str]
    source: str
    note: str
    cropped: bool


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
            figures={name: row[name] for name in FIGURES if row[name]},
            source=row["source"],
            note=row["note"],
            cropped=_cropped(row),
        )
        for row in csv.DictReader(text.splitlines())
    )


def require_table(name: str, *, where: str) -> None:
    """A kind of table that `TABLES` has.

    Raises:
        ConfigError: It is another one; the nearest right one is given.
    """
    if name not in TABLES:
        raise unknown_name("published table", name, TABLES, where=where)


def _cropped(row: Mapping[str, str]) -> bool:
    if _CROPPED not in row["source"]:
        return False
    return row["method"].startswith(_CROPPED) or row["table"] not in (*MAIN_TABLES, "input_size")


def dataset_of(data_format: str, test_images: Mapping[str, int]) -> tuple[str, int] | None:
    """Which published data set this is, and how many categories the whole of it has.

    Args:
        data_format: The name of the data's reader.
        test_images: For each category that was measured, all or some, how many test images it has.

    Returns:
        None for data of one's own, and for variants of a set that papers do not measure.
    """
    if data_format == "real-iad":
        return "real_iad", _REAL_IAD_SIZE
    if data_format == "visa":
        return "visa", _VISA_SIZE
    if data_format in _ONE_VS_REST and set(test_images.values()) == {_ONE_VS_REST_TEST_IMAGES}:
        return _ONE_VS_REST[data_format], _ONE_VS_REST_SIZE
    whole = all(MVTEC_AD_TEST_IMAGES.get(name) == n for name, n in test_images.items())
    if data_format == "mvtec" and test_images and whole:
        return "mvtec_ad", len(MVTEC_AD_TEST_IMAGES)
    return None

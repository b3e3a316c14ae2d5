"""What `vs_anomalib.py` runs: methods of both libraries, their settings, and the cells of a run."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from flawmap.api import configure
from flawmap.data.samples import SampleTable

PEER = "anomalib"
KEY = ("data", "cell_category", "setting", "library", "method", "settings", "seed")
"""What tells the rows of one cell from those of another."""

CNN, VIT = ("lite0", 256), ("vit-s14", 280)
"""Encoder and input size of the rows that share their settings."""
SAME_TEXT = "same settings"
PYRAMID = ["blocks.1", "blocks.2", "blocks.4"]
PATCH_LEVELS = ["blocks.2", "blocks.4"]

SAME: dict[str, dict[str, Any]] = {
    "patchcore": {
        "encoder.name": CNN[0],
        "data.size": CNN[1],
        "method.levels": PATCH_LEVELS,
        "method.min_bank": 1,
        "method.max_bank": 1_000_000,
        "scoring.sigma": 4.0,
        "scoring.pooling": "max",
        "training.batch_size": 16,
        "calibration.strategy": "off",
    },
    "dinomaly": {
        "encoder.name": VIT[0],
        "data.size": VIT[1],
        "method.depth": 8,
        "method.loosen_iterations": 1000,
        "method.warmup_iterations": 100,
        "training.iterations": 5000,
        "training.batch_size": 8,
        "calibration.strategy": "off",
    },
}
"""flawmap's options that give it the peer's settings."""


@dataclass(frozen=True)
class PeerMethod:
    """How a method of the peer is run.

    Attributes:
        cls: Its class in anomalib.models.
        encoder: flawmap's name of the weights put in, and the input size.
        options: Arguments of the class; "backbone" stands for the encoder's name in timm.
        batch_size: Training images a step.
        trained: Whether it trains until the time given is over.
        plan_steps: Whether its schedule needs the number of steps beforehand.
    """

    cls: str
    encoder: tuple[str, int] = CNN
    options: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 16
    trained: bool = False
    plan_steps: bool = False


PEER_METHODS = {
    "patchcore": PeerMethod("Patchcore", options={"layers": PATCH_LEVELS, "num_neighbors": 9}),
    "padim": PeerMethod("Padim", options={"layers": PYRAMID, "n_features": 100}),
    "stfpm": PeerMethod("Stfpm", options={"layers": PYRAMID}, batch_size=32, trained=True),
    "reverse-distillation": PeerMethod(
        "ReverseDistillation", options={"layers": PYRAMID}, batch_size=32, trained=True
    ),
    "dinomaly": PeerMethod("Dinomaly", encoder=VIT, batch_size=8, trained=True, plan_steps=True),
    "efficient-ad": PeerMethod("EfficientAd", batch_size=1, trained=True, plan_steps=True),
}


@dataclass(frozen=True)
class Cell:
    """What one process does.

    Attributes:
        data: Name of the data set.
        category: One category, or "all" for one model over all.
        setting: "separate" or "unified".
        library: "flawmap" or "anomalib".
        method: Its name.
        settings: "default", or "same settings" with what belongs to them.
        seed: Decides the split and everything random.
        ratio: Of the coreset.
        schedule: "step" where the learning rate of the peer's Dinomaly moves with every step.
    """

    data: str
    category: str
    setting: str
    library: str
    method: str
    settings: str
    seed: int
    ratio: float | None = None
    schedule: str | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What a stored row of the cell starts with."""
        named = {**asdict(self), "cell_category": self.category}
        return tuple(named[name] for name in KEY)

    @property
    def options(self) -> dict[str, Any]:
        """flawmap's options."""
        found: dict[str, Any] = {
            "training.device": "cpu",
            "separate": self.setting == "separate",
            **({} if self.settings == "default" else SAME[self.method]),
        }
        if self.ratio is not None:
            found["method.coreset_ratio"] = self.ratio
        return found

    @property
    def configuration(self) -> str | None:
        """Changes with flawmap's own defaults: figures of older ones count no more."""
        if self.library == PEER:
            return None
        config = configure(method=self.method, options=self.options)
        text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """For messages, folders and --only."""
        return "/".join(str(part).replace(" ", "-") for part in self.key)


def plan(tables: dict[tuple[str, int], SampleTable], args: argparse.Namespace) -> Iterator[Cell]:
    """All cells, flawmap's first."""
    for (data, seed), table in tables.items():
        if len(table.categories) > 1:
            for method in SAME:
                yield Cell(data, "all", "unified", "flawmap", method, "default", seed)
        same = f"{SAME_TEXT}, {args.train_minutes:g} min"
        for category in table.categories:
            base = (data, category, "separate")
            for method in SAME:
                yield Cell(*base, "flawmap", method, "default", seed)
            yield Cell(*base, "flawmap", "dinomaly", same, seed)
            for ratio in args.ratios:
                text = f"{SAME_TEXT}, coreset {ratio:.3g}"
                for library in ("flawmap", PEER):
                    yield Cell(*base, library, "patchcore", text, seed, ratio=ratio)
            for method, how in PEER_METHODS.items():
                if method != "patchcore":
                    yield Cell(*base, PEER, method, same if how.trained else SAME_TEXT, seed)
                if method == "dinomaly":
                    text = f"{same}, schedule per step"
                    yield Cell(*base, PEER, method, text, seed, schedule="step")


def wanted(cell: Cell, only: Sequence[str]) -> bool:
    """Whether one of the texts, with all its parts, stands in the cell's name."""
    return not only or any(
        all(part in cell.name for part in text.replace(" ", "-").split("+")) for text in only
    )

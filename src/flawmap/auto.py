"""`--method auto`: method, encoder, input size and preset for these images on this device.

Rules, no trials: a choice takes no time and is the same wherever the same is given. What each rule
rests on is measured in docs/results.md; docs/methods.md says them in words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flawmap.config import Config
from flawmap.data.samples import SampleTable
from flawmap.resources import usable_cores

AUTO = "auto"
"""The name that stands for a choice."""

_CELLS = 32 * 32
"""Patches that PatchCore has of an image, at its default size."""

_BANKS = (50_000, 20_000, 10_000, 5_000)
"""Sizes of PatchCore's bank, from its default down to one that still holds what is common."""

_IMAGE_SECONDS = 0.10
"""What decoding, the encoder and the scoring of a good image take on one core."""

_PAIR_SECONDS = 6e-9
"""What one core takes to compare a patch with one of the bank, while the bank is selected."""

_GPU_SPEED = 20.0
"""How much faster a graphics card is than one core, at least."""


@dataclass(frozen=True)
class Situation:
    """What a choice rests on.

    Attributes:
        images: Good images to learn.
        categories: Products.
        gpu: Whether a graphics card computes.
        cores: That this process may use.
        encoder: The encoder that the user names, or None.
        budget: Seconds that the fit may take, or None.
    """

    images: int
    categories: int = 1
    gpu: bool = False
    cores: int = 2
    encoder: str | None = None
    budget: float | None = None


@dataclass(frozen=True)
class Choice:
    """What is fitted.

    Attributes:
        method: A registered method.
        preset: One of its presets.
        options: Dotted names to values; the user's own options win.
        reasons: Why, one sentence for each rule that applied.
    """

    method: str
    preset: str
    options: Mapping[str, Any] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()


def situation(table: SampleTable | None, config: Config, encoder: str | None) -> Situation:
    """The situation of a fit.

    Args:
        table: The data; None supposes that there is little.
        config: The configuration, whatever its method: device, time budget and how many images of
            a category may be learnt count.
        encoder: The encoder that the user names, or None.
    """
    samples = table.samples if table is not None else ()
    learnt = Counter(s.category for s in samples if s.split == "train" and not s.label)
    most = config.training.images_per_category
    return Situation(
        images=sum(n if most is None else min(n, most) for n in learnt.values()),
        categories=len(learnt),
        gpu=_gpu(config.training.device),
        cores=usable_cores(),
        encoder=encoder,
        budget=config.training.time_budget_seconds,
    )


def choose(given: Situation, start: Config | None = None) -> Choice:
    """What to fit in a situation.

    Args:
        given: The situation.
        start: The configuration of the model that the fit begins with, if it does.

    Example:
        >>> choose(Situation(images=100)).method
        'patchcore'
    """
    preset = "gpu" if given.gpu else "cpu"
    if start is not None:
        name = start.method.name
        options = {f"method.{k}": v for k, v in start.method.model_dump().items() if k != "name"}
        options |= {"encoder": start.encoder.model_dump(), "data": start.data.model_dump()}
        return Choice(name, preset, options, (f"{name}: as the model that the fit starts with",))
    if given.gpu and given.encoder is not None and given.encoder.startswith("dinov2"):
        return Choice(
            "dinomaly",
            preset,
            reasons=(
                "dinomaly: with DINOv2 on a graphics card one model of all products has the best "
                "published figures",
            ),
        )
    reasons = [
        "patchcore: the most accurate in flawmap's benchmarks on real images, and the fastest to "
        "learn"
    ]
    options = {}
    if given.budget is not None:
        bank, images = _affordable(given)
        if bank is not None:
            options |= {"method.max_bank": bank, "method.min_bank": bank}
            reasons.append(f"a bank of {bank} patches, since a larger one takes over the budget")
        if images is not None:
            options["training.images_per_category"] = images
            reasons.append(f"{images} good images of each product, since more take over the budget")
    return Choice("patchcore", preset, options, tuple(reasons))


def _affordable(given: Situation) -> tuple[int | None, int | None]:
    """The bank and the images of each product that fit into the budget; None = as they are."""
    assert given.budget is not None
    for bank in _BANKS:
        if _seconds(given, given.images, bank) <= given.budget:
            return (None if bank == _BANKS[0] else bank), None
    bank = _BANKS[-1]
    each = given.images // max(1, given.categories)
    while each > 1 and _seconds(given, each * given.categories, bank) > given.budget:
        each = max(1, each * 9 // 10)
    return bank, each


def _seconds(given: Situation, images: int, bank: int) -> float:
    """How long PatchCore takes to learn and to set its threshold, roughly."""
    patches = images * _CELLS
    kept = min(bank, patches)
    one_core = images * _IMAGE_SECONDS + patches * kept * _PAIR_SECONDS
    return one_core / (_GPU_SPEED if given.gpu else given.cores)


def _gpu(device: str) -> bool:
    if device == "cuda":
        return True
    if device != "auto":
        return False
    import torch

    return torch.cuda.is_available()

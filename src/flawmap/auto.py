"""`--method auto`: the method and its preset for these images, this device and this time.

Rules, no trials: a choice takes no time and is the same wherever the same is given and installed.
docs/methods.md says them in words, docs/results.md holds the figures behind them. They were made
with those figures in view, so `auto`'s own figures there are no independent evidence for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flawmap.config import Config
from flawmap.data.samples import SampleTable
from flawmap.encoders.table import ENCODERS
from flawmap.encoders.weights import readable
from flawmap.idle import leaves
from flawmap.progress import duration
from flawmap.resources import usable_cores
from flawmap.training.plan import at_most, make_plan

AUTO = "auto"
"""The name that stands for a choice."""

_BANKS = (50_000, 20_000, 10_000, 5_000)
"""Sizes of PatchCore's bank that are tried for a time budget; a smaller one knows too little."""

_STRIDE = 8
"""Px of the input for each patch of PatchCore, at the levels that it takes by default."""

_MANY = 489
"""Images of one product that teach, from which on PatchCore's full bank, 50,000 patches, is less
than a tenth of theirs: it learns them ever more coarsely, where a network that trains gains."""

_TRAINING_SECONDS = 600
"""What one core takes to train Dinomaly's preset for a CPU."""

_SHARING_CORES = 4
"""More cores than these are not counted on to shorten a training."""

_IMAGE_SECONDS = 0.1
"""What one core takes to decode a good image, to learn it, and to score it for the threshold."""

_PAIR_SECONDS = 6e-9
"""What one core takes to compare a patch with one of the bank, while the bank is selected."""


@dataclass(frozen=True)
class Situation:
    """What a choice rests on.

    Attributes:
        images: Good images.
        learnt: Those of them that teach.
        spared: Whether the others are enough for the threshold; if not, each image that teaches has
            to be left out in turn, which PatchCore alone can do.
        gpu: Whether a graphics card computes.
        cores: That this process may use.
        encoder: The encoder that the user names, or None.
        products: How many there are.
        together: Whether one model learns several products.
        budget: Seconds that the fit may take, or None.
        own: Whether the user decides what differs between methods: their options, the encoder,
            the input, the steps or the preset; or several processes share the fit.
        vit: Whether the weights of Dinomaly's usual encoder are at hand.
    """

    images: int = 0
    learnt: int = 0
    spared: bool = True
    gpu: bool = False
    cores: int = 2
    encoder: str | None = None
    products: int = 1
    together: bool = False
    budget: float | None = None
    own: bool = False
    vit: bool = True


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


def situation(
    table: SampleTable | None, config: Config, encoder: str | None, *, own: bool = False
) -> Situation:
    """The situation of a fit.

    Args:
        table: The data; None supposes that there is little.
        config: The configuration, whatever its method: device, time budget, how many images of a
            category may be learnt, and whether categories are apart count.
        encoder: The encoder that the user names, or None.
        own: As in `Situation`.
    """
    # Not above: whoever only asks for help needs no torch.
    from flawmap.training.device import device_of, processes

    samples = table.samples if table is not None else ()
    good = [s for s in samples if s.split in ("train", "validation") and not s.label]
    kept = at_most(good, config.training.images_per_category, config.seed)
    plan = make_plan(kept, config, can_leave_out=True, warn=lambda text: None)
    products = {s.category for s in good}
    return Situation(
        images=len(good),
        learnt=len(plan.learn),
        spared=not plan.leave_out,
        gpu=device_of(config.training.device) == "cuda",
        cores=usable_cores(),
        encoder=encoder,
        products=len(products),
        together=len(products) > 1 and not config.separate,
        budget=config.training.time_budget_seconds,
        # Each of several processes chooses for itself, and all must come to the same.
        own=own or processes() > 1,
        vit=readable(ENCODERS["vit-s14"]),
    )


def decides(options: Iterable[tuple[str, Any]]) -> bool:
    """Whether options, by their dotted names, decide what differs between methods.

    See `Situation.own`.
    """
    inputs = ("data.size", "data.resize", "data.crop_from")
    steps = ("training.iterations", "training.batch_size", "training.max_epochs")
    return any(
        name.startswith(("method.", "encoder.")) or name in inputs + steps
        for name in leaves(options)
    )


def choose(given: Situation, start: Config | None = None) -> Choice:
    """What to fit in a situation.

    Args:
        given: The situation.
        start: The configuration of the model that the fit begins with, if it does.

    Example:
        >>> choose(Situation(images=100, learnt=80)).method
        'patchcore'
    """
    preset = "gpu" if given.gpu else "cpu"
    if start is not None:
        name = start.method.name
        options = {f"method.{k}": v for k, v in start.method.model_dump().items() if k != "name"}
        for section in ("encoder", "data"):
            values = getattr(start, section).model_dump()
            options |= {f"{section}.{k}": v for k, v in values.items()}
        return Choice(name, preset, options, (f"{name}: as the model that the fit starts with",))
    if given.gpu and given.together and "dinov2" in (given.encoder or ""):
        why = "with DINOv2 it has the best published figures of one model for several products"
        return Choice("dinomaly", preset, reasons=(f"dinomaly: {why}",))
    many = _many(given)
    if many and given.vit and not given.own:
        why = "a higher mean image AUROC than patchcore in flawmap's benchmarks with so many images"
        cost = "patchcore scores more images a second"
        return Choice("dinomaly", preset, reasons=(f"dinomaly: {why}; {cost}",))
    why = "the highest mean image AUROC in flawmap's benchmarks on real images, and quick to learn"
    reasons = [f"patchcore: {why}"]
    if many and not given.own:
        reasons.append("dinomaly for so many images, if it had its encoder: see 'flawmap doctor'")
    elif many:
        reasons.append("for so many images compare --method dinomaly; options named keep patchcore")
    return Choice("patchcore", preset, reasons=tuple(reasons))


def _many(given: Situation) -> bool:
    """Whether a network may train on so many images of one product that it is worth its time."""
    if given.gpu or given.products != 1 or not given.spared:
        return False
    needed = given.images * _IMAGE_SECONDS + _TRAINING_SECONDS
    if given.budget is not None and given.budget * min(given.cores, _SHARING_CORES) < needed:
        return False
    return given.learnt >= _MANY


def within_budget(given: Situation, config: Config) -> tuple[dict[str, Any], str]:
    """What PatchCore leaves out to end in the time given, and why; other methods plan themselves.

    Args:
        given: The situation.
        config: What would be fitted without a budget.

    Returns:
        Dotted names to values, and a sentence; both empty if nothing is to be left out. Where the
        time cannot be told beforehand (other encoders and levels, a graphics card), nothing is, and
        the sentence says so; also where the smallest bank takes over the time.
    """
    if given.budget is None or config.method.name != "patchcore":
        return {}, ""
    method = config.method.model_dump()
    if given.gpu or method["levels"] is not None or not config.encoder.name.startswith("lite"):
        what = "on a graphics card" if given.gpu else "with this encoder and these levels"
        return {}, f"the time budget is not followed: nothing tells how long it takes {what}"
    height, width = config.data.size
    models = 1 if given.together else max(1, given.products)
    # Of each model, taken as alike.
    patches = given.learnt * (height // _STRIDE) * (width // _STRIDE) // models

    def seconds(most: int) -> float:
        kept: int = max(min(method["min_bank"], most), int(patches * method["coreset_ratio"]))
        pairs = patches * min(kept, most, patches)
        one_core: float = given.images * _IMAGE_SECONDS + models * pairs * _PAIR_SECONDS
        return one_core / given.cores

    if seconds(method["max_bank"]) <= given.budget:
        return {}, ""
    banks = [bank for bank in _BANKS if bank < method["max_bank"]]
    least = min(banks, default=method["max_bank"])
    bank = next((bank for bank in banks if seconds(bank) <= given.budget), least)
    why = f"a bank of at most {bank} patches: a larger one takes over the time given"
    if seconds(bank) > given.budget:
        why = (
            f"a bank of at most {bank} patches still takes over the time given, about "
            f"{duration(seconds(bank))}"
        )
    if bank == method["max_bank"]:
        return {}, why
    return {"method.max_bank": bank, "method.min_bank": min(bank, method["min_bank"])}, why

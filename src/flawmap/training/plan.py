"""Which good images teach, and which set the threshold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from flawmap.config import Config
from flawmap.errors import ConfigError
from flawmap.scoring.calibration import needed
from flawmap.types import Sample, by_part, categories_of
from flawmap.wording import counted

_LEAST_HELD_OUT = 5


@dataclass(frozen=True, slots=True)
class Plan:
    """Which good images teach, and which set the threshold.

    Attributes:
        learn: They teach.
        held_out: They only set the threshold.
        leave_out: Categories whose threshold comes from leaving each learnt image out.
    """

    learn: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    leave_out: tuple[str, ...]


def make_plan(
    good: Sequence[Sample],
    config: Config,
    can_leave_out: bool,
    *,
    warn: Callable[[str], None],
    taught: Collection[str] = (),
) -> Plan:
    """Share the good images out, category by category.

    A category's own validation split sets its threshold, but for parts that training images show
    too: these teach. Without one, images are held out when that leaves enough for the rate asked
    for; otherwise each learnt image is left out in turn, if the method can do that. Views of one
    part are held out together.

    Args:
        good: Distinct good images of the train and validation splits.
        config: Its seed decides which are held out.
        can_leave_out: Whether the method can score an image as if it had not learnt it.
        warn: Told of categories that get no threshold, of parts in both splits, and of a strategy
            that a validation split takes the place of.
        taught: Paths of images that the detector to begin with has learnt: they set no threshold.

    Raises:
        ConfigError: Leaving out is asked of a method that cannot.
    """
    options = config.calibration
    learn: list[Sample] = []
    held_out: list[Sample] = []
    leave_out: list[str] = []
    for category in categories_of(good):
        train_part = [s for s in good if s.category == category and s.split == "train"]
        extra = [s for s in good if s.category == category and s.split == "validation"]
        if options.strategy == "off":
            learn += train_part
            continue
        parts = {s.group for s in train_part if s.group}
        if known := [s for s in extra if s.group in parts]:
            one = len(known) == 1
            warn(
                f"{counted(len(known), 'validation image')} of '{category}' "
                f"{'shows a part' if one else 'show parts'} that training images show too: "
                f"{'it is' if one else 'they are'} learnt as well, since a threshold set on "
                f"{'it' if one else 'them'} would promise too much; keep all images of a part in "
                "one split"
            )
        teaches = {s.path for s in known} | {s.path for s in extra if s.path in taught}
        train_part += [s for s in extra if s.path in teaches]
        if extra := [s for s in extra if s.path not in teaches]:
            if options.strategy != "auto":
                warn(
                    f"'{category}' has a validation split, which sets its threshold: "
                    f"calibration.strategy={options.strategy} does nothing"
                )
            learn += train_part
            held_out += extra
            continue
        n = round(len(train_part) * options.fraction)
        enough = n >= needed(options.false_reject_rate)
        wants_out = options.strategy == "leave-one-out" or (
            options.strategy == "auto" and not enough
        )
        if options.strategy == "leave-one-out" and not can_leave_out:
            raise ConfigError(
                f"the method '{config.method.name}' cannot leave images out",
                where="calibration.strategy",
                given="leave-one-out",
                expected="holdout, auto or off",
            )
        n_parts = len(by_part(train_part))
        if wants_out and can_leave_out and n_parts >= 2:
            learn += train_part
            leave_out.append(category)
            continue
        free = [s for s in train_part if s.path not in taught]
        spared = min(len(free), len(train_part) - _LEAST_HELD_OUT)
        chosen = set()
        if spared >= _LEAST_HELD_OUT:
            chosen = _drawn(free, min(max(_LEAST_HELD_OUT, n), spared), config.seed)
        if not chosen:
            what, wanted = f"has only {len(free)} good training images", "images"
            if len(free) < len(train_part):
                what += " that were not learnt before"
            elif n_parts == 1 < len(train_part):
                what, wanted = f"has {len(free)} good training images of a single part", "parts"
            warn(
                f"'{category}' {what}: too few to hold any out, so it gets no threshold; add "
                f"{wanted}, or calibrate later with 'flawmap calibrate'"
            )
            learn += train_part
            continue
        held_out += [s for s in train_part if s.path in chosen]
        learn += [s for s in train_part if s.path not in chosen]
    return Plan(tuple(learn), tuple(held_out), tuple(leave_out))


def _drawn(samples: Sequence[Sample], n: int, seed: int) -> set[str]:
    """The paths of about n images of one category; of a part that has several views all or none."""
    found: set[str] = set()
    views = by_part(samples)
    for i in _rng_of(seed, samples[0].category).permutation(len(views)):
        if len(found) + len(views[i]) <= n or (not found and len(views) > 1):
            found.update(views[i])
    return found


def at_most(good: Sequence[Sample], most: int | None, seed: int) -> tuple[Sample, ...]:
    """Leave at most so many training images of each category; the others set its threshold.

    Views of one part stay together.

    Args:
        good: Good images of the train and validation splits.
        most: How many; None leaves all.
        seed: Decides which.
    """
    if most is None:
        return tuple(good)
    kept: set[str] = set()
    for category in categories_of(good):
        train = [s for s in good if s.category == category and s.split == "train"]
        if train:
            # A single part is more than that perhaps, but all there is.
            drawn = _drawn(sorted(train, key=lambda s: s.path), most, seed)
            kept |= drawn or {s.path for s in train}
    return tuple(
        s if s.split != "train" or s.path in kept else replace(s, split="validation") for s in good
    )


def thinned(samples: Sequence[Sample], most: int, seed: int, *, least: int) -> list[Sample]:
    """About so many of the images, the same share of every category; fewer are among more.

    Args:
        samples: In any order, which stays.
        most: How many.
        seed: Decides which.
        least: Of each category, as far as there are so many.
    """
    if len(samples) <= most:
        return list(samples)
    kept: set[str] = set()
    for category in categories_of(samples):
        paths = sorted(s.path for s in samples if s.category == category)
        n = max(least, round(len(paths) * most / len(samples)))
        order = _rng_of(seed, category).permutation(len(paths))
        kept.update(paths[int(i)] for i in order[:n])
    return [s for s in samples if s.path in kept]


def _rng_of(seed: int, category: str) -> np.random.Generator:
    digest = hashlib.sha256(json.dumps([seed, category]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))

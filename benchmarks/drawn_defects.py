"""Synthetic defects on held-out good images: what options are judged by, before any test image."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from flawmap.data import read_data, read_image
from flawmap.data.images import as_float
from flawmap.data.samples import SampleTable
from flawmap.data.synthesis import Kind, Synthesis, SynthesisConfig
from flawmap.data.transform import Transform
from flawmap.types import Sample, by_part

KINDS: dict[Kind, SynthesisConfig] = {
    # Fainter than those that methods learn from.
    "perlin": SynthesisConfig(kinds=("perlin",), opacity=(0.15, 0.5)),
    "patch": SynthesisConfig(kinds=("patch",)),
    "scar": SynthesisConfig(kinds=("scar",)),
}
"""Kinds of defects, and how they look."""

SIDE = 448
"""Height and width in px of the images that defects are drawn on."""


def drawn_tables(
    places: Sequence[str],
    images: int,
    folder: Path,
) -> Iterator[tuple[str, str, str, SampleTable]]:
    """Of each category of data given as NAME=DIR its name, the fingerprint of its good training
    images, and what is drawn on them; see `draw`."""
    for place in places:
        name, _, path = place.partition("=")
        table = read_data(path)
        for category in table.categories:
            of_category = table.only([category])
            good = of_category.select(split="train")
            fingerprint = replace(of_category, samples=good).fingerprint()
            yield name, category, fingerprint, draw(good, images, folder / name / category)


def draw(
    good: Sequence[Sample],
    images: int,
    folder: Path,
    *,
    tested: int | None = None,
    foreground: Literal["off", "auto"] = "off",
) -> SampleTable:
    """Some good images to learn, and others with and without drawn defects to test.

    Args:
        good: Good images; those of one part are all learnt, or all held out.
        images: About how many of them are used.
        folder: Where drawn images are written.
        tested: About how many of these are held out for the test; a third, or ten, by default.
        foreground: auto: defects lie on the object, where one stands out.
    """
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    every = by_part(good)
    drawn = [every[i] for i in generator.permutation(len(every))]
    images = min(images, len(good))
    n_tested = max(10, images // 3) if tested is None else tested
    spared = _first(drawn, n_tested)
    held_out = list(itertools.chain(*spared))
    learnt = list(itertools.chain(*_first(drawn[len(spared) :], images - len(held_out))))
    samples = [Sample(path, "drawn", "train", 0, "good") for path in learnt]
    transform = Transform((SIDE, SIDE))
    pictures = [as_float(transform(read_image(path))[0]) for path in held_out]
    for i, picture in enumerate(pictures):
        samples.append(Sample(save(picture, folder / f"{i}.png"), "drawn", "test", 0, "good"))
        for kind, config in KINDS.items():
            draws = Synthesis(config.model_copy(update={"foreground": foreground}))
            other = pictures[(i + 7) % len(pictures)]
            defect, mask = draws(picture, np.random.default_rng(1000 + i), [other])
            path = save(defect, folder / f"{i}_{kind}.png")
            masks = (save(mask.astype(np.float32), folder / f"{i}_{kind}_mask.png"),)
            samples.append(Sample(path, "drawn", "test", 1, kind, masks))
    return SampleTable(str(folder), "benchmark", tuple(samples))


def _first(parts: Sequence[list[str]], images: int) -> list[list[str]]:
    """So many parts that they have at least so many images."""
    counts = itertools.accumulate(map(len, parts), initial=0)
    return [part for part, before in zip(parts, counts, strict=False) if before < images]


def save(values: np.ndarray, path: Path) -> str:
    """Write values in [0, 1]; gives the path as text."""
    Image.fromarray((values * 255).round().astype(np.uint8)).save(path)
    return str(path)

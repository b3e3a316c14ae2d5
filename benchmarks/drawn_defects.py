"""Synthetic defects on held-out good images: what options are judged by, before any test image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from flawmap.data import read_data, read_image
from flawmap.data.images import as_float
from flawmap.data.samples import SampleTable
from flawmap.data.synthesis import Kind, Synthesis, SynthesisConfig
from flawmap.data.transform import Transform
from flawmap.types import Sample

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
) -> Iterator[tuple[str, str, SampleTable]]:
    """Name, category and drawn images of each category of data given as NAME=DIR; see `draw`."""
    for place in places:
        name, _, path = place.partition("=")
        table = read_data(path)
        for category in table.categories:
            good = [s.path for s in table.only([category]).select(split="train")]
            yield name, category, draw(good, images, folder / name / category)


def draw(
    paths: Sequence[str],
    images: int,
    folder: Path,
    *,
    tested: int | None = None,
    foreground: Literal["off", "auto"] = "off",
) -> SampleTable:
    """Some good images to learn, and others with and without drawn defects to test.

    Args:
        paths: Good images.
        images: How many of them are used.
        folder: Where drawn images are written.
        tested: How many of these are held out for the test; a third, or ten, by default.
        foreground: auto: defects lie on the object, where one stands out.
    """
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    chosen = [paths[i] for i in generator.permutation(len(paths))[:images]]
    n_tested = max(10, len(chosen) // 3) if tested is None else tested
    samples = [Sample(path, "drawn", "train", 0, "good") for path in chosen[n_tested:]]
    transform = Transform((SIDE, SIDE))
    pictures = [as_float(transform(read_image(path))[0]) for path in chosen[:n_tested]]
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


def save(values: np.ndarray, path: Path) -> str:
    """Write values in [0, 1]; gives the path as text."""
    Image.fromarray((values * 255).round().astype(np.uint8)).save(path)
    return str(path)

"""The contact sheet of synthetic defects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawmap.data.samples import SampleTable
from flawmap.data.synthesis import Synthesis, SynthesisConfig
from flawmap.errors import DataError
from flawmap.outputs.sheet import contact_sheet, outlined
from flawmap.types import Sample


def test_the_outline_is_the_rim_of_the_mask() -> None:
    image = np.full((6, 8, 3), 0.5, dtype=np.float32)
    mask = np.zeros((6, 8), dtype=bool)
    mask[0:4, 2:7] = True
    found = outlined(image, mask)
    rim = (found != image).any(axis=-1)
    # Where the mask meets the border of the image, that is its rim.
    wanted = mask.copy()
    wanted[1:3, 3:6] = False
    np.testing.assert_array_equal(rim, wanted)
    assert len(np.unique(found[rim], axis=0)) == 1


def table(folder: Path, categories: dict[str, int]) -> SampleTable:
    samples = []
    for grey, (category, n) in enumerate(categories.items()):
        for i in range(n):
            path = folder / f"{category}{i}.png"
            Image.new("L", (32, 32), 50 + 100 * grey).save(path)
            samples.append(Sample(str(path), category, "train", 0, "good"))
    return SampleTable(str(folder), "folder", tuple(samples))


def test_categories_take_turns(tmp_path: Path) -> None:
    some = table(tmp_path, {"a": 20, "b": 2})
    sheet = contact_sheet(some, Synthesis(), images=6, size=32)
    picture = np.asarray(sheet.picture)
    at = [(6 + i // 2 * 38 + 16, 6 + i % 2 * 102 + 16) for i in range(6)]
    greys = [int(picture[row, column, 0]) for row, column in at]
    assert greys == [50, 150, 50, 150, 50, 50]
    assert len(sheet.areas) == 6


def test_an_image_without_a_defect_stands_there_three_times(tmp_path: Path) -> None:
    some = table(tmp_path, {"a": 1})
    synthesis = Synthesis(SynthesisConfig(none_share=0.999))
    sheet = contact_sheet(some, synthesis, images=3, size=32)
    assert sheet.areas == (0,)
    picture = np.asarray(sheet.picture)
    assert (picture[6:38, 6:102] == 50).all()


def test_without_good_images_there_is_nothing_to_draw_on(tmp_path: Path) -> None:
    empty = SampleTable(str(tmp_path), "folder", ())
    with pytest.raises(DataError, match="no good training image"):
        contact_sheet(empty, Synthesis())

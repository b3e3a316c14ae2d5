"""A contact sheet of synthetic defects, for a person to judge them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import numpy.typing as npt
from PIL import Image

from flawmap.data.images import as_float, read_image
from flawmap.data.samples import SampleTable
from flawmap.data.synthesis import Synthesis
from flawmap.data.transform import Transform
from flawmap.errors import DataError
from flawmap.types import BoolArray, FloatArray, Sample
from flawmap.wording import shown

_GAP = 6
_COLUMNS = 2
"""Images side by side, three pictures each."""

_OUTLINE = np.array([1.0, 0.0, 0.4], dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Sheet:
    """What was drawn.

    Attributes:
        picture: A row per image: as it is, with a defect, and the defect outlined.
        areas: Share of the px that each defect covers, in the order of the rows; 0 for none.
    """

    picture: Image.Image
    areas: tuple[float, ...]


def contact_sheet(
    table: SampleTable,
    synthesis: Synthesis,
    *,
    images: int = 16,
    size: int = 256,
    seed: int = 0,
    white_level: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Sheet:
    """Draw defects on good training images.

    Args:
        table: The data; images are drawn from all categories alike.
        synthesis: How the defects look.
        images: How many; fewer if there are not as many.
        size: Height and width of each picture in px.
        seed: Draws images and defects.
        white_level: As for `images.read_image`.
        on_progress: Called with (done, total).

    Raises:
        DataError: There is no good training image, or one cannot be read.
    """
    good = [s for s in table.samples if s.split == "train" and s.label in (0, None)]
    if not good:
        raise DataError(
            "there is no good training image to draw a defect on", where=shown(table.root)
        )
    transform = Transform((size, size))
    pictures = [
        as_float(transform(read_image(sample.path, white_level=white_level))[0])
        for sample in _drawn(good, images, seed)
    ]
    cells: list[FloatArray] = []
    areas: list[float] = []
    for number, image in enumerate(pictures):
        others = pictures[:number] + pictures[number + 1 :]
        defect, mask = synthesis(image, np.random.default_rng([seed, number]), others)
        areas.append(float(mask.mean()))
        cells.append(np.concatenate([image, defect, outlined(defect, mask)], axis=1))
        if on_progress is not None:
            on_progress(number + 1, len(pictures))
    return Sheet(Image.fromarray(_laid_out(cells)), tuple(areas))


def _drawn(good: Sequence[Sample], images: int, seed: int) -> list[Sample]:
    """Random images, from every category in turn."""
    generator = np.random.default_rng(seed)
    by_category: dict[str, list[Sample]] = {}
    for index in generator.permutation(len(good)):
        by_category.setdefault(good[index].category, []).append(good[index])
    rounds = zip_longest(*(by_category[name] for name in sorted(by_category)))
    return [sample for each in rounds for sample in each if sample is not None][:images]


def outlined(image: FloatArray, mask: BoolArray) -> FloatArray:
    """The image with the border of a mask drawn in.

    Args:
        image: (H, W, 3) float32 in [0, 1].
        mask: (H, W).
    """
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    found = image.copy()
    found[mask & ~inner] = _OUTLINE
    return found


def _laid_out(cells: list[FloatArray]) -> npt.NDArray[np.uint8]:
    height, width = cells[0].shape[:2]
    columns = min(_COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    shape = (rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3)
    sheet = np.full(shape, 255, dtype=np.uint8)
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        top, left = _GAP + row * (height + _GAP), _GAP + column * (width + _GAP)
        sheet[top : top + height, left : left + width] = (cell * 255).round().astype(np.uint8)
    return sheet

"""Masks: which pixels of an image are a defect."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from flawmap.data.images import header_size, read_values
from flawmap.data.lister import Problem, UnreadableImageError
from flawmap.data.pool import map_in_threads
from flawmap.errors import DataError
from flawmap.resources import default_threads
from flawmap.types import BoolArray, Sample
from flawmap.wording import shown


def read_mask(paths: Sequence[str | os.PathLike[str]], size: tuple[int, int]) -> BoolArray:
    """The union of an image's masks; a pixel of any colour but black is a defect.

    Args:
        paths: The mask files; none gives an empty mask.
        size: (height, width) of the image in px.

    Returns:
        (H, W) bool, True = defect.

    Raises:
        DataError: A mask cannot be read or has another size than its image.
    """
    union = np.zeros(size, dtype=np.bool_)
    for path in paths:
        values = read_values(path)
        _require_size(values.shape, size, path)
        nonzero = values != 0
        union |= nonzero.any(axis=2) if nonzero.ndim == 3 else nonzero
    return union


def mismatched(samples: Sequence[Sample]) -> list[Problem]:
    """Masks of defects that are missing or differ in size from their image, by their headers."""

    def look(sample: Sample) -> list[Problem]:
        found: list[Problem] = []
        path = sample.path
        try:
            size = sorted(header_size(path))
            for path in sample.masks:
                if sorted(header_size(path)) != size:
                    found.append(Problem(path, "the mask and its image differ in size"))
        except UnreadableImageError as error:
            found.append(Problem(path, error.reason))
        except DataError as error:
            found.append(Problem(path, error.message))
        return found

    threads = default_threads()
    # Masks of good images are not read: some tables give them black ones.
    masked = [s for s in samples if s.label and s.masks]
    results = map_in_threads(look, masked, threads=threads, ahead=4 * threads)
    return [problem for result in results for problem in result]


def read_regions(
    paths: Sequence[str | os.PathLike[str]], size: tuple[int, int]
) -> list[tuple[BoolArray, int]]:
    """Each mask by itself, with the value of its pixels, for data sets where that means something.

    Args:
        paths: The mask files.
        size: (height, width) of the image in px.

    Returns:
        For each file a (H, W) bool, True = region, and the value of all its pixels but the black
        ones; 0 for a mask that is all black.

    Raises:
        DataError: A mask cannot be read, has another size than its image, or several values.
    """
    regions = []
    for path in paths:
        values = read_values(path)
        if values.ndim == 3:
            values = values.max(axis=2)
        _require_size(values.shape, size, path)
        found = [int(value) for value in np.unique(values) if value != 0]
        if len(found) > 1:
            raise DataError(
                "a mask that is one region must have one value",
                where=shown(path),
                given=f"{len(found)} values: {', '.join(map(str, found[:5]))}",
                expected="black, and one other value for all pixels of the region",
            )
        regions.append((values != 0, found[0] if found else 0))
    return regions


def _require_size(
    shape: tuple[int, ...], size: tuple[int, int], path: str | os.PathLike[str]
) -> None:
    if shape[:2] != tuple(size):
        raise DataError(
            "the mask and its image differ in size",
            where=shown(path),
            given=f"a mask of {shape[1]} x {shape[0]} px",
            expected=f"{size[1]} x {size[0]} px, as the image",
            hint="export the mask at the size of the image; it is never resized by guessing",
        )

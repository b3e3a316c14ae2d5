"""Pixel AP at the border of defects and away from it, apart.

The official pixel AP is one figure over all pixels. A map can be right in the middle of a defect
and blurred at its border, or the other way round; these two say which. They split the pixels of
a category: those within `EDGE` px of a defect's border, on either side of it, and all others.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from flawmap.metrics._chunks import MemoryBudget
from flawmap.metrics.pixel import AnomalyMap, Mask, PixelScores, check_map, check_mask
from flawmap.types import BoolArray

EDGE = 3
"""How far the border reaches to each side, in px."""

_SQUARE = np.ones((3, 3), dtype=np.bool_)


class EdgeScores:
    """Collects the maps of one category.

    Args:
        budget: as for `PixelScores`.

    Example:
        >>> mask = np.zeros((20, 20), dtype=bool)
        >>> mask[5:15, 5:15] = True
        >>> with EdgeScores() as scores:
        ...     scores.add(mask.astype(np.float32), mask)
        ...     scores.compute()
        (1.0, 1.0)
    """

    def __init__(self, budget: MemoryBudget | None = None) -> None:
        budget = MemoryBudget() if budget is None else budget
        self._edge, self._rest = PixelScores(budget), PixelScores(budget)

    def __enter__(self) -> EdgeScores:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """As of `PixelScores`."""
        self._edge.close()

    def add(self, anomaly_map: AnomalyMap, mask: Mask | None) -> None:
        """Adds one image; images may differ in size.

        Args:
            anomaly_map: (H, W) finite float16, float32 or float64, higher = more anomalous.
            mask: (H, W) bool, or integers where nonzero is a defect; None for a good image.

        Raises:
            ValueError: if an argument has the wrong shape, dtype or values; nothing is added then.
        """
        scores = check_map(anomaly_map)
        if mask is None:
            self._rest.add(scores, None)
            return
        is_defect = check_mask(mask, scores.shape)
        edge = edge_pixels(is_defect)
        for part, collector in ((edge, self._edge), (~edge, self._rest)):
            if part.any():
                # The AP of pixels does not depend on where they lie.
                collector.add(scores[part][None], is_defect[part][None])

    def compute(self) -> tuple[float, float]:
        """AP at the border and away from it, 0..1; NaN where there is only one class of pixels."""
        return self._edge.compute().pixel_ap, self._rest.compute().pixel_ap


def edge_pixels(mask: BoolArray, reach: int = EDGE) -> BoolArray:
    """Pixels within reach of a border between defect and normal pixels.

    Args:
        mask: (H, W) bool, True = defect.
        reach: In px, counted as a king moves; at least 1. The frame of the image is no border.

    Returns:
        (H, W) bool: up to `reach` px of the defect, and as many around it.

    Example:
        >>> edge_pixels(np.array([[0, 0, 0, 1, 1, 1]], dtype=bool), 1).astype(int)
        array([[0, 0, 1, 1, 0, 0]])
    """
    outer = ndimage.binary_dilation(mask, _SQUARE, iterations=reach)
    inner = ndimage.binary_erosion(mask, _SQUARE, iterations=reach, border_value=1)
    found: BoolArray = outer & ~inner
    return found

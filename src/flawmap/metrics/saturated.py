"""Saturated per-region overlap (sPRO) of one category, exact, as MVTec LOCO defines it.

A logical defect, such as a missing part, has no outline: its region is every place where the part
could be, and finding a piece of it is enough. So each mask is one region, whatever its connected
components, and a region of area A with saturation s counts min(found / s, 1). Regions may overlap;
a pixel is normal if it lies in none.

The first s pixels found of a region lift the curve by 1 / s each, and those after them by nothing.
Which these are follows from the region's scores alone, so only they are kept, and the area follows
from two counts of normals at each, as for AUPRO (see `flawmap.metrics.pixel`).

Source: Bergmann et al., "Beyond Dents and Scratches: Logical Constraints in Unsupervised Anomaly
Detection and Localization" (IJCV 2022).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flawmap.metrics._chunks import MemoryBudget, ScoreCollector, SortedChunks
from flawmap.metrics._counts import pro_area_lost
from flawmap.metrics.pixel import (
    AnomalyMap,
    Mask,
    check_fpr_limit,
    check_map,
    check_mask,
)

SaturatedRegion = tuple[Mask, float]
"""(H, W) bool or integers, nonzero = in the region, and the px of it that must be found, > 0."""

DEFAULT_FPR_LIMIT = 0.05


class SaturatedScores(ScoreCollector):
    """Collects the anomaly maps and regions of one category and computes the exact sPRO.

    Args:
        budget: as for `PixelScores`.

    Example:
        >>> scores = SaturatedScores()
        >>> region = np.array([[1, 1, 1, 0]])
        >>> scores.add(np.array([[0.1, 0.9, 0.2, 0.5]]), [(region, 1.0)])
        >>> scores.compute()
        1.0
    """

    def __init__(self, budget: MemoryBudget | None = None) -> None:
        super().__init__(budget)
        # Each score's "region" is its row in the table of lifts.
        self._found = SortedChunks(self._budget, with_regions=True)
        self._lifts: list[float] = []
        self._n_regions = 0

    def add(self, anomaly_map: AnomalyMap, regions: Sequence[SaturatedRegion]) -> None:
        """Adds one image; images may differ in size.

        Args:
            anomaly_map: (H, W) finite float16, float32 or float64, higher = more anomalous.
            regions: The regions, each with the px that must be found, above 0; more than the
                region's area means all of it. Nothing for a good image; a region without a pixel
                does not count.

        Raises:
            ValueError: if an argument has the wrong shape, dtype or values; nothing is added then.
        """
        scores = check_map(anomaly_map)
        checked = [(check_mask(mask, scores.shape), needed) for mask, needed in regions]
        for _, needed in checked:
            if not (needed > 0 and math.isfinite(needed)):
                raise ValueError(f"saturation: got {needed} px, expected a finite number above 0")
        union = np.zeros(scores.shape, dtype=np.bool_)
        for mask, needed in checked:
            union |= mask
            self._add_region(scores[mask], needed)
        self._normals.append(scores[~union], None)

    def compute(self, fpr_limit: float = DEFAULT_FPR_LIMIT) -> float:
        """Area under the sPRO curve up to an FPR limit, divided by the limit.

        More images may be added afterwards.

        Args:
            fpr_limit: share of the normal pixels, 0 < fpr_limit <= 1.

        Returns:
            Area in 0..1; NaN unless there is a region and a normal pixel.

        Raises:
            ValueError: if fpr_limit is out of range.
        """
        check_fpr_limit(fpr_limit)
        if not self._n_regions or not self._normals.size:
            return math.nan
        lifts = np.array(self._lifts)
        losses = []
        for scores, rows in self._found.blocks():
            starts = np.flatnonzero(np.concatenate(([True], scores[1:] != scores[:-1])))
            distinct = scores[starts]
            normals_ge, normals_gt = self._normals.count_ge_gt(distinct)
            weights = np.add.reduceat(lifts[rows], starts)
            limit = fpr_limit * self._normals.size
            losses.append(pro_area_lost(normals_ge, normals_gt, weights, limit))
        # The lifts are rounded and may add up to a hair more than 1.
        return max(1.0 - math.fsum(losses) / self._n_regions, 0.0)

    def _add_region(self, scores: NDArray[np.floating], needed: float) -> None:
        """Keeps the highest scores of a region, as many as can lift the curve."""
        if not scores.size:
            return
        needed = min(needed, float(scores.size))
        whole = math.floor(needed)
        n_kept = math.ceil(needed)
        highest = np.sort(scores)[scores.size - n_kept :]
        # One row for pixels that count in full; one for the last, if the saturation is no integer.
        row = len(self._lifts)
        self._lifts += [1.0 / needed, (needed - whole) / needed]
        rows = np.full(n_kept, row, dtype=np.int32)
        if n_kept > whole:
            rows[0] = row + 1
        self._found.append(highest, rows)
        self._n_regions += 1


def spro(
    maps: Sequence[AnomalyMap],
    regions: Sequence[Sequence[SaturatedRegion]],
    fpr_limit: float = DEFAULT_FPR_LIMIT,
) -> float:
    """Area under the saturated per-region overlap curve up to an FPR limit, over the limit.

    Every distinct score is a threshold; sPRO(t) is the mean over all regions of the category of
    min(found / s, 1); FPR(t) is the share, found at t, of the pixels that lie in no region.

    Args:
        maps: N anomaly maps, each (H, W) finite float, higher = more anomalous; sizes may differ.
        regions: For each map its regions, as for `SaturatedScores.add`; none for a good image.
        fpr_limit: 0 < fpr_limit <= 1; the data set's own is 0.05.

    Returns:
        Area in 0..1; NaN unless there is a region and a normal pixel.

    Raises:
        ValueError: if an argument has the wrong length, shape, dtype or values.

    Example:
        >>> ramp = np.linspace(0.0, 1.0, 16).reshape(4, 4)
        >>> region = ramp > 0.5
        >>> spro([ramp - 2 * (ramp < 0.7) * region], [[(region, 5)]])
        1.0
    """
    if len(maps) != len(regions):
        raise ValueError(
            f"regions: got {len(regions)}, expected {len(maps)} as maps; "
            "pass an empty list for a good image"
        )
    with SaturatedScores() as scores:
        for anomaly_map, found in zip(maps, regions, strict=True):
            scores.add(anomaly_map, found)
        return scores.compute(fpr_limit)

"""Connected flaws above a threshold."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from flawmap.types import FloatArray, Region

_EIGHT_CONNECTED = np.ones((3, 3), dtype=int)


def find_regions(
    anomaly_map: FloatArray, threshold: float, *, min_area: int = 1
) -> tuple[Region, ...]:
    """The 8-connected regions of a map above a threshold, highest peak first.

    Args:
        anomaly_map: (H, W) float32.
        threshold: Values strictly above it belong to a region.
        min_area: Smaller regions (px) are left out.
    """
    above = anomaly_map > threshold
    if not above.any():
        return ()
    labels, _ = ndimage.label(above, structure=_EIGHT_CONNECTED)
    regions = []
    for index, window in enumerate(ndimage.find_objects(labels), start=1):
        member = labels[window] == index
        area = int(member.sum())
        if area < min_area:
            continue
        values = np.where(member, anomaly_map[window], -np.inf)
        y, x = np.unravel_index(int(values.argmax()), values.shape)
        top, left = window[0].start, window[1].start
        regions.append(
            Region(
                box=(left, top, window[1].stop - left, window[0].stop - top),
                area=area,
                peak=float(values[y, x]),
                peak_at=(left + int(x), top + int(y)),
            )
        )
    return tuple(sorted(regions, key=lambda r: -r.peak))

"""A map as heat over its picture, in overlays and reports alike.

The scale is anchored at the map threshold: what a good part usually shows is transparent, the
threshold lies in the middle of the scale, and the highest value shown is its end. A good part
therefore looks calm, whatever the units of the method's maps. The picture below turns grey, so that
every colour seen is the map's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flawmap.types import FloatArray

# Eleven support points of the perceptually uniform map "inferno" (matplotlib, CC0).
_INFERNO = (
    *("000004", "160b39", "420a68", "6a176e", "932667", "bc3754"),
    *("dd513a", "f37819", "fca50a", "f6d746", "fcffa4"),
)
# Opacity at 0, 0.5 (the threshold) and 1 of the scale: see-through below, covering above.
_OPACITY = ((0.0, 0.2, 0.5, 0.75, 1.0), (0.0, 0.06, 0.58, 0.78, 0.85))
_STEPS = 256


@dataclass(frozen=True, slots=True)
class HeatScale:
    """From map values to 0..1.

    Attributes:
        low: Map value at 0: what a good part usually shows.
        middle: Map value at 0.5: the map threshold if there is one.
        high: Map value at 1: the highest shown, or as far above the threshold as `low` is below it.
        anchored: Whether `middle` is the threshold.
    """

    low: float
    middle: float
    high: float
    anchored: bool

    @classmethod
    def of(cls, maps: Sequence[FloatArray], threshold: float | None) -> HeatScale:
        """The scale of maps that stand together; there must be at least one."""
        low = float(np.median(np.concatenate([m[::4, ::4].ravel() for m in maps])))
        top = max(float(m.max()) for m in maps)
        if threshold is None:
            span = max(top - low, 1e-12)
            return cls(low, low + span / 2, low + span, anchored=False)
        # Maps that lie above the threshold everywhere must not turn the scale around.
        low = min(low, threshold - max(1e-12, abs(threshold) * 1e-6))
        # A map that stays below the threshold must not look hotter for being the hottest shown.
        return cls(low, threshold, max(top, 2 * threshold - low), anchored=True)

    def __call__(self, values: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Values to 0..1, piecewise linear."""
        points = ([self.low, self.middle, self.high], [0.0, 0.5, 1.0])
        return np.asarray(np.interp(values, *points))


def colour(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """0..1 to RGB in 0..255, (..., 3), by the map "inferno" without its black end."""
    stops = np.array([[int(c[i : i + 2], 16) for i in (0, 2, 4)] for c in _INFERNO], dtype=float)
    at = 0.2 + 0.8 * shares
    places = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(at, places, stops[:, i]) for i in range(3)], axis=-1)


def heat_picture(
    picture: npt.NDArray[np.uint8], anomaly_map: npt.NDArray[np.floating], scale: HeatScale
) -> npt.NDArray[np.uint8]:
    """The map over its picture in grey.

    Args:
        picture: (h, w, 3) uint8.
        anomaly_map: (h, w), raw scale.
        scale: That of the picture, or of all pictures that stand together.

    Returns:
        (h, w, 3) uint8.
    """
    grey = picture @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    # A table: pictures may have many millions of px.
    shares = np.linspace(0, 1, _STEPS)
    opacity = np.interp(shares, *_OPACITY)
    heat = (colour(shares) * opacity[:, None]).astype(np.float32)
    at = (scale(anomaly_map) * (_STEPS - 1)).round().astype(np.uint8)
    mixed = (grey * (1 - opacity).astype(np.float32)[at])[..., None] + heat[at]
    return np.asarray(mixed.round().clip(0, 255), dtype=np.uint8)

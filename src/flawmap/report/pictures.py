"""Small pictures for the page: the source, the heat map over it, and outlines as SVG paths.

The heat scale is common to a category and anchored at the map threshold: what a good part usually
shows is transparent, the threshold lies in the middle of the scale, and the highest value shown is
its end. A good part therefore looks calm, whatever the units of the method's maps.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from flawmap.types import BoolArray, FloatArray

QUALITY = 85
_TINY = 160
"""px; pictures with a shorter long side are enlarged by whole factors, to be seen at all."""
_MAX_SEGMENTS = 4000

# Eleven support points of the perceptually uniform map "inferno" (matplotlib, CC0).
_INFERNO = (
    *("000004", "160b39", "420a68", "6a176e", "932667", "bc3754"),
    *("dd513a", "f37819", "fca50a", "f6d746", "fcffa4"),
)
# Opacity at 0, 0.5 (the threshold) and 1 of the scale: see-through below, covering above.
_OPACITY = ((0.0, 0.2, 0.5, 0.75, 1.0), (0.0, 0.06, 0.58, 0.78, 0.85))


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
        """The scale of a category's maps; there must be at least one."""
        low = float(np.median(np.concatenate([m[::4, ::4].ravel() for m in maps])))
        top = max(float(m.max()) for m in maps)
        if threshold is None:
            span = max(top - low, 1e-12)
            return cls(low, low + span / 2, low + span, anchored=False)
        # Maps that lie above the threshold everywhere must not turn the scale around.
        low = min(low, threshold - max(1e-12, abs(threshold) * 1e-6))
        # A map that stays below the threshold must not look hotter for being the hottest shown.
        return cls(low, threshold, max(top, 2 * threshold - low), anchored=True)

    def __call__(self, values: FloatArray) -> npt.NDArray[np.float64]:
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
    picture: npt.NDArray[np.uint8], anomaly_map: FloatArray, scale: HeatScale
) -> npt.NDArray[np.uint8]:
    """The map over its picture in grey, so that every colour seen is the map's.

    Args:
        picture: (h, w, 3) uint8.
        anomaly_map: (h, w) float32, raw scale.
        scale: The category's.

    Returns:
        (h, w, 3) uint8.
    """
    grey = picture @ np.array([0.299, 0.587, 0.114])
    shares = scale(anomaly_map)
    opacity = np.interp(shares, *_OPACITY)[..., None]
    mixed = grey[..., None] * (1 - opacity) + colour(shares) * opacity
    return np.asarray(mixed.round().clip(0, 255), dtype=np.uint8)


def css_gradient() -> str:
    """The heat scale over a mid-grey picture, as a CSS gradient."""
    shares = np.linspace(0, 1, 11)
    opacity = np.interp(shares, *_OPACITY)[:, None]
    mixed = 128 * (1 - opacity) + colour(shares) * opacity
    stops = ",".join("#" + "".join(f"{round(v):02x}" for v in rgb) for rgb in mixed.tolist())
    return f"linear-gradient(90deg,{stops})"


def small_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """(height, width) in px of the picture on the page for a source of `size`."""
    long_side = max(size)
    if long_side > longest:
        scale = longest / long_side
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    factor = max(1, math.ceil(_TINY / long_side)) if long_side < _TINY else 1
    return size[0] * factor, size[1] * factor


def shrink_picture(
    rgb: npt.NDArray[np.uint8 | np.float32], size: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """A decoded image (uint8, or float32 in [0, 1]) as (h, w, 3) uint8 of `size`."""
    if rgb.dtype != np.uint8:
        rgb = (rgb.clip(0, 1) * 255).round().astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(rgb))
    smaller = size[0] < rgb.shape[0] or size[1] < rgb.shape[1]
    how = Image.Resampling.LANCZOS if smaller else Image.Resampling.NEAREST
    return np.asarray(image.resize(size[::-1], how))


def shrink_map(values: FloatArray, size: tuple[int, int]) -> FloatArray:
    """A map (H, W) as (h, w) float32 of `size`."""
    image = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    smaller = size[0] < values.shape[0] or size[1] < values.shape[1]
    how = Image.Resampling.BOX if smaller else Image.Resampling.BILINEAR
    return np.asarray(image.resize(size[::-1], how), dtype=np.float32)


def shrink_mask(mask: BoolArray, size: tuple[int, int]) -> BoolArray:
    """A mask (H, W) of `size`; a px counts if any part of it does, so thin cracks stay."""
    image = Image.fromarray(mask.astype(np.float32))
    smaller = size[0] < mask.shape[0] or size[1] < mask.shape[1]
    how = Image.Resampling.BOX if smaller else Image.Resampling.NEAREST
    return np.asarray(image.resize(size[::-1], how)) > 0


def data_uri(picture: npt.NDArray[np.uint8]) -> str:
    """(h, w, 3) uint8 as a JPEG in the page itself."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def outline(mask: BoolArray) -> str:
    """The edges of a mask's px as an SVG path in px of the mask; "" for an empty mask.

    A mask so ragged that its outline would weigh more than a picture is coarsened first.

    Args:
        mask: (h, w).
    """
    scale = 1
    while True:
        path, n = _edges(mask, scale)
        if n <= _MAX_SEGMENTS or max(mask.shape) <= 8:
            return path
        pad = [(0, n % 2) for n in mask.shape]
        even = np.pad(mask, pad)
        mask = even[::2, ::2] | even[1::2, ::2] | even[::2, 1::2] | even[1::2, 1::2]
        scale *= 2


def _edges(mask: BoolArray, scale: int) -> tuple[str, int]:
    parts: list[str] = []
    for flipped in (False, True):
        values = (mask.T if flipped else mask).astype(np.int8)
        # Where px and the px above differ lies a horizontal edge; runs of them are one stroke.
        change = np.abs(np.diff(values, axis=0, prepend=0, append=0))
        ends = np.diff(change, axis=1, prepend=0, append=0)
        rows, starts = np.nonzero(ends == 1)
        _, stops = np.nonzero(ends == -1)
        for row, start, stop in zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True):
            line, begin, length = row * scale, start * scale, (stop - start) * scale
            parts.append(f"M{line} {begin}v{length}" if flipped else f"M{begin} {line}h{length}")
    return "".join(parts), len(parts)

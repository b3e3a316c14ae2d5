"""Raw maps to smoothed maps of any size.

Upsampling to the network input, Gaussian smoothing there (or at a size of its own) and resampling
to the source image are linear and separable, so all are one small matrix per axis:
map = rows @ raw @ columns.T. The matrices depend on sizes only and are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from flawmap.types import BoolArray, FloatArray, Geometry

_TRUNCATE = 4.0
"""Deviations beyond which the Gaussian is cut off, unless a reach is given."""


def _interpolation(
    n_out: int, n_in: int, scale: float, shift: float, low: int = 0, high: int | None = None
) -> npt.NDArray[np.float64]:
    """(n_out, n_in) linear interpolation; output px i lies at (i + 0.5) * scale + shift - 0.5.

    Positions outside the centres of px `low` and `high` - 1 take the value there.
    """
    last = (n_in if high is None else high) - 1
    at = np.clip((np.arange(n_out) + 0.5) * scale + shift - 0.5, low, last)
    before = np.minimum(np.floor(at).astype(int), n_in - 1)
    after = np.minimum(before + 1, n_in - 1)
    weight = at - before
    matrix = np.zeros((n_out, n_in))
    rows = np.arange(n_out)
    np.add.at(matrix, (rows, before), 1 - weight)
    np.add.at(matrix, (rows, after), weight)
    return matrix


@dataclass(frozen=True, slots=True)
class Smoothing:
    """What is done to a map once it has the size of the network input.

    Attributes:
        sigma: Standard deviation of the Gaussian in px; 0 = none.
        reach: The Gaussian is cut off beyond so many px; by default where it is next to nothing.
        opening: Diameter in px of the disc of a grey opening after it, odd; 0 = none.
        size: (H, W) to which the map is brought before that; None leaves it as large as the input.
        published: At the borders as in published code: a map is stretched from the centres of its
            corners, and the Gaussian counts what lies beyond the border as 0. Else a map's px have
            equal parts of the input, and the Gaussian is renormalised over what exists.
    """

    sigma: float = 0.0
    reach: int | None = None
    opening: int = 0
    size: tuple[int, int] | None = None
    published: bool = False


@lru_cache(maxsize=8)
def _gaussian(
    n: int, sigma: float, reach: int | None, low: int, high: int, zeros: bool
) -> npt.NDArray[np.float64]:
    """(n, n) Gaussian smoothing of what lies in low..high - 1, from at most `reach` px away.

    At the borders, and at those of a padding, the kernel is renormalised over what exists, unless
    zeros are to be taken for what does not.
    """
    if sigma == 0:
        return np.eye(n)
    reach = math.ceil(_TRUNCATE * sigma) if reach is None else reach
    distance = np.arange(n)[:, None] - np.arange(n)[None, :]
    kernel = np.exp(-0.5 * (distance / sigma) ** 2)
    kernel[np.abs(distance) > reach] = 0
    kernel[low:high, :low] = 0
    kernel[low:high, high:] = 0
    if zeros:
        return np.asarray(kernel / np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2).sum())
    return np.asarray(kernel / kernel.sum(axis=1, keepdims=True))


@dataclass(frozen=True, slots=True)
class _Axis:
    """Sizes in px along one axis: of the raw map, the network input and the map that is smoothed,
    and what of the latter shows the image."""

    n_raw: int
    n_input: int
    n_map: int
    low: int
    high: int


@lru_cache(maxsize=16)
def _smoothing(axis: _Axis, how: Smoothing) -> npt.NDArray[np.float32]:
    """(n_map, n_raw): the raw map on the input, brought to its size and smoothed there."""
    scale, shift = axis.n_raw / axis.n_input, 0.0
    if how.published:
        scale = (axis.n_raw - 1) / max(1, axis.n_input - 1)
        shift = 0.5 - 0.5 * scale
    matrix = _interpolation(axis.n_input, axis.n_raw, scale, shift)
    if axis.n_map != axis.n_input:
        ratio = axis.n_input / axis.n_map
        matrix = _interpolation(axis.n_map, axis.n_input, ratio, 0.0) @ matrix
    smooth = _gaussian(axis.n_map, how.sigma, how.reach, axis.low, axis.high, how.published)
    return (smooth @ matrix).astype(np.float32)


@lru_cache(maxsize=64)
def _to_output(
    n_out: int, n_resized: int, offset: int, axis: _Axis, how: Smoothing
) -> npt.NDArray[np.float32]:
    """(n_out, n_raw), or after an opening (n_out, n_map): the smoothed map on the source."""
    ratio = axis.n_map / axis.n_input
    back = _interpolation(
        n_out, axis.n_map, n_resized / n_out * ratio, -offset * ratio, axis.low, axis.high
    )
    if how.opening:
        return back.astype(np.float32)
    return (back @ _smoothing(axis, how)).astype(np.float32)


def smooth(raw: FloatArray, geometry: Geometry, how: Smoothing) -> FloatArray:
    """A raw map, upsampled to the network input and smoothed there, or at the size given.

    Nothing is carried from a padding into the image.

    Args:
        raw: (h, w) float32.
        geometry: How the source became the input.
        how: What is done.

    Returns:
        (H, W) float32 over the whole input.
    """
    rows, columns = (_smoothing(axis, how) for axis in _axes(raw, geometry, how))
    found = np.asarray(rows @ raw @ columns.T, dtype=np.float32)
    if how.opening:
        seen = inside(geometry, how)
        found[seen] = opened(found[seen], how.opening)
    return found


def opened(values: FloatArray, diameter: int) -> FloatArray:
    """The grey opening of a map with a disc: every set of px above a threshold, opened.

    At the border only the px that exist count.

    Args:
        values: (H, W) float32.
        diameter: Of the disc in px, odd; 3 is a cross of five px.
    """
    shape = disc(diameter)
    eroded = ndimage.grey_erosion(values, footprint=shape, mode="constant", cval=np.inf)
    found = ndimage.grey_dilation(eroded, footprint=shape, mode="constant", cval=-np.inf)
    return np.asarray(found, dtype=np.float32)


def disc(diameter: int) -> BoolArray:
    """(diameter, diameter) bool: the px within half the diameter of the middle one."""
    radius = diameter // 2
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return np.asarray(y**2 + x**2 <= radius**2)


def resample(
    raw: FloatArray,
    geometry: Geometry,
    how: Smoothing,
    *,
    size: tuple[int, int] | None = None,
    smoothed: FloatArray | None = None,
) -> FloatArray:
    """A raw map, smoothed and brought to the whole source image.

    What lies outside the input window (a crop) takes the value of the window's edge.

    Args:
        raw: (h, w) float32.
        geometry: How the source became the input.
        how: The smoothing.
        size: (H, W) of the result; the source image's own size by default.
        smoothed: What `smooth` gives for the same, where it is known: an opening takes its time.

    Returns:
        (H, W) float32.
    """
    rows, columns = (
        _to_output(n, resized, offset, axis, how)
        for n, resized, offset, axis in zip(
            size or geometry.source,
            geometry.resized,
            geometry.offset,
            _axes(raw, geometry, how),
            strict=True,
        )
    )
    if how.opening:
        # It is not linear: what comes before and after it cannot be one matrix.
        raw = smooth(raw, geometry, how) if smoothed is None else smoothed
    return np.asarray(rows @ raw @ columns.T, dtype=np.float32)


def inside(geometry: Geometry, how: Smoothing) -> tuple[slice, slice]:
    """The part of a smoothed map that shows the image, without its padding."""
    rows, columns = (_shown(*sizes) for sizes in _sizes(geometry, how))
    return slice(*rows), slice(*columns)


def _axes(raw: FloatArray, geometry: Geometry, how: Smoothing) -> Iterator[_Axis]:
    for n_raw, sizes in zip(raw.shape, _sizes(geometry, how), strict=True):
        yield _Axis(n_raw, sizes[2], sizes[3], *_shown(*sizes))


def _sizes(geometry: Geometry, how: Smoothing) -> Iterator[tuple[int, int, int, int]]:
    """Of each axis: the resized image, the window's offset there, the input, the smoothed map."""
    size = how.size or geometry.input
    return zip(geometry.resized, geometry.offset, geometry.input, size, strict=True)


def _shown(n_resized: int, offset: int, n_input: int, n_map: int) -> tuple[int, int]:
    """First and last + 1 px of an axis of the smoothed map that show the image."""
    low, high = max(0, -offset), min(n_input, n_resized - offset)
    low = min(round(low * n_map / n_input), n_map - 1)
    return low, max(low + 1, round(high * n_map / n_input))


def pool(smoothed: FloatArray, *, top_fraction: float) -> float:
    """The mean of the highest px of one smoothed map.

    Args:
        smoothed: (H, W) float32.
        top_fraction: The share of the px that counts, in (0, 1]; at least one px is used.
    """
    n = max(1, int(smoothed.size * top_fraction))
    return float(np.partition(smoothed, -n, axis=None)[-n:].mean(dtype=np.float64))

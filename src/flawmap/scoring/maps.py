"""Raw maps to smoothed maps of any size.

Upsampling to the network input, Gaussian smoothing there and resampling to the source image are
linear and separable, so all three are one small matrix per axis: map = rows @ raw @ columns.T.
The matrices depend on sizes only and are kept.
"""

from __future__ import annotations

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


@lru_cache(maxsize=8)
def _gaussian(
    n: int, sigma: float, reach: int | None, low: int, high: int
) -> npt.NDArray[np.float64]:
    """(n, n) Gaussian smoothing of what lies in low..high - 1, from at most `reach` px away.

    At the borders, and at those of a padding, the kernel is renormalised over what exists.
    """
    if sigma == 0:
        return np.eye(n)
    distance = np.arange(n)[:, None] - np.arange(n)[None, :]
    kernel = np.exp(-0.5 * (distance / sigma) ** 2)
    kernel[np.abs(distance) > (np.ceil(_TRUNCATE * sigma) if reach is None else reach)] = 0
    kernel[low:high, :low] = 0
    kernel[low:high, high:] = 0
    return np.asarray(kernel / kernel.sum(axis=1, keepdims=True))


@lru_cache(maxsize=16)
def _to_input(
    n_input: int, n_raw: int, sigma: float, reach: int | None, low: int, high: int
) -> npt.NDArray[np.float32]:
    up = _interpolation(n_input, n_raw, n_raw / n_input, 0.0)
    return (_gaussian(n_input, sigma, reach, low, high) @ up).astype(np.float32)


@lru_cache(maxsize=64)
def _to_output(
    n_out: int,
    n_resized: int,
    offset: int,
    n_input: int,
    n_raw: int,
    sigma: float,
    reach: int | None,
) -> npt.NDArray[np.float32]:
    low, high = _shown(n_resized, offset, n_input)
    back = _interpolation(n_out, n_input, n_resized / n_out, -float(offset), low, high)
    smooth_up = _to_input(n_input, n_raw, sigma, reach, low, high)
    return (back @ smooth_up).astype(np.float32)


def smooth_on_input(
    raw: FloatArray,
    geometry: Geometry,
    *,
    sigma: float,
    opening: int = 0,
    reach: int | None = None,
) -> FloatArray:
    """A raw map, upsampled to the network input and smoothed there.

    Nothing is carried from a padding into the image.

    Args:
        raw: (h, w) float32.
        geometry: How the source became the input.
        sigma: Standard deviation of the Gaussian in px of the input; 0 = none.
        opening: Diameter in px of the disc of a grey opening after it, odd; 0 = none.
        reach: The Gaussian is cut off beyond so many px; by default where it is next to nothing.

    Returns:
        (H, W) float32 over the whole input.
    """
    (top, bottom), (left, right) = _window(geometry)
    rows = _to_input(geometry.input[0], raw.shape[-2], sigma, reach, top, bottom)
    columns = _to_input(geometry.input[1], raw.shape[-1], sigma, reach, left, right)
    smoothed = np.asarray(rows @ raw @ columns.T, dtype=np.float32)
    if opening:
        seen = inside(geometry)
        smoothed[seen] = opened(smoothed[seen], opening)
    return smoothed


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
    *,
    sigma: float,
    opening: int = 0,
    reach: int | None = None,
    size: tuple[int, int] | None = None,
) -> FloatArray:
    """A raw map, smoothed on the network input and brought to the whole source image.

    What lies outside the input window (a crop) takes the value of the window's edge.

    Args:
        raw: (h, w) float32.
        geometry: How the source became the input.
        sigma: Standard deviation of the Gaussian in px of the input; 0 = none.
        opening: As for `smooth_on_input`; so is the next.
        reach: Of the Gaussian.
        size: (H, W) of the result; the source image's own size by default.

    Returns:
        (H, W) float32.
    """
    height, width = size or geometry.source
    if opening:
        # It is not linear: what comes before and after it cannot be one matrix.
        raw = smooth_on_input(raw, geometry, sigma=sigma, opening=opening, reach=reach)
        sigma = 0.0
    rows, columns = (
        _to_output(n, *axis, sigma, reach)
        for n, axis in zip(
            (height, width),
            zip(geometry.resized, geometry.offset, geometry.input, raw.shape, strict=True),
            strict=True,
        )
    )
    return np.asarray(rows @ raw @ columns.T, dtype=np.float32)


def inside(geometry: Geometry) -> tuple[slice, slice]:
    """The part of the network input that shows the image, without its padding."""
    rows, columns = _window(geometry)
    return slice(*rows), slice(*columns)


def _window(geometry: Geometry) -> tuple[tuple[int, int], tuple[int, int]]:
    rows, columns = zip(geometry.resized, geometry.offset, geometry.input, strict=True)
    return _shown(*rows), _shown(*columns)


def _shown(n_resized: int, offset: int, n_input: int) -> tuple[int, int]:
    """First and last + 1 px of an input axis that show the image."""
    return max(0, -offset), min(n_input, n_resized - offset)


def pool(smoothed: FloatArray, *, top_fraction: float) -> float:
    """The mean of the highest px of one smoothed map.

    Args:
        smoothed: (H, W) float32.
        top_fraction: The share of the px that counts, in (0, 1]; at least one px is used.
    """
    n = max(1, int(smoothed.size * top_fraction))
    return float(np.partition(smoothed, -n, axis=None)[-n:].mean(dtype=np.float64))

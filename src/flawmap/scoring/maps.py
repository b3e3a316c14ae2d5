"""Raw maps to smoothed maps of any size.

Upsampling to the network input, Gaussian smoothing there and resampling to the source image are
linear and separable, so all three are one small matrix per axis: map = rows @ raw @ columns.T.
The matrices depend on sizes only and are kept.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from flawmap.types import FloatArray, Geometry

_TRUNCATE = 4.0


def _interpolation(n_out: int, n_in: int, scale: float, shift: float) -> npt.NDArray[np.float64]:
    """(n_out, n_in) linear interpolation; output px i lies at (i + 0.5) * scale + shift - 0.5.

    Positions outside the first and the last centre take the edge value.
    """
    at = np.clip((np.arange(n_out) + 0.5) * scale + shift - 0.5, 0, n_in - 1)
    low = np.minimum(np.floor(at).astype(int), n_in - 1)
    high = np.minimum(low + 1, n_in - 1)
    weight = at - low
    matrix = np.zeros((n_out, n_in))
    rows = np.arange(n_out)
    np.add.at(matrix, (rows, low), 1 - weight)
    np.add.at(matrix, (rows, high), weight)
    return matrix


@lru_cache(maxsize=8)
def _gaussian(n: int, sigma: float) -> npt.NDArray[np.float64]:
    """(n, n) Gaussian smoothing; at the borders the kernel is renormalised over what exists."""
    if sigma == 0:
        return np.eye(n)
    distance = np.arange(n)[:, None] - np.arange(n)[None, :]
    kernel = np.exp(-0.5 * (distance / sigma) ** 2)
    kernel[np.abs(distance) > np.ceil(_TRUNCATE * sigma)] = 0
    return np.asarray(kernel / kernel.sum(axis=1, keepdims=True))


@lru_cache(maxsize=16)
def _to_input(n_input: int, n_raw: int, sigma: float) -> npt.NDArray[np.float32]:
    up = _interpolation(n_input, n_raw, n_raw / n_input, 0.0)
    return (_gaussian(n_input, sigma) @ up).astype(np.float32)


@lru_cache(maxsize=64)
def _to_output(
    n_out: int, n_resized: int, offset: int, n_input: int, n_raw: int, sigma: float
) -> npt.NDArray[np.float32]:
    back = _interpolation(n_out, n_input, n_resized / n_out, -float(offset))
    smooth_up = _gaussian(n_input, sigma) @ _interpolation(n_input, n_raw, n_raw / n_input, 0.0)
    return (back @ smooth_up).astype(np.float32)


def smooth_on_input(raw: FloatArray, input_size: tuple[int, int], *, sigma: float) -> FloatArray:
    """Raw maps, upsampled to the network input and smoothed there.

    Args:
        raw: (..., h, w) float32.
        input_size: (H, W) of the network input in px.
        sigma: Standard deviation of the Gaussian in px of the input; 0 = none.

    Returns:
        (..., H, W) float32.
    """
    rows = _to_input(input_size[0], raw.shape[-2], sigma)
    columns = _to_input(input_size[1], raw.shape[-1], sigma)
    return np.asarray(rows @ raw @ columns.T, dtype=np.float32)


def resample(
    raw: FloatArray, geometry: Geometry, *, sigma: float, size: tuple[int, int] | None = None
) -> FloatArray:
    """A raw map, smoothed on the network input and brought to the whole source image.

    What lies outside the input window (a crop) takes the value of the window's edge.

    Args:
        raw: (h, w) float32.
        geometry: How the source became the input.
        sigma: Standard deviation of the Gaussian in px of the input; 0 = none.
        size: (H, W) of the result; the source image's own size by default.

    Returns:
        (H, W) float32.
    """
    height, width = size or geometry.source
    rows = _to_output(
        height, geometry.resized[0], geometry.offset[0], geometry.input[0], raw.shape[0], sigma
    )
    columns = _to_output(
        width, geometry.resized[1], geometry.offset[1], geometry.input[1], raw.shape[1], sigma
    )
    return np.asarray(rows @ raw @ columns.T, dtype=np.float32)


def inside(geometry: Geometry) -> tuple[slice, slice]:
    """The part of the network input that shows the image, without its padding."""
    slices = []
    for resized, offset, n in zip(geometry.resized, geometry.offset, geometry.input, strict=True):
        slices.append(slice(max(0, -offset), min(n, resized - offset)))
    return slices[0], slices[1]


def pool(smoothed: FloatArray, *, pooling: str, top_fraction: float) -> float:
    """The image score of one smoothed map.

    Args:
        smoothed: (H, W) float32.
        pooling: "max", or "top" for the mean of the highest `top_fraction` of the px.
        top_fraction: In (0, 1]; at least one px is used.
    """
    if pooling == "max":
        return float(smoothed.max())
    n = max(1, int(smoothed.size * top_fraction))
    return float(np.partition(smoothed, -n, axis=None)[-n:].mean(dtype=np.float64))

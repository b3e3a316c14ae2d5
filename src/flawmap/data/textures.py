"""Noise and textures that are drawn by formulas, for synthetic defects."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from flawmap.types import BoolArray, FloatArray


def perlin(
    size: tuple[int, int],
    cells: tuple[int, int],
    angle: float,
    generator: np.random.Generator,
) -> FloatArray:
    """Perlin's gradient noise, turned about the centre of the image.

    Upright, the noise is a product of small matrices, one for each axis. It is drawn on a canvas
    that is large enough for every turned place; of the canvas each place takes the nearest px.

    Args:
        size: (height, width) in px.
        cells: Cells of the gradient grid per axis (y, x) of the image, each >= 1.
        angle: In radians.
        generator: Draws the gradients.

    Returns:
        (height, width) float32, about -1 to 1.

    Source: Perlin, "An image synthesizer" (SIGGRAPH 1985), with the smoother fade of "Improving
    noise" (2002).
    """
    height, width = size
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    # The canvas holds the turned image.
    high, wide = (
        # A quarter turn needs no px more for a rounding error.
        math.ceil(cos * here + sin * there - 1e-6)
        for here, there in ((height, width), (width, height))
    )
    weights_y, slopes_y = _axis(high, height / cells[0])
    weights_x, slopes_x = _axis(wide, width / cells[1])
    theta = generator.uniform(0, 2 * math.pi, (weights_y.shape[1], weights_x.shape[1]))
    gradient_x, gradient_y = np.cos(theta).astype(np.float32), np.sin(theta).astype(np.float32)
    product = weights_y @ gradient_x @ slopes_x.T + slopes_y @ gradient_y @ weights_x.T
    canvas: FloatArray = np.float32(math.sqrt(2)) * product.astype(np.float32, copy=False)
    if angle == 0:
        return canvas
    along_y, along_x = turned(size, angle)
    row = np.clip(along_y + np.float32((high - 1) / 2), 0, high - 1).round().astype(np.int32)
    column = np.clip(along_x + np.float32((wide - 1) / 2), 0, wide - 1).round().astype(np.int32)
    found: FloatArray = canvas.take(row * wide + column)
    return found


@lru_cache(maxsize=64)
def _axis(n: int, cell: float) -> tuple[FloatArray, FloatArray]:
    """(n, corners) matrices of an axis: the weight of each grid corner, and that times the distance
    from it in cells."""
    place = (np.arange(n) + 0.5) / cell
    begin = place.astype(int)
    t = place - begin
    fade = t * t * t * (t * (t * 6 - 15) + 10)
    weights = np.zeros((n, begin[-1] + 2), dtype=np.float32)
    slopes = np.zeros_like(weights)
    rows = np.arange(n)
    weights[rows, begin], weights[rows, begin + 1] = 1 - fade, fade
    slopes[rows, begin], slopes[rows, begin + 1] = (1 - fade) * t, fade * (t - 1)
    return weights, slopes


def turned(size: tuple[int, int], angle: float) -> tuple[FloatArray, FloatArray]:
    """Coordinates (y, x) in px from the centre of an image, along axes that are turned.

    Returns:
        Two (height, width) float32.
    """
    y = np.arange(size[0], dtype=np.float32)[:, None] - np.float32((size[0] - 1) / 2)
    x = np.arange(size[1], dtype=np.float32)[None, :] - np.float32((size[1] - 1) / 2)
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return cos * y + sin * x, cos * x - sin * y


def procedural(size: tuple[int, int], generator: np.random.Generator) -> FloatArray:
    """A texture of two random colours: stripes, checks, dots, clouds or grain.

    Returns:
        (height, width, 3) float32 in [0, 1].
    """
    draw = _KINDS[generator.integers(len(_KINDS))]
    share = draw(size, generator)[..., None]
    first, second = generator.uniform(0, 1, (2, 3)).astype(np.float32)
    found: FloatArray = first + share * (second - first)
    return found


def _stripes(size: tuple[int, int], generator: np.random.Generator) -> FloatArray:
    along, _ = turned(size, generator.uniform(0, math.pi))
    period = np.float32(generator.uniform(4, max(size) / 4 + 4))
    waves: FloatArray = np.sin(along * np.float32(2 * math.pi) / period)
    return np.float32(0.5) * waves + np.float32(0.5)


def _checks(size: tuple[int, int], generator: np.random.Generator) -> FloatArray:
    along, across = turned(size, generator.uniform(0, math.pi))
    side = np.float32(generator.uniform(3, max(size) / 8 + 3))
    checks: FloatArray = (np.floor(along / side) + np.floor(across / side)) % 2
    return checks


def _dots(size: tuple[int, int], generator: np.random.Generator) -> FloatArray:
    along, across = turned(size, generator.uniform(0, math.pi))
    period = np.float32(generator.uniform(6, max(size) / 6 + 6))
    reach = np.float32(generator.uniform(0.15, 0.45)) ** 2
    u, v = (np.abs(axis / period % 1 - np.float32(0.5)) for axis in (along, across))
    inside: BoolArray = u * u + v * v < reach
    return inside.astype(np.float32)


def _clouds(size: tuple[int, int], generator: np.random.Generator) -> FloatArray:
    total = np.zeros(size, dtype=np.float32)
    for octave in range(3):
        cells = 2 ** int(generator.integers(1, 4)) * 2**octave
        angle = generator.uniform(0, math.pi)
        total += perlin(size, (cells, cells), angle, generator) / 2**octave
    return _limited(total * np.float32(0.5) + np.float32(0.5))


def _grain(size: tuple[int, int], generator: np.random.Generator) -> FloatArray:
    grain = generator.standard_normal(size, dtype=np.float32)
    return _limited(grain * np.float32(0.25) + np.float32(0.5))


def _limited(values: FloatArray) -> FloatArray:
    found: FloatArray = np.clip(values, 0, 1)
    return found


_KINDS: tuple[Callable[[tuple[int, int], np.random.Generator], FloatArray], ...] = (
    _stripes,
    _checks,
    _dots,
    _clouds,
    _grain,
)

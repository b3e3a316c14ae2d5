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
    theta = theta.astype(np.float32)
    # Both products at once; see the definition: weight y, weight x, and the distance on one axis.
    left = np.concatenate([weights_y @ np.cos(theta), slopes_y @ np.sin(theta)], axis=1)
    left *= np.float32(math.sqrt(2))
    canvas: FloatArray = left @ np.concatenate([slopes_x, weights_x], axis=1).T
    if angle == 0:
        return canvas
    row, column = turned(size, angle)
    # Rounding to a whole px takes the errors of the border away too.
    row += np.float32((high - 1) / 2)
    column += np.float32((wide - 1) / 2)
    place = np.rint(row, out=row).astype(np.intp)
    place *= wide
    place += np.rint(column, out=column).astype(np.intp)
    found: FloatArray = canvas.take(place)
    return found


@lru_cache(maxsize=512)
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


def procedural(inside: BoolArray, generator: np.random.Generator) -> FloatArray:
    """A texture of two random colours: stripes, checks, dots, clouds or grain.

    Args:
        inside: (height, width); only these px are drawn.
        generator: Draws kind, colours and form.

    Returns:
        (3, N) float32 in [0, 1], a column for each px inside, row by row of the image.
    """
    draw = _KINDS[generator.integers(len(_KINDS))]
    share = draw(inside, generator)
    colours = generator.uniform(0, 1, (2, 3)).astype(np.float32)
    first, second = colours[0, :, None], colours[1, :, None]
    found: FloatArray = first + share * (second - first)
    return found


def _stripes(inside: BoolArray, generator: np.random.Generator) -> FloatArray:
    along, _ = _places(inside, generator.uniform(0, math.pi))
    period = np.float32(generator.uniform(4, max(inside.shape) / 4 + 4))
    waves: FloatArray = np.sin(along * np.float32(2 * math.pi) / period)
    return np.float32(0.5) * waves + np.float32(0.5)


def _checks(inside: BoolArray, generator: np.random.Generator) -> FloatArray:
    along, across = _places(inside, generator.uniform(0, math.pi))
    side = np.float32(generator.uniform(3, max(inside.shape) / 8 + 3))
    checks: FloatArray = (np.floor(along / side) + np.floor(across / side)) % 2
    return checks


def _dots(inside: BoolArray, generator: np.random.Generator) -> FloatArray:
    along, across = _places(inside, generator.uniform(0, math.pi))
    period = np.float32(generator.uniform(6, max(inside.shape) / 6 + 6))
    reach = np.float32(generator.uniform(0.15, 0.45)) ** 2
    u, v = (np.abs(axis / period % 1 - np.float32(0.5)) for axis in (along, across))
    dots: BoolArray = u * u + v * v < reach
    return dots.astype(np.float32)


def _clouds(inside: BoolArray, generator: np.random.Generator) -> FloatArray:
    total = np.zeros(np.count_nonzero(inside), dtype=np.float32)
    for octave in range(3):
        cells = 2 ** int(generator.integers(1, 4)) * 2**octave
        angle = generator.uniform(0, math.pi)
        noise = perlin((inside.shape[0], inside.shape[1]), (cells, cells), angle, generator)
        total += noise[inside] / np.float32(2**octave)
    return _limited(total * np.float32(0.5) + np.float32(0.5))


def _grain(inside: BoolArray, generator: np.random.Generator) -> FloatArray:
    grain = generator.standard_normal(np.count_nonzero(inside), dtype=np.float32)
    return _limited(grain * np.float32(0.25) + np.float32(0.5))


def _places(inside: BoolArray, angle: float) -> tuple[FloatArray, FloatArray]:
    """As `turned`, of the px inside alone, (N,) each."""
    along, across = turned((inside.shape[0], inside.shape[1]), angle)
    return along[inside], across[inside]


def _limited(values: FloatArray) -> FloatArray:
    return np.clip(values, 0, 1, out=values)


_KINDS: tuple[Callable[[BoolArray, np.random.Generator], FloatArray], ...] = (
    _stripes,
    _checks,
    _dots,
    _clouds,
    _grain,
)

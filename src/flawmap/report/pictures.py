"""Small pictures for the page: the source, the scale of the heat maps, outlines as SVG paths."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from flawmap.outputs.heat import HeatScale, heat_picture
from flawmap.types import BoolArray, FloatArray

QUALITY = 85
_TINY = 160
"""px; pictures with a shorter long side are enlarged by whole factors, to be seen at all."""
_MAX_SEGMENTS = 4000


def css_gradient() -> str:
    """The heat scale over a mid-grey picture, as a CSS gradient."""
    grey = np.full((1, 11, 3), 128, dtype=np.uint8)
    mixed = heat_picture(grey, np.linspace(0, 1, 11)[None], HeatScale(0.0, 0.5, 1.0, True))[0]
    stops = ",".join("#" + "".join(f"{v:02x}" for v in rgb) for rgb in mixed.tolist())
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

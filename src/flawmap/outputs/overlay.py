"""The image with its heat map and a box around each region."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from flawmap.outputs.heat import HeatScale, heat_picture
from flawmap.types import FloatArray, Region


def draw_overlay(
    image: npt.NDArray[np.uint8 | np.float32],
    anomaly_map: FloatArray,
    *,
    pixel_threshold: float | None = None,
    regions: Sequence[Region] = (),
) -> Image.Image:
    """Lay the heat map over the image, which turns grey; see `heat`.

    Args:
        image: (H, W, 3) RGB, uint8 or float32 in [0, 1].
        anomaly_map: (H, W) float32, raw scale.
        pixel_threshold: Raw scale; None leaves the scale to the map.
        regions: Each gets a box.

    Returns:
        An RGB image of the same size.
    """
    assert image.shape[:2] == anomaly_map.shape, (image.shape, anomaly_map.shape)
    if image.dtype != np.uint8:
        image = (image.clip(0, 1) * 255).round().astype(np.uint8)
    scale = HeatScale.of([anomaly_map], pixel_threshold)
    result = Image.fromarray(heat_picture(image.astype(np.uint8), anomaly_map, scale))
    draw = ImageDraw.Draw(result)
    width = max(1, round(max(anomaly_map.shape) / 400))
    for region in regions:
        left, top, across, down = region.box
        box = (left, top, left + across - 1, top + down - 1)
        # White in black is seen on any background.
        draw.rectangle(_grown(box, width), outline=(0, 0, 0), width=1)
        draw.rectangle(_grown(box, width - 1), outline=(255, 255, 255), width=width)
    return result


def _grown(box: tuple[int, int, int, int], by: int) -> tuple[int, int, int, int]:
    left, top, right, bottom = box
    return left - by, top - by, right + by, bottom + by

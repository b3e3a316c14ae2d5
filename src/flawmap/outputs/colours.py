"""A heat scale whose lightness rises steadily, so that it also reads in grey and for the
colour-blind. It is a table of its own: matplotlib is no dependency."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_ANCHORS = (
    (13, 8, 45),
    (60, 15, 110),
    (115, 25, 130),
    (170, 40, 115),
    (215, 70, 80),
    (240, 115, 45),
    (250, 165, 30),
    (250, 215, 70),
    (255, 255, 190),
)


def colour_table() -> npt.NDArray[np.uint8]:
    """The scale, (256, 3) uint8 RGB, from dark (low) to light (high)."""
    anchors = np.array(_ANCHORS, dtype=np.float64)
    at = np.linspace(0, len(anchors) - 1, 256)
    columns = [np.interp(at, np.arange(len(anchors)), anchors[:, c]) for c in range(3)]
    return np.stack(columns, axis=1).round().astype(np.uint8)


def colourise(values: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Colours of values.

    Args:
        values: (H, W) in [0, 1]; what lies outside takes the scale's end.

    Returns:
        (H, W, 3) uint8 RGB.

    Example:
        >>> colourise([[0.0, 1.0]]).tolist()
        [[[13, 8, 45], [255, 255, 190]]]
    """
    index = np.clip(np.asarray(values, dtype=np.float64) * 255, 0, 255).round().astype(np.uint8)
    return colour_table()[index]

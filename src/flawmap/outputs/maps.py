"""Anomaly maps as files: numpy arrays, or 16-bit PNGs that any viewer opens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from flawmap.types import FloatArray

_TOP = 65535


def write_map_png(anomaly_map: FloatArray, path: Path) -> tuple[float, float]:
    """Write a map as a 16-bit grey PNG, stretched to its own range.

    Args:
        anomaly_map: (H, W) float32, finite, raw scale.
        path: Where to.

    Returns:
        (low, high), raw scale: a px stands for `png / 65535 * (high - low) + low`, at most half a
        step of (high - low) / 65535 off.
    """
    values = np.asarray(anomaly_map, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    # Fast compression: maps are smooth, and a stream of images should not wait for zlib.
    Image.fromarray((scaled * _TOP).round().astype(np.uint16)).save(path, "PNG", compress_level=1)
    return low, high


def read_map_png(path: Path, low: float, high: float) -> FloatArray:
    """The map that `write_map_png` wrote, (H, W) float32 on the raw scale."""
    with Image.open(path) as image:
        values = np.asarray(image).astype(np.float64)
    return (values / _TOP * (high - low) + low).astype(np.float32)


def write_map_npy(anomaly_map: FloatArray, path: Path) -> tuple[float, float]:
    """Write a map as a float32 array, exactly; its lowest and highest value are given back."""
    with path.open("wb") as file:
        np.save(file, np.asarray(anomaly_map, dtype=np.float32), allow_pickle=False)
    return float(anomaly_map.min()), float(anomaly_map.max())

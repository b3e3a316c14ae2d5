"""Masks: resizing without losing which pixels are defects, and defect regions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

_EIGHT_CONNECTED = np.ones((3, 3), dtype=np.bool_)


def resize_mask_nearest(
    mask: NDArray[np.bool_] | NDArray[np.integer], size: tuple[int, int]
) -> NDArray[np.bool_]:
    """Resizes a mask by nearest sampling, then takes every value > 0 as defect.

    The sampling is that of torch's "nearest-exact" (and Pillow's NEAREST): output pixel i reads
    source pixel floor((i + 0.5) * source / output), the one under its centre. The older "nearest"
    of torch and OpenCV's INTER_NEAREST leave out the 0.5 and shift the mask by up to half a pixel.
    The index is found in integers, so no rounding moves it.

    Shrinking can drop a thin defect altogether: take an image's label from the data set, never from
    its resized mask.

    Args:
        mask: (H, W) bool or integers >= 0, for instance 0/255 or class ids.
        size: (height, width) of the result in px, both >= 1.

    Returns:
        (height, width) bool, True = defect.

    Raises:
        ValueError: if the mask is not a non-empty (H, W) array of bool or integers, or the size is
            not positive.

    Example:
        >>> mask = np.array([[0, 0, 0, 0], [0, 0, 0, 255]], dtype=np.uint8)
        >>> resize_mask_nearest(mask, (1, 2))
        array([[False,  True]])
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or 0 in mask.shape:
        raise ValueError(f"mask: got shape {mask.shape}, expected a non-empty (H, W)")
    if mask.dtype.kind not in "biu":
        raise ValueError(f"mask: got dtype {mask.dtype}, expected bool or integers")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size: got {size}, expected (height, width), both at least 1 px")
    rows, columns = (
        (2 * np.arange(n, dtype=np.int64) + 1) * source // (2 * n)
        for n, source in zip(size, mask.shape, strict=True)
    )
    found: NDArray[np.bool_] = mask[np.ix_(rows, columns)] > 0
    return found


def published_crop(
    mask: NDArray[np.bool_] | NDArray[np.integer],
    size: tuple[int, int],
    resized: tuple[int, int],
    offset: tuple[int, int],
    window: tuple[int, int],
) -> NDArray[np.bool_]:
    """The mask of a centre crop as published protocols make it, so that figures compare.

    The mask is resized as the image is (bilinear, antialiased, 8 bits), the window cut out and
    brought to size by the older nearest sampling, which reads source pixel floor(i * source /
    output); then every value > 0 is a defect. Defects grow by about a pixel.

    Args:
        mask: As for `resize_mask_nearest`.
        size: (height, width) of the result in px, both >= 1.
        resized: (height, width) in px to which the whole image is resized first.
        offset: (top, left) of the window there, both >= 0.
        window: (height, width) of the window, which lies inside.

    Returns:
        (height, width) bool, True = defect.

    Example:
        >>> mask = np.zeros((4, 4), dtype=bool)
        >>> mask[2, 3] = True
        >>> published_crop(mask, (2, 2), (4, 4), (1, 2), (2, 2))
        array([[False, False],
               [False,  True]])
    """
    image = Image.fromarray((np.asarray(mask) > 0).astype(np.uint8) * 255)
    whole = np.asarray(image.resize(resized[::-1], Image.Resampling.BILINEAR))
    rows, columns = (
        np.arange(n, dtype=np.int64) * seen // n + start
        for n, seen, start in zip(size, window, offset, strict=True)
    )
    found: NDArray[np.bool_] = whole[np.ix_(rows, columns)] > 0
    return found


def label_regions(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Finds the 8-connected defect regions of one image.

    Args:
        mask: (H, W) bool, True = defect; H and W may be 0.

    Returns:
        regions: (D,) int32, the region 0..R-1 of each of the D defect pixels, in row-major order,
            that of `anomaly_map[mask]`.
        sizes: (R,) int64, pixels of each region.

    Example:
        >>> label_regions(np.eye(3, dtype=bool))
        (array([0, 0, 0], dtype=int32), array([3]))
    """
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int64)
    columns = np.flatnonzero(mask.any(axis=0))
    # Labelling costs time for every pixel it is shown, and defects are mostly small.
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    labelled = np.empty(box.shape, dtype=np.int32)
    ndimage.label(box, structure=_EIGHT_CONNECTED, output=labelled)
    regions = labelled[box] - np.int32(1)
    return regions, np.bincount(regions).astype(np.int64)

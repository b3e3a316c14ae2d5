"""Pixels at a threshold that was fixed before the test: SegF1.

Source: Heckler-Kram et al., "The MVTec AD 2 Dataset: Advanced Scenarios for Unsupervised Anomaly
Detection" (2025), for SegF1: F1 over all pixels of a category, at the size of the images, with the
threshold that the method itself chose.
"""

from __future__ import annotations

import math

import numpy as np

from flawmap.metrics.pixel import AnomalyMap, Mask, check_map, check_mask


class DecidedPixels:
    """Counts right and wrong pixels at one threshold; memory does not grow with the images.

    A pixel is found if its score lies strictly above the threshold, as in the regions that a
    detector shows. Scores are compared in float64, so none is rounded against the threshold.

    Args:
        threshold: any number but NaN.

    Raises:
        ValueError: if the threshold is NaN.

    Example:
        >>> pixels = DecidedPixels(0.5)
        >>> pixels.add(np.array([[0.9, 0.6, 0.5]]), np.array([[1, 0, 1]]))
        >>> pixels.f1
        0.5
    """

    def __init__(self, threshold: float) -> None:
        if math.isnan(threshold):
            raise ValueError("threshold: got nan, expected a number; pass one that is not NaN")
        self._threshold = np.float64(threshold)
        self._n_found = self._n_right = self._n_defects = 0

    def add(self, anomaly_map: AnomalyMap, mask: Mask | None) -> None:
        """Adds one image; images may differ in size.

        Args:
            anomaly_map: (H, W) finite float16, float32 or float64, higher = more anomalous.
            mask: (H, W) bool, or integers where nonzero is a defect; None for a good image.

        Raises:
            ValueError: if an argument has the wrong shape, dtype or values; nothing is added then.
        """
        scores = check_map(anomaly_map)
        is_defect = None if mask is None else check_mask(mask, scores.shape)
        found = np.greater(scores, self._threshold)
        self._n_found += int(np.count_nonzero(found))
        if is_defect is not None:
            self._n_right += int(np.count_nonzero(found & is_defect))
            self._n_defects += int(np.count_nonzero(is_defect))

    @property
    def f1(self) -> float:
        """2 tp / (2 tp + fp + fn) over the pixels, 0..1; NaN without a defect pixel."""
        if not self._n_defects:
            return math.nan
        return 2 * self._n_right / (self._n_found + self._n_defects)

"""Image-level metrics: AUROC, average precision, F1-max and the counts at one threshold.

A higher score means more anomalous; label 1 (or True) is a defect. Ties are exact: equal scores
fall on the same side of every threshold. What the data cannot define is NaN, never 0 or 1.

Source: Fawcett, "An introduction to ROC analysis" (2006), for AUROC with ties as half wins;
Davis and Goadrich, "The relationship between Precision-Recall and ROC curves" (2006), for why
average precision is step-wise and not interpolated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flawmap.metrics._counts import (
    DefectCounts,
    best_f1,
    count_ge_gt,
    doubled_wins,
    precision_sum,
)


@dataclass(frozen=True)
class Confusion:
    """Decisions at one threshold (defect if score >= threshold).

    Rates whose denominator is zero are NaN.

    Attributes:
        tp: defects found.
        fp: good images rejected.
        tn: good images passed.
        fn: defects missed.
    """

    tp: int
    fp: int
    tn: int
    fn: int

    @property
    def false_reject_rate(self) -> float:
        """Share of the good images that are rejected, fp / (fp + tn)."""
        return _ratio(self.fp, self.fp + self.tn)

    @property
    def escape_rate(self) -> float:
        """Share of the defects that are missed, fn / (fn + tp)."""
        return _ratio(self.fn, self.fn + self.tp)

    @property
    def precision(self) -> float:
        """Share of the rejected images that are defects, tp / (tp + fp)."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of the defects that are found, tp / (tp + fn)."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 2 tp / (2 tp + fp + fn)."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a defect scores above a good image, ties half.

    Args:
        labels: (N,) bool or 0/1 numbers; 1 is a defect.
        scores: (N,) finite real numbers, any range, higher = more anomalous.

    Returns:
        Area in 0..1; NaN unless there is at least one defect and one good image.

    Raises:
        ValueError: if an argument has the wrong shape, dtype or values.

    Example:
        >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
        0.875
    """
    counts, n_defects, n_normals = _count(labels, scores)
    if counts is None:
        return math.nan
    return doubled_wins(counts, n_normals) / (2 * n_defects * n_normals)


def sample_auroc(labels: ArrayLike, scores: ArrayLike, groups: Sequence[str]) -> float:
    """AUROC over physical parts that were photographed from several sides.

    A part's score is the highest of its views; it is a defect if any of its views is one.

    Args:
        labels: (N,) bool or 0/1 numbers per view; 1 is a defect.
        scores: (N,) finite real numbers, any range, higher = more anomalous.
        groups: N names; views of one part share one, and "" is a part photographed once.

    Returns:
        Area in 0..1; NaN if no view has a group, or unless there is at least one defect part and
        one good part.

    Raises:
        ValueError: if an argument has the wrong shape, dtype, length or values.

    Source: Wang et al., "Real-IAD: A Real-World Multi-View Dataset for Benchmarking Versatile
    Industrial Anomaly Detection" (CVPR 2024).

    Example:
        >>> sample_auroc([0, 0, 1, 0], [0.1, 0.4, 0.2, 0.5], ["a", "a", "b", "b"])
        1.0
    """
    is_defect, values = _check(labels, scores)
    if len(groups) != values.size:
        raise ValueError(f"groups: got {len(groups)}, expected {values.size} as scores")
    if not any(groups):
        return math.nan
    # A view without a group gets a number of its own, which no name can equal.
    keys = [group or i for i, group in enumerate(groups)]
    part = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    of_view = np.array([part[key] for key in keys])
    highest = np.full(len(part), -np.inf)
    np.maximum.at(highest, of_view, values)
    any_defect = np.zeros(len(part), dtype=np.bool_)
    np.logical_or.at(any_defect, of_view, is_defect)
    return auroc(any_defect, highest)


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Step-wise average precision: precision at each distinct threshold, weighted by recall gained.

    Args:
        labels: (N,) bool or 0/1 numbers; 1 is a defect.
        scores: (N,) finite real numbers, any range, higher = more anomalous.

    Returns:
        Average precision in 0..1; NaN unless there is at least one defect and one good image.

    Raises:
        ValueError: if an argument has the wrong shape, dtype or values.

    Example:
        >>> average_precision([0, 1, 0, 1], [0.1, 0.4, 0.6, 0.8])
        0.8333333333333333
    """
    counts, n_defects, _ = _count(labels, scores)
    if counts is None:
        return math.nan
    return precision_sum(counts) / n_defects


def f1_max(labels: ArrayLike, scores: ArrayLike) -> tuple[float, float]:
    """Best F1 over all thresholds and the threshold that reaches it.

    The threshold is chosen on the labels it is judged on: it is an upper bound, not a result that
    a detector in use can promise. Of several thresholds with the best F1 the highest is returned,
    which rejects the fewest good images.

    Args:
        labels: (N,) bool or 0/1 numbers; 1 is a defect.
        scores: (N,) finite real numbers, any range, higher = more anomalous.

    Returns:
        (F1 in 0..1, threshold); an image is a defect if score >= threshold. Both are NaN unless
        there is at least one defect and one good image.

    Raises:
        ValueError: if an argument has the wrong shape, dtype or values.

    Example:
        >>> f1_max([0, 0, 1, 1], [0.1, 0.5, 0.75, 1.0])
        (1.0, 0.75)
    """
    counts, n_defects, _ = _count(labels, scores)
    if counts is None:
        return math.nan, math.nan
    return best_f1(counts, n_defects)


def confusion(labels: ArrayLike, scores: ArrayLike, threshold: float) -> Confusion:
    """Counts of right and wrong decisions at a threshold.

    Scores are compared in float64: a float32 score is never rounded against the threshold.

    Args:
        labels: (N,) bool or 0/1 numbers; 1 is a defect.
        scores: (N,) finite real numbers, any range, higher = more anomalous.
        threshold: an image is a defect if score >= threshold; infinities are allowed.

    Returns:
        The four counts, with the rates as properties.

    Raises:
        ValueError: if an argument has the wrong shape, dtype or values.

    Example:
        >>> result = confusion([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.8], threshold=0.5)
        >>> result
        Confusion(tp=1, fp=1, tn=1, fn=1)
        >>> result.escape_rate
        0.5
    """
    if math.isnan(threshold):
        raise ValueError("threshold: got nan, expected a number; pass one that is not NaN")
    is_defect, values = _check(labels, scores)
    rejected = values >= threshold
    tp = int(np.count_nonzero(rejected & is_defect))
    fp = int(np.count_nonzero(rejected)) - tp
    fn = int(np.count_nonzero(is_defect)) - tp
    return Confusion(tp=tp, fp=fp, tn=values.size - tp - fp - fn, fn=fn)


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else math.nan


def _count(labels: ArrayLike, scores: ArrayLike) -> tuple[DefectCounts | None, int, int]:
    """Checks the input and counts; no counts unless both classes are there."""
    is_defect, values = _check(labels, scores)
    normals = np.sort(values[~is_defect])
    defects = np.sort(values[is_defect])
    if not normals.size or not defects.size:
        return None, defects.size, normals.size
    distinct, occurrences = np.unique(defects, return_counts=True)
    defects_ge, _ = count_ge_gt(defects, distinct)
    normals_ge, normals_gt = count_ge_gt(normals, distinct)
    counts = DefectCounts(
        scores=distinct,
        defects=occurrences.astype(np.int64),
        defects_ge=defects_ge,
        normals_ge=normals_ge,
        normals_gt=normals_gt,
    )
    return counts, defects.size, normals.size


def _check(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Labels as bool (N,) and scores as float64 (N,), or a ValueError that names the argument."""
    given_scores = np.asarray(scores)
    given_labels = np.asarray(labels)
    if given_scores.ndim != 1:
        raise ValueError(f"scores: got shape {given_scores.shape}, expected one dimension (N,)")
    if given_labels.shape != given_scores.shape:
        raise ValueError(
            f"labels: got shape {given_labels.shape}, "
            f"expected {given_scores.shape} as scores; pass one label per score"
        )
    if given_scores.dtype.kind not in "iuf":
        raise ValueError(f"scores: got dtype {given_scores.dtype}, expected real numbers")
    if given_labels.dtype.kind not in "biuf":
        raise ValueError(
            f"labels: got dtype {given_labels.dtype}, expected bool or the numbers 0 and 1"
        )
    is_defect = given_labels.astype(np.bool_)
    odd = given_labels[given_labels != is_defect]
    if odd.size:
        raise ValueError(f"labels: got the value {odd[0]}, expected only 0 (good) and 1 (defect)")
    values = given_scores.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.all():
        first = int(np.argmin(finite))
        raise ValueError(
            f"scores: got {values[first]} at index {first}, expected finite numbers; "
            "find out why the detector gave it rather than replacing it"
        )
    return is_defect, values

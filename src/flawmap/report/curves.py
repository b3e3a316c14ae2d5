"""What the charts draw, from labels and scores: pure functions on arrays, no drawing.

Ties are treated as in `flawmap.metrics`: equal scores fall on the same side of every threshold, so
the area under the ROC points is the AUROC and the area under the precision-recall steps is the
average precision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

Floats = npt.NDArray[np.float64]


def roc_points(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Floats, Floats]:
    """The corners of the ROC curve, from (0, 0) to (1, 1).

    Args:
        labels: (N,) 0 good, 1 defect; both must occur.
        scores: (N,) higher = more anomalous.

    Returns:
        False-reject rate and share of defects found, (M,) each.
    """
    good, defect = _cumulated(labels, scores)
    x = np.concatenate([[0.0], good / good[-1]])
    y = np.concatenate([[0.0], defect / defect[-1]])
    return x, y


def pr_points(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Floats, Floats]:
    """The steps of the precision-recall curve.

    Args:
        labels: (N,) 0 good, 1 defect; a defect must occur.
        scores: (N,) higher = more anomalous.

    Returns:
        Recall and precision, (M,) each, where recall grows: precision[i] holds from recall[i - 1]
        (0 for the first) to recall[i].
    """
    good, defect = _cumulated(labels, scores)
    grows = np.diff(defect, prepend=0) > 0
    return defect[grows] / defect[-1], (defect / (defect + good))[grows]


def _cumulated(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Good images and defects at or above each distinct score, from the highest score on."""
    is_defect = np.asarray(labels).astype(bool)
    values = np.asarray(scores, dtype=np.float64)
    order = np.argsort(-values, kind="stable")
    last_of_tie = np.append(np.diff(values[order]) != 0, True)
    defect = np.cumsum(is_defect[order])[last_of_tie]
    good = np.cumsum(~is_defect[order])[last_of_tie]
    return good.astype(np.float64), defect.astype(np.float64)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of good images and defects in common bins.

    Attributes:
        edges: (n + 1,) rising; a bin holds edges[i] < score <= edges[i + 1], as the alarm is
            raised strictly above the threshold.
        good: (n,) counts.
        defect: (n,) counts.
    """

    edges: Floats
    good: npt.NDArray[np.int64]
    defect: npt.NDArray[np.int64]


def histogram(
    labels: npt.ArrayLike, scores: npt.ArrayLike, threshold: float | None = None, bins: int = 32
) -> Histogram:
    """Bins over all scores; the threshold, if there is one, is an edge and no bin straddles it.

    Args:
        labels: (N,) 0 good, 1 defect, N >= 1.
        scores: (N,) finite.
        threshold: Scores above it raise the alarm.
        bins: About how many bins.
    """
    values = np.asarray(scores, dtype=np.float64)
    is_defect = np.asarray(labels).astype(bool)
    low, high = float(values.min()), float(values.max())
    anchor = low if threshold is None else threshold
    low, high = min(low, anchor), max(high, anchor)
    step = (high - low) / bins
    # Equal scores, or scores that differ in their last digits only, still need a visible width.
    step = max(step, max(abs(low), abs(high)) * 1e-9, 1e-12)
    index = np.ceil((values - anchor) / step).astype(np.int64) - 1
    first, last = min(int(index.min()), -1), max(int(index.max()), 0)
    n = last - first + 1
    return Histogram(
        edges=np.asarray(anchor + step * np.arange(first, last + 2), dtype=np.float64),
        good=np.bincount(index[~is_defect] - first, minlength=n),
        defect=np.bincount(index[is_defect] - first, minlength=n),
    )


def thin(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Leave out points that lie within half a px of the last point kept; the ends stay.

    The line looks the same.

    Args:
        x: (N,) px.
        y: (N,) px.
    """
    if x.size <= 2:
        return x, y
    kept = [0]
    for i in range(1, x.size - 1):
        if max(abs(x[i] - x[kept[-1]]), abs(y[i] - y[kept[-1]])) >= 0.5:
            kept.append(i)
    kept.append(x.size - 1)
    return x[kept], y[kept]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within [low, high].

    Example:
        >>> ticks(0, 1), ticks(3.2, 17.9, 4)
        ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [5.0, 10.0, 15.0])
    """
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low]
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(math.log(s / raw)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    return [round(i * step, digits) for i in range(first, last + 1)]


def rate_limit(events: int, n: int) -> float:
    """The rate that `events` in `n` trials rule out, with a confidence of 95%, being higher.

    One-sided (Clopper and Pearson, 1934).

    Args:
        events: Rejected good images, or missed defects.
        n: Images tried, n >= 1.

    Example:
        >>> round(rate_limit(0, 59), 3)
        0.05
    """
    if events >= n:
        return 1.0
    return float(betaincinv(events + 1, n - events, 0.95))

"""Ranking metrics from four counts per defect score.

Every metric here needs only, for each score that a defect has, how many defects and how many
normals score at least that much, and how many normals score more. The counts are integers, so ties
are exact, and they add up over blocks, so the scores never have to lie in one array.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DefectCounts:
    """Counts at a block of distinct defect scores; every array has shape (U,).

    Attributes:
        scores: distinct defect scores, ascending, float32 or float64.
        defects: int64, defects of this block with exactly this score.
        defects_ge: int64, defects overall with score >= this one.
        normals_ge: int64, normals overall with score >= this one.
        normals_gt: int64, normals overall with score > this one.
    """

    scores: NDArray[np.floating]
    defects: NDArray[np.int64]
    defects_ge: NDArray[np.int64]
    normals_ge: NDArray[np.int64]
    normals_gt: NDArray[np.int64]


def count_ge_gt(
    values: NDArray[np.floating], queries: NDArray[np.floating]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts the values >= and > each query.

    Args:
        values: (N,) ascending, same dtype as queries.
        queries: (Q,) ascending and distinct.

    Returns:
        Two (Q,) int64 arrays: the number of values >= and > each query.
    """
    n_values = values.size
    upper = np.searchsorted(values, queries, side="right").astype(np.int64)
    lower = upper.copy()
    # Most scores have no equal among the values; only those that do need a second search.
    if n_values:
        tied = (upper > 0) & (values[np.maximum(upper - 1, 0)] == queries)
        lower[tied] = np.searchsorted(values, queries[tied], side="left")
    return n_values - lower, n_values - upper


def doubled_wins(counts: DefectCounts, n_normals: int) -> int:
    """Twice the number of (defect, normal) pairs in the right order, a tie counting one half.

    Doubled so that it stays an integer; the AUROC is the sum over all blocks divided by
    2 * n_defects * n_normals.
    """
    below_and_tied = 2 * n_normals - counts.normals_ge - counts.normals_gt
    return int(np.sum(counts.defects * below_and_tied))


def precision_sum(counts: DefectCounts) -> float:
    """Sum over the block's defects of the precision at their own score.

    The step-wise average precision is the sum over all blocks divided by n_defects.
    """
    precision = counts.defects_ge / (counts.defects_ge + counts.normals_ge)
    return float(np.sum(counts.defects * precision))


def best_f1(counts: DefectCounts, n_defects: int) -> tuple[float, float]:
    """Best F1 over the block's scores as thresholds, and the highest threshold that reaches it.

    Between two defect scores a threshold loses no defect and can only gain false alarms, so the
    maximum over all thresholds is always reached at a defect score.
    """
    f1 = 2 * counts.defects_ge / (n_defects + counts.defects_ge + counts.normals_ge)
    # Equal ratios of integers divide to equal floats, so ties are seen; the last is the highest.
    best = f1.size - 1 - int(np.argmax(f1[::-1]))
    # Adding zero turns -0.0 into 0.0: the two are one threshold.
    return float(f1[best]), float(counts.scores[best]) + 0.0


def pro_area_lost(
    normals_ge: NDArray[np.int64],
    normals_gt: NDArray[np.int64],
    weights: NDArray[np.float64],
    limit: float,
) -> float:
    """What a block takes from the area under the sum of the regions' curves, over the limit.

    Each defect pixel lifts the sum of the curves by 1 / |R|, linearly between the false-positive
    counts just above its score and at it; what it misses is the area before that. The AUPRO is 1
    less the sum over all blocks divided by the number of regions. Adding up losses instead of gains
    makes a perfect ranking exactly 1.

    Args:
        normals_ge: (U,) normals with at least each of U distinct defect scores.
        normals_gt: (U,) normals above each.
        weights: (U,) sum of 1 / |R| over the defect pixels with each score.
        limit: FPR limit in normal pixels; not an integer in general.
    """
    a = normals_gt.astype(np.float64)
    b = normals_ge.astype(np.float64)
    lost = (a + b) / 2
    crossing = (a < limit) & (limit < b)
    lost[crossing] = limit - (limit - a[crossing]) ** 2 / (2 * (b[crossing] - a[crossing]))
    lost[a >= limit] = limit
    return float(np.sum(weights * (lost / limit)))

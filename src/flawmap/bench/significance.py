"""Whether one method is better than another beyond chance, paired over categories."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations

from scipy import stats

MIN_PAIRS = 6
"""With fewer pairs no outcome of the two-sided test lies below 0.05."""


@dataclass(frozen=True)
class Comparison:
    """A Wilcoxon signed-rank test of one line against another one.

    Attributes:
        metric: What was compared.
        better: The line with the higher mean over the categories that all lines have.
        other: The other one.
        pairs: These categories.
        wins: Those in which the better one is ahead; ties count for neither.
        p: Two-sided, corrected by Holm's procedure.
        tests: How many tests it is corrected for.
    """

    metric: str
    better: str
    other: str
    pairs: int
    wins: int
    p: float
    tests: int = 1

    def __str__(self) -> str:
        return (
            f"{self.metric}: {self.better} is ahead of {self.other} in {self.wins} of {self.pairs} "
            f"categories, p = {self.p:.2g}"
        )


def compare_with_best(
    metrics: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> list[Comparison]:
    """For each metric, compare the best line with each of the others.

    Which line is the best is known from the same figures: Holm's correction is for all pairs of
    lines, of all metrics.

    Args:
        metrics: For each metric and line, its figure in each category: a mean over seeds.

    Returns:
        The comparisons with the best, in the order of the metrics, the nearest line first; none
        where the lines of a metric share fewer than `MIN_PAIRS` categories.

    Source: Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets" (JMLR 2006).

    Example:
        >>> a = {str(i): 0.9 + i / 100 for i in range(8)}
        >>> b, c = ({name: value - loss for name, value in a.items()} for loss in (0.05, 0.1))
        >>> found = compare_with_best({"m": {"a": a, "b": b, "c": c}})
        >>> [(c.better, c.other, c.wins, round(c.p, 4), c.tests) for c in found]
        [('a', 'b', 8, 0.0234, 3), ('a', 'c', 8, 0.0234, 3)]
    """
    found = [c for metric, lines in metrics.items() for c in _of_metric(metric, lines)]
    corrected: dict[int, float] = {}
    floor = 0.0
    for rank, index in enumerate(sorted(range(len(found)), key=lambda i: found[i].p)):
        floor = max(floor, min(1.0, found[index].p * (len(found) - rank)))
        corrected[index] = floor
    # The first pair of a metric has its best line.
    best: dict[str, str] = {}
    for comparison in found:
        best.setdefault(comparison.metric, comparison.better)
    return [
        replace(c, p=corrected[i], tests=len(found))
        for i, c in enumerate(found)
        if c.better == best[c.metric]
    ]


def _of_metric(metric: str, lines: Mapping[str, Mapping[str, float]]) -> list[Comparison]:
    """All pairs of lines, those with the best first; not yet corrected."""
    lines = {name: figures for name, figures in lines.items() if figures}
    if len(lines) < 2:
        return []
    shared = sorted(set.intersection(*(set(figures) for figures in lines.values())))
    if len(shared) < MIN_PAIRS:
        return []
    ranked = sorted(lines, key=lambda name: -math.fsum(lines[name][c] for c in shared))
    found = []
    for better, other in combinations(ranked, 2):
        # Rounded: differences in the last bit are ties, and ties must stay ties.
        gains = [round(lines[better][c] - lines[other][c], 9) for c in shared]
        p = float(stats.wilcoxon(gains).pvalue) if any(gains) else 1.0
        found.append(Comparison(metric, better, other, len(shared), sum(g > 0 for g in gains), p))
    return found

"""Whether one method is better than another beyond chance, paired over categories."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from scipy import stats

MIN_PAIRS = 6
"""With fewer pairs no outcome of the two-sided test lies below 0.05."""


@dataclass(frozen=True)
class Comparison:
    """A Wilcoxon signed-rank test of the best line against another one.

    Attributes:
        metric: What was compared.
        better: The line with the higher mean over the categories that all lines have.
        other: The other one.
        pairs: These categories.
        wins: Those in which the better one is ahead; ties count for neither.
        p: Two-sided, corrected by Holm's procedure for the number of comparisons.
    """

    metric: str
    better: str
    other: str
    pairs: int
    wins: int
    p: float

    def __str__(self) -> str:
        return (
            f"{self.metric}: {self.better} is ahead of {self.other} in {self.wins} of {self.pairs} "
            f"categories, p = {self.p:.2g}"
        )


def compare_with_best(
    metrics: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> list[Comparison]:
    """For each metric, compare the best line with each of the others.

    Args:
        metrics: For each metric and line, its figure in each category: a mean over seeds.

    Returns:
        The comparisons in the order of the metrics; none where the lines of a metric share fewer
        than `MIN_PAIRS` categories. Holm's correction is over all that are returned.

    Source: Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets" (JMLR 2006).

    Example:
        >>> a = {str(i): 0.9 + i / 100 for i in range(8)}
        >>> b = {name: value - 0.05 for name, value in a.items()}
        >>> [(c.better, c.wins, round(c.p, 4)) for c in compare_with_best({"m": {"a": a, "b": b}})]
        [('a', 8, 0.0078)]
    """
    found = [c for metric, lines in metrics.items() for c in _of_metric(metric, lines)]
    corrected: dict[int, float] = {}
    floor = 0.0
    for rank, index in enumerate(sorted(range(len(found)), key=lambda i: found[i].p)):
        floor = max(floor, min(1.0, found[index].p * (len(found) - rank)))
        corrected[index] = floor
    return [replace(c, p=corrected[i]) for i, c in enumerate(found)]


def _of_metric(metric: str, lines: Mapping[str, Mapping[str, float]]) -> list[Comparison]:
    lines = {name: figures for name, figures in lines.items() if figures}
    if len(lines) < 2:
        return []
    shared = sorted(set.intersection(*(set(figures) for figures in lines.values())))
    if len(shared) < MIN_PAIRS:
        return []
    best = max(lines, key=lambda name: math.fsum(lines[name][c] for c in shared))
    found = []
    for name, figures in lines.items():
        if name == best:
            continue
        # Rounded: differences in the last bit are ties, and ties must stay ties.
        gains = [round(lines[best][c] - figures[c], 9) for c in shared]
        p = float(stats.wilcoxon(gains).pvalue) if any(gains) else 1.0
        found.append(Comparison(metric, best, name, len(shared), sum(g > 0 for g in gains), p))
    return found

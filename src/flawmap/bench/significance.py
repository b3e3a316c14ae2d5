"""Whether one method is better than another beyond chance, paired over categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

MIN_PAIRS = 6
"""With fewer pairs no outcome of the two-sided test lies below 0.05."""


@dataclass(frozen=True)
class Comparison:
    """A Wilcoxon signed-rank test of the best line against another one.

    Attributes:
        better: The line with the higher mean.
        other: The other one.
        pairs: Categories that both have.
        wins: Categories in which the better one is ahead; ties count for neither.
        p: Two-sided, corrected by Holm's procedure for the number of comparisons.
    """

    better: str
    other: str
    pairs: int
    wins: int
    p: float


def compare_with_best(lines: Mapping[str, Mapping[str, float]]) -> list[Comparison]:
    """Compare the line with the highest mean with each of the others.

    Args:
        lines: For each line its figure in each category, a mean over seeds.

    Returns:
        The comparisons that have at least `MIN_PAIRS` categories in common, the least certain last.

    Source: Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets" (JMLR 2006).

    Example:
        >>> a = {str(i): 0.9 + i / 100 for i in range(8)}
        >>> b = {name: value - 0.05 for name, value in a.items()}
        >>> [(c.better, c.wins, round(c.p, 4)) for c in compare_with_best({"a": a, "b": b})]
        [('a', 8, 0.0078)]
    """
    shared = {name: figures for name, figures in lines.items() if len(figures) >= MIN_PAIRS}
    if len(shared) < 2:
        return []
    best = max(shared, key=lambda name: sum(shared[name].values()) / len(shared[name]))
    raw: list[tuple[float, str, int, int]] = []
    for name, figures in shared.items():
        both = [c for c in shared[best] if c in figures]
        if name == best or len(both) < MIN_PAIRS:
            continue
        # Rounded: differences in the last bit are ties, and ties must stay ties.
        gains = [round(shared[best][c] - figures[c], 9) for c in both]
        p = float(stats.wilcoxon(gains).pvalue) if any(gains) else 1.0
        raw.append((p, name, len(both), sum(g > 0 for g in gains)))
    raw.sort()
    found, floor = [], 0.0
    for index, (p, name, pairs, wins) in enumerate(raw):
        floor = max(floor, min(1.0, p * (len(raw) - index)))
        found.append(Comparison(best, name, pairs, wins, floor))
    return found


def sentence(found: Sequence[Comparison], metric: str) -> list[str]:
    """The comparisons in words."""
    return [
        f"{metric}: {c.better} is ahead of {c.other} in {c.wins} of {c.pairs} categories, "
        f"p = {c.p:.2g} (Wilcoxon signed-rank, Holm)"
        for c in found
    ]

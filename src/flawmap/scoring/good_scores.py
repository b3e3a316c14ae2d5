"""Scores of good images as they come."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from flawmap.scoring.calibration import CategoryCalibration
from flawmap.types import Sample

_KEPT = 10
"""So many of the images with the highest scores are kept by name."""


@dataclass
class _Category:
    paths: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    groups: set[str] = field(default_factory=set)
    exact: bool = True


class GoodScores:
    """Gathers the scores of good images by category."""

    def __init__(self) -> None:
        self._categories: dict[str, _Category] = {}

    def add(self, sample: Sample, score: float, peak: float, *, exact: bool) -> None:
        """One good image.

        Args:
            sample: The image.
            score: Its image score.
            peak: The highest value of its smoothed map.
            exact: Whether it was held out of the fit. Several views of one part are no independent
                parts: with them the promise is approximate.
        """
        found = self._categories.setdefault(sample.category, _Category())
        found.paths.append(sample.path)
        found.scores.append(score)
        found.peaks.append(peak)
        found.exact &= exact and sample.group not in found.groups
        if sample.group:
            found.groups.add(sample.group)

    def categories(self) -> dict[str, CategoryCalibration]:
        """What a calibration keeps of them, by category, sorted."""
        return {
            name: CategoryCalibration(
                np.array(c.scores), np.array(c.peaks), c.exact, _highest(c.paths, c.scores)
            )
            for name, c in sorted(self._categories.items())
        }


def _highest(paths: list[str], scores: list[float]) -> tuple[str, ...]:
    order = np.argsort(-np.asarray(scores), kind="stable")[:_KEPT]
    # With their folders: names are often numbers that begin anew in each.
    return tuple("/".join(Path(paths[i]).parts[-2:]) for i in order)

"""Scores of good images as they come, and what they say of the thresholds that follow."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from flawmap.scoring.calibration import Calibration, CategoryCalibration, standing_out
from flawmap.types import Sample

_NAMED = 3
"""Of the images that stand out, so many are named."""


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
            name: CategoryCalibration(np.array(c.scores), np.array(c.peaks), c.exact)
            for name, c in sorted(self._categories.items())
        }

    def notes(self, calibration: Calibration) -> list[str]:
        """A sentence for each category whose threshold is set by images that stand out."""
        notes = []
        for name, c in sorted(self._categories.items()):
            threshold = calibration.threshold(name)
            if threshold is None:
                continue
            odd = standing_out(c.scores, threshold.value)
            if not odd:
                continue
            named = ", ".join(f"{Path(c.paths[i]).name} ({c.scores[i]:.4g})" for i in odd[:_NAMED])
            more = f" and {len(odd) - _NAMED} more" if len(odd) > _NAMED else ""
            notes.append(
                f"the threshold of '{name}' is set by good images that stand out: {named}{more}; "
                f"the median is {np.median(c.scores):.4g}. Look at them: with a flaw among the "
                "good images, weaker flaws escape"
            )
        return notes

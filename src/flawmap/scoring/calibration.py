"""Thresholds from good images alone, by split conformal prediction.

With n scores of good images that the model has not learnt, sorted, the k-th with
k = ceil((n + 1)(1 - rate)) is exceeded by the next good image with probability at most `rate`,
whatever the distribution, as long as images are exchangeable (Vovk et al., Algorithmic Learning in
a Random World, 2005). When k > n the rate asked cannot be guaranteed: the highest score is taken
and the guarantee is 1 / (n + 1), which is reported and not hidden.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from flawmap.quantities import require_rate
from flawmap.types import EVERY
from flawmap.wording import at_most

_STANDS_OUT = 6.0
"""Robust standard deviations above the median."""

_ENOUGH_TO_STAND_OUT = 10
"""Among fewer images nothing can be said to stand out."""

_NAMED = 3
"""Of the images that stand out, so many are named."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """A threshold and what it promises.

    Attributes:
        value: Scores strictly above it raise the alarm.
        asked: The false-reject rate that was asked for.
        bound: The false-reject rate that holds for the next good image: equal to or below
            `asked`, or above it when there are too few images.
        n: Number of good images it was set from.
        exact: True for held-out images; False for leave-one-out, where the bound is approximate.
    """

    value: float
    asked: float
    bound: float
    n: int
    exact: bool

    @property
    def enough(self) -> bool:
        """Whether the number of images allows the rate that was asked for."""
        return self.bound <= self.asked + 1e-12

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with what it promises in words."""
        return {**asdict(self), "enough": self.enough, "promise": self.explain()}

    def explain(self) -> str:
        """One sentence for people."""
        kind = "held-out " if self.exact else ""
        text = f"at most {at_most(self.bound)} of good parts rejected "
        text += f"(from {self.n} {kind}good images"
        text += ")" if self.exact else ", approximate)"
        if not self.enough:
            text += (
                f"; {_percent(self.asked)} was asked, which needs at least "
                f"{needed(self.asked)} images"
            )
        return text


def _named(part: CategoryCalibration, odd: list[int]) -> str:
    """The images that stand out, by name where names are known."""
    values = [f"{part.scores[i]:.4g}" for i in odd[:_NAMED]]
    # Those that stand out are the highest, in this order.
    names = part.highest[: len(values)]
    if len(names) == len(values):
        values = [f"{name} ({value})" for name, value in zip(names, values, strict=True)]
    more = f" and {len(odd) - _NAMED} more" if len(odd) > _NAMED else ""
    what = "a good image that stands" if len(odd) == 1 else "good images that stand"
    return f"{what} out: {', '.join(values)}{more}"


def _percent(rate: float) -> str:
    return f"{100 * rate:.3g}%"


def needed(rate: float) -> int:
    """How many good images a false-reject rate needs before it can be guaranteed."""
    return math.ceil(1 / rate - 1e-9) - 1


def conformal(scores: npt.ArrayLike, rate: float, *, exact: bool = True) -> Threshold:
    """The conformal threshold of good images' scores.

    Args:
        scores: (n,) scores of good images the model has not learnt, n >= 1, finite.
        rate: Wanted false-reject rate in (0, 1).
        exact: Whether the images were held out.

    Raises:
        ValueError: No scores, or scores that are not finite.
        ConfigError: A rate outside (0, 1).
    """
    require_rate(rate)
    ordered = np.sort(np.asarray(scores, dtype=np.float64).ravel())
    n = ordered.size
    if n == 0 or not np.isfinite(ordered).all():
        raise ValueError(f"scores must be finite and at least one, got {n} scores")
    # The small term keeps (n + 1)(1 - rate) from being rounded up past an integer.
    k = min(math.ceil((n + 1) * (1 - rate) - 1e-9), n)
    return Threshold(
        value=float(ordered[k - 1]), asked=rate, bound=1 - k / (n + 1), n=n, exact=exact
    )


def standing_out(scores: npt.ArrayLike, threshold: float) -> list[int]:
    """Good images that stand out, where it is they that set the threshold.

    One flaw that was overlooked among few good images raises the threshold so far that others
    escape. A score stands out when it lies more than 6 robust standard deviations (1.4826 times the
    median absolute deviation) above the median.

    Args:
        scores: (n,) scores of good images.
        threshold: Set from them.

    Returns:
        Positions of all scores that stand out, the highest first; none where the threshold itself
        does not, or where there are fewer than 10 images.
    """
    values = np.asarray(scores, dtype=np.float64).ravel()
    if values.size < _ENOUGH_TO_STAND_OUT:
        return []
    centre = np.median(values)
    deviation = 1.4826 * np.median(np.abs(values - centre))
    limit = centre + max(_STANDS_OUT * deviation, 1e-12)
    if threshold <= limit:
        return []
    return [int(i) for i in np.argsort(-values, kind="stable") if values[i] > limit]


@dataclass(frozen=True, slots=True)
class CategoryCalibration:
    """What is kept of a category's good images, so that the rate can be changed later.

    Attributes:
        scores: (n,) float64 image scores.
        peaks: (n,) float64 highest map values, for the pixel threshold.
        exact: Whether the images were held out of the fit.
        highest: Names of the images with the highest scores, with their folders, the highest
            first; so many as somebody may want to look at.
    """

    scores: npt.NDArray[np.float64]
    peaks: npt.NDArray[np.float64]
    exact: bool
    highest: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Calibration:
    """Thresholds per category for one false-reject rate.

    Attributes:
        rate: The false-reject rate asked for.
        categories: Good images' scores per category.
        fitted: All categories that were learnt. One of them without scores has no threshold: that
            of others says nothing about it.
    """

    rate: float
    categories: Mapping[str, CategoryCalibration]
    fitted: tuple[str, ...] = ()
    _found: dict[tuple[str, str], Threshold | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def _find(self, category: str) -> CategoryCalibration | None:
        if category in self.categories:
            return self.categories[category]
        if not self.categories or category in self.fitted:
            return None
        parts = list(self.categories.values())
        return CategoryCalibration(
            scores=np.concatenate([p.scores for p in parts]),
            peaks=np.concatenate([p.peaks for p in parts]),
            highest=parts[0].highest if len(parts) == 1 else (),
            # Exchangeable with all products together, not with one of them.
            exact=all(p.exact for p in parts) and len(parts) == 1,
        )

    def threshold(self, category: str = EVERY) -> Threshold | None:
        """The image threshold; over all categories together for one that was never seen."""
        return self._threshold("scores", category)

    def thresholds(self) -> dict[str, Threshold]:
        """The image thresholds by category, sorted."""
        found = {name: self.threshold(name) for name in sorted(self.categories)}
        return {name: threshold for name, threshold in found.items() if threshold is not None}

    def pixel_threshold(self, category: str = EVERY) -> Threshold | None:
        """The map threshold: at most `rate` of good images show any px above it."""
        return self._threshold("peaks", category)

    def _threshold(self, kind: str, category: str) -> Threshold | None:
        # Asked for every image: sorting the good scores each time would cost more than the map.
        key = (kind, category)
        if key not in self._found:
            found = self._find(category)
            if found is None or found.scores.size == 0:
                self._found[key] = None
            else:
                self._found[key] = conformal(getattr(found, kind), self.rate, exact=found.exact)
        return self._found[key]

    def caution(self, category: str = EVERY) -> str:
        """What to do where good images that stand out set the threshold; see `standing_out`."""
        found, threshold = self._find(category), self.threshold(category)
        odd = standing_out(found.scores, threshold.value) if found and threshold else []
        if not found or not odd:
            return ""
        text = _named(found, odd)
        text += f", where the median is {np.median(found.scores):.4g}"
        text += ", so weaker flaws escape. Have a look: take out what is flawed and fit again"
        # The threshold falls to the next score below them: see `conformal`.
        rate = math.ceil(1000 * (len(odd) + 1) / (len(found.scores) + 1)) / 1000
        if rate < 0.5:
            without = conformal(found.scores, rate).value
            text += (
                f"; or accept a false-reject rate of {_percent(rate)}, which sets the threshold at "
                f"{without:.4g}"
            )
        what = f"the threshold of '{category}'" if category in self.categories else "the threshold"
        return f"{what} is set by {text}"

    def cautions(self) -> list[str]:
        """The cautions of all categories that have one, sorted by name."""
        return [text for name in sorted(self.categories) if (text := self.caution(name))]

    def at(self, rate: float) -> Calibration:
        """The same good images under another false-reject rate."""
        return replace(self, rate=rate)

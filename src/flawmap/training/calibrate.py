"""The thresholds of a fit, from its own good images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flawmap.detector import Detector
from flawmap.scoring.calibration import EVERY, Calibration
from flawmap.scoring.good_scores import GoodScores
from flawmap.training.plan import Plan
from flawmap.training.run import Run
from flawmap.types import Sample


def calibrated(run: Run, detector: Detector, plan: Plan, numbers: Mapping[str, int]) -> Calibration:
    """Score the good images that were held out, and others as if each had not been learnt.

    Args:
        run: The fit.
        detector: What has been learnt.
        plan: Which images were held out, and of which categories each is left out in turn.
        numbers: The number of each image's picture, by path.
    """
    found = GoodScores()
    jobs: list[tuple[Sequence[Sample], bool]] = [(plan.held_out, True)]
    for name in detector.models:
        mine = [s for s in plan.learn if name in (EVERY, s.category)]
        jobs.append(([s for s in mine if s.category in plan.leave_out], False))
    for samples, exact in jobs:
        if not samples:
            continue
        with run.progress.task("Calibrating", len(samples)) as task:
            for done, (sample, geometry, raw) in enumerate(
                detector.raw_maps(samples, numbers=None if exact else numbers), start=1
            ):
                found.add(sample, *detector.scorer.score(raw, geometry), exact=exact)
                task.update(done)
                run.stop_if_asked("calibrating")
    calibration = Calibration(
        rate=run.config.calibration.false_reject_rate, categories=found.categories()
    )
    for name in calibration.categories:
        threshold = calibration.threshold(name)
        assert threshold is not None
        run.progress.note(f"threshold of '{name}': {threshold.value:.4g}; {threshold.explain()}")
    for text in found.notes(calibration):
        run.progress.note(text)
    return calibration

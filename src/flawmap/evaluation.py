"""Scoring a test split: metrics per category and their mean, at 256 x 256 and at full size.

Image labels come from the data set, never from a mask. Pixel metrics use the good images and the
defects that have masks; a category without any mask gets none. Nothing here looks at a label before
the scores are final.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import numpy as np

from flawmap.data.images import read_mask
from flawmap.data.samples import SampleTable
from flawmap.detector import Detector
from flawmap.errors import DataError
from flawmap.metrics import (
    PixelScores,
    auroc,
    average_precision,
    confusion,
    f1_max,
    resize_mask_nearest,
)
from flawmap.progress import Progress, Silent
from flawmap.scoring import Threshold
from flawmap.training.device import describe_device
from flawmap.types import Sample, categories_of

STANDARD_SIZE = (256, 256)
"""(height, width) at which published pixel metrics are taken."""

HEADLINE = (
    "image_auroc",
    "image_ap",
    "image_f1max",
    "pixel_auroc",
    "pixel_ap",
    "pixel_f1max",
    "aupro",
)
"""The seven metrics, pixel metrics at 256 x 256."""


@dataclass(frozen=True, slots=True)
class ImageResult:
    """What an evaluation says of one image.

    Attributes:
        sample: The image.
        score: Raw image score.
        threshold: Of its category, or None.
    """

    sample: Sample
    score: float
    threshold: float | None

    @property
    def flagged(self) -> bool | None:
        """Whether the alarm was raised; None without a threshold."""
        return None if self.threshold is None else self.score > self.threshold


@dataclass(frozen=True, slots=True)
class CategoryResult:
    """The figures of one category; a figure that is undefined is NaN.

    Attributes:
        metrics: The seven metrics, the pixel metrics again at full size (`..._original`), and
            f1, false_reject_rate and escape_rate at the calibrated threshold.
        by_defect: Image AUROC of each kind of defect against the good images.
        threshold: The calibrated threshold and what it promises, or None.
        images: The scored images.
        counts: good, defect, defects_with_mask.
    """

    metrics: Mapping[str, float]
    by_defect: Mapping[str, float]
    threshold: Threshold | None
    images: tuple[ImageResult, ...]
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The figures of a data set.

    Attributes:
        categories: By name, sorted.
        mean: Unweighted mean of each metric over the categories where it is defined.
        seconds: Time from files to maps and scores, without the metrics; images that are read
            ahead during those make it a little short.
        data: Root, format and fingerprint of the data.
        notes: What a reader of the figures should know.
    """

    categories: Mapping[str, CategoryResult]
    mean: Mapping[str, float]
    seconds: float
    data: Mapping[str, Any]
    notes: tuple[str, ...] = field(default=())

    @property
    def n_images(self) -> int:
        """How many images were scored."""
        return sum(len(c.images) for c in self.categories.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what is undefined is None."""
        return {
            "mean": {name: _number(value) for name, value in self.mean.items()},
            "categories": {
                name: {
                    **{metric: _number(value) for metric, value in result.metrics.items()},
                    "threshold": None if result.threshold is None else result.threshold.value,
                    "by_defect": {k: _number(v) for k, v in result.by_defect.items()},
                    "images": dict(result.counts),
                }
                for name, result in self.categories.items()
            },
            "images": self.n_images,
            "seconds": round(self.seconds, 3),
            "images_per_second": _number(self.n_images / self.seconds if self.seconds else 0.0),
            "data": dict(self.data),
            "notes": list(self.notes),
        }


def evaluate_table(
    detector: Detector, table: SampleTable, *, progress: Progress | None = None
) -> Evaluation:
    """Score the test split of a table.

    Args:
        detector: A fitted detector.
        table: The data; only its test split with known labels is read.
        progress: Where progress is shown; nowhere by default.

    Raises:
        DataError: There is no labelled test image, or an image or mask cannot be read.
    """
    shown: Progress = progress or Silent()
    test = [s for s in table.samples if s.split == "test" and s.label is not None]
    if not test:
        raise DataError(
            "there is no labelled test image to evaluate on",
            where=table.root,
            expected="a test split with good images, defects, or both",
            hint="use 'flawmap predict' for images without labels",
        )
    results: dict[str, CategoryResult] = {}
    notes: list[str] = []
    seconds = 0.0
    with shown.task("Scoring", len(test)) as task:
        done = 0
        for category in categories_of(test):
            samples = [s for s in test if s.category == category]
            began = time.perf_counter()
            metrics_time = 0.0
            images: list[ImageResult] = []
            with PixelScores() as standard, PixelScores() as original:
                for sample, geometry, raw in detector.raw_maps(samples):
                    score, _ = detector.scorer.score(raw, geometry)
                    full = detector.scorer.map(raw, geometry)
                    threshold = detector.calibration.threshold(category)
                    images.append(
                        ImageResult(sample, score, None if threshold is None else threshold.value)
                    )
                    pause = time.perf_counter()
                    if sample.label == 0 or sample.masks:
                        mask = read_mask(sample.masks, geometry.source) if sample.label else None
                        original.add(full, mask)
                        standard.add(
                            detector.scorer.map(raw, geometry, STANDARD_SIZE),
                            None if mask is None else resize_mask_nearest(mask, STANDARD_SIZE),
                        )
                    done += 1
                    task.update(done)
                    metrics_time += time.perf_counter() - pause
                seconds += time.perf_counter() - began - metrics_time
                results[category] = _category(
                    images, standard, original, detector.calibration.threshold(category)
                )
            unmasked = sum(1 for s in samples if s.label == 1 and not s.masks)
            if unmasked:
                notes.append(
                    f"'{category}': {unmasked} defects have no mask and are left out of the pixel "
                    "metrics"
                )
    names = list(next(iter(results.values())).metrics)
    return Evaluation(
        categories=results,
        mean={name: _mean([r.metrics[name] for r in results.values()]) for name in names},
        seconds=seconds,
        data={
            "root": table.root,
            "format": table.format,
            "fingerprint": table.fingerprint(),
            "skipped": [[p.path, p.reason] for p in table.problems],
            "date": datetime.now(timezone.utc).date().isoformat(),
            "device": describe_device(detector.fabric.device),
        },
        notes=(*table.notes, *notes),
    )


def _category(
    images: Sequence[ImageResult],
    standard: PixelScores,
    original: PixelScores,
    threshold: Threshold | None,
) -> CategoryResult:
    labels = np.array([r.sample.label for r in images])
    scores = np.array([r.score for r in images])
    metrics: dict[str, float] = {
        "image_auroc": auroc(labels, scores),
        "image_ap": average_precision(labels, scores),
        "image_f1max": f1_max(labels, scores)[0],
    }
    for pixels, suffix in ((standard, ""), (original, "_original")):
        found = pixels.compute()
        masked = found.n_defect_pixels > 0
        for name in ("pixel_auroc", "pixel_ap", "pixel_f1max", "aupro"):
            metrics[name + suffix] = getattr(found, name) if masked else math.nan
    if threshold is not None:
        at = confusion(labels, scores, math.nextafter(threshold.value, math.inf))
        metrics["f1"] = at.f1
        metrics["false_reject_rate"] = at.false_reject_rate
        metrics["escape_rate"] = at.escape_rate
    else:
        metrics.update(dict.fromkeys(("f1", "false_reject_rate", "escape_rate"), math.nan))
    kinds = sorted({r.sample.defect for r in images if r.sample.label == 1 and r.sample.defect})
    by_defect = {}
    for kind in kinds:
        chosen = np.array([r.sample.label == 0 or r.sample.defect == kind for r in images])
        by_defect[kind] = auroc(labels[chosen], scores[chosen])
    return CategoryResult(
        metrics=metrics,
        by_defect=by_defect,
        threshold=threshold,
        images=tuple(images),
        counts={
            "good": int((labels == 0).sum()),
            "defect": int((labels == 1).sum()),
            "defects_with_mask": sum(1 for r in images if r.sample.label == 1 and r.sample.masks),
        },
    )


def _mean(values: Sequence[float]) -> float:
    defined = [v for v in values if not math.isnan(v)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)

"""Scoring a test split: metrics per category and their mean, at 256 x 256 and at full size.

Image labels come from the data set, never from a mask. Pixel metrics use the good images and the
defects that have masks; a category without any mask gets none. Nothing here looks at a label before
the scores are final.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

import numpy as np

from flawmap.data.check import of_known_parts
from flawmap.data.images import RgbArray
from flawmap.data.lister import raise_unreadable
from flawmap.data.masks import mismatched
from flawmap.data.samples import SampleTable
from flawmap.data.verify import picture_of
from flawmap.detector import Detector
from flawmap.metrics import auroc, average_precision, confusion, f1_max, sample_auroc
from flawmap.metrics.catalog import ALWAYS, CROP, marks, resolve
from flawmap.pixels import APART, SPRO, STANDARD_SIZE, CategoryPixels, kinds_apart
from flawmap.progress import Progress, Silent
from flawmap.scoring import Threshold
from flawmap.training.device import describe_device
from flawmap.types import FloatArray, Geometry, RawMap, Sample, Saturation, categories_of
from flawmap.wording import counted, shown


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
        metrics: The seven metrics, the pixel metrics again at full size (`..._original`),
            f1, false_reject_rate and escape_rate at the calibrated threshold, and the optional
            metrics that were asked for; `flawmap.metrics.catalog` says what each is.
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
            ahead during those make it a little short. Of a category without masks it is the time to
            the scores alone, if the method has such of its own.
        data: Root, format and fingerprint of the data, what of it could not be read, and the file
            of the model.
        notes: What a reader of the figures should know.
        mapped: Whether maps were made of all images, not scores alone of some.
    """

    categories: Mapping[str, CategoryResult]
    mean: Mapping[str, float]
    seconds: float
    data: Mapping[str, Any]
    notes: tuple[str, ...] = field(default=())
    mapped: bool = True

    @property
    def n_images(self) -> int:
        """How many images were scored."""
        return sum(len(c.images) for c in self.categories.values())

    @property
    def optional(self) -> tuple[str, ...]:
        """The metrics that were asked for beside those of every evaluation."""
        return tuple(name for name in self.mean if name not in ALWAYS)

    @property
    def not_official(self) -> dict[str, str]:
        """A footnote for each metric that is not the official one, for tables to show."""
        return marks(self.mean, str(self.data.get("format", "")))

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
            "not_official": self.not_official,
            "images": self.n_images,
            "seconds": round(self.seconds, 3),
            "images_per_second": _number(self.n_images / self.seconds if self.seconds else 0.0),
            "data": dict(self.data),
            "notes": list(self.notes),
        }


def evaluate_table(
    detector: Detector,
    table: SampleTable,
    *,
    metrics: Sequence[str] = (),
    progress: Progress | None = None,
) -> Evaluation:
    """Score the test split of a table.

    Args:
        detector: A fitted detector.
        table: The data; only its test split with known labels is read.
        metrics: Optional metrics beside the seven, by their names in `flawmap.metrics.catalog`.
        progress: Where progress is shown; nowhere by default.

    Raises:
        ConfigError: There is no metric of such a name.
        DataError: There is no labelled test image, or an image or mask cannot be read.
    """
    wanted = [name for name in resolve(metrics) if name not in ALWAYS]
    test = table.require_tested()
    # Before an hour of scoring, not after it.
    raise_unreadable(mismatched(test), where=shown(table.root))
    notes: list[str] = []
    if table.problems:
        # A folder among them may hold any number of images.
        count = counted(len(table.problems), "file or folder", "files or folders")
        verb = "is" if len(table.problems) == 1 else "are"
        notes.append(f"{count} could not be read and {verb} left out")
    if seen := sum(s.split == "test" and s.label is not None for s in of_known_parts(table)):
        notes.append(
            f"{counted(seen, 'test image')} of {len(test)} "
            f"{'shows a part' if seen == 1 else 'show parts'} that training images of this data "
            "show too: of a model that was fitted on it the figures are better than on new parts; "
            "keep all images of a part in one split"
        )
    results: dict[str, CategoryResult] = {}
    seconds, mapped = 0.0, True
    with (progress or Silent()).task("Scoring", len(test)) as task:
        done = 0
        for category in categories_of(test):
            samples = [s for s in test if s.category == category]
            scored = _Scored(detector, table, category, wanted)
            for step in scored.read(samples):
                task.update(done + step)
            done += len(samples)
            seconds += scored.seconds
            mapped = mapped and scored.mapped
            results[category] = scored.result()
            notes += scored.notes(samples)
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
            "model": None if detector.source is None else asdict(detector.source),
        },
        notes=(*table.notes, *notes),
        mapped=mapped,
    )


class _Scored:
    """The scores and maps of one category's test images.

    Args:
        detector: What scores them.
        table: Where they come from.
        category: Their product.
        wanted: Names of the optional metrics.
    """

    def __init__(
        self, detector: Detector, table: SampleTable, category: str, wanted: Sequence[str]
    ) -> None:
        self.detector = detector
        self.category = category
        self.wanted = wanted
        self.seconds = 0.0
        """From files to maps and scores, or to scores alone, without the metrics."""
        self.mapped = True
        """Whether the images have maps, not scores alone."""
        self._threshold = detector.calibration.threshold(category)
        self._pixel_threshold = detector.calibration.pixel_threshold(category)
        self._cropped = detector.config.data.resize == "crop"
        self._saturation = table.saturation.get(category, {})
        self._kinds = table.judged_apart.get(category, {})
        self._learnt = set(detector.fitted.data.get("learnt_pictures", ()))
        self._known: list[Sample] = []
        self._images: list[ImageResult] = []
        self._pixels: dict[str, float] = {}
        self._empty = 0

    def read(self, samples: Sequence[Sample]) -> Iterator[int]:
        """Score the images; gives how many are done."""
        began = time.perf_counter()
        metrics_time = 0.0
        with CategoryPixels(
            self.wanted,
            self._saturation,
            self._kinds,
            self._pixel_threshold,
            cropped=self._cropped,
        ) as pixels:
            for done, (sample, score, found) in enumerate(self._scored(samples), start=1):
                limit = None if self._threshold is None else self._threshold.value
                self._images.append(ImageResult(sample, score, limit))
                pause = time.perf_counter()
                if found is not None:
                    geometry, raw, smoothed, full = found
                    scorer = self.detector.scorer
                    standard = scorer.map(raw, geometry, STANDARD_SIZE, smoothed)
                    seen = None
                    if pixels.wants_crop:
                        seen = scorer.map(raw, geometry.of_input(), STANDARD_SIZE)
                    pixels.add(sample, geometry, standard, full, seen)
                yield done
                metrics_time += time.perf_counter() - pause
            self.seconds = time.perf_counter() - began - metrics_time
            self._pixels = dict(pixels.compute())
            self._empty = pixels.empty

    def _scored(
        self, samples: Sequence[Sample]
    ) -> Iterator[tuple[Sample, float, tuple[Geometry, RawMap, FloatArray, FloatArray] | None]]:
        """Each image's score, and the raw, the smoothed and the final map of those whose px are
        judged: of no image if there is no mask, and of no defect without one."""
        masked = any(s.masks for s in samples)
        if self.detector.scores_alone and not masked:
            self.mapped = False
            for sample, score in self.detector.image_scores(samples, watch=self._look):
                yield sample, score, None
            return
        scorer = self.detector.scorer
        for sample, geometry, raw in self.detector.raw_maps(samples, watch=self._look):
            smoothed = scorer.smoothed(raw, geometry)
            score, _ = scorer.score(raw, geometry, smoothed)
            if not masked or (sample.label != 0 and not sample.masks):
                yield sample, score, None
                continue
            full = scorer.map(raw, geometry, smoothed=smoothed)
            yield sample, score, (geometry, raw, smoothed, full)

    def _look(self, sample: Sample, rgb: RgbArray) -> None:
        """Notice pictures of the fit, under whatever name they come."""
        if self._learnt and sample.label == 0 and picture_of(rgb).hex() in self._learnt:
            self._known.append(sample)

    def result(self) -> CategoryResult:
        """The figures."""
        return _category(self._images, self._pixels, self._threshold, self.wanted, self._kinds)

    def notes(self, samples: Sequence[Sample]) -> list[str]:
        """What a reader of the figures should know."""
        notes: list[str] = []
        if self._known:
            good = sum(s.label == 0 for s in samples)
            notes.append(
                f"'{self.category}': the model has learnt {len(self._known)} of the {good} good "
                "test images, so the figures are better than they will be on new ones: evaluate "
                "with images that were not in the fit"
            )
        if text := self.detector.calibration.caution(self.category):
            notes.append(text)
        for label, what in enumerate(("good images", "defects")):
            if not any(s.label == label for s in samples):
                notes.append(
                    f"'{self.category}': the test holds no {what}, so AUROC and the other metrics "
                    "that need them are undefined"
                )
        if self._empty:
            notes.append(
                f"'{self.category}': the masks of {counted(self._empty, 'defect')} are all black: "
                "in the pixel metrics these images count as good ones"
            )
        unmasked = sum(1 for s in samples if s.label == 1 and not s.masks)
        if unmasked:
            notes.append(
                f"'{self.category}': {unmasked} defects have no mask and are left out of the "
                "pixel metrics"
            )
        return notes + _why_undefined(
            self.wanted,
            self.category,
            samples,
            self._saturation,
            self._kinds,
            self._pixel_threshold,
            cropped=self._cropped,
        )


def _why_undefined(
    wanted: Sequence[str],
    category: str,
    samples: Sequence[Sample],
    saturation: Mapping[int, Saturation],
    kinds: Mapping[str, str],
    threshold: Threshold | None,
    *,
    cropped: bool,
) -> list[str]:
    """Notes for the optional metrics that this category cannot have."""
    unsaturated = "" if saturation else "the data set defines no saturation"
    together = "" if kinds else "the data set judges no kinds of defects apart"
    reasons = {
        SPRO: unsaturated,
        **dict.fromkeys(APART[SPRO], unsaturated or together),
        **dict.fromkeys(APART["image_auroc"], together),
        "sample_auroc": ""
        if any(s.group for s in samples)
        else "the data set does not say which images show one part",
        "segf1": "no threshold is set" if threshold is None else "",
        **{
            name: "" if cropped else "the network sees the whole image"
            for name in wanted
            if name.endswith(CROP)
        },
    }
    return [
        f"'{category}': {name} is undefined: {reason}"
        for name, reason in reasons.items()
        if reason and name in wanted
    ]


def _category(
    images: Sequence[ImageResult],
    pixels: Mapping[str, float],
    threshold: Threshold | None,
    wanted: Sequence[str],
    apart: Mapping[str, str],
) -> CategoryResult:
    labels = np.array([r.sample.label for r in images])
    scores = np.array([r.score for r in images])
    found: dict[str, float] = {
        "image_auroc": auroc(labels, scores),
        "image_ap": average_precision(labels, scores),
        "image_f1max": f1_max(labels, scores)[0],
        **pixels,
    }
    if "sample_auroc" in wanted:
        found["sample_auroc"] = sample_auroc(labels, scores, [r.sample.group for r in images])
    if threshold is not None:
        at = confusion(labels, scores, math.nextafter(threshold.value, math.inf))
        found["f1"] = at.f1
        found["false_reject_rate"] = at.false_reject_rate
        found["escape_rate"] = at.escape_rate
    else:
        found.update(dict.fromkeys(("f1", "false_reject_rate", "escape_rate"), math.nan))
    defects = sorted({r.sample.defect for r in images if r.sample.label == 1 and r.sample.defect})
    by_defect = {}
    for defect in defects:
        chosen = np.array([r.sample.label == 0 or r.sample.defect == defect for r in images])
        by_defect[defect] = auroc(labels[chosen], scores[chosen])
    by_kind = {kind: by_defect.get(defect, math.nan) for kind, defect in apart.items()}
    found |= kinds_apart("image_auroc", by_kind, wanted)
    return CategoryResult(
        metrics=_in_order(found, wanted),
        by_defect=by_defect,
        threshold=threshold,
        images=tuple(images),
        counts={
            "good": int((labels == 0).sum()),
            "defect": int((labels == 1).sum()),
            "defects_with_mask": sum(1 for r in images if r.sample.label == 1 and r.sample.masks),
        },
    )


def _in_order(found: Mapping[str, float], wanted: Iterable[str]) -> dict[str, float]:
    """What every evaluation gives first, then the optional metrics as they were asked for."""
    last = [name for name in wanted if name in found]
    first = [name for name in found if name not in last]
    return {name: found[name] for name in (*first, *last)}


def _mean(values: Sequence[float]) -> float:
    defined = [v for v in values if not math.isnan(v)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)

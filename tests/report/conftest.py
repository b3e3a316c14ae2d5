"""A detector that needs no network and no training, and evaluations built by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flawmap.config import make_config
from flawmap.data.images import read_image
from flawmap.detector import Source
from flawmap.encoders.table import ENCODERS
from flawmap.evaluation import CategoryResult, Evaluation, ImageResult
from flawmap.metrics import auroc, average_precision, confusion, f1_max
from flawmap.scoring import Calibration, Threshold, find_regions
from flawmap.types import Prediction, Sample


class StubDetector:
    """Its map is the picture's red channel in 0..1; its map threshold is one half."""

    def __init__(self) -> None:
        self.config = make_config(method="patchcore")
        self.encoder = SimpleNamespace(
            spec=ENCODERS["vit-s14"], levels=("blocks.2", "blocks.5"), fingerprint="f" * 64
        )
        self.fitted = SimpleNamespace(
            data={
                "root": "parts",
                "fingerprint": "a" * 64,
                "learnt_images": 25,
                "skipped": [["broken <1>.png", "truncated"]],
            },
            seconds={"learn": 75.0},
            curves={},
            versions={"torch": "9.9.9"},
            device="cpu, 2 threads",
            precision="32-true",
            finished="2026-01-02T03:04:05+00:00",
        )
        self.source: Source | None = None
        self.calibration = Calibration(0.01, {})
        self.asked: list[str] = []
        self.rebuilds = False
        self.pixel_threshold: float | None = 0.5

    def predict_samples(
        self, samples: Sequence[Sample], *, batch_size: int | None = None
    ) -> Iterator[Prediction]:
        for sample in samples:
            self.asked.append(sample.path)
            red = read_image(sample.path)[..., 0].astype(np.float32) / 255
            limit = self.pixel_threshold
            regions = () if limit is None else find_regions(red, limit)
            yield Prediction(
                path=sample.path,
                category=sample.category,
                anomaly_map=red,
                score=float(red.max()),
                pixel_threshold=limit,
                regions=regions,
            )

    def reconstruct(self, sample: Sample, size: tuple[int, int]) -> Any:
        """A picture that is all green, where it has any."""
        return np.full((*size, 3), (0.0, 1.0, 0.0), dtype=np.float32) if self.rebuilds else None


class Maker:
    """Writes little pictures and builds evaluations of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def image(
        self,
        score: float,
        label: int,
        *,
        file: str = "",
        category: str = "part",
        defect: str = "scratch",
        mask: bool = False,
        size: tuple[int, int] = (40, 60),
        threshold: float | None = 0.5,
        group: str = "",
        written: bool = True,
    ) -> ImageResult:
        """An image whose map is `score` in a block of 6 x 8 px at (4, 10), and 0.1 elsewhere."""
        path = self.folder / (file or f"{category}-{label}-{score:.4f}.png")
        masks: tuple[str, ...] = ()
        if written:
            pixels = np.full((*size, 3), 25, dtype=np.uint8)
            pixels[4:10, 10:18, 0] = round(score * 255)
            Image.fromarray(pixels).save(path, "PNG")
        if mask:
            marked = np.zeros(size, dtype=np.uint8)
            marked[4:10, 10:18] = 255
            Image.fromarray(marked).save(path.with_suffix(".mask.png"))
            masks = (str(path.with_suffix(".mask.png")),)
        kind = defect if label else "good"
        sample = Sample(str(path), category, "test", label, kind, masks, group)
        return ImageResult(sample, score, threshold)

    def result(self, images: Sequence[ImageResult], promise: Threshold | None) -> CategoryResult:
        """The figures of a category's images; those of pixels are made up, 0.9 and a bit."""
        labels = np.array([image.sample.label for image in images])
        scores = np.array([image.score for image in images])
        masked = sum(bool(image.sample.masks) for image in images)
        metrics = {
            "image_auroc": auroc(labels, scores),
            "image_ap": average_precision(labels, scores),
            "image_f1max": f1_max(labels, scores)[0],
        }
        pixel = ("pixel_auroc", "pixel_ap", "pixel_f1max", "aupro")
        for i, metric in enumerate((*pixel, *(f"{name}_original" for name in pixel))):
            metrics[metric] = 0.9 + i / 83 if masked else math.nan
        if promise is None:
            metrics.update(dict.fromkeys(("f1", "false_reject_rate", "escape_rate"), math.nan))
        else:
            at = confusion(labels, scores, math.nextafter(promise.value, math.inf))
            metrics["f1"] = at.f1
            metrics["false_reject_rate"] = at.false_reject_rate
            metrics["escape_rate"] = at.escape_rate
        kinds = {i.sample.defect for i in images if i.sample.label == 1 and i.sample.defect}
        by_defect = {}
        for kind in sorted(kinds):
            chosen = np.array([i.sample.label == 0 or i.sample.defect == kind for i in images])
            by_defect[kind] = auroc(labels[chosen], scores[chosen])
        counts = {
            "good": int((labels == 0).sum()),
            "defect": int((labels == 1).sum()),
            "defects_with_mask": masked,
        }
        return CategoryResult(metrics, by_defect, promise, tuple(images), counts)

    def evaluation(self, notes: Sequence[str] = (), **results: CategoryResult) -> Evaluation:
        """The figures of several categories."""
        metrics = list(next(iter(results.values())).metrics)
        return Evaluation(
            categories=results,
            mean={m: mean_of([r.metrics[m] for r in results.values()]) for m in metrics},
            seconds=2.0,
            data={"root": str(self.folder), "format": "folder", "fingerprint": "b" * 64},
            notes=tuple(notes),
        )


def mean_of(values: Sequence[float]) -> float:
    """The mean of what is defined."""
    defined = [v for v in values if not math.isnan(v)]
    return math.fsum(defined) / len(defined) if defined else math.nan


PROMISE = Threshold(value=0.5, asked=0.01, bound=0.04, n=24, exact=True)


@pytest.fixture
def detector() -> Any:
    return StubDetector()


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    return Maker(tmp_path)


@pytest.fixture
def promise() -> Threshold:
    return PROMISE

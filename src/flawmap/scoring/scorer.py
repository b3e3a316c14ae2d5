"""One object that turns a method's raw maps into predictions."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from flawmap.config import ScoringConfig
from flawmap.scoring.calibration import Calibration
from flawmap.scoring.maps import Smoothing, inside, pool, resample, smooth
from flawmap.scoring.regions import find_regions
from flawmap.types import FloatArray, Geometry, Prediction, RawMap, Sample, Verdict


@dataclass(frozen=True)
class Scorer:
    """Smoothing, pooling, thresholds and regions under one configuration."""

    config: ScoringConfig
    calibration: Calibration = field(default_factory=lambda: Calibration(0.01, {}))

    def smoothed(self, raw: RawMap, geometry: Geometry) -> FloatArray:
        """The smoothed map over the input, for whoever asks both for the score and for maps.

        Args:
            raw: As the method gave it.
            geometry: How the source became the input.
        """
        return smooth(raw.values, geometry, self._smoothing)

    def score(
        self, raw: RawMap, geometry: Geometry, smoothed: FloatArray | None = None
    ) -> tuple[float, float]:
        """The image score and the highest map value of a raw map.

        Both are taken on the smoothed map, so that they do not depend on the size of the source.

        Args:
            raw: As the method gave it.
            geometry: How the source became the input.
            smoothed: The same as `smoothed` gives it, where it is known.
        """
        smoothed = self.smoothed(raw, geometry) if smoothed is None else smoothed
        seen = smoothed[inside(geometry, self._smoothing)]
        peak = float(seen.max())
        if self.config.pooling == "max":
            return peak, peak
        if self.config.pooling == "method":
            assert raw.image_score is not None, "a fit refuses this pooling without such scores"
            return raw.image_score, peak
        return pool(seen, top_fraction=self.config.top_fraction), peak

    def map(
        self,
        raw: RawMap,
        geometry: Geometry,
        size: tuple[int, int] | None = None,
        smoothed: FloatArray | None = None,
    ) -> FloatArray:
        """The anomaly map over the source image, (H, W) float32, raw scale."""
        return resample(raw.values, geometry, self._smoothing, size=size, smoothed=smoothed)

    @cached_property
    def _smoothing(self) -> Smoothing:
        config = self.config
        return Smoothing(
            sigma=config.sigma,
            reach=config.reach,
            opening=config.opening,
            size=config.map_size,
            published=config.borders == "published",
        )

    def predict(self, raw: RawMap, geometry: Geometry, sample: Sample) -> Prediction:
        """Everything that is said of one image.

        Args:
            raw: As the method gave it.
            geometry: How the source became the input.
            sample: Where the image comes from.
        """
        smoothed = self.smoothed(raw, geometry)
        score, _ = self.score(raw, geometry, smoothed)
        anomaly_map = self.map(raw, geometry, smoothed=smoothed)
        threshold = self.calibration.threshold(sample.category)
        pixel = self.calibration.pixel_threshold(sample.category)
        verdict: Verdict | None = None
        if threshold is not None:
            verdict = "defect" if score > threshold.value else "good"
        return Prediction(
            path=sample.path,
            category=sample.category,
            anomaly_map=anomaly_map,
            score=score,
            threshold=threshold.value if threshold else None,
            pixel_threshold=pixel.value if pixel else None,
            verdict=verdict,
            regions=find_regions(anomaly_map, pixel.value, min_area=self.config.min_area)
            if pixel
            else (),
        )

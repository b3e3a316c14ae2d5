"""The pixel metrics of one category, from the maps and masks of its test images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from flawmap.data.masks import read_mask, read_regions
from flawmap.errors import DataError
from flawmap.metrics import (
    DecidedPixels,
    EdgeScores,
    MemoryBudget,
    PixelScores,
    ProVariant,
    SaturatedScores,
    published_crop,
    resize_mask_nearest,
)
from flawmap.metrics.catalog import BY_KIND, CATALOG, CROP, HEADLINE, KINDS, ORIGINAL
from flawmap.resources import available_memory
from flawmap.scoring import Threshold
from flawmap.types import BoolArray, FloatArray, Geometry, Sample, Saturation
from flawmap.wording import shown

STANDARD_SIZE = (256, 256)
"""(height, width) at which published pixel metrics are taken."""

PRO_VARIANTS = {
    "aupro_0.05": ProVariant(0.05),
    "pro_per_image": ProVariant(per_image=True),
}
"""Optional metrics that one more sum over the scores of the AUPRO gives."""

EDGES = ("pixel_ap_edge", "pixel_ap_centre")
"""Optional metrics that `EdgeScores` gives."""

DEFECTS = "pixel_auroc_defects"
"""An optional metric without the good images."""

SPRO = "spro_0.05"

_MOST_BYTES = MemoryBudget.DEFAULT
"""Of a category's scores, in memory."""

APART = {base: (base + BY_KIND, *(f"{base}_{k}" for k in KINDS)) for base in ("image_auroc", SPRO)}
"""Optional metrics that judge kinds of defects apart, by what they are for each kind."""


class CategoryPixels:
    """The pixel metrics of one category: what is collected depends on what is wanted.

    Args:
        wanted: Names of optional metrics.
        saturation: By the value of a mask's pixels, where the data set defines it.
        kinds: The defects that are judged apart, by the word for them in names of metrics.
        threshold: The calibrated pixel threshold, or None.
        cropped: Whether the network sees a crop of the images.
    """

    def __init__(
        self,
        wanted: Sequence[str],
        saturation: Mapping[int, Saturation],
        kinds: Mapping[str, str],
        threshold: Threshold | None,
        *,
        cropped: bool,
    ) -> None:
        self.empty = 0
        """Defects whose masks are all black."""
        self._wanted = wanted
        self._saturation = saturation
        self.wants_crop = cropped and any(name.endswith(CROP) for name in wanted)
        """Whether `add` needs the map of what the network sees."""
        endings = ("", ORIGINAL, CROP) if self.wants_crop else ("", ORIGINAL)
        budget = self._budget = MemoryBudget(_room())
        self._sizes = {ending: PixelScores(budget) for ending in endings}
        self._edges = {
            ending: EdgeScores(budget)
            for ending in endings
            if any(name + ending in wanted for name in EDGES)
        }
        self._of_defects = {
            ending: PixelScores(budget) for ending in endings if DEFECTS + ending in wanted
        }
        self._saturated = SaturatedScores(budget) if SPRO in wanted and saturation else None
        self._saturated_by_kind = {
            kind: (defect, SaturatedScores(budget))
            for kind, defect in kinds.items()
            if saturation and any(name in wanted for name in APART[SPRO])
        }
        self._decided = (
            DecidedPixels(threshold.value) if "segf1" in wanted and threshold is not None else None
        )

    def __enter__(self) -> CategoryPixels:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._budget.close()

    def add(
        self,
        sample: Sample,
        geometry: Geometry,
        standard: FloatArray,
        full: FloatArray,
        seen: FloatArray | None,
    ) -> None:
        """Add a good image, or a defect with masks.

        Args:
            sample: The image.
            geometry: How the image became the network's input.
            standard: (256, 256) float32, its map at the standard size.
            full: (H, W) float32, its map at the size of the image.
            seen: (256, 256) float32, its map over the input alone, where `wants_crop` says so.

        Raises:
            DataError: A mask cannot be read.
        """
        size = (full.shape[0], full.shape[1])
        saturated = [] if self._saturated is None else [self._saturated]
        for defect, scores in self._saturated_by_kind.values():
            if not sample.label or sample.defect == defect:
                saturated.append(scores)
        mask: BoolArray | None = None
        read: list[tuple[BoolArray, int]] = []
        if sample.label and saturated:
            read = read_regions(sample.masks, size)
            mask = np.logical_or.reduce([np.zeros(size, dtype=np.bool_), *(r for r, _ in read)])
        elif sample.label:
            mask = read_mask(sample.masks, size)
        self.empty += mask is not None and not mask.any()
        found: dict[str, tuple[FloatArray, BoolArray | None]] = {
            ORIGINAL: (full, mask),
            "": (standard, None if mask is None else resize_mask_nearest(mask, STANDARD_SIZE)),
        }
        if seen is not None:
            window = (geometry.resized, geometry.offset, geometry.input)
            cut = None if mask is None else published_crop(mask, STANDARD_SIZE, *window)
            found[CROP] = (seen, cut)
        for ending, (anomaly_map, truth) in found.items():
            self._sizes[ending].add(anomaly_map, truth)
            if ending in self._edges:
                self._edges[ending].add(anomaly_map, truth)
            if ending in self._of_defects and truth is not None:
                self._of_defects[ending].add(anomaly_map, truth)
        if self._decided is not None:
            self._decided.add(full, mask)
        if saturated:
            regions = _saturations(sample.masks, read, self._saturation)
            for scores in saturated:
                scores.add(full, regions)

    def compute(self) -> dict[str, float]:
        """All pixel metrics, the optional ones last."""
        metrics: dict[str, float] = {}
        # Those of a crop are undefined where there is none.
        optional = {name: math.nan for name in self._wanted if name.endswith(CROP)}
        for suffix, pixels in self._sizes.items():
            variants = [name for name in PRO_VARIANTS if name + suffix in self._wanted]
            found = pixels.compute(variants=[PRO_VARIANTS[name] for name in variants])
            for name in HEADLINE:
                if not CATALOG[name].per_pixel:
                    continue
                value = getattr(found, name)
                if suffix != CROP:
                    metrics[name + suffix] = value
                elif name + suffix in self._wanted:
                    optional[name + suffix] = value
            for name, value in zip(variants, found.variants, strict=True):
                optional[name + suffix] = value
            if suffix in self._edges:
                values = zip(EDGES, self._edges[suffix].compute(), strict=True)
                optional |= {n + suffix: v for n, v in values if n + suffix in self._wanted}
            if suffix in self._of_defects:
                optional[DEFECTS + suffix] = self._of_defects[suffix].compute().pixel_auroc
        if SPRO in self._wanted:
            optional[SPRO] = math.nan if self._saturated is None else self._saturated.compute(0.05)
        by_kind = {k: scores.compute(0.05) for k, (_, scores) in self._saturated_by_kind.items()}
        optional |= kinds_apart(SPRO, by_kind, self._wanted)
        if "segf1" in self._wanted:
            optional["segf1"] = math.nan if self._decided is None else self._decided.f1
        return metrics | optional


def _room() -> int:
    """Bytes of scores that a category may keep in memory: a part of what the machine has left."""
    free = available_memory()
    return _MOST_BYTES if free is None else max(1, min(_MOST_BYTES, free // 4))


def _saturations(
    paths: Sequence[str],
    read: Sequence[tuple[BoolArray, int]],
    saturation: Mapping[int, Saturation],
) -> list[tuple[BoolArray, float]]:
    """Each mask file's region with the px of it that must be found.

    Args:
        paths: The mask files.
        read: Their regions and values; none for a good image.
        saturation: By the values.
    """
    regions = []
    for path, (region, value) in zip(paths if read else (), read, strict=True):
        area = int(np.count_nonzero(region))
        if not area:
            continue
        if value not in saturation:
            raise DataError(
                "the data set defines no saturation for the value of this mask",
                where=shown(path),
                given=value,
                expected=f"one of: {', '.join(map(str, sorted(saturation)))}",
                hint="leave out the metrics named spro_0.05, or repair the mask",
            )
        regions.append((region, saturation[value].pixels(area)))
    return regions


def kinds_apart(base: str, by_kind: Mapping[str, float], wanted: Sequence[str]) -> dict[str, float]:
    """The metrics in `APART` that are wanted; one that lacks a kind is NaN.

    Args:
        base: What the figures are for each kind.
        by_kind: The figure of each kind that the data set judges apart.
        wanted: Names of optional metrics.
    """
    mean = math.fsum(by_kind.values()) / len(by_kind) if by_kind else math.nan
    figures = (mean, *(by_kind.get(kind, math.nan) for kind in KINDS))
    return {n: value for n, value in zip(APART[base], figures, strict=True) if n in wanted}

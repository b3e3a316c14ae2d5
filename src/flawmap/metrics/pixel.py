"""Pixel-level metrics of one category: AUROC, AP, F1-max and AUPRO, all exact.

AUPRO needs no sort of all pixels with their regions. A defect pixel of region R lifts the PRO curve
by 1 / (|R| * n_regions) where the threshold passes its score s, between the false-positive rates
a = FPR(score > s) and b = FPR(score >= s), linearly where normal pixels tie with it. Its share of
the area up to the limit L follows from a and b alone:

    b <= L:      (L - b) + (b - a) / 2
    a < L < b:   (L - a)^2 / (2 (b - a))
    a >= L:      0

These add up to the trapezoid rule over every distinct score, with interpolation at L. The counts
behind a and b also give AUROC, AP and F1-max. They add up over sorted chunks, so memory is
bounded while the result stays exact.

Source: Bergmann et al., "The MVTec Anomaly Detection Dataset" (IJCV 2021), for AUPRO: 8-connected
regions per image, normal pixels of all images including the good ones, area divided by L.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flawmap.metrics._chunks import MemoryBudget, ScoreCollector, SortedChunks
from flawmap.metrics._counts import (
    DefectCounts,
    best_f1,
    doubled_wins,
    precision_sum,
    pro_area_lost,
)
from flawmap.metrics.masks import label_regions

AnomalyMap = NDArray[np.floating]
Mask = NDArray[np.bool_] | NDArray[np.integer]

DEFAULT_FPR_LIMIT = 0.3


@dataclass(frozen=True, slots=True)
class ProVariant:
    """A PRO metric beside the official one, over the same thresholds and normal pixels.

    Attributes:
        fpr_limit: FPR up to which the curve counts, 0 < fpr_limit <= 1; 0.05 for MVTec AD 2.
        per_image: False: PRO(t) is the mean over all regions of the category. True: it is the mean
            over the images that have a region, of the mean over the regions of that image. A region
            among many of one image then counts less than one that is alone. Older papers use it
            under the same name.

    Raises:
        ValueError: if fpr_limit is out of range.
    """

    fpr_limit: float = DEFAULT_FPR_LIMIT
    per_image: bool = False

    def __post_init__(self) -> None:
        check_fpr_limit(self.fpr_limit)


@dataclass(frozen=True)
class PixelMetrics:
    """Pixel metrics of one category; NaN where the pixels hold only one class.

    Attributes:
        pixel_auroc: area under the ROC curve over all pixels, 0..1.
        pixel_ap: step-wise average precision over all pixels, 0..1.
        pixel_f1max: best F1 over all thresholds, 0..1.
        pixel_f1max_threshold: the highest threshold that reaches it; defect if score >= threshold.
        aupro: area under the PRO curve up to the FPR limit, divided by the limit, 0..1.
        n_images: images added.
        n_regions: 8-connected defect regions.
        n_defect_pixels: pixels inside the masks.
        n_normal_pixels: all other pixels, those of good images included.
        variants: area of each PRO variant that was asked for, 0..1, in the order asked.
    """

    pixel_auroc: float
    pixel_ap: float
    pixel_f1max: float
    pixel_f1max_threshold: float
    aupro: float
    n_images: int
    n_regions: int
    n_defect_pixels: int
    n_normal_pixels: int
    variants: tuple[float, ...] = ()


class PixelScores(ScoreCollector):
    """Collects the anomaly maps of one category and computes exact pixel metrics.

    Scores are stored as float32, from the first float64 map on as float64; nothing is rounded. Past
    the budget they go to a temporary file, which vanishes with `close()` or with the object.

    Args:
        budget: what bounds the memory, alone or together with other collectors; 512 MiB by default.
            Working arrays of some tens of MB come on top.

    Example:
        >>> scores = PixelScores()
        >>> scores.add(np.array([[0.1, 0.9], [0.2, 0.3]]), np.array([[0, 1], [0, 0]]))
        >>> scores.add(np.array([[0.1, 0.2]]), None)
        >>> result = scores.compute(fpr_limit=0.3)
        >>> result.aupro, result.pixel_auroc, result.n_normal_pixels
        (1.0, 1.0, 5)
    """

    def __init__(self, budget: MemoryBudget | None = None) -> None:
        super().__init__(budget)
        self._defects = SortedChunks(self._budget, with_regions=True)
        self._region_sizes: list[NDArray[np.int64]] = []
        self._n_regions = 0
        self._n_images = 0

    def add(self, anomaly_map: AnomalyMap, mask: Mask | None) -> None:
        """Adds one image; images may differ in size.

        Args:
            anomaly_map: (H, W) finite float16, float32 or float64, higher = more anomalous.
            mask: (H, W) bool, or integers where nonzero is a defect; None for a good image.

        Raises:
            ValueError: if an argument has the wrong shape, dtype or values; nothing is added then.
        """
        scores = check_map(anomaly_map)
        if mask is None:
            self._normals.append(scores.ravel(), None)
        else:
            is_defect = check_mask(mask, scores.shape)
            regions, sizes = label_regions(is_defect)
            self._normals.append(scores[~is_defect], None)
            self._defects.append(scores[is_defect], regions + np.int32(self._n_regions))
            self._region_sizes.append(sizes)
            self._n_regions += sizes.size
        self._n_images += 1

    def compute(
        self, fpr_limit: float = DEFAULT_FPR_LIMIT, *, variants: Sequence[ProVariant] = ()
    ) -> PixelMetrics:
        """Computes all metrics; more images may be added afterwards.

        Args:
            fpr_limit: false-positive rate up to which the PRO curve counts, 0 < fpr_limit <= 1.
            variants: PRO metrics to give besides, all in one pass over the scores.

        Returns:
            The metrics, each NaN unless there is a normal and a defect pixel.

        Raises:
            ValueError: if fpr_limit is out of range.
        """
        curves = (ProVariant(fpr_limit), *variants)
        n_normals, n_defects = self._normals.size, self._defects.size
        areas = [math.nan] * len(curves)
        roc = ap = f1 = threshold = math.nan
        if n_normals and n_defects:
            weightings = {kind: self._weights(kind) for kind in {c.per_image for c in curves}}
            wins = 0
            precisions: list[float] = []
            losses: list[list[float]] = [[] for _ in curves]
            best = (-math.inf, -math.inf)
            for counts, starts, regions in self._count_defects():
                wins += doubled_wins(counts, n_normals)
                precisions.append(precision_sum(counts))
                best = max(best, best_f1(counts, n_defects))
                lifts = {
                    kind: np.add.reduceat(weights[regions], starts)
                    for kind, (weights, _) in weightings.items()
                }
                for curve, lost in zip(curves, losses, strict=True):
                    limit = curve.fpr_limit * n_normals
                    lift = lifts[curve.per_image]
                    lost.append(pro_area_lost(counts.normals_ge, counts.normals_gt, lift, limit))
            roc = wins / (2 * n_defects * n_normals)
            ap = math.fsum(precisions) / n_defects
            f1, threshold = best
            # The region weights are rounded and may add up to a hair more than 1.
            areas = [
                max(1.0 - math.fsum(lost) / weightings[curve.per_image][1], 0.0)
                for curve, lost in zip(curves, losses, strict=True)
            ]
        return PixelMetrics(
            pixel_auroc=roc,
            pixel_ap=ap,
            pixel_f1max=f1,
            pixel_f1max_threshold=threshold,
            aupro=areas[0],
            n_images=self._n_images,
            n_regions=self._n_regions,
            n_defect_pixels=n_defects,
            n_normal_pixels=n_normals,
            variants=tuple(areas[1:]),
        )

    def _weights(self, per_image: bool) -> tuple[NDArray[np.float64], int]:
        """What a pixel of each region lifts the sum of the curves by, and how many are summed."""
        if not per_image:
            return 1.0 / np.concatenate(self._region_sizes), self._n_regions
        with_regions = [sizes for sizes in self._region_sizes if sizes.size]
        lifts = [1.0 / (sizes * sizes.size) for sizes in with_regions]
        return np.concatenate(lifts), len(with_regions)

    def _count_defects(
        self,
    ) -> Iterator[tuple[DefectCounts, NDArray[np.intp], NDArray[np.int32]]]:
        """Yields the counts at each block of defect scores, with its pixels' regions.

        Between them stands, for each distinct score, the index of its first pixel.
        """
        for scores, regions in self._defects.blocks():
            starts = np.flatnonzero(np.concatenate(([True], scores[1:] != scores[:-1])))
            distinct = scores[starts]
            defects_ge, _ = self._defects.count_ge_gt(distinct)
            normals_ge, normals_gt = self._normals.count_ge_gt(distinct)
            counts = DefectCounts(
                scores=distinct,
                defects=np.diff(starts, append=scores.size),
                defects_ge=defects_ge,
                normals_ge=normals_ge,
                normals_gt=normals_gt,
            )
            yield counts, starts, regions


def pixel_auroc(maps: Sequence[AnomalyMap], masks: Sequence[Mask | None]) -> float:
    """Area under the ROC curve over all pixels of one category, ties half.

    Args:
        maps: N anomaly maps, each (H, W) finite float, higher = more anomalous; sizes may differ.
        masks: N masks, each (H, W) bool or integers (nonzero = defect), or None for a good image.

    Returns:
        Area in 0..1; NaN unless there is a normal and a defect pixel.

    Raises:
        ValueError: if an argument has the wrong length, shape, dtype or values.
    """
    return _compute(maps, masks, DEFAULT_FPR_LIMIT).pixel_auroc


def pixel_ap(maps: Sequence[AnomalyMap], masks: Sequence[Mask | None]) -> float:
    """Step-wise average precision over all pixels of one category; arguments as `pixel_auroc`."""
    return _compute(maps, masks, DEFAULT_FPR_LIMIT).pixel_ap


def pixel_f1max(maps: Sequence[AnomalyMap], masks: Sequence[Mask | None]) -> tuple[float, float]:
    """Best F1 over all pixels and the highest threshold reaching it; arguments as `pixel_auroc`."""
    result = _compute(maps, masks, DEFAULT_FPR_LIMIT)
    return result.pixel_f1max, result.pixel_f1max_threshold


def aupro(
    maps: Sequence[AnomalyMap],
    masks: Sequence[Mask | None],
    fpr_limit: float = DEFAULT_FPR_LIMIT,
) -> float:
    """Area under the per-region overlap curve up to an FPR limit, divided by the limit.

    Args:
        maps: N anomaly maps, each (H, W) finite float, higher = more anomalous; sizes may differ.
        masks: N masks, each (H, W) bool or integers (nonzero = defect), or None for a good image.
        fpr_limit: 0 < fpr_limit <= 1; 0.3 is usual, 0.05 for MVTec AD 2 and LOCO.

    Returns:
        Area in 0..1; NaN unless there is a normal and a defect pixel.

    Raises:
        ValueError: if an argument has the wrong length, shape, dtype or values.

    Example:
        >>> ramp = np.linspace(0.0, 1.0, 16).reshape(4, 4)
        >>> aupro([ramp], [ramp > 0.8])
        1.0
    """
    return _compute(maps, masks, fpr_limit).aupro


def _compute(
    maps: Sequence[AnomalyMap], masks: Sequence[Mask | None], fpr_limit: float
) -> PixelMetrics:
    if len(maps) != len(masks):
        raise ValueError(
            f"masks: got {len(masks)}, expected {len(maps)} as maps; pass None for a good image"
        )
    with PixelScores() as scores:
        for anomaly_map, mask in zip(maps, masks, strict=True):
            scores.add(anomaly_map, mask)
        return scores.compute(fpr_limit)


def check_fpr_limit(fpr_limit: float) -> None:
    """Refuses an FPR limit that is no rate, or 0.

    Raises:
        ValueError: if it is outside 0 < fpr_limit <= 1.
    """
    if not 0 < fpr_limit <= 1:
        raise ValueError(f"fpr_limit: got {fpr_limit}, expected 0 < fpr_limit <= 1")


def check_map(anomaly_map: AnomalyMap) -> AnomalyMap:
    """A map as an array.

    Raises:
        ValueError: if it is no (H, W) of finite float16, float32 or float64.
    """
    scores = np.asarray(anomaly_map)
    if scores.ndim != 2:
        raise ValueError(f"anomaly_map: got shape {scores.shape}, expected (H, W)")
    if scores.dtype not in (np.float16, np.float32, np.float64):
        raise ValueError(
            f"anomaly_map: got dtype {scores.dtype}, expected float16, float32 or float64"
        )
    finite = np.isfinite(scores)
    if not finite.all():
        row, column = np.unravel_index(int(np.argmin(finite)), scores.shape)
        raise ValueError(
            f"anomaly_map: got {scores[row, column]} at row {row}, column {column}, expected "
            "finite numbers; find out why the method gave it rather than replacing it"
        )
    return scores


def check_mask(mask: Mask, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """A mask as bool, nonzero = True.

    Raises:
        ValueError: if its shape differs from the map's, or it holds neither bool nor integers.
    """
    given = np.asarray(mask)
    if given.shape != shape:
        raise ValueError(f"mask: got shape {given.shape}, expected {shape} as anomaly_map")
    if given.dtype.kind not in "biu":
        raise ValueError(f"mask: got dtype {given.dtype}, expected bool or integers")
    return given.astype(np.bool_, copy=False)

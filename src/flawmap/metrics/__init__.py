"""Exact metrics on numpy arrays: per image, per pixel and per region."""

from flawmap.metrics._chunks import MemoryBudget
from flawmap.metrics.decided import DecidedPixels
from flawmap.metrics.edges import EdgeScores, edge_pixels
from flawmap.metrics.masks import label_regions, published_crop, resize_mask_nearest
from flawmap.metrics.pixel import (
    PixelMetrics,
    PixelScores,
    ProVariant,
    aupro,
    pixel_ap,
    pixel_auroc,
    pixel_f1max,
)
from flawmap.metrics.ranking import (
    Confusion,
    auroc,
    average_precision,
    confusion,
    f1_max,
    sample_auroc,
)
from flawmap.metrics.saturated import SaturatedScores, spro

__all__ = [
    "Confusion",
    "DecidedPixels",
    "EdgeScores",
    "MemoryBudget",
    "PixelMetrics",
    "PixelScores",
    "ProVariant",
    "SaturatedScores",
    "aupro",
    "auroc",
    "average_precision",
    "confusion",
    "edge_pixels",
    "f1_max",
    "label_regions",
    "pixel_ap",
    "pixel_auroc",
    "pixel_f1max",
    "published_crop",
    "resize_mask_nearest",
    "sample_auroc",
    "spro",
]

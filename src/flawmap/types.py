"""The values that travel through flawmap: frozen, shapes and ranges checked once, here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from flawmap.errors import DataError

if TYPE_CHECKING:
    import torch

Split = Literal["train", "validation", "test"]
Verdict = Literal["good", "defect"]

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

GOOD = "good"
"""The name of what has no defect."""

EVERY = "*"
"""In place of a category: all of them together."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a data set, not yet decoded.

    Attributes:
        path: The image file.
        category: The product it shows.
        split: "train", "validation" (good images kept for calibration) or "test".
        label: 0 good, 1 defect, None unknown.
        defect: The kind of defect, "good", or "" when unknown.
        masks: Mask files of the same size as the image, nonzero = defect; their union counts.
        group: Images of one physical part (several views of it) share a name; "" for a part that
            was photographed once.

    Raises:
        DataError: A path is no text, or the split or the label is another one.
    """

    path: str
    category: str
    split: Split
    label: int | None
    defect: str = ""
    masks: tuple[str, ...] = ()
    group: str = ""

    def __post_init__(self) -> None:
        splits = get_args(Split)
        given: object
        if not all(isinstance(path, str) for path in (self.path, *self.masks)):
            what, given, expected = "path", (self.path, *self.masks), "text, as of str(path)"
        elif self.split not in splits:
            what, given, expected = "split", self.split, f"one of: {', '.join(splits)}"
        elif self.label not in (0, 1, None):
            what, given, expected = "label", self.label, "0 (good), 1 (defect) or None (unknown)"
        else:
            return
        raise DataError(
            f"a sample cannot have this {what}",
            where=str(self.path),
            given=repr(given),
            expected=expected,
        )

    @property
    def part(self) -> str:
        """The physical part that it shows; an image of which nobody says more is one."""
        return self.group or self.path


@dataclass(frozen=True, slots=True)
class Saturation:
    """How much of a defect region must be found until it counts as found whole.

    Attributes:
        amount: Pixels, or a share of the region's own area.
        relative: Whether `amount` is a share.

    Source: Bergmann et al., "Beyond Dents and Scratches: Logical Constraints in Unsupervised
    Anomaly Detection and Localization" (IJCV 2022), saturated per-region overlap.
    """

    amount: float
    relative: bool

    def pixels(self, area: int) -> float:
        """Pixels of a region of `area` px that must be found, at most all of them."""
        return min(self.amount * area if self.relative else self.amount, float(area))


@dataclass(frozen=True, slots=True)
class Geometry:
    """How an image became a network input, so that a map finds its way back.

    All sizes are (height, width) in px. The source is resized to `resized`; the input is the
    window of size `input` whose upper left corner lies at `offset` (top, left) of the resized
    image. A negative offset, or a window that reaches past the resized image, is padding.
    """

    source: tuple[int, int]
    resized: tuple[int, int]
    offset: tuple[int, int]
    input: tuple[int, int]

    def of_input(self) -> Geometry:
        """The geometry with which a map covers the input alone, as if that were the image."""
        return Geometry(self.input, self.input, (0, 0), self.input)


@dataclass(frozen=True, slots=True)
class RawMap:
    """What a method says of one image, before scoring.

    Attributes:
        values: (h, w) float32, higher = more anomalous, at any resolution.
        image_score: The method's own score of the image, where it has one.
    """

    values: FloatArray
    image_score: float | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Decoded images, ready for a method.

    Attributes:
        images: (B, 3, H, W) float32, RGB in [0, 1]; not yet normalised for an encoder.
        geometries: One per image.
        samples: One per image.
    """

    images: torch.Tensor
    geometries: tuple[Geometry, ...]
    samples: tuple[Sample, ...]

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        assert len(shape) == 4, f"images must be (B, 3, H, W), got {shape}"
        assert shape[1] == 3, f"images must be (B, 3, H, W), got {shape}"
        assert shape[0] == len(self.geometries) == len(self.samples)


@dataclass(frozen=True, slots=True)
class Region:
    """One connected flaw.

    Attributes:
        box: (left, top, width, height) in px of the source image.
        area: Number of px above the pixel threshold.
        peak: Highest anomaly value inside, raw scale.
        peak_at: (x, y) of the peak in px of the source image.
    """

    box: tuple[int, int, int, int]
    area: int
    peak: float
    peak_at: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a detector says of one image.

    Attributes:
        path: The image, or "" for an array that came from memory.
        category: The product, as known or assumed.
        anomaly_map: (H, W) float32 in px of the source image, raw scale, higher = more anomalous.
        score: Raw image score, never clamped.
        threshold: Scores above it are defects; None without a calibration.
        pixel_threshold: Map values above it belong to a region; None without a calibration.
        verdict: "good", "defect", or None without a threshold.
        regions: The flaws, highest peak first.
    """

    path: str
    category: str
    anomaly_map: FloatArray
    score: float
    threshold: float | None = None
    pixel_threshold: float | None = None
    verdict: Verdict | None = None
    regions: tuple[Region, ...] = field(default=())

    def __post_init__(self) -> None:
        assert self.anomaly_map.ndim == 2, self.anomaly_map.shape

    def to_dict(self) -> dict[str, Any]:
        """Everything but the map, as plain JSON values."""
        return {
            "path": self.path,
            "category": self.category,
            "score": self.score,
            "threshold": self.threshold,
            "verdict": self.verdict,
            "size": [int(n) for n in self.anomaly_map.shape],
            "pixel_threshold": self.pixel_threshold,
            "regions": [
                {
                    "box": list(r.box),
                    "area": r.area,
                    "peak": r.peak,
                    "peak_at": list(r.peak_at),
                }
                for r in self.regions
            ],
        }


def by_part(samples: Iterable[Sample]) -> list[list[str]]:
    """The paths of images, those of one part together, in the order of the first of each."""
    parts: dict[str, list[str]] = {}
    for sample in samples:
        parts.setdefault(sample.part, []).append(sample.path)
    return list(parts.values())


def categories_of(samples: Sequence[Sample]) -> tuple[str, ...]:
    """The categories that occur, sorted."""
    return tuple(sorted({s.category for s in samples}))

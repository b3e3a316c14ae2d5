"""From an image to the input of a network, with the way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image

from flawmap.config import DataConfig
from flawmap.data.images import RgbArray
from flawmap.errors import ConfigError, unknown_name
from flawmap.types import Geometry

Resize = Literal["stretch", "letterbox", "crop"]


@dataclass(frozen=True)
class Transform:
    """Brings an image to one size, with an antialiased bilinear filter.

    Attributes:
        size: (height, width) of the result in px.
        resize: "stretch" ignores the aspect. "letterbox" keeps it and fills the rest with a
            reflection, which makes no edge that could look like a flaw. "crop" stretches to
            `crop_from` and cuts out the centre, as published protocols do; flaws at the border
            are lost.
        crop_from: (height, width) in px before the centre is cut out, for "crop" alone.

    Raises:
        ConfigError: A value is wrong, or `crop_from` is missing or useless.

    Example:
        >>> image = np.zeros((100, 50, 3), dtype=np.uint8)
        >>> array, geometry = Transform(size=(64, 64), resize="letterbox")(image)
        >>> array.shape, geometry.resized, geometry.offset
        ((64, 64, 3), (64, 32), (0, -16))
    """

    size: tuple[int, int]
    resize: Resize = "stretch"
    crop_from: tuple[int, int] | None = None

    @classmethod
    def of(cls, data: DataConfig) -> Transform:
        """The one that a configuration asks for."""
        return cls(data.size, data.resize, data.crop_from)

    def __post_init__(self) -> None:
        if self.resize not in get_args(Resize):
            raise unknown_name("resize", self.resize, get_args(Resize), where="resize")
        for name, pair in (("size", self.size), ("crop_from", self.crop_from)):
            if pair is not None and (len(pair) != 2 or min(pair) < 1):
                raise ConfigError(
                    f"{name} must be two positive integers",
                    where=name,
                    given=pair,
                    expected="(height, width) in px",
                )
        if (self.resize == "crop") != (self.crop_from is not None):
            raise ConfigError(
                "crop_from belongs to resize='crop', and is needed there",
                where="crop_from",
                given=self.crop_from,
                hint="give crop_from=(448, 448), say, or choose resize='stretch'",
            )
        if self.crop_from is not None and (
            self.crop_from[0] < self.size[0] or self.crop_from[1] < self.size[1]
        ):
            raise ConfigError(
                "crop_from is smaller than size",
                where="crop_from",
                given=self.crop_from,
                expected=f"at least {self.size}",
            )

    def __call__(self, image: RgbArray) -> tuple[RgbArray, Geometry]:
        """Transform one image.

        Args:
            image: (H, W, 3) uint8, or float32 in [0, 1].

        Returns:
            (h, w, 3) of the same type, and the geometry for the way back.
        """
        assert image.shape[2:] == (3,), image.shape
        source = (image.shape[0], image.shape[1])
        if self.resize == "letterbox":
            return self._letterbox(image, source)
        if self.crop_from is not None:
            (high, wide), (height, width) = self.crop_from, self.size
            # Rounded as torchvision's CenterCrop does, which the published figures used.
            top, left = round((high - height) / 2), round((wide - width) / 2)
            whole = _resized(image, self.crop_from)
            window = whole[top : top + height, left : left + width]
            geometry = Geometry(source, self.crop_from, (top, left), self.size)
            return np.ascontiguousarray(window), geometry
        return _resized(image, self.size), Geometry(source, self.size, (0, 0), self.size)

    def _letterbox(self, image: RgbArray, source: tuple[int, int]) -> tuple[RgbArray, Geometry]:
        height, width = self.size
        scale = min(height / source[0], width / source[1])
        resized = (
            min(height, max(1, round(source[0] * scale))),
            min(width, max(1, round(source[1] * scale))),
        )
        top, left = (height - resized[0]) // 2, (width - resized[1]) // 2
        below, right = height - resized[0] - top, width - resized[1] - left
        padded = np.pad(
            _resized(image, resized), ((top, below), (left, right), (0, 0)), mode="reflect"
        )
        return padded, Geometry(source, resized, (-top, -left), self.size)


def _resized(image: RgbArray, size: tuple[int, int]) -> RgbArray:
    if image.shape[:2] == tuple(size):
        return image
    target = (size[1], size[0])
    bilinear = Image.Resampling.BILINEAR
    if image.dtype == np.uint8:
        return np.asarray(Image.fromarray(image).resize(target, bilinear))
    channels = [
        np.asarray(Image.fromarray(np.ascontiguousarray(image[..., c])).resize(target, bilinear))
        for c in range(3)
    ]
    # The filter's sums may pass 1 by a rounding error.
    stacked = np.stack(channels, axis=2).astype(np.float32, copy=False)
    return stacked.clip(0, 1)

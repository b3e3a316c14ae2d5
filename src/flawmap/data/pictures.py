"""Images at the input's size, kept in memory so that a fit decodes each file once."""

from __future__ import annotations

import threading
from collections.abc import Callable

from flawmap.data.images import RgbArray
from flawmap.data.transform import Transform
from flawmap.types import Geometry, Sample

Watch = Callable[[Sample, RgbArray], None]
"""Is shown an image, upright RGB, before it is brought to another size."""


class Pictures:
    """Transformed images by their paths, as many as there is room for.

    Threads may call it together.

    Args:
        transform: Brings images to one size.
        room: Bytes that they may take.
    """

    def __init__(self, transform: Transform, room: int) -> None:
        self._transform = transform
        self._room = room
        self._kept: dict[str, tuple[RgbArray, Geometry]] = {}
        self._lock = threading.Lock()

    def add(self, sample: Sample, image: RgbArray) -> None:
        """Keep an image, if there is room.

        Args:
            sample: Names it.
            image: (H, W, 3) uint8 or float32, upright, as it was decoded.
        """
        if self._room <= 0 or sample.path in self._kept:
            return
        found, geometry = self._transform(image)
        with self._lock:
            self._room -= found.nbytes
            if self._room >= 0:
                self._kept[sample.path] = found, geometry

    def get(self, path: str) -> tuple[RgbArray, Geometry] | None:
        """What `transform` made of the image, or None."""
        return self._kept.get(path)

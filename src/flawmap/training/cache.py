"""Features of a frozen encoder, kept between epochs in memory or on disk, within limits."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from flawmap.config import TrainingConfig
from flawmap.methods.base import Features
from flawmap.resources import available_memory

Place = Literal["memory", "disk"]


def choose_place(
    first: Features, images: int, config: TrainingConfig, folder: Path
) -> Place | None:
    """Where the features of all images fit, judged by the first batch.

    Args:
        first: Features of one image or more.
        images: Number of images.
        config: Limits, and what was asked for.
        folder: Where a cache on disk would lie.

    Returns:
        "memory", "disk" or None for no cache.
    """
    if config.cache == "off":
        return None
    need = sum(t[0].numel() * t.element_size() for t in first) * images
    free = available_memory()
    room = config.cache_memory_mib * 2**20
    in_memory = need <= (room if free is None else min(room, free // 2))
    if config.cache == "memory" or (config.cache == "auto" and in_memory):
        return "memory" if in_memory else None
    folder.mkdir(parents=True, exist_ok=True)
    on_disk = shutil.disk_usage(folder).free
    fits = need <= min(config.cache_disk_mib * 2**20, on_disk // 2)
    return "disk" if fits else None


class FeatureCache:
    """Room for the features of a number of images.

    Args:
        like: Features of one batch, for shapes and types.
        images: Number of images.
        place: "memory" or "disk".
        folder: Where a cache on disk lies; a temporary file that vanishes with the process.
    """

    def __init__(self, like: Features, images: int, place: Place, folder: Path) -> None:
        self.place = place
        self._tensors: list[Tensor] = []
        for tensor in like:
            shape = (images, *tensor.shape[1:])
            if place == "memory":
                self._tensors.append(torch.empty(shape, dtype=tensor.dtype))
            else:
                self._tensors.append(_on_disk(shape, tensor.dtype, folder))

    def put(self, begin: int, features: Features) -> None:
        """Store a batch from row `begin` on."""
        for room, tensor in zip(self._tensors, features, strict=True):
            room[begin : begin + len(tensor)] = tensor.cpu()

    def get(self, rows: Sequence[int] | Tensor) -> Features:
        """The features of some images, in the order asked."""
        index = torch.as_tensor(rows, dtype=torch.long)
        return tuple(room[index] for room in self._tensors)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(t.numel() * t.element_size() for t in self._tensors)


def _on_disk(shape: tuple[int, ...], dtype: torch.dtype, folder: Path) -> Tensor:
    size = int(np.prod(shape)) * torch.empty(0, dtype=dtype).element_size()
    # The file has no name once it is open, so nothing is left behind after a crash.
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            # A hole that finds the disk full later would kill the process.
            os.posix_fallocate(file.fileno(), 0, max(size, 1))
        else:
            file.truncate(max(size, 1))
        room = np.memmap(file, dtype=np.uint8, mode="r+", shape=(max(size, 1),))
    return torch.from_numpy(room).view(dtype).view(shape)

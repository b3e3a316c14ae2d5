"""Features of a frozen encoder, kept between epochs in memory or on disk, within limits."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from flawmap.config import TrainingConfig
from flawmap.errors import FitError
from flawmap.methods.base import Features
from flawmap.resources import available_memory

Place = Literal["memory", "disk"]

PLACES: tuple[Place, ...] = ("disk", "memory")
"""The slower one first."""

_SHARED_MEMORY = Path("/dev/shm")
"""Files in memory, where the system has them."""


def choose_place(
    first: Features,
    images: int,
    config: TrainingConfig,
    folder: Path,
    *,
    note: Callable[[str], None],
) -> Place | None:
    """Where the features of all images fit, judged by the first batch.

    Args:
        first: Features of one image or more.
        images: Number of images.
        config: Limits, and what was asked for; a cache is wanted.
        folder: Where a cache on disk would lie.
        note: Told where they fit nowhere.

    Returns:
        "memory", "disk" or None for no cache.
    """
    need = sum(t[0].numel() * t.element_size() for t in first) * images
    free = available_memory()
    room = config.cache_memory_mib * 2**20
    room = room if free is None else min(room, free // 2)
    if config.cache in ("memory", "auto") and need <= room:
        return "memory"
    if config.cache != "memory":
        folder.mkdir(parents=True, exist_ok=True)
        room = min(config.cache_disk_mib * 2**20, shutil.disk_usage(folder).free // 2)
        if need <= room:
            return "disk"
    note(
        f"features are not kept, so each step computes its own: they need {need / 2**20:,.0f} MiB, "
        f"and there is room for {room / 2**20:,.0f} MiB "
        f"({'in memory' if config.cache == 'memory' else 'on disk'})"
    )
    return None


class FeatureCache:
    """Room for the features of a number of images.

    Args:
        like: Features of one batch, for shapes and types.
        images: Number of images.
        place: "memory" or "disk".
        folder: Where a cache on disk lies; a file that vanishes with the process.
        shared: A name for a cache that several processes of one machine have in common: one
            makes it, the others open it, then the first calls `unname`.
        create: Make the shared cache; False opens the one that another process has made.
    """

    def __init__(
        self,
        like: Features,
        images: int,
        place: Place,
        folder: Path,
        *,
        shared: str | None = None,
        create: bool = False,
    ) -> None:
        self.place = place
        self._tensors: list[Tensor] = []
        self._paths: list[Path] = []
        for number, tensor in enumerate(like):
            shape = (images, *tensor.shape[1:])
            if shared is not None:
                path = _shared_path(f"{shared}-{number}", place, folder, shape, tensor.dtype)
                self._paths.append(path)
                try:
                    with path.open("x+b" if create else "r+b") as file:
                        self._tensors.append(_mapped(file, shape, tensor.dtype, create))
                except OSError as error:
                    if create:
                        self.unname()
                    raise _no_room(error, path) from error
            elif place == "memory":
                self._tensors.append(torch.empty(shape, dtype=tensor.dtype))
            else:
                # The file has no name once it is open, so nothing is left behind after a crash.
                try:
                    with tempfile.TemporaryFile(dir=folder) as own:
                        self._tensors.append(_mapped(own, shape, tensor.dtype, True))
                except OSError as error:
                    raise _no_room(error, folder) from error

    def unname(self) -> None:
        """Take the name from a shared cache once all have opened it: it vanishes with the last."""
        for path in self._paths:
            path.unlink(missing_ok=True)

    def put(self, begin: int, features: Features) -> None:
        """Store a batch from row `begin` on."""
        for room, tensor in zip(self._tensors, features, strict=True):
            room[begin : begin + len(tensor)] = tensor.cpu()

    def get(self, rows: Sequence[int] | Tensor) -> Features:
        """The features of some images, in the order asked."""
        index = torch.as_tensor(rows, dtype=torch.long)
        return tuple(room[index] for room in self._tensors)


def _no_room(error: OSError, where: Path) -> FitError:
    return FitError(
        f"the features cannot be kept: {error.strerror or error}",
        where=str(where),
        hint="free some space, or use --set training.cache=off",
    )


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return max(1, int(np.prod(shape)) * torch.empty(0, dtype=dtype).element_size())


def _shared_path(
    name: str, place: Place, folder: Path, shape: tuple[int, ...], dtype: torch.dtype
) -> Path:
    """Where a shared file is, or is to be made: in memory if it is wanted and fits there."""
    in_memory = _SHARED_MEMORY / name
    if in_memory.exists():
        return in_memory
    wanted = place == "memory" and _SHARED_MEMORY.is_dir() and not (folder / name).exists()
    # Containers often have little of it.
    if wanted and _bytes(shape, dtype) <= shutil.disk_usage(_SHARED_MEMORY).free // 2:
        return in_memory
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def _mapped(file: Any, shape: tuple[int, ...], dtype: torch.dtype, create: bool) -> Tensor:
    size = _bytes(shape, dtype)
    if create and hasattr(os, "posix_fallocate"):
        # A hole that finds the disk full later would kill the process.
        os.posix_fallocate(file.fileno(), 0, size)
    elif create:
        file.truncate(size)
    room = np.memmap(file, dtype=np.uint8, mode="r+", shape=(size,))
    return torch.from_numpy(room).view(dtype).view(shape)

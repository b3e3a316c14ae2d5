"""Batches of decoded images, read ahead in threads.

Pillow lets other threads run while it decodes and resizes, so threads use all cores without the
cost and the traps of worker processes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing

import numpy as np
import torch

from flawmap.data.images import RgbArray, as_float, read_image
from flawmap.data.pictures import Pictures, Watch
from flawmap.data.pool import map_in_threads
from flawmap.data.transform import Transform
from flawmap.errors import ConfigError
from flawmap.resources import default_threads
from flawmap.types import Batch, Geometry, Sample


def load_batches(
    samples: Sequence[Sample],
    transform: Transform,
    batch_size: int,
    *,
    threads: int | None = None,
    white_level: int | None = None,
    watch: Watch | None = None,
    kept: Pictures | None = None,
) -> Generator[Batch, None, None]:
    """Decode and transform images and give them in batches.

    At most two batches and a few images are in memory ahead of the consumer. Closing the iterator
    ends the threads.

    Args:
        samples: The images.
        transform: Brings them to one size.
        batch_size: Images a batch; the last batch may be smaller.
        threads: Number of threads; None is the number of cores, at most 8.
        white_level: As for `images.read_image`.
        watch: Is shown every image as it was decoded, in the threads.
        kept: Images of the same transform and white level that need not be decoded again; they
            are not watched.

    Yields:
        Batches with (B, 3, H, W) float32 images in [0, 1], channels last in memory.

    Raises:
        DataError: An image cannot be read; the message names it.
        ConfigError: `batch_size` or `threads` is not positive.
    """
    for name, value in (("batch_size", batch_size), ("threads", threads)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be positive", where=name, given=value)

    def load(sample: Sample) -> tuple[RgbArray, Geometry, Sample]:
        known = None if kept is None else kept.get(sample.path)
        if known is not None:
            return *known, sample
        image = read_image(sample.path, white_level=white_level)
        if watch is not None:
            watch(sample, image)
        return *transform(image), sample

    return _batches(load, samples, batch_size, threads or default_threads())


def _batches(
    load: Callable[[Sample], tuple[RgbArray, Geometry, Sample]],
    samples: Sequence[Sample],
    batch_size: int,
    threads: int,
) -> Generator[Batch, None, None]:
    ahead = batch_size + 2 * threads
    with closing(map_in_threads(load, samples, threads=threads, ahead=ahead)) as loaded:
        waiting: list[tuple[RgbArray, Geometry, Sample]] = []
        for item in loaded:
            waiting.append(item)
            if len(waiting) == batch_size:
                yield stack(waiting)
                waiting = []
        if waiting:
            yield stack(waiting)


def stack(items: list[tuple[RgbArray, Geometry, Sample]]) -> Batch:
    """A batch of images that were transformed already."""
    arrays, geometries, samples = zip(*items, strict=True)
    if all(a.dtype == np.uint8 for a in arrays):
        whole = torch.from_numpy(np.stack(arrays)).to(torch.float32).div_(255)
    else:
        floats = [as_float(a) for a in arrays]
        whole = torch.from_numpy(np.stack(floats))
    images = whole.permute(0, 3, 1, 2)  # (B, H, W, 3) -> (B, 3, H, W), still channels last
    return Batch(images=images, geometries=geometries, samples=samples)

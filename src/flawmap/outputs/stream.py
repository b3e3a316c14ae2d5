"""Going on past unreadable images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from flawmap.data.images import read_image
from flawmap.errors import DataError
from flawmap.types import Sample

Result = TypeVar("Result")


def skipping(
    run: Callable[[Sequence[Sample]], Iterator[Result]],
    samples: Sequence[Sample],
    *,
    batch_size: int,
    on_skip: Callable[[Sample, DataError], None],
    white_level: int | None = None,
) -> Iterator[Result]:
    """The results of all samples that can be read, in their order.

    `run` decodes in batches and ends at the first image that cannot be read. The bad images of
    that batch are found and reported, and `run` starts again behind what it gave: nothing is
    decoded twice as long as all is well.

    Args:
        run: Gives one result per sample, in order, such as `Detector.predict_samples`.
        samples: The images.
        batch_size: How many `run` decodes at a time.
        on_skip: Called with each sample that is left out, and why.
        white_level: As for `read_image`.

    Raises:
        DataError: What `run` raises for anything but an unreadable image.
    """
    rest = list(samples)
    while rest:
        done = 0
        try:
            for result in run(rest):
                done += 1
                yield result
            return
        except DataError:
            batch, after = rest[done : done + batch_size], rest[done + batch_size :]
            readable = []
            for sample in batch:
                try:
                    read_image(sample.path, white_level=white_level)
                    readable.append(sample)
                except DataError as error:
                    on_skip(sample, error)
            if len(readable) == len(batch):
                raise
            rest = readable + after

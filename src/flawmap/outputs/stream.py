"""The scoring of many images: going on past unreadable ones, and what became of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from flawmap.data.images import read_image
from flawmap.errors import DataError
from flawmap.types import Prediction, Sample
from flawmap.wording import counted

if TYPE_CHECKING:
    from flawmap.detector import Detector

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


@dataclass
class Tally:
    """What became of images.

    Attributes:
        defect: Images that raise the alarm.
        good: Images that do not.
        undecided: Images without a verdict, as their product has no threshold.
        skipped: Images that could not be read.

    Example:
        >>> str(Tally(defect=1, good=2, skipped=1))
        '3 images: 1 defect, 2 good, 1 skipped'
    """

    defect: int = 0
    good: int = 0
    undecided: int = 0
    skipped: int = 0

    def add(self, prediction: Prediction) -> None:
        """Count an image."""
        if prediction.verdict is None:
            self.undecided += 1
        elif prediction.verdict == "defect":
            self.defect += 1
        else:
            self.good += 1

    def __str__(self) -> str:
        scored = self.defect + self.good + self.undecided
        text = f"{counted(scored, 'image')}: "
        text += f"{self.defect} defect, {self.good} good"
        if self.undecided:
            text += f", {self.undecided} without a verdict (their product has no threshold)"
        if self.skipped:
            text += f", {self.skipped} skipped"
        return text


def predictions(
    detector: Detector,
    samples: Sequence[Sample],
    tally: Tally,
    *,
    batch_size: int | None = None,
    on_skip: Callable[[Sample, DataError], None] | None = None,
) -> Iterator[Prediction]:
    """The predictions of images, in their order.

    Args:
        detector: What scores them.
        samples: The images.
        tally: Every image is counted there.
        batch_size: Images at a time; the detector's by default.
        on_skip: Called with each image that cannot be read, and why; without it the first one
            ends the scoring.

    Raises:
        DataError: An image cannot be read, or not be scored.
    """
    size = batch_size or detector.config.training.batch_size

    def run(rest: Sequence[Sample]) -> Iterator[Prediction]:
        return detector.predict_samples(rest, batch_size=size)

    def skip(sample: Sample, error: DataError) -> None:
        assert on_skip is not None
        tally.skipped += 1
        on_skip(sample, error)

    results = run(samples)
    if on_skip is not None:
        white_level = detector.config.data.white_level
        results = skipping(run, samples, batch_size=size, on_skip=skip, white_level=white_level)
    for prediction in results:
        tally.add(prediction)
        yield prediction

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flawmap.data.images import read_image
from flawmap.errors import DataError
from flawmap.outputs import Tally, predictions, skipping
from flawmap.types import Sample

BATCH = 3


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), 90, dtype=np.uint8)).save(path)
    return path


def samples_with_bad(folder: Path, n: int, bad: set[int]) -> list[Sample]:
    samples = []
    for i in range(n):
        path = image(folder / f"{i}.png")
        if i in bad:
            path.write_bytes(b"no image")
        samples.append(Sample(str(path), "", "test", None))
    return samples


def in_batches(samples: Sequence[Sample]) -> Iterator[str]:
    for begin in range(0, len(samples), BATCH):
        batch = samples[begin : begin + BATCH]
        for sample in batch:
            read_image(sample.path)
        yield from (Path(sample.path).stem for sample in batch)


@pytest.mark.parametrize("bad", [set(), {0}, {4}, {2, 3, 4}, {0, 1, 2, 7}, set(range(8))])
def test_skipping_gives_the_readable_images_in_order(tmp_path: Path, bad: set[int]) -> None:
    skipped: list[str] = []
    found = list(
        skipping(
            in_batches,
            samples_with_bad(tmp_path, 8, bad),
            batch_size=BATCH,
            on_skip=lambda sample, error: skipped.append(Path(sample.path).stem),
        )
    )
    assert found == [str(i) for i in range(8) if i not in bad]
    assert skipped == [str(i) for i in sorted(bad)]


def test_another_error_than_an_unreadable_image_is_not_swallowed(tmp_path: Path) -> None:
    def fails(samples: Sequence[Sample]) -> Iterator[str]:
        yield "first"
        raise DataError("the map is too large")

    results = skipping(
        fails,
        samples_with_bad(tmp_path, 4, set()),
        batch_size=BATCH,
        on_skip=lambda sample, error: pytest.fail("nothing is bad"),
    )
    assert next(results) == "first"
    with pytest.raises(DataError, match="too large"):
        next(results)


class ByName:
    """Its verdict follows from the image's number: a defect, a good image, none, and so on."""

    config = SimpleNamespace(
        training=SimpleNamespace(batch_size=BATCH), data=SimpleNamespace(white_level=None)
    )

    def predict_samples(
        self, samples: Sequence[Sample], *, batch_size: int
    ) -> Iterator[SimpleNamespace]:
        assert batch_size == BATCH
        for name in in_batches(samples):
            yield SimpleNamespace(name=name, verdict=("defect", "good", None)[int(name) % 3])


def test_what_became_of_images_is_counted(tmp_path: Path) -> None:
    samples = samples_with_bad(tmp_path, 8, {2})
    detector: Any = ByName()
    tally = Tally(skipped=1)
    skipped: list[Sample] = []
    found = predictions(
        detector, samples, tally, on_skip=lambda sample, error: skipped.append(sample)
    )
    assert [p.name for p in found] == list("0134567")
    assert skipped == [samples[2]]
    assert tally == Tally(defect=3, good=3, undecided=1, skipped=2)
    assert str(tally) == (
        "7 images: 3 defect, 3 good, 1 without a verdict (their product has no threshold), "
        "2 skipped"
    )
    assert str(Tally(good=1)) == "1 image: 0 defect, 1 good"


def test_an_unreadable_image_ends_the_scoring_where_none_may_be_skipped(tmp_path: Path) -> None:
    detector: Any = ByName()
    tally = Tally()
    found = predictions(detector, samples_with_bad(tmp_path, 8, {4}), tally, batch_size=BATCH)
    with pytest.raises(DataError, match=r"4\.png"):
        list(found)
    assert tally == Tally(defect=1, good=1, undecided=1)

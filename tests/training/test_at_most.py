from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import flawmap
from flawmap.config import make_config
from flawmap.errors import ConfigError
from flawmap.methods.dinomaly import Dinomaly
from flawmap.training.plan import at_most
from flawmap.types import Sample
from watching import Notes

OPTIONS = {
    "encoder.name": "lite0",
    "data.size": 64,
    "training.iterations": 2,
    "training.precision": "float32",
    "training.device": "cpu",
    "method.width": 64,
    "method.depth": 2,
}


def samples(category: str, n: int) -> list[Sample]:
    return [Sample(f"{category}/{i}.png", category, "train", 0, "good") for i in range(n)]


def chosen(found: tuple[Sample, ...], category: str) -> list[str]:
    return [s.path for s in found if s.category == category and s.split == "train"]


def test_so_many_teach_and_the_others_set_the_threshold() -> None:
    good = [*samples("bolt", 10), *samples("nut", 2)]
    found = at_most(good, 3, seed=0)
    assert len(chosen(found, "bolt")) == 3
    assert len(chosen(found, "nut")) == 2
    assert sum(s.split == "validation" for s in found) == 7
    assert at_most(good, None, seed=0) == tuple(good)


def test_another_product_changes_no_choice() -> None:
    alone = at_most(samples("nut", 10), 3, seed=0)
    beside = at_most([*samples("bolt", 10), *samples("nut", 10)], 3, seed=0)
    assert chosen(alone, "nut") == chosen(beside, "nut")
    assert chosen(at_most(samples("nut", 10), 3, seed=1), "nut") != chosen(alone, "nut")


@pytest.mark.parametrize("augment", ["off", "views"])
def test_a_fit_learns_so_many_images(rings: Path, augment: str) -> None:
    options = {**OPTIONS, "training.images_per_category": 1, "training.augment": augment}
    # One image, a batch larger than the data, and no dropout between features and weights.
    options["method.dropout"] = 0.0
    detector = flawmap.fit(rings, method="dinomaly", options=options)
    assert detector.fitted.data["learnt_images"] == 1
    assert detector.fitted.data["held_out_images"] == 11


def test_views_of_one_image_fill_a_batch(rings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    extract = Dinomaly.extract

    def spy(self: Dinomaly, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append(images)
        return extract(self, images)

    monkeypatch.setattr(Dinomaly, "extract", spy)
    options = {
        **OPTIONS,
        "training.images_per_category": 1,
        "training.augment": "views",
        "training.batch_size": 4,
        "calibration.strategy": "off",
    }
    flawmap.fit(rings, method="dinomaly", options=options)
    assert [len(images) for images in seen] == [4, 4]
    views = torch.cat(seen).flatten(1)
    assert len({tuple(view[::97].tolist()) for view in views}) == 8


def test_no_more_images_than_the_steps_look_at(rings: Path) -> None:
    notes = Notes()
    options = {**OPTIONS, "training.batch_size": 3, "calibration.strategy": "off"}
    detector = flawmap.fit(rings, method="dinomaly", options=options, progress=notes)
    assert detector.fitted.data["learnt_images"] == 6
    assert any("2 iterations of 3 images learn 6 of the 12" in text for text in notes.texts)
    balanced = {**options, "training.balance": True}
    detector = flawmap.fit(rings, method="dinomaly", options=balanced)
    assert detector.fitted.data["learnt_images"] == 12


def test_no_more_epochs_than_are_wanted(rings: Path) -> None:
    notes = Notes()
    options = {
        **OPTIONS,
        "training.iterations": 40,
        "training.batch_size": 4,
        "training.max_epochs": 1,
        "calibration.strategy": "off",
    }
    detector = flawmap.fit(rings, method="dinomaly", options=options, progress=notes)
    curve = next(iter(detector.fitted.curves.values()))
    # 12 images, 4 in each step.
    assert curve["planned"] == 3
    said = "3 of the 40 iterations learn the 12 images as often as training.max_epochs=1 allows"
    assert any(said in text for text in notes.texts)
    # More epochs than there is time for are no limit.
    options["training.max_epochs"] = 14
    notes = Notes()
    detector = flawmap.fit(rings, method="dinomaly", options=options, progress=notes)
    assert next(iter(detector.fitted.curves.values()))["planned"] == 40
    assert not any("epochs" in text for text in notes.texts)


@pytest.mark.parametrize(("augment", "planned"), [("off", 6), ("views", 3)])
def test_epochs_of_fewer_images_than_a_batch(rings: Path, augment: str, planned: int) -> None:
    options = {
        **OPTIONS,
        "training.images_per_category": 2,
        "training.iterations": 40,
        "training.batch_size": 4,
        "training.max_epochs": 6,
        "training.augment": augment,
        "calibration.strategy": "off",
    }
    detector = flawmap.fit(rings, method="dinomaly", options=options)
    # A step learns both images once, or two views of each.
    assert next(iter(detector.fitted.curves.values()))["planned"] == planned


def test_options_that_would_do_nothing_are_refused(rings: Path) -> None:
    for option in (
        *("training.augment=views", "training.balance=true"),
        *("training.max_epochs=5", "training.patience=3"),
    ):
        with pytest.raises(ConfigError, match="it needs an iterative method"):
            flawmap.fit(rings, method="patchcore", options=[option])
        # A whole configuration names no option: those that ask for something count.
        whole = make_config(method="patchcore", overrides=[option], idle=None)
        with pytest.raises(ConfigError, match="sees every image once"):
            flawmap.fit(rings, config=whole)


def test_views_of_one_part_stay_together() -> None:
    views = [replace(s, group=f"part {i // 5}") for i, s in enumerate(samples("bolt", 40))]
    found = at_most(views, 12, seed=0)
    learnt = {s.group for s in found if s.split == "train"}
    assert len(learnt) == 2
    assert not learnt & {s.group for s in found if s.split == "validation"}
    # A part that is more than was asked for is all there is.
    one = [replace(s, group="the one") for s in samples("bolt", 5)]
    assert len(chosen(at_most(one, 3, seed=0), "bolt")) == 5

"""Going on from a fitted detector."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import flawmap
from flawmap.data import read_data
from flawmap.detector import Detector
from flawmap.errors import ConfigError, FitError, FlawmapWarning
from flawmap.scoring.calibration import CategoryCalibration
from flawmap.training.interrupt import Interrupted
from watching import StopAt

OPTIONS = {
    "encoder.name": "lite0",
    "data.size": 64,
    "training.iterations": 30,
    "training.batch_size": 4,
    "training.precision": "float32",
    "training.device": "cpu",
    "method.width": 64,
    "method.depth": 2,
}


@pytest.fixture(scope="module")
def old(two_products: Path) -> Detector:
    return flawmap.fit(two_products, method="dinomaly", categories=["bolt"], options=OPTIONS)


def loss(detector: Detector, path: Path, category: str) -> float:
    samples = read_data(path, categories=[category]).select(split="train")
    return sum(float(raw.values.mean()) for _, _, raw in detector.raw_maps(samples)) / len(samples)


def test_it_begins_with_what_was_learnt(old: Detector, two_products: Path) -> None:
    short = {**OPTIONS, "training.iterations": 2, "method.learning_rate": 1e-6}
    new = flawmap.fit(two_products, method="dinomaly", options=short, start=old)
    for name, value in old.models["*"].state_dict().items():
        torch.testing.assert_close(new.models["*"].state_dict()[name], value, atol=1e-4, rtol=0)
    assert new.categories == ("bolt", "nut")
    assert loss(new, two_products, "bolt") == pytest.approx(
        loss(old, two_products, "bolt"), rel=0.01
    )


def test_a_product_is_added_and_the_old_one_is_kept(old: Detector, two_products: Path) -> None:
    new = flawmap.fit(two_products, method="dinomaly", options=OPTIONS, start=old)
    fresh = flawmap.fit(two_products, method="dinomaly", options=OPTIONS)
    assert loss(new, two_products, "bolt") < 1.1 * loss(old, two_products, "bolt")
    assert loss(new, two_products, "nut") < loss(fresh, two_products, "nut")
    before = set(old.fitted.data["learnt_pictures"])
    assert before < set(new.fitted.data["learnt_pictures"])


def test_a_product_that_is_not_shown_again_has_no_threshold_of_another(
    old: Detector, two_products: Path
) -> None:
    short = {**OPTIONS, "training.iterations": 2}
    with pytest.warns(FlawmapWarning, match="get no threshold and may be forgotten: bolt"):
        new = flawmap.fit(
            two_products, method="dinomaly", categories=["nut"], options=short, start=old
        )
    assert new.categories == new.calibration.fitted == ("bolt", "nut")
    # The good images of one product say nothing of the other.
    scores = CategoryCalibration(np.arange(200.0), np.arange(200.0), exact=True)
    calibrated = new.with_calibration(replace(new.calibration, categories={"nut": scores}))
    found = calibrated.predict(two_products / "bolt" / "train", category="bolt")
    assert {p.verdict for p in found} == {None}


def test_a_run_that_began_with_a_detector_is_not_resumed_without(
    old: Detector, two_products: Path, tmp_path: Path
) -> None:
    output = tmp_path / "x.flawmap"
    with pytest.raises(Interrupted):
        flawmap.fit(
            two_products,
            output=output,
            method="dinomaly",
            options=OPTIONS,
            start=old,
            progress=StopAt(10),
        )
    with pytest.raises(FitError, match="another run: start differs"):
        flawmap.fit(two_products, output=output, method="dinomaly", options=OPTIONS, resume=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "patchcore", "encoder": "lite0"}, "nothing to go on from"),
        ({"options": {**OPTIONS, "method.width": 128}}, "another method.width"),
        ({"options": {**OPTIONS, "method.mixer": "softmax"}}, "another method.mixer"),
        ({"options": {**OPTIONS, "data.size": 96}}, "another data.size"),
        ({"options": {**OPTIONS, "data.white_level": 4095}}, "another data.white_level"),
        ({"options": {**OPTIONS, "encoder.name": "lite1"}}, "another encoder"),
        ({"options": OPTIONS, "separate": True}, "one model for all products"),
    ],
)
def test_a_detector_of_another_kind_is_refused(
    old: Detector, two_products: Path, options: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        flawmap.fit(two_products, start=old, **{"method": "dinomaly", **options})  # type: ignore[arg-type]

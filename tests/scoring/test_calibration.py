"""Conformal thresholds: their guarantee, and what few images allow."""

from __future__ import annotations

import numpy as np
import pytest

from flawmap.errors import ConfigError
from flawmap.scoring.calibration import (
    Calibration,
    CategoryCalibration,
    conformal,
    needed,
    standing_out,
)
from flawmap.types import EVERY


def test_the_threshold_is_the_conformal_order_statistic() -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1, 200))  # 1..199
    threshold = conformal(scores, 0.01)
    assert threshold.value == 198  # ceil(200 * 0.99) = 198
    assert threshold.bound == pytest.approx(0.01)
    assert threshold.enough


def test_the_false_reject_rate_holds_on_average() -> None:
    rng = np.random.default_rng(0)
    rejected = []
    for _ in range(4000):
        sample = rng.standard_exponential(60)
        rejected.append(sample[-1] > conformal(sample[:-1], 0.1).value)
    assert np.mean(rejected) == pytest.approx(0.1, abs=0.015)
    assert conformal(np.arange(59), 0.1).bound == pytest.approx(0.1)


def test_too_few_images_are_said_not_hidden() -> None:
    threshold = conformal([1.0, 3.0, 2.0], 0.01)
    assert threshold.value == 3.0
    assert threshold.bound == pytest.approx(0.25)
    assert not threshold.enough
    assert "at least 99 images" in threshold.explain()
    assert "25%" in threshold.explain()


def test_the_promise_is_rounded_up() -> None:
    """1/121 is 0.8264...%: 0.826% would be more than it promises."""
    assert conformal(np.arange(120), 0.01).explain().startswith("at most 0.827% of good parts")
    assert conformal(np.arange(99), 0.01).explain().startswith("at most 1% of good parts")


@pytest.mark.parametrize(("rate", "images"), [(0.01, 99), (0.05, 19), (0.5, 1), (0.001, 999)])
def test_how_many_images_a_rate_needs(rate: float, images: int) -> None:
    assert needed(rate) == images
    assert conformal(np.arange(images), rate).enough
    if images > 1:
        assert not conformal(np.arange(images - 1), rate).enough


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 2.0])
def test_an_impossible_rate_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        conformal([1.0], rate)


@pytest.mark.parametrize("scores", [[], [1.0, np.nan], [np.inf]])
def test_bad_scores_are_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        conformal(scores, 0.1)


def test_the_rate_can_change_without_the_images() -> None:
    part = CategoryCalibration(np.arange(999.0), np.arange(999.0) * 2, True)
    calibration = Calibration(0.01, {"a": part})
    loose = calibration.at(0.1)
    assert calibration.threshold("a").value == 989
    assert loose.threshold("a").value == 899
    assert loose.pixel_threshold("a").value == 1798


def test_an_unknown_product_gets_the_threshold_of_all_together() -> None:
    low = CategoryCalibration(np.zeros(50), np.zeros(50), True)
    high = CategoryCalibration(np.ones(50) * 9, np.ones(50), False)
    calibration = Calibration(0.05, {"a": low, "b": high})
    found = calibration.threshold(EVERY)
    assert found.value == 9
    assert found.n == 100
    assert not found.exact
    assert Calibration(0.05, {}).threshold("a") is None


def test_an_image_that_sets_the_threshold_by_itself_stands_out() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(10, 1, 40)
    assert standing_out(scores, conformal(scores, 0.01).value) == []
    scores[[7, 3]] = 25, 18
    found = conformal(scores, 0.01)
    assert standing_out(scores, found.value) == [7, 3]
    # At a higher rate an ordinary image sets the threshold, and both lie above it.
    assert standing_out(scores, conformal(scores, 0.2).value) == []
    assert standing_out(scores, conformal(scores, 0.06).value) == [7, 3]
    assert standing_out(scores[:9], 0.0) == []
    assert standing_out(np.full(40, 2.0), 2.0) == []


def test_a_caution_says_what_sets_the_threshold() -> None:
    usual = np.random.default_rng(0).normal(10, 1, 40)
    scores = np.append(usual, 60.0)
    parts = {
        "nut": CategoryCalibration(scores, scores, True),
        "bolt": CategoryCalibration(usual, usual, True),
    }
    calibration = Calibration(0.01, parts)
    text = calibration.caution("nut")
    assert "'nut' is set by a good image that stands out: 60, where" in text
    # Of 41 images 2 in 42 lie at or above the highest but one.
    assert "a false-reject rate of 4.8%, which sets" in text
    assert f"at {usual.max():.4g}" in text
    assert calibration.at(0.048).threshold("nut").value == usual.max()  # type: ignore[union-attr]
    assert calibration.cautions() == [text]
    # A product of another name is judged by all together, and told so too.
    assert calibration.caution("washer").startswith("the threshold is set by")
    assert calibration.caution("bolt") == ""
    assert Calibration(0.2, parts).caution("nut") == ""
    assert Calibration(0.01, {}).caution("nut") == ""


def test_a_product_that_sets_no_threshold_borrows_none() -> None:
    part = CategoryCalibration(np.arange(99.0), np.arange(99.0), True)
    found = Calibration(0.01, {"bolt": part}, fitted=("bolt", "nut")).at(0.1)
    assert found.threshold("nut") is None
    assert found.pixel_threshold("nut") is None
    assert found.caution("nut") == ""
    for name in ("bolt", "washer", EVERY):
        assert found.threshold(name).value == 89

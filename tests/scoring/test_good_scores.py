from __future__ import annotations

import numpy as np

from flawmap.scoring.calibration import Calibration
from flawmap.scoring.good_scores import GoodScores
from flawmap.types import Sample


def gathered(scores: dict[str, list[float]], *, exact: bool = True) -> GoodScores:
    found = GoodScores()
    for category, values in scores.items():
        for number, value in enumerate(values):
            sample = Sample(f"/photos/{category}/{number:03}.png", category, "train", 0)
            found.add(sample, value, 2 * value, exact=exact)
    return found


def test_scores_become_a_calibration_by_category() -> None:
    found = gathered({"nut": [3.0, 1.0], "bolt": [5.0]}).categories()
    assert list(found) == ["bolt", "nut"]
    np.testing.assert_array_equal(found["nut"].scores, [3.0, 1.0])
    np.testing.assert_array_equal(found["nut"].peaks, [6.0, 2.0])
    assert found["nut"].exact
    assert not gathered({"nut": [1.0]}, exact=False).categories()["nut"].exact


def test_the_images_that_set_a_threshold_by_themselves_are_named() -> None:
    usual = list(np.random.default_rng(0).normal(10, 1, 40))
    found = gathered({"nut": [*usual, 30.0, 60.0], "bolt": usual}).categories()
    (note,) = Calibration(0.01, found).cautions()
    start = "the threshold of 'nut' is set by good images that stand out: "
    assert note.startswith(f"{start}nut/041.png (60), nut/040.png (30), where")
    # With what is advised neither of them sets it.
    rate = float(note.split("rate of ")[1].split("%")[0]) / 100
    assert Calibration(rate, found).threshold("nut").value == max(usual)  # type: ignore[union-attr]
    assert Calibration(0.2, found).cautions() == []


def test_the_names_of_the_highest_are_kept() -> None:
    found = gathered({"nut": [float(i % 7) for i in range(30)]}).categories()["nut"]
    assert len(found.highest) == 10
    assert found.highest[:5] == tuple(f"nut/{n:03}.png" for n in (6, 13, 20, 27, 5))


def test_with_several_views_of_one_part_a_promise_is_approximate() -> None:
    found = GoodScores()
    for number, group in enumerate(("left", "right", "right")):
        sample = Sample(f"{number}.png", "nut", "train", 0, group=group)
        found.add(sample, 1.0, 1.0, exact=True)
        assert found.categories()["nut"].exact == (number < 2)

"""Charts: where points, ticks and lines lie, and what a screen reader is told."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from flawmap.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    histogram_chart,
    loss_chart,
    pr_chart,
    roc_chart,
)
from flawmap.report.curves import histogram

GROUND = HEIGHT - BOTTOM


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def having(svg: str, css: str) -> list[ElementTree.Element]:
    return [e for e in parsed(svg).iter() if e.get("class") == css]


def line(svg: str) -> list[tuple[float, float]]:
    path = having(svg, "curve")[0].get("d") or ""
    numbers = [float(n) for n in re.findall(r"-?[\d.]+", path)]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def texts(svg: str) -> list[str]:
    return [e.text or "" for e in parsed(svg).iter("text")]


def test_the_roc_line_goes_through_the_corners_of_the_data() -> None:
    svg = roc_chart([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9], None)
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + GROUND) / 2
    assert line(svg) == [
        (LEFT, GROUND),
        (LEFT, middle_y),
        (middle_x, middle_y),
        (middle_x, TOP),
        (WIDTH - RIGHT, TOP),
    ]
    assert "good images rejected (%)" in texts(svg)
    assert "defects found (%)" in texts(svg)
    assert texts(svg).count("100") == 2


def test_the_operating_point_is_drawn_where_it_lies_and_told_in_words() -> None:
    svg = roc_chart([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9], (0.5, 1.0))
    (point,) = having(svg, "operating")
    assert float(point.get("cx", "")) == (LEFT + WIDTH - RIGHT) / 2
    assert float(point.get("cy", "")) == TOP
    told = parsed(svg).get("aria-label") or ""
    assert "100.0% of defects are found and 50.0% of good images are rejected" in told
    assert having(roc_chart([0, 1], [0, 1], None), "operating") == []


def test_the_pr_line_is_made_of_steps() -> None:
    points = line(pr_chart([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9], None))
    middle_x = (LEFT + WIDTH - RIGHT) / 2
    third = TOP + (GROUND - TOP) / 3
    assert points[0] == (LEFT, TOP)
    assert points[1] == (middle_x, TOP)
    assert points[-1] == (WIDTH - RIGHT, pytest.approx(third, abs=0.1))
    for (x0, y0), (x1, y1) in pairwise(points):
        assert x0 == x1 or y0 == y1


def test_a_curve_of_many_points_stays_small() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 10_000)
    scores = rng.normal(labels, 1.0)
    for chart in (roc_chart, pr_chart):
        assert len(chart(labels.tolist(), scores.tolist(), None)) < 60_000


def test_bars_stand_for_counts_and_the_wrong_side_is_hatched() -> None:
    labels, scores = [0, 0, 0, 1, 1], [1.0, 1.0, 3.0, 1.5, 4.0]
    svg = histogram_chart(histogram(labels, scores, 2.0), 2.0)
    heights = sorted(float(e.get("height", "")) for e in having(svg, "good"))
    assert len(heights) == 2
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.2)
    (dashed,) = having(svg, "threshold")
    at = float(re.findall(r"[\d.]+", dashed.get("d") or "")[0])
    bars = [*having(svg, "good"), *having(svg, "defect")]
    right = {float(e.get("x", "")) for e in bars if float(e.get("x", "")) > at}
    wrong = {float(e.get("x", "")) for e in having(svg, "wrong")}
    good_right = {float(e.get("x", "")) for e in having(svg, "good")} & right
    defect_left = {float(e.get("x", "")) for e in having(svg, "defect")} - right
    assert wrong == good_right | defect_left
    assert len(wrong) == 2
    assert {"good, 3", "defect, 2", "threshold 2", "image score"} <= set(texts(svg))


def test_without_a_threshold_no_line_and_no_bar_is_wrong() -> None:
    svg = histogram_chart(histogram([0, 1], [1.0, 2.0]), None)
    assert having(svg, "threshold") == having(svg, "wrong") == []
    assert parsed(svg).get("aria-label") == (
        "Histogram of the scores of 1 good images and 1 defects."
    )


def test_everything_stays_inside_the_picture() -> None:
    svgs = [
        histogram_chart(histogram([0, 1], [5.0, 5.0], 5.0), 5.0),
        histogram_chart(histogram([1, 1], [-1e6, 1e6], 1e6), 1e6),
        loss_chart([1, 2, 3], [5.0, 0.1, 0.001]),
        loss_chart([10], [0.3]),
        loss_chart([1, 2], [0.0, 0.0]),
    ]
    for svg in svgs:
        for element in parsed(svg).iter("rect"):
            left, width = float(element.get("x", "")), float(element.get("width", ""))
            assert left >= LEFT - 1
            assert left + width <= WIDTH - RIGHT + 1
        for x, y in line(svg) if having(svg, "curve") else []:
            assert LEFT <= x <= WIDTH - RIGHT
            assert TOP <= y <= GROUND
        assert "nan" not in svg
        assert "inf" not in svg


def test_a_loss_over_many_powers_of_ten_is_drawn_by_its_logarithm() -> None:
    svg = loss_chart([0, 1, 2], [1.0, 0.1, 0.01])
    assert "loss (logarithmic)" in texts(svg)
    (_, top), (_, middle), (_, bottom) = line(svg)
    assert middle == pytest.approx((top + bottom) / 2)
    assert "loss" in texts(loss_chart([0, 1], [1.0, 0.5]))

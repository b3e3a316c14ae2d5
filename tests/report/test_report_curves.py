"""What the charts draw, against the exact metrics and independent references."""

import numpy as np
import pytest
from sklearn.metrics import auc, precision_recall_curve, roc_curve

from flawmap.metrics import auroc, average_precision
from flawmap.report.curves import histogram, pr_points, rate_limit, roc_points, thin, ticks


def ranked(n: int, seed: int, *, decimals: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.append(rng.integers(0, 2, n - 2), [0, 1])
    return labels, np.round(rng.normal(labels * 0.8, 1.0), decimals)


@pytest.mark.parametrize("decimals", [6, 1, 0])
def test_the_area_under_the_roc_points_is_the_auroc_with_ties(decimals: int) -> None:
    labels, scores = ranked(300, 1, decimals=decimals)
    x, y = roc_points(labels, scores)
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert auc(x, y) == pytest.approx(auroc(labels, scores), abs=1e-12)
    reference = roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(x, reference[0])
    np.testing.assert_allclose(y, reference[1])


@pytest.mark.parametrize("decimals", [6, 1, 0])
def test_the_area_under_the_pr_steps_is_the_average_precision(decimals: int) -> None:
    labels, scores = ranked(300, 2, decimals=decimals)
    recall, precision = pr_points(labels, scores)
    area = float((np.diff(recall, prepend=0) * precision).sum())
    assert area == pytest.approx(average_precision(labels, scores), abs=1e-12)
    full_precision, full_recall, _ = precision_recall_curve(labels, scores)
    known = set(zip(full_recall.round(9), full_precision.round(9), strict=True))
    assert set(zip(recall.round(9), precision.round(9), strict=True)) <= known


def test_no_bin_straddles_the_threshold_and_a_score_on_it_counts_as_good() -> None:
    scores = [0.1, 0.5, 0.5, np.nextafter(0.5, 1), 0.9]
    bars = histogram([0, 0, 1, 1, 1], scores, threshold=0.5)
    at = int(np.argmin(abs(bars.edges - 0.5)))
    assert bars.edges[at] == 0.5
    assert bars.good[:at].sum() == 2
    assert bars.good[at:].sum() == 0
    assert bars.defect[:at].sum() == 1
    assert bars.defect[at:].sum() == 2


@pytest.mark.parametrize("scores", [[3.0], [0.0, 0.0], [1e9, 1e9 + 1e-6], [-5.0, 1e6]])
@pytest.mark.parametrize("threshold", [None, 2.0])
def test_every_score_is_in_exactly_one_bin(scores: list[float], threshold: float | None) -> None:
    bars = histogram([1] * len(scores), scores, threshold)
    assert bars.defect.sum() == len(scores)
    assert bars.good.sum() == 0
    assert np.all(np.diff(bars.edges) > 0)
    assert len(bars.edges) < 40


def test_thinning_keeps_the_ends_and_stays_within_half_a_px() -> None:
    x = np.linspace(50, 366, 20_000)
    y = 200 - 100 * np.sin(x / 30)
    few_x, few_y = thin(x, y)
    assert len(few_x) < 1500
    assert (few_x[0], few_y[0], few_x[-1], few_y[-1]) == (x[0], y[0], x[-1], y[-1])
    assert abs(np.interp(x, few_x, few_y) - y).max() < 0.5


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 7, [0, 1, 2, 3, 4, 5, 6, 7]),
        (-3, 12, [-2, 0, 2, 4, 6, 8, 10, 12]),
        (0.00012, 0.00031, [0.00015, 0.0002, 0.00025, 0.0003]),
        (5, 5, [5]),
    ],
)
def test_ticks_are_round_numbers_inside_the_range(
    low: float, high: float, expected: list[float]
) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(("events", "n"), [(0, 10), (3, 40), (9, 10)])
def test_the_rate_limit_leaves_five_percent_to_chance(events: int, n: int) -> None:
    from scipy.stats import binom

    assert binom.cdf(events, n, rate_limit(events, n)) == pytest.approx(0.05)


def test_nothing_limits_a_rate_when_every_trial_was_an_event() -> None:
    assert rate_limit(4, 4) == 1.0

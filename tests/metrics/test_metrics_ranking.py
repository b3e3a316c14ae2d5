"""Image metrics against scikit-learn and against counting by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from flawmap.metrics import Confusion, auroc, average_precision, confusion, f1_max


def reference_f1_max(labels, scores):
    """Best F1 by trying every score as threshold, the highest of equal ones."""
    best = (-1.0, math.nan)
    for threshold in sorted(set(scores.tolist())):
        found = scores >= threshold
        tp = int((found & labels).sum())
        f1 = 2 * tp / (int(found.sum()) + int(labels.sum()))
        if f1 >= best[0]:
            best = (f1, threshold)
    return best


def draw(seed, kind, n=300):
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < rng.choice([0.05, 0.5, 0.9])
    labels[:2] = [True, False]
    scores = rng.standard_normal(n) + 0.8 * labels
    if kind == "ties":
        scores = np.round(scores)
    elif kind == "constant":
        scores = np.full(n, -3.25)
    elif kind == "negative":
        scores = -np.exp(10 * scores)
    elif kind == "huge":
        scores = scores * 1e306
    elif kind == "float32":
        scores = scores.astype(np.float32)
    elif kind == "integers":
        scores = np.round(scores * 2).astype(np.int64)
    return labels, scores


KINDS = ["random", "ties", "constant", "negative", "huge", "float32", "integers"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_equals_scikit_learn(kind, seed):
    labels, scores = draw(seed, kind)
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    expected = average_precision_score(labels, scores)
    assert average_precision(labels, scores) == pytest.approx(expected, abs=1e-12)
    precision, recall, _ = precision_recall_curve(labels, scores)
    positive = precision + recall > 0
    curve = 2 * precision[positive] * recall[positive] / (precision + recall)[positive]
    f1, threshold = f1_max(labels, scores)
    assert f1 == pytest.approx(curve.max(), abs=1e-12)
    assert (f1, threshold) == reference_f1_max(labels, scores)
    assert confusion(labels, scores, threshold).f1 == f1


def test_hand_counted_values():
    labels = [0, 0, 1, 1]
    assert auroc(labels, [1, 2, 3, 4]) == 1.0
    assert auroc(labels, [4, 3, 2, 1]) == 0.0
    assert auroc(labels, [5, 5, 5, 5]) == 0.5
    assert average_precision(labels, [5, 5, 5, 5]) == 0.5
    assert f1_max(labels, [5, 5, 5, 5]) == (2 / 3, 5.0)
    # Pairs (defect, good): 2-1 won, 2-2 tied, 3-1 and 3-2 won.
    assert auroc(labels, [1, 2, 2, 3]) == 3.5 / 4


def test_average_precision_is_stepwise_not_interpolated():
    # Recall 1/2 at precision 1, then recall 1 at precision 2/4.
    assert average_precision([1, 0, 0, 1], [4, 3, 2, 1]) == 0.5 * 1 + 0.5 * 0.5


def test_f1_max_takes_the_highest_of_equal_thresholds():
    # At 4: tp 1 of 2, no false alarm, 2/3. At 1: tp 2, two false alarms, 4/6.
    assert f1_max([1, 0, 0, 1], [4, 3, 2, 1]) == (2 / 3, 4.0)


def test_negative_zero_equals_zero():
    assert auroc([0, 1], [0.0, -0.0]) == 0.5
    assert average_precision([0, 1], [-0.0, 0.0]) == 0.5
    f1, threshold = f1_max([0, 1], [0.0, -0.0])
    assert (f1, threshold, math.copysign(1, threshold)) == (2 / 3, 0.0, 1.0)


@pytest.mark.parametrize(("labels", "scores"), [([], []), ([0, 0], [1, 2]), ([1, 1], [1, 2])])
def test_one_class_or_none_is_nan(labels, scores):
    assert math.isnan(auroc(labels, scores))
    assert math.isnan(average_precision(labels, scores))
    assert all(math.isnan(value) for value in f1_max(labels, scores))


def test_confusion_counts_and_rates():
    result = confusion([0, 0, 0, 0, 1, 1, 1], [1, 2, 3, 4, 2, 3, 9], threshold=3)
    assert result == Confusion(tp=2, fp=2, tn=2, fn=1)
    assert result.false_reject_rate == 0.5
    assert result.escape_rate == 1 / 3
    assert result.precision == 0.5
    assert result.recall == 2 / 3
    assert result.f1 == 4 / 7


def test_confusion_undefined_rates_are_nan():
    empty = confusion([], [], threshold=0.5)
    assert empty == Confusion(tp=0, fp=0, tn=0, fn=0)
    for name in ["false_reject_rate", "escape_rate", "precision", "recall", "f1"]:
        assert math.isnan(getattr(empty, name))
    passed = confusion([0, 1], [1, 2], threshold=math.inf)
    assert math.isnan(passed.precision)
    assert (passed.recall, passed.escape_rate, passed.false_reject_rate) == (0.0, 1.0, 0.0)
    assert confusion([0, 1], [1, 2], threshold=-math.inf) == Confusion(tp=1, fp=1, tn=0, fn=0)


def test_confusion_does_not_round_the_threshold_to_the_scores_dtype():
    scores = np.array([0.1], dtype=np.float32)
    assert float(scores[0]) > 0.1
    assert confusion([1], scores, threshold=0.1).tp == 1
    assert confusion([1], scores, threshold=float(scores[0]) + 1e-12).tp == 0


@pytest.mark.parametrize("metric", [auroc, average_precision, f1_max])
@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1], [0.0, math.nan], r"scores: got nan at index 1, expected finite"),
        ([0, 1], [-math.inf, 0.0], r"scores: got -inf at index 0, expected finite"),
        ([0, 1, 1], [0.0, 1.0], r"labels: got shape \(3,\), expected \(2,\)"),
        ([[0, 1]], [[0.0, 1.0]], r"scores: got shape \(1, 2\), expected one dimension"),
        ([0, 2], [0.0, 1.0], r"labels: got the value 2, expected only 0"),
        ([0, math.nan], [0.0, 1.0], r"labels: got the value nan, expected only 0"),
        (["a", "b"], [0.0, 1.0], r"labels: got dtype <U1, expected bool"),
        ([0, 1], [0j, 1j], r"scores: got dtype complex128, expected real"),
    ],
)
def test_bad_input_is_named(metric, labels, scores, message):
    with pytest.raises(ValueError, match=message):
        metric(labels, scores)
    with pytest.raises(ValueError, match=message):
        confusion(labels, scores, 0.5)


def test_nan_threshold_is_refused():
    with pytest.raises(ValueError, match="threshold: got nan"):
        confusion([0, 1], [0.0, 1.0], math.nan)


@given(
    ranks=st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=40),
    table=st.lists(st.floats(-1e300, 1e300), min_size=7, max_size=7, unique=True),
    order=st.randoms(use_true_random=False),
)
def test_only_the_order_of_the_scores_counts(ranks, table, order):
    labels = [label for label, _ in ranks]
    plain = [float(rank) for _, rank in ranks]
    shuffled = list(ranks)
    order.shuffle(shuffled)
    table.sort()
    moved_labels = [label for label, _ in shuffled]
    moved = [table[rank] for _, rank in shuffled]
    for metric in [auroc, average_precision]:
        assert metric(moved_labels, moved) == pytest.approx(
            metric(labels, plain), abs=1e-12, nan_ok=True
        )
    f1, threshold = f1_max(labels, plain)
    expected = threshold if math.isnan(threshold) else table[int(threshold)]
    assert f1_max(moved_labels, moved) == pytest.approx((f1, expected), abs=0, nan_ok=True)


@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=1, max_size=40))
def test_reversing_the_scores_mirrors_auroc(pairs):
    labels = [label for label, _ in pairs]
    scores = np.array([score for _, score in pairs])
    assert auroc(labels, scores) + auroc(labels, -scores) == pytest.approx(1.0, nan_ok=True) or (
        math.isnan(auroc(labels, scores)) and len(set(labels)) < 2
    )

from __future__ import annotations

import itertools

import numpy as np
import pytest

from flawmap.bench.significance import compare_with_best


def direct(gains: list[float]) -> float:
    """The exact two-sided signed-rank test, by all assignments of signs."""
    magnitudes = [abs(g) for g in gains]
    ranks = [sorted(magnitudes).index(m) + 1 for m in magnitudes]
    total = sum(ranks)
    observed = sum(r for r, g in zip(ranks, gains, strict=True) if g > 0)
    extreme = max(observed, total - observed)
    sums = [
        sum(r for r, up in zip(ranks, signs, strict=True) if up)
        for signs in itertools.product((False, True), repeat=len(ranks))
    ]
    return min(1.0, 2 * sum(s >= extreme for s in sums) / len(sums))


def test_p_is_that_of_the_exact_test() -> None:
    rng = np.random.default_rng(3)
    a = dict(zip("abcdefgh", rng.uniform(0.8, 1.0, 8), strict=True))
    b = {k: v - d for (k, v), d in zip(a.items(), rng.normal(0.02, 0.03, 8), strict=True)}
    (found,) = compare_with_best({"m": {"a": a, "b": b}})
    best, other = (a, b) if found.better == "a" else (b, a)
    gains = [best[k] - other[k] for k in best]
    assert found.p == pytest.approx(direct(gains))
    assert found.wins == sum(g > 0 for g in gains)


def test_holm_corrects_for_all_pairs_of_lines() -> None:
    """The best line is chosen by the same figures: it might have been any other."""
    best = {str(i): 0.9 for i in range(8)}
    clear = {k: v - 0.1 - int(k) / 100 for k, v in best.items()}
    mixed = {k: v + (0.01 if int(k) % 2 else -0.02) * (1 + int(k)) for k, v in best.items()}
    (alone,) = compare_with_best({"m": {"best": best, "clear": clear}})
    assert alone.tests == 1
    lines = {"best": best, "clear": clear, "mixed": mixed}
    both = {c.other: c for c in compare_with_best({"m": lines})}
    assert set(both) == {"clear", "mixed"}
    assert both["clear"].p == pytest.approx(3 * alone.p)
    assert both["mixed"].p >= both["clear"].p
    # A second metric counts as well.
    four = compare_with_best({"m": lines, "n": lines})
    assert [c.metric for c in four] == ["m", "m", "n", "n"]
    assert {(c.better, c.tests) for c in four} == {("best", 6)}
    assert min(c.p for c in four) == pytest.approx(6 * alone.p)


def test_only_categories_that_all_lines_share_are_compared() -> None:
    """On its own mean the first line would be the better one."""
    easy = {f"easy{i}": 0.90 + i / 1000 for i in range(6)}
    better = {k: v + 0.01 for k, v in easy.items()}
    hard = {f"hard{i}": 0.5 for i in range(9)}
    (found,) = compare_with_best({"m": {"few": easy, "all": {**better, **hard}}})
    assert (found.better, found.wins, found.pairs) == ("all", 6, 6)


def test_equal_lines_and_few_categories() -> None:
    same = {str(i): 0.5 for i in range(9)}
    assert compare_with_best({"m": {"a": same, "b": dict(same)}})[0].p == 1.0
    few = {str(i): 0.5 for i in range(5)}
    assert compare_with_best({"m": {"a": few, "b": few}}) == []
    assert compare_with_best({"m": {"a": same}}) == []


def test_the_sentence_says_who_and_how_often() -> None:
    a = {str(i): 0.9 + i / 100 for i in range(8)}
    b = {k: v - 0.05 for k, v in a.items()}
    (found,) = compare_with_best({"AUPRO": {"a": a, "b": b}})
    assert str(found) == "AUPRO: a is ahead of b in 8 of 8 categories, p = 0.0078"

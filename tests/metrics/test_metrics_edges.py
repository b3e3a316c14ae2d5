"""Pixel AP at borders and away from them, against sums over explicit distances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from flawmap.metrics import EdgeScores, edge_pixels


def by_distance(mask: np.ndarray, reach: int) -> np.ndarray:
    """Pixels with one of the other class within reach, counted as a king moves."""
    found = np.zeros(mask.shape, dtype=bool)
    height, width = mask.shape
    for y in range(height):
        for x in range(width):
            near = mask[
                max(0, y - reach) : min(height, y + reach + 1),
                max(0, x - reach) : min(width, x + reach + 1),
            ]
            found[y, x] = bool((near != mask[y, x]).any())
    return found


@pytest.mark.parametrize("reach", [1, 3])
def test_edges_by_the_distance_to_the_other_class(reach: int) -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((30, 24)) > 0.97
    mask[10:22, 0:13] = True
    np.testing.assert_array_equal(edge_pixels(mask, reach), by_distance(mask, reach))


def test_nothing_but_defect_or_nothing_but_good_has_no_edge() -> None:
    assert not edge_pixels(np.ones((5, 5), dtype=bool)).any()
    assert not edge_pixels(np.zeros((5, 5), dtype=bool)).any()


def test_both_figures_by_their_definition() -> None:
    rng = np.random.default_rng(1)
    maps = [rng.random((40, 40)).astype(np.float32).round(2) for _ in range(3)]
    mask = np.zeros((40, 40), dtype=bool)
    mask[8:30, 12:28] = True
    masks = [mask, mask.T, None]
    with EdgeScores() as scores:
        for anomaly_map, truth in zip(maps, masks, strict=True):
            scores.add(anomaly_map, truth)
        edge, centre = scores.compute()
    labels = np.stack([np.zeros((40, 40), bool) if m is None else m for m in masks])
    near = np.stack([by_distance(m, 3) for m in labels])
    values = np.stack(maps)
    assert edge == pytest.approx(average_precision_score(labels[near], values[near]), abs=1e-12)
    assert centre == pytest.approx(average_precision_score(labels[~near], values[~near]), abs=1e-12)


def test_a_map_that_is_right_in_the_middle_alone() -> None:
    mask = np.zeros((40, 40), dtype=bool)
    mask[10:30, 10:30] = True
    blurred = np.zeros((40, 40), dtype=np.float32)
    blurred[13:27, 13:27] = 1.0
    with EdgeScores() as scores:
        scores.add(blurred, mask)
        edge, centre = scores.compute()
    assert centre == 1.0
    # At the border the map says nothing: its AP is the share of defect px there.
    assert edge == pytest.approx(mask[edge_pixels(mask)].mean())


def test_without_a_defect_both_are_undefined() -> None:
    with EdgeScores() as scores:
        scores.add(np.zeros((8, 8), dtype=np.float32), None)
        assert all(math.isnan(value) for value in scores.compute())


def test_a_thin_defect_is_all_edge() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[10] = True
    with EdgeScores() as scores:
        scores.add(mask.astype(np.float32), mask)
        edge, centre = scores.compute()
    assert edge == 1.0
    assert math.isnan(centre)

"""Connected flaws."""

from __future__ import annotations

import numpy as np

from flawmap.scoring import find_regions


def test_boxes_areas_and_peaks() -> None:
    values = np.zeros((10, 12), np.float32)
    values[1:3, 2:5] = 2.0
    values[2, 4] = 3.0
    values[7, 8] = values[8, 9] = 5.0  # touch at a corner: one region
    found = find_regions(values, 1.0)
    assert [r.box for r in found] == [(8, 7, 2, 2), (2, 1, 3, 2)]
    assert [r.area for r in found] == [2, 6]
    assert [r.peak for r in found] == [5.0, 3.0]
    assert found[0].peak_at in {(8, 7), (9, 8)}
    assert found[1].peak_at == (4, 2)


def test_the_threshold_itself_is_not_above() -> None:
    assert find_regions(np.full((3, 3), 2.0, np.float32), 2.0) == ()


def test_small_regions_are_left_out() -> None:
    values = np.zeros((5, 5), np.float32)
    values[0, 0] = 1
    values[3:5, 3:5] = 1
    assert [r.area for r in find_regions(values, 0.5, min_area=2)] == [4]

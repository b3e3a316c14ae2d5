"""Pixel metrics against scikit-learn and AUPRO against a direct walk over every threshold."""

import errno
import io
import math
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from flawmap.errors import FlawmapError
from flawmap.metrics import (
    MemoryBudget,
    PixelScores,
    aupro,
    average_precision,
    f1_max,
    pixel_ap,
    pixel_auroc,
    pixel_f1max,
)


def find_regions(mask):
    """The 8-connected regions as lists of pixels, by walking from pixel to pixel."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    regions = []
    while left:
        todo = [left.pop()]
        region = []
        while todo:
            y, x = todo.pop()
            region.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            todo.extend(near)
        regions.append(region)
    return regions


def reference_aupro(maps, masks, limit):
    """AUPRO as it is defined: one point of the PRO curve for every distinct score."""
    masks = [np.zeros(m.shape, bool) if k is None else k for m, k in zip(maps, masks, strict=True)]
    regions = [
        np.array([m[pixel] for pixel in region])
        for m, k in zip(maps, masks, strict=True)
        for region in find_regions(k)
    ]
    normals = np.concatenate([m[~k] for m, k in zip(maps, masks, strict=True)])
    fprs, pros = [0.0], [0.0]
    for threshold in sorted({v for m in maps for v in m.ravel().tolist()}, reverse=True):
        fprs.append(float((normals >= threshold).mean()))
        pros.append(float(np.mean([(region >= threshold).mean() for region in regions])))
    area = 0.0
    for i in range(1, len(fprs)):
        left, right, low, high = fprs[i - 1], fprs[i], pros[i - 1], pros[i]
        if right > limit:
            if left < limit:
                at_limit = low + (high - low) * (limit - left) / (right - left)
                area += (limit - left) * (low + at_limit) / 2
            break
        area += (right - left) * (low + high) / 2
    return area / limit


def draw(seed, kind):
    """A category of small images of different sizes, some good, some full of defects."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for i in range(6):
        height, width = (int(n) for n in rng.integers(5, 18, size=2))
        mask = rng.random((height, width)) < rng.choice([0.02, 0.1, 0.4])
        if i == 0:
            mask[:] = False
            mask[2, 3] = True
        elif i == 1:
            mask[:] = True
        elif i == 2:
            mask[:] = False
        values = rng.standard_normal((height, width)) + mask
        if kind == "ties":
            values = np.round(2 * values) / 2
        elif kind == "constant":
            values = np.full((height, width), -7.5)
        elif kind == "negative":
            values = -np.exp(3 * values)
        elif kind == "huge":
            values = np.clip(values, -3, 3) * 1e38
        elif kind == "perfect":
            values = mask + 0.1 * rng.random((height, width))
        elif kind == "inverted":
            values = 0.1 * rng.random((height, width)) - mask
        dtype = {"float64": np.float64, "float16": np.float16}.get(kind, np.float32)
        maps.append(values.astype(dtype))
        masks.append(None if i == 3 else mask)
    return maps, masks


def flatten(maps, masks):
    masks = [np.zeros(m.shape, bool) if k is None else k for m, k in zip(maps, masks, strict=True)]
    labels = np.concatenate([k.ravel() for k in masks])
    return labels, np.concatenate([m.ravel() for m in maps]).astype(np.float64)


def compute(maps, masks, limit=0.3, **options):
    with PixelScores(**options) as scores:
        for anomaly_map, mask in zip(maps, masks, strict=True):
            scores.add(anomaly_map, mask)
        return scores.compute(limit)


def assert_same(result, expected):
    for name in ["pixel_auroc", "pixel_ap", "pixel_f1max", "pixel_f1max_threshold", "aupro"]:
        value = getattr(expected, name)
        assert getattr(result, name) == pytest.approx(value, rel=1e-12, abs=1e-12, nan_ok=True)
    for name in ["n_images", "n_regions", "n_defect_pixels", "n_normal_pixels"]:
        assert getattr(result, name) == getattr(expected, name)


KINDS = [
    "random",
    "float16",
    "float64",
    "ties",
    "constant",
    "negative",
    "huge",
    "perfect",
    "inverted",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_references(kind, seed):
    maps, masks = draw(seed, kind)
    labels, scores = flatten(maps, masks)
    result = compute(maps, masks)
    assert result.pixel_auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert result.pixel_ap == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert (result.pixel_f1max, result.pixel_f1max_threshold) == f1_max(labels, scores)
    assert result.n_images == len(maps)
    assert result.n_defect_pixels == labels.sum()
    assert result.n_normal_pixels == (~labels).sum()
    assert result.n_regions == sum(len(find_regions(k)) for k in masks if k is not None)
    for limit in [0.001, 0.05, 0.3, 1.0]:
        expected = reference_aupro(maps, masks, limit)
        assert compute(maps, masks, limit).aupro == pytest.approx(expected, abs=1e-12)


def test_thin_functions_give_the_same_numbers():
    maps, masks = draw(0, "random")
    result = compute(maps, masks)
    assert pixel_auroc(maps, masks) == result.pixel_auroc
    assert pixel_ap(maps, masks) == result.pixel_ap
    assert pixel_f1max(maps, masks) == (result.pixel_f1max, result.pixel_f1max_threshold)
    assert aupro(maps, masks) == result.aupro
    assert aupro(maps, masks, fpr_limit=0.05) == compute(maps, masks, 0.05).aupro
    assert aupro(maps, masks, fpr_limit=0.05) != result.aupro


def test_aupro_by_hand():
    # Regions of 1 and 2 pixels, 4 normals. Scores from the top: 9 (region of 1), 8 (normal),
    # 7 (half of the region of 2), 6 (normal), 5 (other half), 4 and 3 (normals).
    anomaly_map = np.array([[9.0, 8, 7], [6, 4, 5], [0, 0, 0]])[:2]
    mask = np.array([[True, False, True], [False, False, True]])
    good = np.array([[3.0]])
    # PRO is 0.5 from FPR 0 to 0.25, 0.75 to 0.5, then 1.
    assert aupro([anomaly_map, good], [mask, None], 0.25) == 0.5
    assert aupro([anomaly_map, good], [mask, None], 0.5) == 0.625
    assert aupro([anomaly_map, good], [mask, None], 1.0) == 0.8125
    # At FPR 0.3 the limit lies between two points.
    assert aupro([anomaly_map, good], [mask, None], 0.3) == pytest.approx(
        (0.25 * 0.5 + 0.05 * 0.75) / 0.3
    )


def test_ties_between_defects_and_normals_are_interpolated():
    # All equal: the curve is the diagonal, whose area up to L over L is L / 2.
    flat = np.zeros((4, 4), dtype=np.float32)
    mask = np.eye(4, dtype=bool)
    assert aupro([flat], [mask], 0.3) == pytest.approx(0.15)
    assert aupro([flat], [mask], 1.0) == 0.5
    assert pixel_auroc([flat], [mask]) == 0.5
    assert pixel_ap([flat], [mask]) == 0.25


def test_each_region_counts_alike_whatever_its_size():
    anomaly_map = np.zeros((10, 10))
    mask = np.zeros((10, 10), dtype=bool)
    mask[:5, :5] = True
    mask[9, 9] = True
    anomaly_map[9, 9] = 1.0
    anomaly_map[:5, :5] = -1.0
    assert aupro([anomaly_map], [mask], 0.3) == 0.5


def test_regions_touching_at_a_corner_are_one():
    mask = np.array([[True, False, False], [False, True, False], [False, False, False]])
    anomaly_map = np.where(mask, 2.0, 1.0)
    anomaly_map[1, 1] = 0.0
    result = compute([anomaly_map], [mask], 1.0)
    assert result.n_regions == 1
    # The pixel at 0 is covered only where everything is: half the region until FPR 1.
    assert result.aupro == 0.5
    split = compute([anomaly_map, anomaly_map], [mask & (anomaly_map > 1), mask], 1.0)
    assert split.n_regions == 2


def test_good_images_count_in_the_false_positive_rate():
    anomaly_map, mask = np.array([[3.0, 2.0, 0.0]]), np.array([[False, True, False]])
    assert aupro([anomaly_map], [mask], 0.5) == 0.0
    assert aupro([anomaly_map, np.zeros((1, 2))], [mask, None], 0.5) == 0.5
    good = np.array([[False, False]])
    assert aupro([anomaly_map, np.zeros((1, 2))], [mask, good], 0.5) == 0.5


def test_integer_masks_count_every_class_as_defect():
    anomaly_map = np.array([[1.0, 2.0, 3.0]], dtype=np.float32)
    result = compute([anomaly_map], [np.array([[0, 2, 255]], dtype=np.uint8)])
    assert (result.n_defect_pixels, result.n_regions, result.aupro) == (2, 1, 1.0)


@pytest.mark.parametrize(
    ("maps", "masks", "counts"),
    [
        ([], [], (0, 0, 0, 0)),
        ([np.ones((2, 3))], [None], (1, 0, 0, 6)),
        ([np.ones((2, 3))], [np.zeros((2, 3), dtype=bool)], (1, 0, 0, 6)),
        ([np.ones((2, 3))], [np.ones((2, 3), dtype=bool)], (1, 1, 6, 0)),
        ([np.ones((0, 3))], [np.ones((0, 3), dtype=bool)], (1, 0, 0, 0)),
    ],
)
def test_one_class_or_none_is_nan(maps, masks, counts):
    result = compute(maps, masks)
    for name in ["pixel_auroc", "pixel_ap", "pixel_f1max", "pixel_f1max_threshold", "aupro"]:
        assert math.isnan(getattr(result, name))
    found = (result.n_images, result.n_regions, result.n_defect_pixels, result.n_normal_pixels)
    assert found == counts


def test_negative_zero_equals_zero():
    mask = np.array([[True, False]])
    result = compute([np.array([[-0.0, 0.0]])], [mask], 1.0)
    assert (result.aupro, result.pixel_auroc, result.pixel_ap) == (0.5, 0.5, 0.5)
    assert math.copysign(1, result.pixel_f1max_threshold) == 1.0


@pytest.mark.parametrize("dtypes", [(np.float32, np.float64), (np.float64, np.float32)])
def test_float32_and_float64_maps_are_compared_exactly(dtypes):
    # 1 + 1e-12 would become 1 in float32.
    first = np.array([[1.0, 0.0]]).astype(dtypes[0])
    second = np.array([[1.0, 0.0]]).astype(dtypes[1])
    wide = first if dtypes[0] is np.float64 else second
    wide[0, 0] = 1.0 + 1e-12
    maps = [first, second]
    wide_is_defect = [np.array([[m is wide, False]]) for m in maps]
    narrow_is_defect = [np.array([[m is not wide, False]]) for m in maps]
    assert pixel_auroc(maps, wide_is_defect) == 1.0
    assert pixel_auroc(maps, narrow_is_defect) == 2 / 3
    assert pixel_f1max(maps, wide_is_defect) == (1.0, 1.0 + 1e-12)


@pytest.mark.parametrize("kind", ["random", "ties", "float64"])
def test_spilling_to_disk_changes_nothing(kind, tmp_path):
    maps = [m for seed in range(6) for m in draw(seed, kind)[0]]
    masks = [k for seed in range(6) for k in draw(seed, kind)[1]]
    expected = compute(maps, masks)
    assert expected.aupro == pytest.approx(reference_aupro(maps, masks, 0.3), abs=1e-12)
    for max_bytes in [1, 3000, 6000]:
        budget = MemoryBudget(max_bytes, tmp_path)
        with PixelScores(budget) as scores:
            for i in np.random.default_rng(max_bytes).permutation(len(maps)):
                scores.add(maps[i], masks[i])
            assert budget.spilled_bytes > 4000
            assert_same(scores.compute(), expected)
            assert_same(scores.compute(), expected)
        assert list(tmp_path.iterdir()) == []


def test_the_temporary_file_goes_with_the_object(tmp_path):
    budget = MemoryBudget(1, tmp_path)
    scores = PixelScores(budget)
    scores.add(np.zeros((64, 64)), None)
    assert budget.spilled_bytes == 64 * 64 * 8
    del scores, budget
    assert list(tmp_path.iterdir()) == []


def test_collectors_that_share_a_budget_are_bounded_together(tmp_path):
    rng = np.random.default_rng(0)
    maps = rng.random((10, 64, 64), dtype=np.float32)
    masks = rng.random(maps.shape) < 0.1
    expected = compute(maps, masks)
    budget = MemoryBudget(100_000, tmp_path)
    several = [PixelScores(budget) for _ in range(4)]
    for anomaly_map, mask in zip(maps, masks, strict=True):
        for scores in several:
            scores.add(anomaly_map, mask)
    buffers = 2 * len(several) * budget.chunk_bytes
    assert budget.spilled_bytes >= len(several) * maps.nbytes - budget.max_bytes - buffers
    for scores in several:
        assert_same(scores.compute(), expected)
    budget.close()
    assert list(tmp_path.iterdir()) == []


def test_buffers_are_smaller_the_more_share_a_budget():
    budget = MemoryBudget(2**23)
    scores = PixelScores(budget)
    assert budget.chunk_bytes == 2**20
    others = [PixelScores(budget) for _ in range(3)]
    # All buffers together are a quarter of the budget, however many there are.
    assert budget.chunk_bytes == 2**18
    assert len({id(s) for s in (scores, *others)}) * 2 * budget.chunk_bytes == budget.max_bytes // 4


@pytest.mark.parametrize("max_bytes", [2000, 10**6])
@pytest.mark.parametrize("kind", ["random", "ties", "constant", "float64"])
def test_counting_in_small_blocks_changes_nothing(kind, max_bytes, monkeypatch):
    maps, masks = draw(5, kind)
    expected = compute(maps, masks)
    monkeypatch.setattr("flawmap.metrics._chunks.BLOCK_ITEMS", 7)
    assert_same(compute(maps, masks, budget=MemoryBudget(max_bytes)), expected)


def test_images_may_be_added_after_computing():
    maps, masks = draw(2, "random")
    scores = PixelScores()
    for anomaly_map, mask in zip(maps, masks, strict=True):
        scores.add(anomaly_map, mask)
        result = scores.compute()
    assert_same(result, compute(maps, masks))


def test_the_callers_arrays_are_left_alone():
    maps, masks = draw(0, "random")
    before = [m.copy() for m in maps]
    compute(maps, masks)
    for anomaly_map, copy in zip(maps, before, strict=True):
        np.testing.assert_array_equal(anomaly_map, copy)


@pytest.mark.parametrize(
    ("anomaly_map", "mask", "message"),
    [
        (np.array([[0.0, np.nan]]), None, "anomaly_map: got nan at row 0, column 1, expected fin"),
        (np.array([[0.0], [-np.inf]]), None, "anomaly_map: got -inf at row 1, column 0, expected"),
        (np.zeros((1, 2, 2)), None, r"anomaly_map: got shape \(1, 2, 2\), expected \(H, W\)"),
        (np.zeros((2, 2), dtype=int), None, r"anomaly_map: got dtype int64, expected float16"),
        (np.zeros((2, 2)), np.zeros((2, 3), bool), r"mask: got shape \(2, 3\), expected \(2, 2\)"),
        (np.zeros((2, 2)), np.zeros((2, 2)), "mask: got dtype float64, expected bool or integers"),
    ],
)
def test_bad_input_is_named_and_nothing_is_added(anomaly_map, mask, message):
    scores = PixelScores()
    with pytest.raises(ValueError, match=message):
        scores.add(anomaly_map, mask)
    result = scores.compute()
    assert (result.n_images, result.n_normal_pixels) == (0, 0)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="max_bytes: got 0, expected at least 1"):
        MemoryBudget(0)
    with pytest.raises(ValueError, match="masks: got 0, expected 1 as maps"):
        aupro([np.zeros((2, 2))], [])
    for limit in [0.0, -0.1, 1.1, math.nan]:
        with pytest.raises(ValueError, match=f"fpr_limit: got {limit}, expected 0 < fpr_limit"):
            PixelScores().compute(limit)


@st.composite
def categories(draw_from):
    """Up to four images of up to 5 x 5 pixels with scores 0..6 and any masks."""
    images = []
    for _ in range(draw_from(st.integers(1, 4))):
        height, width = draw_from(st.integers(1, 5)), draw_from(st.integers(1, 5))
        n = height * width
        ranks = draw_from(st.lists(st.integers(0, 6), min_size=n, max_size=n))
        mask = draw_from(st.lists(st.booleans(), min_size=n, max_size=n))
        images.append((np.reshape(ranks, (height, width)), np.reshape(mask, (height, width))))
    return images


@settings(deadline=None)
@given(
    images=categories(),
    table=st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False),
        min_size=7,
        max_size=7,
        unique=True,
    ),
    limit=st.sampled_from([0.05, 0.3, 0.5, 1.0]),
    order=st.randoms(use_true_random=False),
)
def test_only_the_order_of_the_scores_counts(images, table, limit, order):
    maps = [ranks.astype(np.float32) for ranks, _ in images]
    masks = [mask for _, mask in images]
    expected = compute(maps, masks, limit)
    values = np.array(sorted(table), dtype=np.float32)
    order.shuffle(images)
    moved = compute([values[ranks] for ranks, _ in images], [k for _, k in images], limit)
    for name in ["pixel_auroc", "pixel_ap", "pixel_f1max", "aupro"]:
        value = getattr(expected, name)
        assert getattr(moved, name) == pytest.approx(value, abs=1e-12, nan_ok=True)
    if expected.n_regions and expected.n_normal_pixels:
        assert expected.aupro == pytest.approx(reference_aupro(maps, masks, limit), abs=1e-12)
        labels, scores = flatten(maps, masks)
        assert expected.pixel_ap == pytest.approx(average_precision(labels, scores), abs=1e-12)
        assert moved.pixel_f1max_threshold == values[int(expected.pixel_f1max_threshold)]
    else:
        assert math.isnan(expected.aupro)


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_full_temporary_disk_is_explained(size, tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "file").touch()
    monkeypatch.setattr(
        tempfile, "TemporaryFile", lambda **_: io.BufferedRandom(Full(tmp_path / "file", "r+"))
    )
    budget = MemoryBudget(1, tmp_path)
    with pytest.raises(FlawmapError, match="No space left on device") as caught:
        budget.keep(np.zeros(size))
    assert caught.value.where == str(tmp_path)
    assert "TMPDIR" in caught.value.hint

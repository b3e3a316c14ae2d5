"""The optional metrics, each against a slow walk over every threshold."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_auc_score

from flawmap.metrics import (
    DecidedPixels,
    MemoryBudget,
    PixelScores,
    ProVariant,
    SaturatedScores,
    aupro,
    sample_auroc,
    spro,
)


def area(fprs, heights, limit):
    """Trapezoids up to the limit, cut there, over the limit."""
    total = 0.0
    for left, right, low, high in zip(fprs, fprs[1:], heights, heights[1:], strict=False):
        if right > limit:
            if left < limit:
                at_limit = low + (high - low) * (limit - left) / (right - left)
                total += (limit - left) * (low + at_limit) / 2
            break
        total += (right - left) * (low + high) / 2
    return total / limit


def walk(maps, normals, height, limit):
    """The area of `height(threshold)` over the FPR, at every distinct score from the top."""
    normal = np.concatenate([m[k] for m, k in zip(maps, normals, strict=True)])
    thresholds = sorted({v for m in maps for v in m.ravel().tolist()}, reverse=True)
    fprs = [0.0] + [float((normal >= t).mean()) for t in thresholds]
    return area(fprs, [0.0] + [height(t) for t in thresholds], limit)


def components(mask):
    """8-connected regions as masks, grown one step at a time."""
    left = mask.copy()
    found = []
    while left.any():
        region = np.zeros_like(left)
        region[tuple(np.argwhere(left)[0])] = True
        while True:
            padded = np.pad(region, 1)
            h, w = region.shape
            grown = np.zeros_like(region)
            for dy in range(3):
                for dx in range(3):
                    grown |= padded[dy : dy + h, dx : dx + w]
            grown &= left
            if (grown == region).all():
                break
            region = grown
        found.append(region)
        left &= ~region
    return found


def reference_per_image(maps, masks, limit):
    masks = [np.zeros(m.shape, bool) if k is None else k for m, k in zip(maps, masks, strict=True)]
    regions = [components(k) for k in masks]

    def height(threshold):
        images = [
            np.mean([(m[region] >= threshold).mean() for region in found])
            for m, found in zip(maps, regions, strict=True)
            if found
        ]
        return float(np.mean(images))

    return walk(maps, [~k for k in masks], height, limit)


def reference_spro(maps, regions, limit):
    normals = []
    for m, found in zip(maps, regions, strict=True):
        normal = np.ones(m.shape, bool)
        for region, _ in found:
            normal &= ~region
        normals.append(normal)

    def height(threshold):
        shares = []
        for m, found in zip(maps, regions, strict=True):
            for region, needed in found:
                size = int(region.sum())
                if size:
                    n_found = int((m[region] >= threshold).sum())
                    shares.append(min(n_found / min(needed, size), 1.0))
        return float(np.mean(shares))

    return walk(maps, normals, height, limit)


def draw(seed, ties):
    """Six small images: the second is all defect, the third and fourth are good."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for i in range(6):
        shape = tuple(int(n) for n in rng.integers(4, 14, size=2))
        mask = rng.random(shape) < rng.choice([0.02, 0.1, 0.4])
        mask[:] = {1: True, 2: False}.get(i, mask)
        values = rng.standard_normal(shape) + mask
        maps.append((np.round(values) if ties else values).astype(np.float32))
        masks.append(None if i == 3 else mask)
    return maps, masks


def draw_regions(seed, maps):
    """Up to three regions an image that may overlap or be empty, with any saturation."""
    rng = np.random.default_rng(seed)
    regions = []
    for m in maps:
        found = []
        for _ in range(int(rng.integers(0, 4))):
            region = rng.random(m.shape) < rng.choice([0.0, 0.05, 0.3])
            needed = float(rng.choice([0.4, 1, 2.5, 4, 1000]))
            found.append((region, needed))
        regions.append(found)
    return regions


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_pro_variants_equal_their_definitions(seed, ties):
    maps, masks = draw(seed, ties)
    limits = [0.001, 0.05, 0.3, 1.0]
    asked = [ProVariant(limit, per_image=kind) for limit in limits for kind in (False, True)]
    with PixelScores() as scores:
        for m, k in zip(maps, masks, strict=True):
            scores.add(m, k)
        alone, found = scores.compute(), scores.compute(variants=asked)
    assert found.aupro == alone.aupro
    assert found.pixel_ap == alone.pixel_ap
    for limit, pooled, per_image in zip(
        limits, found.variants[::2], found.variants[1::2], strict=True
    ):
        assert pooled == aupro(maps, masks, limit)
        assert per_image == pytest.approx(reference_per_image(maps, masks, limit), abs=1e-12)


def test_per_image_counts_images_alike_and_regions_within_them():
    # One image with a found region and a missed one, one image with a missed one.
    first = np.array([[9.0, 1.0, 1.0, 0.0, 0.0]])
    second = np.array([[2.0, 2.0, 0.0]])
    masks = [np.array([[1, 0, 0, 0, 1]], bool), np.array([[0, 0, 1]], bool)]
    with PixelScores() as scores:
        scores.add(first, masks[0])
        scores.add(second, masks[1])
        scores.add(np.array([[1.5]]), None)
        found = scores.compute(0.5, variants=[ProVariant(0.5, per_image=True)])
    assert found.aupro == pytest.approx(1 / 3)
    assert found.variants == (pytest.approx((0.5 + 0) / 2),)


def test_pro_variants_are_undefined_with_one_class_alone():
    asked = [ProVariant(0.05), ProVariant(per_image=True)]
    for mask in (None, np.zeros((2, 2), bool), np.ones((2, 2), bool)):
        with PixelScores() as scores:
            scores.add(np.zeros((2, 2)), mask)
            assert all(map(math.isnan, scores.compute(variants=asked).variants))


def test_a_wrong_limit_of_a_variant_is_named():
    with pytest.raises(ValueError, match="fpr_limit: got 0, expected 0 < fpr_limit <= 1"):
        ProVariant(0)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_spro_equals_its_definition(seed, ties):
    maps, _ = draw(seed, ties)
    regions = draw_regions(seed, maps)
    for limit in [0.001, 0.05, 0.3, 1.0]:
        expected = reference_spro(maps, regions, limit)
        assert spro(maps, regions, limit) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_spro_of_unsaturated_components_is_aupro(seed):
    maps, masks = draw(seed, ties=True)
    regions = [[] if k is None else [(r, int(r.sum())) for r in components(k)] for k in masks]
    assert spro(maps, regions, 0.3) == pytest.approx(aupro(maps, masks, 0.3), abs=1e-12)


def test_spro_by_hand():
    # The region has three px, one is enough; then a pixel of it is worth nothing more.
    anomaly_map = np.array([[5.0, 4.0, 3.0, 2.0, 1.0, 0.0]])
    region = np.array([[0, 1, 0, 0, 1, 1]], bool)
    assert spro([anomaly_map], [[(region, 1)]], 1.0) == pytest.approx(2 / 3)
    assert spro([anomaly_map], [[(region, 2)]], 1.0) == pytest.approx((1 / 3 * 0.5) * 2)
    # More than the region has means all of it.
    whole = spro([anomaly_map], [[(region, 3)]], 1.0)
    assert spro([anomaly_map], [[(region, 99)]], 1.0) == whole
    # A file is one region however many pieces it has.
    assert spro([anomaly_map], [[(region, 1), (region, 3)]], 1.0) == pytest.approx(
        (2 / 3 + whole) / 2
    )


def test_a_pixel_of_two_regions_counts_for_both_and_is_never_normal():
    anomaly_map = np.array([[3.0, 2.0, 1.0, 0.0]])
    one, two = np.array([[1, 1, 0, 0]], bool), np.array([[0, 1, 1, 0]], bool)
    assert spro([anomaly_map], [[(one, 2), (two, 2)]]) == 1.0


def test_spro_without_regions_or_normals_is_undefined():
    flat = np.zeros((2, 2))
    everywhere = np.ones((2, 2), bool)
    assert math.isnan(spro([], []))
    assert math.isnan(spro([flat], [[]]))
    assert math.isnan(spro([flat], [[(~everywhere, 1.0)]]))
    assert math.isnan(spro([flat], [[(everywhere, 1.0)]]))


def test_spilling_saturated_scores_to_disk_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("flawmap.metrics._chunks.BLOCK_ITEMS", 7)
    maps, regions = [], []
    for seed in range(8):
        maps += draw(seed, ties=True)[0]
    regions = draw_regions(1, maps)
    budget = MemoryBudget(1, tmp_path)
    with SaturatedScores(budget) as scores:
        for m, found in zip(maps, regions, strict=True):
            scores.add(m, found)
        expected = reference_spro(maps, regions, 0.3)
        assert scores.compute(0.3) == pytest.approx(expected, abs=1e-12)
        assert budget.spilled_bytes > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("needed", [0.0, -1.0, math.nan, math.inf])
def test_a_wrong_saturation_is_named_and_nothing_is_added(needed):
    region = np.array([[True, False]])
    scores = SaturatedScores()
    with pytest.raises(ValueError, match="saturation: got"):
        scores.add(np.zeros((1, 2)), [(region, 1.0), (region, needed)])
    assert math.isnan(scores.compute())
    with pytest.raises(ValueError, match="regions: got 0, expected 1 as maps"):
        spro([np.zeros((1, 2))], [])
    with pytest.raises(ValueError, match="fpr_limit"):
        scores.compute(0.0)


@settings(deadline=None)
@given(
    values=st.lists(st.integers(0, 5), min_size=2, max_size=16),
    seed=st.integers(0, 1000),
    limit=st.sampled_from([0.05, 0.3, 1.0]),
)
def test_spro_on_any_small_image(values, seed, limit):
    anomaly_map = np.array([values], dtype=np.float64)
    regions = [draw_regions(seed, [anomaly_map])[0]]
    covered = np.zeros(anomaly_map.shape, bool)
    for region, _ in regions[0]:
        covered |= region
    found = spro([anomaly_map], regions, limit)
    if covered.any() and not covered.all():
        assert found == pytest.approx(reference_spro([anomaly_map], regions, limit), abs=1e-12)
    else:
        assert math.isnan(found)


def reference_sample_auroc(labels, scores, groups):
    parts = {}
    for i, (label, score, group) in enumerate(zip(labels, scores, groups, strict=True)):
        seen = parts.setdefault(group or ("alone", i), [0, -math.inf])
        seen[0], seen[1] = max(seen[0], label), max(seen[1], score)
    return roc_auc_score([p[0] for p in parts.values()], [p[1] for p in parts.values()])


@pytest.mark.parametrize("levels", [3, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_sample_auroc_equals_its_definition(seed, levels):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 60) * rng.integers(0, 2, 60)
    scores = rng.integers(0, levels, 60) + labels
    groups = [f"S{rng.integers(20)}" if rng.random() < 0.9 else "" for _ in range(60)]
    expected = reference_sample_auroc(labels, scores, groups)
    assert sample_auroc(labels, scores, groups) == pytest.approx(expected, abs=1e-12)


def test_sample_auroc_of_single_views_is_the_image_auroc():
    labels, scores = [0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8]
    assert sample_auroc(labels, scores, ["a", "b", "c", "d"]) == 0.875
    assert sample_auroc(labels, scores, ["a", "", "", "b"]) == 0.875


def test_sample_auroc_is_undefined_without_groups_or_with_one_class():
    assert math.isnan(sample_auroc([0, 1], [0.0, 1.0], ["", ""]))
    assert math.isnan(sample_auroc([0, 1], [0.0, 1.0], ["a", "a"]))
    assert math.isnan(sample_auroc([0, 0], [0.0, 1.0], ["a", "b"]))
    assert math.isnan(sample_auroc([], [], []))
    with pytest.raises(ValueError, match="groups: got 1, expected 2 as scores"):
        sample_auroc([0, 1], [0.0, 1.0], ["a"])


@pytest.mark.parametrize("threshold", [-9.0, 0.0, 1.0, 9.0])
@pytest.mark.parametrize("seed", range(3))
def test_segf1_equals_scikit_learn(seed, threshold):
    maps, masks = draw(seed, ties=True)
    pixels = DecidedPixels(threshold)
    for m, k in zip(maps, masks, strict=True):
        pixels.add(m, k)
    masks = [np.zeros(m.shape, bool) if k is None else k for m, k in zip(maps, masks, strict=True)]
    truth = np.concatenate([k.ravel() for k in masks])
    said = np.concatenate([m.ravel() for m in maps]) > threshold
    assert pixels.f1 == pytest.approx(f1_score(truth, said, zero_division=0.0), abs=1e-12)


def test_segf1_at_the_ends():
    pixels = DecidedPixels(0.5)
    assert math.isnan(pixels.f1)
    pixels.add(np.array([[0.1, 0.9]]), None)
    pixels.add(np.array([[0.1, 0.9]]), np.zeros((1, 2), bool))
    assert math.isnan(pixels.f1)
    full = DecidedPixels(0.5)
    full.add(np.array([[0.6, 0.7]]), np.ones((1, 2), np.uint8))
    assert full.f1 == 1.0
    with pytest.raises(ValueError, match="threshold: got nan"):
        DecidedPixels(math.nan)


def test_a_float32_pixel_is_not_rounded_against_the_threshold():
    pixels = DecidedPixels(np.nextafter(1.0, 2.0))
    pixels.add(np.ones((1, 1), np.float32), np.ones((1, 1), bool))
    assert pixels.f1 == 0.0
    below = DecidedPixels(np.nextafter(1.0, 0.0))
    below.add(np.ones((1, 1), np.float32), np.ones((1, 1), bool))
    assert below.f1 == 1.0

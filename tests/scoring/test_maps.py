"""Smoothing, resampling and pooling against scipy and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from flawmap.config import ScoringConfig
from flawmap.methods.dinomaly import Dinomaly
from flawmap.scoring import Scorer, Smoothing, maps, pool, resample, smooth
from flawmap.scoring.calibration import Calibration, CategoryCalibration
from flawmap.scoring.maps import disc, opened
from flawmap.types import Geometry, RawMap, Sample

DINOMALY_PAPER = {
    name.removeprefix("scoring."): value
    for name, value in ({**Dinomaly.defaults, **Dinomaly.presets["paper"]}).items()
    if name.startswith("scoring.")
}


def raw(h: int = 8, w: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((h, w)).astype(np.float32)


def plain(source: tuple[int, int], size: tuple[int, int]) -> Geometry:
    return Geometry(source=source, resized=size, offset=(0, 0), input=size)


def test_upsampling_is_bilinear_with_half_pixel_centers() -> None:
    wanted = F.interpolate(torch.from_numpy(raw())[None, None], (64, 48), mode="bilinear")
    found = smooth(raw(), plain((64, 48), (64, 48)), Smoothing(sigma=0))
    np.testing.assert_allclose(found, wanted[0, 0].numpy(), atol=1e-6)


def test_smoothing_is_a_gaussian() -> None:
    up = smooth(raw(), plain((64, 48), (64, 48)), Smoothing(sigma=0))
    wanted = ndimage.gaussian_filter(up.astype(np.float64), 3.0, mode="constant", truncate=4.0)
    weight = ndimage.gaussian_filter(np.ones_like(up, dtype=np.float64), 3.0, mode="constant")
    found = smooth(raw(), plain((64, 48), (64, 48)), Smoothing(sigma=3.0))
    np.testing.assert_allclose(found, wanted / weight, atol=1e-5)


def test_a_gaussian_with_a_reach_is_a_small_kernel() -> None:
    """As a published 5 x 5 kernel of sigma 4, inside of the image."""
    raw = np.random.default_rng(0).random((32, 40)).astype(np.float32)
    whole = Geometry(source=(32, 40), resized=(32, 40), offset=(0, 0), input=(32, 40))
    found = smooth(raw, whole, Smoothing(sigma=4.0, reach=2))
    line = np.exp(-0.5 * (np.arange(-2, 3) / 4.0) ** 2)
    kernel = np.outer(line, line) / line.sum() ** 2
    wanted = ndimage.correlate(raw.astype(np.float64), kernel, mode="constant")
    np.testing.assert_allclose(found[2:-2, 2:-2], wanted[2:-2, 2:-2], rtol=1e-5)
    np.testing.assert_allclose(
        resample(raw, whole, Smoothing(sigma=4.0, reach=2)), found, rtol=1e-5
    )
    scorer = Scorer(ScoringConfig(sigma=4.0, reach=2))
    assert scorer.score(RawMap(raw), whole)[0] == pytest.approx(float(found.max()))


@pytest.mark.parametrize("diameter", [3, 5, 9])
def test_opening_opens_every_thresholded_map(diameter: int) -> None:
    values = raw(40, 31)
    found = opened(values, diameter)
    radius = diameter // 2
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    structure = np.hypot(y, x) <= radius
    for threshold in np.quantile(values, [0.1, 0.5, 0.9]):
        # Beyond the border nothing is eroded and nothing grows.
        kept = ndimage.binary_erosion(values > threshold, structure, border_value=1)
        wanted = ndimage.binary_dilation(kept, structure)
        np.testing.assert_array_equal(found > threshold, wanted)
    assert (found <= values).all()


def test_the_smallest_opening_is_a_cross() -> None:
    cross = [[False, True, False], [True, True, True], [False, True, False]]
    np.testing.assert_array_equal(disc(3), cross)
    wanted = ndimage.grey_opening(raw(20, 20), footprint=cross)
    np.testing.assert_array_equal(opened(raw(20, 20), 3), wanted)


def test_an_image_is_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(maps, "opened", lambda v, diameter: calls.append(diameter) or v)
    geometry = Geometry((30, 30), (20, 20), (0, 0), (20, 20))
    Scorer(ScoringConfig(opening=5)).predict(
        RawMap(raw(20, 20)), geometry, Sample("a.png", "nut", "test", None)
    )
    assert calls == [5]


def test_opening_comes_after_smoothing_on_the_input_and_leaves_padding_out() -> None:
    geometry = Geometry(source=(40, 80), resized=(32, 64), offset=(-16, 0), input=(64, 64))
    grid = raw(64, 64)
    grid[:16] = 100.0
    found = smooth(grid, geometry, Smoothing(sigma=1.5, opening=3))
    wanted = opened(smooth(grid, geometry, Smoothing(sigma=1.5))[16:48], 3)
    np.testing.assert_array_equal(found[16:48], wanted)
    score, peak = Scorer(ScoringConfig(sigma=1.5, opening=3)).score(RawMap(grid), geometry)
    assert score == peak == wanted.max()
    # Each axis is enlarged by 40 / 32.
    on_source = resample(grid, geometry, Smoothing(sigma=1.5, opening=3))
    up = F.interpolate(torch.from_numpy(wanted)[None, None], (40, 80), mode="bilinear")
    np.testing.assert_allclose(on_source, up[0, 0].numpy(), atol=1e-5)


def test_a_constant_map_stays_constant_everywhere() -> None:
    geometry = Geometry(source=(300, 111), resized=(80, 30), offset=(0, -17), input=(80, 64))
    found = resample(np.full((5, 4), 2.5, np.float32), geometry, Smoothing(sigma=4))
    assert found.shape == (300, 111)
    np.testing.assert_allclose(found, 2.5, rtol=1e-5)


def test_the_peak_returns_to_its_source_pixel() -> None:
    """A bright grid px of a letterboxed input lies where the source shows it."""
    # Source 40 x 80, resized to 32 x 64, padded to 64 x 64: 16 rows of padding above and below.
    geometry = Geometry(source=(40, 80), resized=(32, 64), offset=(-16, 0), input=(64, 64))
    grid = np.zeros((8, 8), np.float32)
    grid[4, 6] = 1  # centre at input (36, 52) -> resized (20, 52) -> source (25, 65)
    found = resample(grid, geometry, Smoothing(sigma=0))
    y, x = np.unravel_index(found.argmax(), found.shape)
    assert (abs(y - 25) <= 1, abs(x - 65) <= 1) == (True, True)


def test_padding_has_no_part_in_the_score() -> None:
    geometry = Geometry(source=(40, 80), resized=(32, 64), offset=(-16, 0), input=(64, 64))
    grid = np.zeros((8, 8), np.float32)
    grid[0] = 9.0  # input rows 0..8, all padding
    grid[4, 4] = 1.0
    score, peak = Scorer(ScoringConfig(sigma=0)).score(RawMap(grid), geometry)
    # Interpolation between grid px leaves (15 / 16)^2 of a lone peak.
    assert score == peak == pytest.approx((15 / 16) ** 2)


def test_padding_does_not_leak_into_the_image() -> None:
    """A hot raw px of the padding leaves the smoothed image where it would be without it."""
    geometry = Geometry(source=(40, 80), resized=(32, 64), offset=(-16, 0), input=(64, 64))
    grid = np.ones((8, 8), np.float32)
    grid[0] = 1000.0  # input rows 0..8; interpolation carries it to row 11, smoothing further
    score, _ = Scorer(ScoringConfig(sigma=6)).score(RawMap(grid), geometry)
    assert score == pytest.approx(1.0, rel=1e-5)
    np.testing.assert_allclose(resample(grid, geometry, Smoothing(sigma=6)), 1.0, rtol=1e-5)


def test_a_crop_gives_the_edge_value_outside() -> None:
    geometry = Geometry(source=(100, 100), resized=(80, 80), offset=(16, 16), input=(48, 48))
    found = resample(raw(6, 6), geometry, Smoothing(sigma=0))
    inner = smooth(raw(6, 6), geometry, Smoothing(sigma=0))
    assert found[0, 0] == pytest.approx(inner[0, 0], abs=1e-6)
    assert found[99, 99] == pytest.approx(inner[-1, -1], abs=1e-6)


def test_published_scoring_against_torch() -> None:
    """Corners aligned, then 256 px, then 5 x 5 px of a Gaussian with zeros beyond the border."""
    grid = raw(28, 28)
    seen = Geometry(source=(700, 900), resized=(448, 448), offset=(28, 28), input=(392, 392))
    up = F.interpolate(
        torch.from_numpy(grid)[None, None], (392, 392), mode="bilinear", align_corners=True
    )
    at = F.interpolate(up, (256, 256), mode="bilinear", align_corners=False)
    line = torch.exp(-0.5 * (torch.arange(-2, 3) / 4.0) ** 2)
    kernel = torch.outer(line, line) / line.sum() ** 2
    wanted = F.conv2d(at, kernel[None, None], padding=2)[0, 0].numpy()
    scorer = Scorer(ScoringConfig(**DINOMALY_PAPER))
    found = scorer.map(RawMap(grid), seen.of_input(), (256, 256))
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    top = np.sort(wanted, axis=None)[-655:].mean()
    assert scorer.score(RawMap(grid), seen)[0] == pytest.approx(top, rel=1e-5)
    # On the source the crop stays where it was, and what it hides takes its edge's value.
    whole = scorer.map(RawMap(grid), seen)
    assert whole[0, 0] == pytest.approx(wanted[0, 0], abs=1e-6)
    assert whole[350, 450] == pytest.approx(wanted[127:129, 127:129].mean(), abs=2e-3)


def test_padding_has_no_part_in_a_map_of_its_own_size_either() -> None:
    geometry = Geometry(source=(40, 80), resized=(32, 64), offset=(-16, 0), input=(64, 64))
    grid = np.ones((8, 8), np.float32)
    grid[0] = 1000.0
    scorer = Scorer(ScoringConfig(sigma=3, map_size=(48, 48)))
    assert scorer.score(RawMap(grid), geometry)[0] == pytest.approx(1.0, rel=1e-5)
    np.testing.assert_allclose(scorer.map(RawMap(grid), geometry), 1.0, rtol=1e-5)


def test_any_output_size_can_be_asked_for() -> None:
    found = resample(raw(8, 8), plain((500, 300), (64, 64)), Smoothing(sigma=0), size=(256, 256))
    wanted = F.interpolate(
        F.interpolate(torch.from_numpy(raw(8, 8))[None, None], (64, 64), mode="bilinear"),
        (256, 256),
        mode="bilinear",
    )
    np.testing.assert_allclose(found, wanted[0, 0].numpy(), atol=1e-5)


def test_pooling() -> None:
    values = np.arange(1000, dtype=np.float32).reshape(20, 50)
    assert pool(values, top_fraction=0.01) == pytest.approx(994.5)
    assert pool(values, top_fraction=1e-9) == 999
    assert pool(values, top_fraction=1.0) == pytest.approx(499.5)


def test_the_score_may_be_the_method_s_own() -> None:
    geometry = plain((32, 64), (16, 16))
    grid = np.zeros((16, 16), np.float32)
    grid[4, 4] = 3.0
    own = RawMap(grid, image_score=0.25)
    for pooling, wanted in (("method", 0.25), ("max", 3.0), ("top", 1.5)):
        config = ScoringConfig(sigma=0, pooling=pooling, top_fraction=2 / 256)
        score, peak = Scorer(config).score(own, geometry)
        assert (score, peak) == (wanted, 3.0)
    good = CategoryCalibration(np.array([0.2, 0.1]), np.array([9.0, 9.0]), True)
    scorer = Scorer(ScoringConfig(sigma=0, pooling="method"), Calibration(0.5, {"nut": good}))
    prediction = scorer.predict(own, geometry, Sample("a.png", "nut", "test", None))
    assert (prediction.score, prediction.verdict) == (0.25, "defect")


def test_a_prediction_holds_what_was_decided() -> None:
    grid = np.zeros((16, 16), np.float32)
    grid[2:4, 8:10] = 5.0
    good = CategoryCalibration(np.linspace(0, 1, 200), np.linspace(0, 1, 200), True)
    scorer = Scorer(ScoringConfig(sigma=0), Calibration(0.01, {"nut": good}))
    geometry = plain((32, 64), (16, 16))
    prediction = scorer.predict(RawMap(grid), geometry, Sample("a.png", "nut", "test", None))
    assert prediction.verdict == "defect"
    assert prediction.score == 5.0
    assert prediction.threshold == pytest.approx(good.scores[198 - 0], rel=0.01)
    assert len(prediction.regions) == 1
    left, top, width, height = prediction.regions[0].box
    assert left <= 32 < 40 <= left + width
    assert top <= 4 < 8 <= top + height
    assert prediction.regions[0].peak == pytest.approx(5.0)
    calm = scorer.predict(RawMap(grid * 0), geometry, Sample("b.png", "nut", "test", None))
    assert (calm.verdict, calm.regions) == ("good", ())
    assert calm.to_dict()["regions"] == []

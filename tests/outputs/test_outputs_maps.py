from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawmap.outputs.maps import read_map_png, write_map_npy, write_map_png
from flawmap.outputs.overlay import draw_overlay
from flawmap.types import Region


@pytest.fixture
def anomaly_map() -> np.ndarray:
    return np.random.default_rng(0).normal(3, 2, (37, 53)).astype(np.float32)


def test_a_png_map_is_sixteen_bit_and_comes_back_within_half_a_step(
    tmp_path: Path, anomaly_map: np.ndarray
) -> None:
    low, high = write_map_png(anomaly_map, tmp_path / "m.png")
    assert (low, high) == (float(anomaly_map.min()), float(anomaly_map.max()))
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "I;16"
        assert image.size == (53, 37)
        stored = np.asarray(image)
    assert stored.min() == 0
    assert stored.max() == 65535
    back = read_map_png(tmp_path / "m.png", low, high)
    step = (high - low) / 65535
    assert np.abs(back - anomaly_map).max() <= step / 2 + 1e-6


def test_a_flat_png_map_comes_back_exactly(tmp_path: Path) -> None:
    flat = np.full((4, 5), -2.5, dtype=np.float32)
    low, high = write_map_png(flat, tmp_path / "m.png")
    assert (low, high) == (-2.5, -2.5)
    assert (read_map_png(tmp_path / "m.png", low, high) == flat).all()


def test_an_npy_map_is_exact(tmp_path: Path, anomaly_map: np.ndarray) -> None:
    low, high = write_map_npy(anomaly_map, tmp_path / "m.npy")
    back = np.load(tmp_path / "m.npy", allow_pickle=False)
    assert back.dtype == np.float32
    assert (back == anomaly_map).all()
    assert (low, high) == (float(back.min()), float(back.max()))


def test_an_overlay_colours_what_stands_out_alone() -> None:
    image = np.full((20, 30, 3), 100, dtype=np.uint8)
    image[:, :15, 0] = 200
    heat = np.zeros((20, 30), dtype=np.float32)
    heat[5, 6] = 9.0
    drawn = np.asarray(draw_overlay(image, heat)).astype(int)
    assert drawn.shape == (20, 30, 3)
    colourful = np.ptp(drawn, axis=-1) > 0
    assert np.argwhere(colourful).tolist() == [[5, 6]]
    assert drawn[0, 0, 0] == round(0.299 * 200 + 0.701 * 100)
    assert (drawn[0, 20] == 100).all()


def test_the_threshold_keeps_a_good_image_from_glowing() -> None:
    image = np.full((8, 8, 3), 0.5, dtype=np.float32)
    heat = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    alone = np.asarray(draw_overlay(image, heat)).astype(int)
    below = np.asarray(draw_overlay(image, heat, pixel_threshold=10.0)).astype(int)
    assert np.abs(below - 128).max() < np.abs(alone - 128).max() / 3


def test_a_region_gets_a_white_box_just_inside_a_black_one() -> None:
    image = np.full((40, 60, 3), 100, dtype=np.uint8)
    heat = np.zeros((40, 60), dtype=np.float32)
    region = Region(box=(10, 12, 20, 8), area=160, peak=1.0, peak_at=(15, 15))
    drawn = np.asarray(draw_overlay(image, heat, regions=[region]))
    assert (drawn[12, 10:30] == 255).all()
    assert (drawn[19, 10:30] == 255).all()
    assert (drawn[11, 9:31] == 0).all()
    assert (drawn[15, 15] == 100).all()

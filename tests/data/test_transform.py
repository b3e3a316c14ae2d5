from __future__ import annotations

import numpy as np
import pytest

from flawmap.data import Transform
from flawmap.errors import ConfigError
from flawmap.types import Geometry

RNG = np.random.Generator(np.random.PCG64(0))


def image(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_stretch_ignores_the_aspect() -> None:
    array, geometry = Transform((32, 48))(image(100, 50))
    assert array.shape == (32, 48, 3)
    assert array.dtype == np.uint8
    assert geometry == Geometry((100, 50), (32, 48), (0, 0), (32, 48))


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    array, _ = Transform((8, 8))(stripes)
    # A filter that only looks at the nearest pixels would give 0 or 255 somewhere.
    assert np.abs(array[:, 1:-1].astype(int) - 128).max() <= 2


def test_an_image_of_the_right_size_is_untouched() -> None:
    source = image(16, 16)
    np.testing.assert_array_equal(Transform((16, 16))(source)[0], source)


def test_letterbox_keeps_the_aspect_and_reflects() -> None:
    source = image(40, 20)
    array, geometry = Transform((40, 40), "letterbox")(source)
    assert geometry == Geometry((40, 20), (40, 20), (0, -10), (40, 40))
    np.testing.assert_array_equal(array[:, 10:30], source)
    np.testing.assert_array_equal(array[:, 9], source[:, 1])
    np.testing.assert_array_equal(array[:, 30], source[:, 18])


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (3, 1000), (31, 17), (2, 3)])
@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_odd_sizes(shape: tuple[int, int], resize: str, dtype: type) -> None:
    source = image(*shape)
    source = source if dtype is np.uint8 else source.astype(np.float32) / 255
    array, geometry = Transform((33, 20), resize)(source)  # type: ignore[arg-type]
    assert array.shape == (33, 20, 3)
    assert array.dtype == dtype
    assert geometry.source == shape
    assert geometry.input == (33, 20)
    assert all(1 <= r <= s for r, s in zip(geometry.resized, (33, 20), strict=True))


def test_crop_cuts_the_centre_of_the_stretched_image() -> None:
    source = image(448, 448)
    array, geometry = Transform((392, 392), "crop", (448, 448))(source)
    assert geometry == Geometry((448, 448), (448, 448), (28, 28), (392, 392))
    np.testing.assert_array_equal(array, source[28:420, 28:420])


def test_crop_rounds_as_the_published_protocols_do() -> None:
    # torchvision's CenterCrop: round half to even.
    _, geometry = Transform((3, 4), "crop", (4, 7))(image(9, 9))
    assert geometry.offset == (0, 2)


def test_floats_follow_bytes_and_stay_in_range() -> None:
    source = image(50, 70)
    as_bytes, _ = Transform((20, 30))(source)
    as_floats, _ = Transform((20, 30))(source.astype(np.float32) / np.float32(255))
    np.testing.assert_allclose(as_floats, as_bytes / 255, atol=1.5 / 255)
    white, _ = Transform((97, 61))(np.ones((50, 70, 3), dtype=np.float32))
    assert white.max() <= 1
    assert white.min() > 0.999


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0, 4)}, "size must be two positive integers"),
        ({"size": (4, 4), "resize": "strech"}, "did you mean 'stretch'"),
        ({"size": (4, 4), "resize": "crop"}, "crop_from belongs to resize='crop'"),
        ({"size": (4, 4), "crop_from": (8, 8)}, "crop_from belongs to resize='crop'"),
        ({"size": (4, 4), "resize": "crop", "crop_from": (3, 8)}, "smaller than size"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Transform(**options)  # type: ignore[arg-type]
    assert message in str(caught.value)

"""Synthetic defects: where they are, how large, and that they are the same everywhere."""

from __future__ import annotations

import math
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import flawmap
from flawmap.data import synthesis as synthesis_module
from flawmap.data.synthesis import (
    Synthesis,
    SynthesisConfig,
    _texture_picture,
    make_synthesis,
    object_mask,
)
from flawmap.data.textures import perlin, procedural
from flawmap.errors import ConfigError, DataError

SIZE = (128, 96)
KINDS = ("perlin", "patch", "scar")


def photo(seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).random((*size, 3), dtype=np.float32)


def drawn(seed: int, **options: object) -> tuple[np.ndarray, np.ndarray]:
    return drawn_on(photo(), seed, **options)


def drawn_on(image: np.ndarray, seed: int, **options: object) -> tuple[np.ndarray, np.ndarray]:
    synthesis = Synthesis(make_synthesis(options))
    return synthesis(image, np.random.default_rng(seed), [photo(1), photo(2, (40, 50))])


def test_perlin_noise_by_the_definition() -> None:
    """Px by px: the fade of four corners' gradients times the distance from them."""
    size, cells = (12, 20), (3, 2)
    found = perlin(size, cells, 0.0, np.random.default_rng(4))
    theta = np.random.default_rng(4).uniform(0, 2 * math.pi, (cells[0] + 1, cells[1] + 1))

    def fade(t: float) -> float:
        return 6 * t**5 - 15 * t**4 + 10 * t**3

    for row in range(size[0]):
        for column in range(size[1]):
            y, x = (row + 0.5) * cells[0] / size[0], (column + 0.5) * cells[1] / size[1]
            i, j = int(y), int(x)
            total = 0.0
            for di in (0, 1):
                for dj in (0, 1):
                    dy, dx = y - i - di, x - j - dj
                    angle = theta[i + di, j + dj]
                    weight = fade(1 - abs(dy)) * fade(1 - abs(dx))
                    total += weight * (math.cos(angle) * dx + math.sin(angle) * dy)
            assert found[row, column] == pytest.approx(total * math.sqrt(2), abs=1e-5)


@pytest.mark.parametrize("cells", [(1, 1), (32, 1), (4, 16)])
def test_noise_is_centred_and_turns(cells: tuple[int, int]) -> None:
    found = [
        perlin((64, 80), cells, a, np.random.default_rng(i)) for i in range(40) for a in (0, 1)
    ]
    values = np.stack(found)
    assert abs(values.mean()) < 0.1
    assert 0.7 < np.abs(values).max() <= 1.5
    # A quarter turn swaps the axes.
    upright = perlin((64, 64), (2, 8), 0.0, np.random.default_rng(0))
    quarter = perlin((64, 64), (2, 8), math.pi / 2, np.random.default_rng(0))
    np.testing.assert_allclose(quarter, np.rot90(upright), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("foreground", ["off", "auto"])
def test_px_outside_the_mask_are_untouched(kind: str, foreground: str) -> None:
    before = photo()
    for seed in range(30):
        found, mask = drawn(seed, kinds=[kind], foreground=foreground)
        assert found.dtype == np.float32
        assert mask.dtype == np.bool_
        assert found.shape == before.shape
        assert mask.shape == SIZE
        assert mask.any()
        np.testing.assert_array_equal(found[~mask], before[~mask])
        assert 0 <= found.min() <= found.max() <= 1
        # Nearly every px inside has changed.
        assert (found[mask] != before[mask]).any(axis=-1).mean() > 0.9


@pytest.mark.slow
def test_the_share_without_a_defect() -> None:
    empty = [not drawn(seed, none_share=0.3)[1].any() for seed in range(400)]
    assert 0.22 < np.mean(empty) < 0.38
    assert all(drawn(seed)[1].any() for seed in range(100))


def test_how_large_defects_are() -> None:
    """Shares of the px, over the seeds: median and range."""
    expected = {
        "perlin": (0.02, 0.10, 0.65),
        "patch": (0.03, 0.12, 0.16),
        "scar": (5e-4, 0.006, 0.01),
    }
    for kind, (low, high, most) in expected.items():
        areas = [drawn(seed, kinds=[kind])[1].mean() for seed in range(200)]
        assert low < np.median(areas) < high, kind
        assert max(areas) < most, kind
        assert min(areas) > 0, kind


def test_noise_that_hardly_reaches_the_threshold_gives_a_defect_all_the_same() -> None:
    for seed in range(20):
        _, mask = drawn(seed, threshold=0.99, scales=[0, 0])
        assert mask.sum() >= SIZE[0] * SIZE[1] // 4096


def test_the_opacity_is_the_texture_s_share(tmp_path: Path) -> None:
    Image.new("RGB", (30, 30), "white").save(tmp_path / "white.png")
    options = {"textures": ["folder"], "texture_folder": tmp_path}
    before = np.zeros((*SIZE, 3), dtype=np.float32)
    means = []
    for seed in range(50):
        synthesis = Synthesis(make_synthesis({**options, "opacity": [0.25, 0.25]}))
        found, mask = synthesis(before, np.random.default_rng(seed))
        # The texture is recoloured by at most 0.45 and clipped to white.
        assert 0.25 * 0.4 <= found[mask].min() <= found[mask].max() <= 0.25
        means.append(found[mask].mean())
    assert np.mean(means) == pytest.approx(0.25, abs=0.06)


def texture_folder(folder: Path, n: int, side: int = 6) -> Path:
    folder.mkdir()
    for i in range(n):
        values = np.random.default_rng(i).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{i:03d}.png")
    return folder


def test_each_picture_of_a_folder_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = texture_folder(tmp_path / "textures", 80)
    seen: Counter[str] = Counter()
    read = synthesis_module.read_image

    def spy(path: str) -> np.ndarray:
        seen[path] += 1
        return read(path)

    monkeypatch.setattr(synthesis_module, "read_image", spy)
    synthesis = Synthesis(make_synthesis({"textures": ["folder"], "texture_folder": folder}))
    image = photo(size=(24, 24))
    for seed in range(400):
        synthesis(image, np.random.default_rng(seed))
    assert len(seen) > 70
    assert set(seen.values()) == {1}


def test_what_is_drawn_does_not_depend_on_the_pictures_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = texture_folder(tmp_path / "textures", 8)
    config = make_synthesis({"textures": ["folder"], "texture_folder": folder})
    whole = Synthesis(config)
    # Room for two of them, and a bit.
    monkeypatch.setattr(synthesis_module, "_KEPT_BYTES", 2 * 6 * 6 * 3 + 50)
    tight = Synthesis(config)
    for seed in [*range(20), *range(20)]:
        found, wanted = (s(photo(), np.random.default_rng(seed))[0] for s in (tight, whole))
        np.testing.assert_array_equal(found, wanted)
    assert len(whole._pictures) > 4
    assert len(tight._pictures) == 2


def test_pictures_of_a_folder_have_8_bits_and_are_not_too_long(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (5, 7), dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    rgb = np.random.default_rng(0).integers(0, 256, (5, 2048, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "long.png")
    Image.fromarray(rgb[:, :9]).save(tmp_path / "plain.png")
    found = {n: _texture_picture(str(tmp_path / f"{n}.png")) for n in ("deep", "long", "plain")}
    assert {picture.dtype for picture in found.values()} == {np.dtype(np.uint8)}
    np.testing.assert_allclose(found["deep"][..., 0], values / 257, atol=0.501)
    np.testing.assert_array_equal(found["plain"], rgb[:, :9])
    assert found["long"].shape[1] == 1024


def one(seed: int) -> bytes:
    found, mask = drawn(seed, kinds=list(KINDS))
    return found.tobytes() + mask.tobytes()


def test_the_same_in_threads_and_in_worker_processes() -> None:
    alone = [one(seed) for seed in range(6)]
    assert len(set(alone)) == 6
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(one, range(6))) == alone
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
        assert list(processes.map(one, range(6))) == alone


def test_defects_lie_on_the_object_where_there_is_one() -> None:
    y, x = np.mgrid[:128, :128]
    disc = (y - 60) ** 2 + (x - 70) ** 2 < 30**2
    noise = np.random.default_rng(0).normal(0, 0.02, (128, 128, 3)).astype(np.float32)
    for bright in (True, False):
        image = np.where((disc == bright)[..., None], 0.8, 0.2).astype(np.float32) + noise
        found = object_mask(image)
        assert found is not None
        assert (found & disc).sum() / (found | disc).sum() > 0.9
        for kind in KINDS:
            synthesis = Synthesis(SynthesisConfig(kinds=(kind,), foreground="auto"))
            for seed in range(10):
                _, mask = synthesis(image, np.random.default_rng(seed))
                assert mask.any()
                assert not (mask & ~found).any()
    # A texture has no object, nor has a plain image.
    assert object_mask(photo()) is None
    assert object_mask(np.ones((32, 32, 3), dtype=np.float32)) is None


@pytest.mark.parametrize("kind", ["patch", "scar"])
@pytest.mark.parametrize("side", [50, 8])
def test_plain_ground_is_not_pasted_on_plain_ground(kind: str, side: int) -> None:
    image = np.zeros((128, 128, 3), dtype=np.float32)
    image[40 : 40 + side, 40 : 40 + side] = photo(0, (side, side))
    synthesis = Synthesis(SynthesisConfig(kinds=(kind,)))
    for seed in range(60):
        found, mask = synthesis(image, np.random.default_rng(seed))
        change = np.abs(found - image).max(axis=-1)[mask]
        # Pasted, half of the px changed at least; blended in, all did on average.
        assert (change > 2 / 255).mean() > 0.5 or change.mean() >= 4 / 255
        np.testing.assert_array_equal(found[~mask], image[~mask])


def test_where_pasting_changes_nothing_a_texture_is_blended_in() -> None:
    plain = np.full((64, 64, 3), 0.5, dtype=np.float32)
    found, mask = Synthesis(SynthesisConfig(kinds=("scar",)))(plain, np.random.default_rng(0))
    assert mask.any()
    assert np.abs(found - plain)[mask].max() > 4 / 255


@pytest.mark.parametrize("kind", KINDS)
def test_a_grey_image_stays_grey(kind: str) -> None:
    grey = np.repeat(photo()[..., :1], 3, axis=-1)
    synthesis = Synthesis(SynthesisConfig(kinds=(kind,)))
    for seed in range(10):
        found, mask = synthesis(grey, np.random.default_rng(seed), [photo(1)])
        assert (found[mask] != grey[mask]).any()
        np.testing.assert_array_equal(found, np.repeat(found[..., :1], 3, axis=-1))


def test_a_grey_image_of_a_colour_camera_gets_no_coloured_defect() -> None:
    """Noise of the sensor or of JPEG leaves a little colour in it."""
    tint = np.random.default_rng(9).normal(0, 2 / 255, (*SIZE, 3)).astype(np.float32)
    grey = np.clip(np.repeat(photo()[..., :1], 3, axis=-1) * 0.8 + 0.1 + tint, 0, 1)
    for seed in range(10):
        found, mask = Synthesis()(grey, np.random.default_rng(seed))
        assert np.ptp(found[mask], axis=-1).mean() <= 1.5 * np.ptp(grey[mask], axis=-1).mean()


def test_defects_on_plain_grey_can_be_seen_and_are_dark_as_often_as_bright() -> None:
    grey = np.full((*SIZE, 3), 0.5, dtype=np.float32)
    changes = []
    for seed in range(200):
        found, mask = drawn_on(grey, seed, textures=["procedural"])
        change = found[mask] - grey[mask]
        assert np.abs(change).mean() >= 4 / 255
        changes.append(change.mean())
    assert 0.4 < np.mean(np.array(changes) < 0) < 0.6
    # The colours of a texture are not averaged to a middle grey.
    assert np.std(changes) > 0.1


def test_textures_lie_in_range_and_differ() -> None:
    inside = np.zeros(SIZE, dtype=np.bool_)
    inside[20:100, 5:60] = True
    found = [procedural(inside, np.random.default_rng(seed)) for seed in range(30)]
    assert all(t.shape == (3, 80 * 55) and t.dtype == np.float32 for t in found)
    assert all(t.min() >= 0 and t.max() <= 1 for t in found)
    assert all(t.std() > 0.005 for t in found)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kinds": ["perlins"]}, "kinds"),
        ({"kinds": []}, "kinds"),
        ({"opacity": [0.9, 0.1]}, "within 0 and 1"),
        ({"opacity": [0.0, 0.1]}, "'opacity'"),
        ({"scales": [3, 9]}, "within 0 and 8"),
        ({"textures": ["folder"]}, "texture_folder belongs"),
        ({"texture_folder": "x"}, "texture_folder belongs"),
        ({"none_share": 1.0}, "none_share"),
        ({"thresold": 0.3}, "threshold"),
    ],
)
def test_wrong_options(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_synthesis(options)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("opacity", [0.9, 0.1], "within 0 and 1"),
        ("scales", [3, 9], "within 0 and 8"),
        ("texture_folder", "textures", "texture_folder belongs"),
        ("none_share", 1, "less than 1"),
        ("thresold", 0.5, "did you mean 'method.synthesis.threshold'"),
    ],
)
def test_a_method_s_wrong_options_have_their_whole_name(
    option: str, value: object, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        flawmap.configure(method="dmdd", options={f"method.synthesis.{option}": value})
    assert caught.value.where == f"method.synthesis.{option}"


def test_a_folder_without_its_kind_of_texture_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="texture_folder belongs") as caught:
        flawmap.configure(method="dmdd", options={"method.synthesis.textures": ["folder"]})
    assert caught.value.where == "method.synthesis.texture_folder"


def test_an_empty_or_missing_texture_folder(tmp_path: Path) -> None:
    for folder, words in ((tmp_path, "no pictures"), (tmp_path / "gone", "is not there")):
        config = make_synthesis({"textures": ["folder"], "texture_folder": folder})
        with pytest.raises(DataError, match=words) as caught:
            Synthesis(config)
        assert "textures=procedural" in str(caught.value)


def test_one_name_is_enough_and_off_may_be_false() -> None:
    found = make_synthesis({"kinds": "scar", "textures": "images", "foreground": False})
    assert (found.kinds, found.textures, found.foreground) == (("scar",), ("images",), "off")

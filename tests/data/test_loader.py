from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawmap.data import Transform, read_data
from flawmap.errors import ConfigError, DataError

torch = pytest.importorskip("torch")
from flawmap.data.loader import load_batches  # noqa: E402

WriteImage = Callable[..., Path]
SMALL = Transform((4, 6))


@pytest.fixture
def folder(tmp_path: Path, write_image: WriteImage) -> Path:
    for i in range(7):
        write_image(tmp_path / "gear" / f"{i}.png", i * 10, size=(8 + i, 12))
    return tmp_path / "gear"


def test_batches_keep_the_order(folder: Path) -> None:
    samples = read_data(folder).samples
    batches = list(load_batches(samples, SMALL, 3, threads=2))
    assert [tuple(b.images.shape) for b in batches] == [(3, 3, 4, 6), (3, 3, 4, 6), (1, 3, 4, 6)]
    assert tuple(s for b in batches for s in b.samples) == samples
    assert [g.source for b in batches for g in b.geometries] == [(8 + i, 12) for i in range(7)]
    values = torch.cat([b.images for b in batches])[:, :, 0, 0]
    torch.testing.assert_close(values, torch.arange(0, 70, 10)[:, None].expand(7, 3) / 255)


def test_memory_is_channels_last_float32(folder: Path) -> None:
    batch = next(load_batches(read_data(folder).samples, SMALL, 4))
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_channels_are_rgb(tmp_path: Path) -> None:
    Image.new("RGB", (5, 5), (255, 51, 0)).save(tmp_path / "a.png")
    batch = next(load_batches(read_data(tmp_path).samples, SMALL, 1))
    torch.testing.assert_close(batch.images[0, :, 2, 2], torch.tensor([1, 0.2, 0]))


def test_deep_and_plain_images_mix(folder: Path) -> None:
    Image.fromarray(np.full((8, 12), 2048, dtype=np.uint16)).save(folder / "deep.png")
    samples = read_data(folder).samples
    (batch,) = load_batches(samples, SMALL, 8, white_level=4096)
    assert [Path(s.path).name for s in batch.samples][-1] == "deep.png"
    assert batch.images[-1].mean() == 0.5
    torch.testing.assert_close(batch.images[3, 0, 0, 0], torch.tensor(30 / 255))


def test_a_broken_image_is_named_and_the_threads_end(folder: Path) -> None:
    (folder / "3.png").write_bytes(b"no")
    before = threading.active_count()
    batches = load_batches(read_data(folder).samples, SMALL, 2, threads=2)
    assert len(next(batches).samples) == 2
    with pytest.raises(DataError) as caught:
        list(batches)
    assert str(folder / "3.png") in str(caught.value)
    assert threading.active_count() == before


def test_closing_early_ends_the_threads(folder: Path) -> None:
    before = threading.active_count()
    batches = load_batches(read_data(folder).samples, SMALL, 1, threads=2)
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_no_images_give_no_batches() -> None:
    assert list(load_batches((), SMALL, 2)) == []


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 1, "threads": 0}])
def test_wrong_options_are_refused_at_once(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        load_batches((), SMALL, **options)


def test_the_package_needs_no_torch() -> None:
    code = "import sys, flawmap.data; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

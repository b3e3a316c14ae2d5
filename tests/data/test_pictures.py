"""Images that are decoded once and kept at the input's size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from flawmap.data import loader
from flawmap.data.images import read_image
from flawmap.data.loader import load_batches
from flawmap.data.pictures import Pictures
from flawmap.data.transform import Transform
from flawmap.types import Sample

WriteImage = Callable[..., Path]
SMALL = Transform((4, 6))


def test_what_is_kept_is_what_would_be_read(
    tmp_path: Path, write_image: WriteImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [
        Sample(str(write_image(tmp_path / f"{i}.png", 20 * i)), "nut", "train", 0) for i in range(5)
    ]
    (wanted,) = load_batches(samples, SMALL, 5)
    # Of five images there is room for two and a half.
    kept = Pictures(SMALL, room=5 * 4 * 6 * 3 // 2)
    for sample in samples:
        kept.add(sample, read_image(sample.path))
    assert [kept.get(s.path) is not None for s in samples] == [True, True, False, False, False]
    read: list[str] = []

    def watched(path: str, **options: int | None) -> np.ndarray:
        read.append(path)
        return read_image(path)

    monkeypatch.setattr(loader, "read_image", watched)
    (found,) = load_batches(samples, SMALL, 5, threads=1, kept=kept)
    assert read == [s.path for s in samples[2:]]
    assert torch.equal(found.images, wanted.images)
    assert found.geometries == wanted.geometries

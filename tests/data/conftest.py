"""Small data sets on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WriteImage = Callable[..., Path]


@pytest.fixture
def write_image() -> WriteImage:
    """Writes an image of one colour; each call with another value gives other pixels."""

    def write(path: Path, value: int = 100, *, size: tuple[int, int] = (8, 10)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*size, 3), value, dtype=np.uint8)).save(path)
        return path

    return write


@pytest.fixture
def write_mask() -> WriteImage:
    """Writes a mask with one defect pixel at (row, column), or an empty one."""

    def write(
        path: Path, at: tuple[int, int] | None = (1, 2), *, size: tuple[int, int] = (8, 10)
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        mask = np.zeros(size, dtype=np.uint8)
        if at is not None:
            mask[at] = 255
        Image.fromarray(mask).save(path)
        return path

    return write


@pytest.fixture
def mvtec(tmp_path: Path, write_image: WriteImage, write_mask: WriteImage) -> Path:
    """One category: 3 good to train, 1 good and 2 defects to test, a mask for each defect."""
    root = tmp_path / "bottle"
    for i in range(3):
        write_image(root / "train" / "good" / f"{i:03}.png", 10 + i)
    write_image(root / "test" / "good" / "000.png", 50)
    for i in range(2):
        write_image(root / "test" / "hole" / f"{i:03}.png", 60 + i)
        write_mask(root / "ground_truth" / "hole" / f"{i:03}_mask.png")
    return root


@pytest.fixture
def earlier_run(write_image: WriteImage) -> Callable[[Path], None]:
    """Writes what `predict --output FOLDER --maps --overlays` leaves in a folder."""

    def write(folder: Path) -> None:
        for name in ("maps/a.png", "overlays/a.png"):
            write_image(folder / name)
        record = '{"path": "a.png", "map": "maps/a.png", "overlay": "overlays/a.png"}\n'
        (folder / "predictions.jsonl").write_text(record)

    return write

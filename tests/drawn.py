"""Small drawn products with flaws, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def product(rng: np.random.Generator, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """A synthetic good part: a bright ring on a dark, slightly noisy ground."""
    h, w = size
    y, x = np.mgrid[:h, :w]
    cy, cx = h / 2 + rng.normal(0, 1), w / 2 + rng.normal(0, 1)
    radius = np.hypot((y - cy) / h, (x - cx) / w)
    ring = np.exp(-(((radius - 0.3) / 0.06) ** 2))
    grey = 60 + 150 * ring + rng.normal(0, 4, size)
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def flawed(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A part with a stain, and the stain's mask."""
    image = product(rng)
    top, left = rng.integers(8, 40, size=2)
    mask = np.zeros(image.shape[:2], dtype=np.uint8)
    mask[top : top + 12, left : left + 12] = 255
    image[mask > 0] = (200, 30, 30)
    return image, mask


def make_mvtec(root: Path, *, train: int = 12, good: int = 4, bad: int = 4, seed: int = 0) -> Path:
    """One category in MVTec's layout."""
    rng = np.random.default_rng(seed)
    for part, n in (("train/good", train), ("test/good", good)):
        folder = root / part
        folder.mkdir(parents=True)
        for i in range(n):
            Image.fromarray(product(rng)).save(folder / f"{i:03d}.png")
    images, masks = root / "test" / "stain", root / "ground_truth" / "stain"
    images.mkdir(parents=True)
    masks.mkdir(parents=True)
    for i in range(bad):
        image, mask = flawed(rng)
        Image.fromarray(image).save(images / f"{i:03d}.png")
        Image.fromarray(mask).save(masks / f"{i:03d}_mask.png")
    return root

"""Mask resizing against Pillow and torchvision, regions against a flood fill."""

import numpy as np
import pytest
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torchvision import transforms

from flawmap.metrics import label_regions, published_crop, resize_mask_nearest


def flood_fill_sizes(mask):
    """Sizes of the 8-connected regions, by walking from pixel to pixel."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    sizes = []
    while left:
        todo = [left.pop()]
        size = 0
        while todo:
            y, x = todo.pop()
            size += 1
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            todo.extend(near)
        sizes.append(size)
    return sorted(sizes)


@pytest.mark.parametrize("size", [(7, 7), (16, 5), (50, 64), (1, 1), (33, 20)])
@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int32])
def test_resize_equals_pillow_nearest(size, dtype):
    mask = np.random.default_rng(0).random((33, 20)) < 0.3
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    expected = np.asarray(image.resize((size[1], size[0]), Image.Resampling.NEAREST)) > 0
    resized = resize_mask_nearest(mask.astype(dtype), size)
    assert resized.dtype == np.bool_
    np.testing.assert_array_equal(resized, expected)


def test_resize_reads_the_pixel_under_the_centre():
    mask = np.arange(6).reshape(1, 6) == np.array([[1]])
    # Centres of 3 output pixels lie in source pixels 1, 3, 5; without the half pixel in 0, 2, 4.
    np.testing.assert_array_equal(resize_mask_nearest(mask, (1, 3)), [[True, False, False]])


def test_resize_keeps_every_class_id():
    mask = np.array([[0, 1], [7, 255]], dtype=np.uint8)
    expected = [[False, False, True, True], [True, True, True, True]]
    np.testing.assert_array_equal(resize_mask_nearest(mask, (2, 4)), expected)


@pytest.mark.parametrize(
    ("mask", "size", "message"),
    [
        (np.zeros((2, 2, 1), dtype=bool), (1, 1), r"mask: got shape \(2, 2, 1\)"),
        (np.zeros((0, 2), dtype=bool), (1, 1), r"mask: got shape \(0, 2\), expected a non-empty"),
        (np.zeros((2, 2)), (1, 1), r"mask: got dtype float64, expected bool or integers"),
        (np.zeros((2, 2), dtype=bool), (0, 1), r"size: got \(0, 1\), expected \(height, width\)"),
    ],
)
def test_resize_refuses_what_it_cannot_mean(mask, size, message):
    with pytest.raises(ValueError, match=message):
        resize_mask_nearest(mask, size)


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 1.0])
def test_regions_equal_a_flood_fill(share):
    mask = np.random.default_rng(1).random((24, 31)) < share
    regions, sizes = label_regions(mask)
    assert sorted(sizes.tolist()) == flood_fill_sizes(mask)
    assert regions.size == mask.sum()
    np.testing.assert_array_equal(np.bincount(regions), sizes)


def test_regions_touching_at_a_corner_are_one():
    mask = np.zeros((6, 6), dtype=bool)
    mask[1, 1] = mask[2, 2] = mask[3, 1] = mask[5, 5] = True
    regions, sizes = label_regions(mask)
    np.testing.assert_array_equal(regions, [0, 0, 0, 1])
    np.testing.assert_array_equal(sizes, [3, 1])


@pytest.mark.parametrize("shape", [(4, 4), (0, 4), (4, 0)])
def test_no_defect_has_no_region(shape):
    regions, sizes = label_regions(np.zeros(shape, dtype=bool))
    assert (regions.size, sizes.size) == (0, 0)


@pytest.mark.parametrize("source", [(300, 280), (448, 448), (900, 900)])
def test_a_published_crop_is_torchvision_s(source):
    mask = ndimage.binary_dilation(np.random.default_rng(1).random(source) > 0.999)
    steps = transforms.Compose(
        [transforms.Resize((448, 448)), transforms.CenterCrop(392), transforms.ToTensor()]
    )
    cropped = steps(Image.fromarray(mask.astype(np.uint8) * 255))
    wanted = F.interpolate(cropped[None], (256, 256), mode="nearest")[0, 0] > 0
    found = published_crop(mask, (256, 256), (448, 448), (28, 28), (392, 392))
    np.testing.assert_array_equal(found, wanted.numpy())

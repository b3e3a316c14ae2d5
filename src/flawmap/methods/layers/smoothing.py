"""Filters on maps that count only what lies inside: a border is no flaw, and hides none."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def smoothed(maps: Tensor, side: int, sigma: float) -> Tensor:
    """A mean filter, then a Gaussian.

    Args:
        maps: (B, 1, H, W) float32.
        side: Of the mean filter in px, odd; 1 = none.
        sigma: Standard deviation of the Gaussian in px; 0 = none.

    Returns:
        (B, 1, H, W) float32.
    """
    if side > 1:
        maps = F.avg_pool2d(maps, side, stride=1, padding=side // 2, count_include_pad=False)
    return _gaussian(maps, sigma) if sigma else maps


def _gaussian(maps: Tensor, sigma: float) -> Tensor:
    reach = int(4 * sigma + 0.5)
    at = torch.arange(-reach, reach + 1, dtype=maps.dtype, device=maps.device)
    kernel = torch.exp(-0.5 * (at / sigma).square())
    for shape, padding in (((1, 1, -1, 1), (reach, 0)), ((1, 1, 1, -1), (0, reach))):
        line = kernel.view(shape)
        weight = F.conv2d(torch.ones_like(maps[:1]), line, padding=padding)
        maps = F.conv2d(maps, line, padding=padding) / weight
    return maps

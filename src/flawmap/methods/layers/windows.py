"""Square windows of a grid of patches, and where in them or in the image a patch lies."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def window_starts(grid: tuple[int, int], window: int) -> tuple[Tensor, Tensor]:
    """The window from which each patch is painted: as central around it as the border allows.

    Args:
        grid: (N, M) patches of the image.
        window: L.

    Returns:
        (N * M,) int64 each: the index of the window's upper left patch, and the covered patch's
        place in the window.

    Example:
        >>> [t.tolist() for t in window_starts((2, 4), 2)]
        [[0, 0, 1, 2, 0, 0, 1, 2], [0, 1, 1, 1, 2, 3, 3, 3]]
    """
    n, m = grid
    t, u = torch.meshgrid(torch.arange(n), torch.arange(m), indexing="ij")
    top = (t - window // 2).clamp(0, n - window)
    left = (u - window // 2).clamp(0, m - window)
    place = (t - top) * window + (u - left)
    return (top * m + left).flatten(), place.flatten()


def waves(grid: tuple[int, int], width: int) -> Tensor:
    """Where patches lie, as waves along both axes: what is near is alike from the start.

    Args:
        grid: (N, M) patches.
        width: D of a token.

    Returns:
        (N * M, D) float32, from -0.5 to 0.5: about as large as embedded patches.
    """
    lengths = 2.0 ** torch.linspace(1, 5, math.ceil(width / 4))
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    phases = [2 * math.pi * axis.flatten()[:, None] / lengths for axis in (rows, columns)]
    both = [wave(phase) for phase in phases for wave in (torch.sin, torch.cos)]
    return 0.5 * torch.cat(both, dim=1)[:, :width]

"""How far two networks' features point apart, whatever their lengths."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def at_places(a: Tensor, b: Tensor, *, dim: int = 1) -> Tensor:
    """1 - cosine of the vectors at each place, float32, without the dimension of the channels.

    Args:
        a: Such as (B, C, h, w).
        b: The same shape.
        dim: Of the channels.
    """
    return 1 - F.cosine_similarity(a.float(), b.float(), dim=dim)


def of_wholes(a: Tensor, b: Tensor) -> Tensor:
    """1 - cosine of all features of an image as one vector, (B,) float32.

    Args:
        a: (B, ...).
        b: The same shape.
    """
    return 1 - F.cosine_similarity(a.flatten(1).float(), b.flatten(1).float(), dim=1)

"""What several processes that train together must agree on."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def n_processes() -> int:
    """How many processes train together; 1 outside such a group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(value: Tensor) -> Tensor:
    """The values of all processes, one after the other along the first dimension; no gradients.

    Args:
        value: (B, ...), of one shape in every process.
    """
    if n_processes() == 1:
        return value
    parts = [torch.empty_like(value) for _ in range(n_processes())]
    dist.all_gather(parts, value.contiguous())
    return torch.cat(parts)

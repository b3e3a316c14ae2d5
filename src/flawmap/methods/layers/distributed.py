"""What several processes that train together must agree on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor

_PROCESSES: ContextVar[int] = ContextVar("processes", default=1)


@contextmanager
def together(processes: int) -> Iterator[None]:
    """Within, so many processes take the same training step; without, each is on its own.

    Not asked of torch: a fit alone may run in one process of somebody else's group.

    Args:
        processes: All those of torch's default group, or 1.
    """
    token = _PROCESSES.set(processes)
    try:
        yield
    finally:
        _PROCESSES.reset(token)


def gathered(value: Tensor) -> Tensor:
    """The values of all processes, one after the other along the first dimension; no gradients.

    Args:
        value: (B, ...), of one shape in every process.
    """
    n = _PROCESSES.get()
    if n == 1:
        return value
    parts = [torch.empty_like(value) for _ in range(n)]
    dist.all_gather(parts, value.contiguous())
    return torch.cat(parts)

"""Random numbers of a part of a fit, which leave those of all other parts alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's random numbers inside the block follow from a seed; outside nothing changes.

    Args:
        seed: 0 <= seed < 2**64.
        device: Whose generator is meant, beside the CPU's.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield

"""Dropout whose random numbers cost little on a CPU."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LANES = 4
"""A random number of 64 bits decides so many values, with 16 bits each."""


class Dropout(nn.Module):
    """As `torch.nn.Dropout`. On a CPU one random number decides four values, since drawing one for
    each takes a tenth of a training step.

    Args:
        p: Share of the values that become 0, in [0, 1); on a CPU to 1 / 65,536.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def extra_repr(self) -> str:
        """Shown by `print`."""
        return f"p={self.p}"

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; as it is in evaluation mode."""
        if not self.training or not self.p:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        draws = torch.empty(math.ceil(x.numel() / _LANES), dtype=torch.int64)
        lanes = draws.random_(-(2**63), None).view(torch.int16)[: x.numel()]
        kept = (lanes >= round(self.p * 2**16) - 2**15).view(x.shape)
        return x * kept.to(x.dtype).mul_(1 / (1 - self.p))

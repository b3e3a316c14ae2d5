"""A small segmentation network over distance maps, with attention, and its focal loss."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flawmap.methods.layers.residual import Residual, initialise

AttentionKind = Literal["both", "channel", "spatial", "none"]

_RATES = (6, 12, 18)
"""Of the dilated convolutions."""
_REDUCTION = 16

_SMALL = 0.02
"""Deviation of weights before a sigmoid, which is flat where they are large."""
_FEW = -2.0
"""Logit of a px before anything is learnt."""


class SegmentationNetwork(nn.Module):
    """Distance maps to a map of logits of the same grid.

    Args:
        n_maps: Input channels.
        width: Channels inside.
        attention: Which kinds of attention stand between the residual blocks and the pyramid.
    """

    def __init__(self, n_maps: int, width: int, attention: AttentionKind) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(n_maps, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            Residual(width, width, "basic"),
            Residual(width, width, "basic"),
            ChannelAttention(width) if attention in ("both", "channel") else nn.Identity(),
            SpatialAttention() if attention in ("both", "spatial") else nn.Identity(),
            AtrousPyramid(width),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        self.logits = nn.Conv2d(width, 1, 1)

    def initialise(self, generator: torch.Generator) -> None:
        """He's initialisation, but for what ends in a sigmoid: that begins where it can learn, and
        with few defects."""
        initialise(self, generator)
        ends: list[nn.Module] = [self.logits]
        for module in self.modules():
            if isinstance(module, ChannelAttention):
                ends.append(module.mlp[-1])
            elif isinstance(module, SpatialAttention):
                ends.append(module.mix)
        for layer in ends:
            assert isinstance(layer, nn.Conv2d)
            nn.init.normal_(layer.weight, std=_SMALL, generator=generator)
        assert self.logits.bias is not None
        nn.init.constant_(self.logits.bias, _FEW)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, maps, h, w) to logits (B, 1, h, w) float32."""
        found = self.layers(maps)
        # In bfloat16 a map would have few steps.
        with torch.autocast(found.device.type, enabled=False):
            logits: Tensor = self.logits(found.float())
        return logits


class ChannelAttention(nn.Module):
    """Weights of channels from their mean and their maximum (Woo et al., CBAM, 1807.06521)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Of few, ReLUs might all be dead.
        inner = max(8, channels // _REDUCTION)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        weights: Tensor = self.mlp(x.mean((2, 3), True)) + self.mlp(x.amax((2, 3), True))
        return x * weights.sigmoid()


class SpatialAttention(nn.Module):
    """Weights of places from the mean and the maximum over channels (CBAM)."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        found = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        weights: Tensor = self.mix(found)
        return x * weights.sigmoid()


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al., 1706.05587): several reaches side by side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        kinds = [(1, 1), *((3, rate) for rate in _RATES)]
        self.ways = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, k, padding=rate if k > 1 else 0, dilation=rate, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            )
            for k, rate in kinds
        )
        self.whole = nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(inplace=True))
        self.join = nn.Sequential(
            nn.Conv2d(width * (len(kinds) + 1), width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        whole = self.whole(x.mean((2, 3), True)).expand(-1, -1, *x.shape[-2:])
        found: Tensor = self.join(torch.cat([*(way(x) for way in self.ways), whole], dim=1))
        return found


def focal(logits: Tensor, target: Tensor, gamma: float = 4.0) -> Tensor:
    """Focal loss (Lin et al., 1708.02002) without class weights, the mean over px.

    Args:
        logits: (...) any float type.
        target: The same shape, 0 to 1.
        gamma: How much less well-judged px count.
    """
    logits = logits.float()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    missed = (logits.sigmoid() - target).abs()
    return (missed**gamma * entropy).mean()

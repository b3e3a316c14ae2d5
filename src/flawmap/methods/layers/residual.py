"""Residual blocks of ResNets, for decoders too: a block may halve or double the grid."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

BlockKind = Literal["basic", "bottleneck", "wide-bottleneck"]

_INNER = {"bottleneck": 4, "wide-bottleneck": 2}
"""Output channels per channel of the 3 x 3 convolution."""

_LINEAR = 0.02
"""Deviation of the weights of linear layers, as in ConvNeXt and Swin."""


class Residual(nn.Module):
    """A basic block (two 3 x 3 convolutions) or a bottleneck (1 x 1, 3 x 3, 1 x 1).

    Args:
        start: Input channels.
        width: Output channels.
        block: Which kind.
        stride: 2 halves the grid, -2 doubles it (a transposed 2 x 2 convolution in place of the
            3 x 3 one), 1 keeps it.

    Source: He et al., arXiv 1512.03385; the doubling form is that of RD4AD's decoder.
    """

    def __init__(self, start: int, width: int, block: BlockKind, stride: int = 1) -> None:
        super().__init__()
        if block == "basic":
            layers = [*_moved(start, width, stride), *_conv(width, width, 3, relu=False)]
        else:
            inner = width // _INNER[block]
            layers = [
                *_conv(start, inner, 1),
                *_moved(inner, inner, stride),
                *_conv(inner, width, 1, relu=False),
            ]
        self.layers = nn.Sequential(*layers)
        self.shortcut: nn.Module = nn.Identity()
        if stride == -2:
            self.shortcut = nn.Sequential(
                nn.ConvTranspose2d(start, width, 2, stride=2, bias=False), nn.BatchNorm2d(width)
            )
        elif stride != 1 or start != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(start, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, start, h, w) to (B, width, h', w')."""
        return torch.relu(self.layers(x) + self.shortcut(x))


def _moved(start: int, width: int, stride: int) -> list[nn.Module]:
    """The convolution that may change the grid."""
    if stride != -2:
        return _conv(start, width, 3, stride=stride)
    return [
        nn.ConvTranspose2d(start, width, 2, stride=2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]


def _conv(
    start: int, width: int, kernel: int, *, stride: int = 1, relu: bool = True
) -> list[nn.Module]:
    layers: list[nn.Module] = [
        nn.Conv2d(start, width, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(width),
    ]
    return [*layers, nn.ReLU(inplace=True)] if relu else layers


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """He's initialisation (fan out) of every convolution, a narrow one of every linear layer, as
    networks that have some begin with; biases are zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            out = layer.out_channels * math.prod(layer.kernel_size) / layer.groups
            nn.init.normal_(layer.weight, std=math.sqrt(2 / out), generator=generator)
        elif isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=_LINEAR, generator=generator)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)

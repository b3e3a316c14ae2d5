"""MKD's small network: convolutions whose stages end in copies of another network's levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flawmap.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the cloner.

    Attributes:
        widths: Channels of its convolutions.
        pool: Whether a 2 x 2 max-pool follows.
        critical: Whether its output is a copy of a level.
    """

    widths: tuple[int, ...]
    pool: bool
    critical: bool


def plan_cloner(
    channels: Sequence[int], strides: Sequence[int], width: int, *, equal: bool = False
) -> tuple[float, tuple[Stage, ...]]:
    """The stages of a cloner, and the factor by which its input is resized.

    Args:
        channels: Of each level that is copied.
        strides: Input px per px of each level.
        width: Channels of the inner layers.
        equal: Make them as wide as the level that they lead to, where that is more.

    Raises:
        ConfigError: The levels are not in order, or their strides differ by other factors than 2.

    Example:
        >>> scale, stages = plan_cloner((256, 512), (4, 8), 16)
        >>> [(s.widths, s.critical) for s in stages]
        [((16, 16), False), ((16, 256), True), ((16, 16, 512), True)]
    """
    depths = [round(math.log2(s)) for s in strides]
    scale = 2 ** depths[0] / strides[0]
    if sorted(depths) != depths or any(
        abs(s * scale - 2**depth) > 1e-9 for s, depth in zip(strides, depths, strict=True)
    ):
        raise ConfigError(
            "a cloner cannot copy these levels one after the other",
            where="method.levels",
            given=f"levels of {', '.join(map(str, strides))} px per feature px",
            expected="the finest level first, each next one coarser by 2, 4, ... or as fine",
        )
    stages: list[Stage] = []
    depth = 0
    for copied, wanted in zip(channels, depths, strict=True):
        while True:
            pool = depth < wanted
            depth += pool
            critical = depth == wanted
            # Half as wide for each pool that is still to come, as in a VGG.
            inner = max(width, copied >> (wanted - depth)) if equal else width
            last = copied if critical else inner
            n_inner = 1 if pool and depth <= 2 else 2
            stages.append(Stage((*[inner] * n_inner, last), pool, critical))
            if critical:
                break
    return scale, tuple(stages)


class Cloner(nn.Module):
    """3 x 3 convolutions without biases: a bias could learn a constant that suits all good images.

    Each convolution is followed by a batch normalisation and a ReLU; the last one of a stage by a
    ReLU alone, or by nothing where the level that it copies takes negative values. The pool of a
    stage stands at its end, but before a convolution that takes negative values: of those the
    highest of four would be a poor copy.

    Args:
        stages: Its parts.
        rectified: For each level that is copied, whether it is never negative.
        published: Halve the image by a pool, too, and leave out px that have no partner; else the
            first convolution takes every second px, which costs a quarter.
    """

    def __init__(
        self, stages: Sequence[Stage], rectified: Sequence[bool], *, published: bool = True
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        self.critical = tuple(stage.critical for stage in stages)
        signs = iter(rectified)
        channels = 3
        for number, stage in enumerate(stages):
            strided = stage.pool and number == 0 and not published
            signed = stage.critical and not next(signs)
            layers: list[nn.Module] = []
            for i, width in enumerate(stage.widths[:-1]):
                stride = 2 if strided and i == 0 else 1
                layers += [_conv(channels, width, stride), nn.BatchNorm2d(width), nn.ReLU(True)]
                channels = width
            end: list[nn.Module] = [_conv(channels, stage.widths[-1])]
            channels = stage.widths[-1]
            if not signed:
                end.append(nn.ReLU(True))
            if stage.pool and not strided:
                end.insert(0 if signed else len(end), nn.MaxPool2d(2, ceil_mode=not published))
            self.stages.append(nn.Sequential(*layers, *end))
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, *, guided: bool = False) -> list[Tensor]:
        """Copies of the levels, (B, C, h, w) each.

        Args:
            x: (B, 3, H, W) float32, what the source sees.
            guided: In evaluation, pass no negative gradient back through the ReLUs.
        """
        x = x.contiguous(memory_format=torch.channels_last)
        found = []
        for stage, critical in zip(self.stages, self.critical, strict=True):
            x = stage(x) if self.training else _folded(list(stage.children()), x, guided)
            if critical:
                found.append(x)
        return found


def _folded(stage: Sequence[nn.Module], x: Tensor, guided: bool) -> Tensor:
    """A stage in evaluation: each normalisation within the convolution before it, and no gradients
    of weights. That halves what is kept for the backward pass."""
    layers = [layer for layer in stage if not isinstance(layer, nn.BatchNorm2d)]
    norms = {id(a): b for a, b in pairwise(stage) if isinstance(b, nn.BatchNorm2d)}
    for layer in layers:
        if isinstance(layer, nn.ReLU):
            x = relu(x, guided=guided)
            continue
        if not isinstance(layer, nn.Conv2d):
            x = layer(x)
            continue
        weight, bias = layer.weight.detach(), None
        if (norm := norms.get(id(layer))) is not None:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            scale = norm.weight.detach() * torch.rsqrt(norm.running_var + norm.eps)
            weight = weight * scale.view(-1, 1, 1, 1)
            bias = norm.bias.detach() - norm.running_mean * scale
        x = F.conv2d(x, weight, bias, stride=layer.stride, padding=1)
    return x


def relu(x: Tensor, *, guided: bool) -> Tensor:
    """max(x, 0), in place; guided, its gradient is max(gradient, 0) where x > 0 (Springenberg et
    al., "Striving for simplicity", 2015)."""
    y = F.relu(x, inplace=True)
    if guided and y.requires_grad:
        y.register_hook(lambda gradient: gradient.clamp(min=0))  # type: ignore[no-untyped-call]
    return y


def _conv(channels: int, width: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)

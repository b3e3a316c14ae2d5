"""Three levels of an encoder, each half as fine as the one before: joined, restored and compared.

Source: Deng and Li, RD4AD, CVPR 2022, arXiv 2201.10703, for the forms here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flawmap.encoders.encoder import Encoder, feature_names
from flawmap.encoders.table import EncoderSpec
from flawmap.errors import ConfigError
from flawmap.methods.layers.cosine import at_places
from flawmap.methods.layers.residual import BlockKind, Residual

_LEAST_WIDTHS = (64, 128, 256)
"""Of the decoder's stages, finest first: those of a ResNet18."""
_WIDE = 1024
"""Stages as wide as this are made of bottleneck blocks."""


class Embedding(nn.Module):
    """All levels joined on the coarsest one's grid, then brought to half of it.

    Args:
        channels: Of the levels, finest first.
        width: To which each level is brought before they are joined; the embedding has twice it.
        block: Kind of residual block.
        depth: How many of them.
    """

    def __init__(self, channels: Sequence[int], width: int, block: BlockKind, depth: int) -> None:
        super().__init__()
        self.ways = nn.ModuleList()
        for index, start in enumerate(channels):
            halvings = len(channels) - 1 - index
            layers: list[nn.Module] = []
            here = start
            for left in range(halvings, 0, -1):
                # Widths double on the way, up to the common one.
                there = width if left == 1 else max(here, width // 2 ** (left - 1))
                layers += [
                    nn.Conv2d(here, there, 3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(there),
                    nn.ReLU(inplace=True),
                ]
                here = there
            if here != width:
                layers += [nn.Conv2d(here, width, 1, bias=False), nn.BatchNorm2d(width)]
            self.ways.append(nn.Sequential(*layers))
        joined = width * len(channels)
        self.blocks = nn.Sequential(
            *(
                Residual(joined if i == 0 else 2 * width, 2 * width, block, 2 if i == 0 else 1)
                for i in range(depth)
            )
        )

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """(B, 2 * width, h / 2, w / 2) of levels (B, C, h, w) each.

        Raises:
            ConfigError: In training, one image has an embedding of one px.
        """
        found = [way(x) for way, x in zip(self.ways, levels, strict=True)]
        # Of an encoder that rounds sizes down, finer levels come to one px more.
        height, width = (min(x.shape[axis] for x in found) for axis in (-2, -1))
        joined = torch.cat([x[..., :height, :width] for x in found], dim=1)
        if self.training and len(joined) == 1 and max(height, width) <= 2:
            raise ConfigError(
                "one image has an embedding of one px, over which nothing can be normalised",
                where="data.size",
                given=f"{height} x {width} px at the coarsest level",
                expected="at least 3 px at the coarsest level, or more than one image in a step",
                hint="make the input larger, for example --set data.size=128",
            )
        embedded: Tensor = self.blocks(joined)
        return embedded


class Decoder(nn.Module):
    """The encoder's stages in reverse, each twice as fine as the one before.

    Args:
        channels: Of the levels to restore, finest first.
        widths: Of the stages, finest first; where they differ from the channels, a 1 x 1
            convolution leads back.
        block: Kind of residual block.
        depths: Blocks of the stages, coarsest first.
    """

    def __init__(
        self,
        channels: Sequence[int],
        widths: Sequence[int],
        block: BlockKind,
        depths: Sequence[int],
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        self.heads = nn.ModuleList()
        here = 2 * widths[-1]
        for width, wanted, depth in zip(reversed(widths), reversed(channels), depths, strict=True):
            stage = [
                Residual(here if i == 0 else width, width, block, -2 if i == 0 else 1)
                for i in range(depth)
            ]
            self.stages.append(nn.Sequential(*stage))
            self.heads.append(nn.Identity() if wanted == width else nn.Conv2d(width, wanted, 1))
            here = width

    def forward(self, x: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """The levels, finest first.

        Args:
            x: The embedding.
            sizes: (h, w) of each level, finest first; a grid of an odd size is one px short of
                twice the one below it, or one px longer where the encoder rounds sizes down.
        """
        found = []
        for stage, head, size in zip(self.stages, self.heads, reversed(sizes), strict=True):
            x = _fitted(stage(x), size)
            found.append(head(x))
        return found[::-1]


def _fitted(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) cut to a size; where one px is missing, the last one comes twice."""
    x = x[..., : size[0], : size[1]]
    for axis, n in zip((-2, -1), size, strict=True):
        if x.shape[axis] < n:
            x = torch.cat([x, x.narrow(axis, x.shape[axis] - 1, 1)], dim=axis)
    return x


def require_pyramid(encoder: Encoder) -> None:
    """Three levels, each half as fine as the one before.

    Raises:
        ConfigError: They are not.
    """
    strides = encoder.strides
    halved = all(b == 2 * a for a, b in pairwise(strides))
    if len(strides) != 3 or not halved:
        raise ConfigError(
            "three encoder levels are needed, each half as fine as the one before",
            where="method.levels",
            given=", ".join(
                f"{name} ({s} px)" for name, s in zip(encoder.levels, strides, strict=True)
            ),
            expected="for example the levels at 4, 8 and 16 px of a convolutional encoder",
            hint="use a convolutional encoder, such as --encoder lite0, with its default levels",
        )


def pyramid_levels(spec: EncoderSpec) -> tuple[str, ...]:
    """The levels at 4, 8 and 16 px of a convolutional encoder, of an EfficientNet at 8, 16 and 32.

    The 24 channels that an EfficientNet-Lite0 has at 4 px say so little of what is normal that a
    decoder restores defects in them too (`benchmarks/defaults.py distillation`).
    """
    if spec.family == "efficientnet":
        # Blocks 2, 4 and 6 of most of them; some have fewer.
        return feature_names(spec)[-3:]
    if spec.family == "vit":
        # Refused with the reason once the encoder is known.
        return ("blocks.3", "blocks.6", "blocks.9")
    return feature_names(spec)[-4:-1]


def decoder_widths(channels: Sequence[int]) -> list[int]:
    """Of the decoder's stages for levels of so many channels, finest first."""
    return [max(c, least) for c, least in zip(channels, _LEAST_WIDTHS, strict=True)]


def block_of(spec: EncoderSpec, width: int) -> BlockKind:
    """The kind of residual block that mirrors an encoder with a stage of such a width."""
    if width < _WIDE:
        return "basic"
    return "wide-bottleneck" if "wide" in spec.timm_name else "bottleneck"


def distance_maps(targets: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
    """1 - cosine over the channels of each level, (B, levels, h, w) on the first level's grid."""
    size = targets[0].shape[-2:]
    maps = []
    for target, output in zip(targets, outputs, strict=True):
        distance = at_places(target, output)[:, None]
        maps.append(F.interpolate(distance, size, mode="bilinear", align_corners=False))
    return torch.cat(maps, dim=1)

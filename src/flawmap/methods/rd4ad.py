"""RD4AD: a decoder restores the encoder's levels from one compact embedding of all of them.

Source: Deng and Li, Anomaly Detection via Reverse Distillation from One-Class Embedding, CVPR 2022,
arXiv 2201.10703. Reference code: hq-deng/RD4AD, MIT.

With a ResNet this is the paper's form. What differs: an encoder whose levels are narrow (an
EfficientNet) gets a decoder that is wider than they are, with a linear layer back to their
channels; the distances of the levels are brought to the finest level's grid and summed there, and
upsampled and smoothed by scoring; the last, smaller batch of an epoch is left out, so that batch
normalisation sees equally many images in every step: a whole batch, or all images if they are
fewer. Of several processes each normalises by its own share of the batch, so a fit depends on how
many there are.

Published figures are of one model for each category; the default here, as for every method, is one
for all, and `--separate` gives the former.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from flawmap.config import MethodConfig
from flawmap.encoders.encoder import Encoder, feature_names
from flawmap.encoders.table import EncoderSpec
from flawmap.errors import ConfigError
from flawmap.methods.base import Features, IterativeMethod
from flawmap.methods.layers.residual import Block, Residual, initialise
from flawmap.training.optim import Schedule, short_schedule

_LEAST_WIDTHS = (64, 128, 256)
"""Of the decoder's stages, finest first: those of a ResNet18."""
_WIDE = 1024
"""Stages as wide as this are made of bottleneck blocks."""


class RD4ADConfig(MethodConfig):
    """Options of RD4AD."""

    name: Literal["rd4ad"] = "rd4ad"
    levels: tuple[str, ...] | None = None
    """Three encoder levels, each half as fine as the one before; finest first."""
    embedding_blocks: int = Field(default=3, ge=1)
    """Residual blocks from the joined levels to the embedding."""
    decoder_blocks: tuple[int, int, int] = (3, 4, 6)
    """Residual blocks of the decoder's stages, coarsest first."""
    learning_rate: float = Field(default=5e-3, gt=0)
    schedule: Schedule = "constant"
    """cosine: a warm-up of 20 iterations, then down to a hundredth of the rate."""


class RD4AD(IterativeMethod):
    """Where the restored levels point elsewhere, something is anomalous."""

    Config = RD4ADConfig
    summary = "a decoder restores the encoder's levels from a compact embedding of good images"
    source = "Deng and Li, CVPR 2022, arXiv 2201.10703 (reference code MIT)"
    defaults: ClassVar[Mapping[str, Any]] = {
        "encoder.name": "lite0",
        "data.size": [256, 256],
        "scoring.sigma": 4.0,
        "scoring.pooling": "max",
        "training.iterations": 5000,
        "training.batch_size": 16,
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cpu": {
            "training.iterations": 800,
            "training.batch_size": 8,
            "method.embedding_blocks": 1,
            "method.decoder_blocks": [1, 1, 1],
            "method.schedule": "cosine",
        },
        "gpu": {},
        # Published models learn every training image.
        "paper": {"encoder.name": "wide_resnet50_2", "calibration.strategy": "off"},
    }
    free_on_start = frozenset({"learning_rate", "schedule"})

    def __init__(self, config: RD4ADConfig, encoder: Encoder) -> None:
        super().__init__(encoder)
        require_pyramid(encoder)
        self.config = config
        channels = encoder.channels
        widths = decoder_widths(channels)
        block = block_of(encoder.spec, widths[-1])
        self.embedding = Embedding(channels, widths[-1], block, config.embedding_blocks)
        self.decoder = Decoder(channels, widths, block, config.decoder_blocks)

    @classmethod
    def default_levels(cls, spec: EncoderSpec) -> tuple[str, ...]:
        """The levels at 4, 8 and 16 px."""
        return pyramid_levels(spec)

    @classmethod
    def build(
        cls,
        config: RD4ADConfig,
        encoder: Encoder,
        input_size: tuple[int, int],
        generator: torch.Generator,
    ) -> RD4AD:
        method = cls(config, encoder)
        initialise(method, generator)
        return method

    def extract(self, images: Tensor) -> Features:
        """The three levels, (B, C, h, w) each, finest first."""
        return tuple(self.encoder(images))

    def restore_levels(self, features: Features) -> list[Tensor]:
        """The decoder's version of the levels, with their shapes."""
        sizes = [(level.shape[-2], level.shape[-1]) for level in features]
        found: list[Tensor] = self.decoder(self.embedding(features), sizes)
        return found

    def loss(self, features: Features, step: int) -> Tensor:
        return whole_cosine(features, self.restore_levels(features))

    def anomaly_map(self, features: Features) -> Tensor:
        """Sum over the levels of 1 - cosine, (B, 1, h, w) on the finest grid."""
        return distance_maps(features, self.restore_levels(features)).sum(dim=1, keepdim=True)

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.config.learning_rate, betas=(0.5, 0.999))

    def learning_rate(self, step: int, total: int) -> float:
        return short_schedule(self.config.schedule, step, total, self.config.learning_rate)


class Embedding(nn.Module):
    """All levels joined on the coarsest one's grid, then brought to half of it.

    Args:
        channels: Of the levels, finest first.
        width: To which each level is brought before they are joined; the embedding has twice it.
        block: Kind of residual block.
        depth: How many of them.
    """

    def __init__(self, channels: Sequence[int], width: int, block: Block, depth: int) -> None:
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
        """(B, 2 * width, h / 2, w / 2) of levels (B, C, h, w) each."""
        joined = torch.cat([way(x) for way, x in zip(self.ways, levels, strict=True)], dim=1)
        found: Tensor = self.blocks(joined)
        return found


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
        block: Block,
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
                twice the one below it.
        """
        found = []
        for stage, head, size in zip(self.stages, self.heads, reversed(sizes), strict=True):
            x = stage(x)[..., : size[0], : size[1]]
            found.append(head(x))
        return found[::-1]


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
    """The levels at 4, 8 and 16 px of a convolutional encoder."""
    if spec.family == "efficientnet":
        return ("blocks.1", "blocks.2", "blocks.4")
    if spec.family == "vit":
        # Refused with the reason once the encoder is known.
        return ("blocks.3", "blocks.6", "blocks.9")
    return tuple(feature_names(spec)[-4:-1])


def decoder_widths(channels: Sequence[int]) -> list[int]:
    """Of the decoder's stages for levels of so many channels, finest first."""
    return [max(c, least) for c, least in zip(channels, _LEAST_WIDTHS, strict=True)]


def block_of(spec: EncoderSpec, width: int) -> Block:
    """The kind of residual block that mirrors an encoder with a stage of such a width."""
    if width < _WIDE:
        return "basic"
    return "wide-bottleneck" if "wide" in spec.timm_name else "bottleneck"


def whole_cosine(targets: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
    """Sum over the levels of the mean over images of 1 - cosine of the whole level.

    Args:
        targets: (B, C, h, w) each; no gradient flows into them.
        outputs: The same shapes.
    """
    losses = [
        1 - F.cosine_similarity(t.detach().flatten(1).float(), o.flatten(1).float(), dim=1).mean()
        for t, o in zip(targets, outputs, strict=True)
    ]
    return torch.stack(losses).sum()


def distance_maps(targets: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
    """1 - cosine over the channels of each level, (B, levels, h, w) on the first level's grid."""
    size = targets[0].shape[-2:]
    maps = []
    for target, output in zip(targets, outputs, strict=True):
        distance = 1 - F.cosine_similarity(target.float(), output.float(), dim=1)
        maps.append(F.interpolate(distance[:, None], size, mode="bilinear", align_corners=False))
    return torch.cat(maps, dim=1)

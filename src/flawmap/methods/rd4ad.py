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
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flawmap.config import MethodConfig
from flawmap.encoders.encoder import Encoder
from flawmap.encoders.table import EncoderSpec
from flawmap.methods.base import Features, IterativeMethod
from flawmap.methods.layers.cosine import of_wholes
from flawmap.methods.layers.pyramid import (
    Decoder,
    Embedding,
    block_of,
    decoder_widths,
    distance_maps,
    pyramid_levels,
    require_pyramid,
)
from flawmap.methods.layers.residual import initialise
from flawmap.training.optim import Schedule, short_schedule

Blocks = Annotated[int, Field(ge=1)]


class RD4ADConfig(MethodConfig):
    """Options of RD4AD."""

    name: Literal["rd4ad"] = "rd4ad"
    levels: tuple[str, ...] | None = None
    """Three encoder levels, each half as fine as the one before; finest first."""
    embedding_blocks: int = Field(default=3, ge=1)
    """Residual blocks from the joined levels to the embedding."""
    decoder_blocks: tuple[Blocks, Blocks, Blocks] = (3, 4, 6)
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
            "training.iterations": 600,
            "training.max_epochs": 50,
            "training.batch_size": 8,
            "method.embedding_blocks": 1,
            "method.decoder_blocks": [1, 1, 1],
            "method.schedule": "cosine",
        },
        "gpu": {"training.max_epochs": 200},
        # Published models learn every training image, 200 times.
        "paper": {
            "encoder.name": "wide_resnet50_2",
            "training.iterations": 1_000_000,
            "training.max_epochs": 200,
            "training.precision": "float32",
            "calibration.strategy": "off",
        },
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
        """The levels at 4, 8 and 16 px, of an EfficientNet at 8, 16 and 32 px."""
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

    def decoded(self, features: Features) -> list[Tensor]:
        """The decoder's version of the levels, with their shapes."""
        sizes = [(level.shape[-2], level.shape[-1]) for level in features]
        found: list[Tensor] = self.decoder(self.embedding(features), sizes)
        return found

    def loss(self, features: Features, step: int) -> Tensor:
        return whole_cosine(features, self.decoded(features))

    def anomaly_map(self, features: Features) -> Tensor:
        """Sum over the levels of 1 - cosine, (B, 1, h, w) on the finest grid."""
        return distance_maps(features, self.decoded(features)).sum(dim=1, keepdim=True)

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.config.learning_rate, betas=(0.5, 0.999))

    def learning_rate(self, step: int, total: int) -> float:
        return short_schedule(self.config.schedule, step, total, self.config.learning_rate)


def whole_cosine(targets: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
    """Sum over the levels of the mean over images of 1 - cosine of the whole level.

    Args:
        targets: (B, C, h, w) each; no gradient flows into them.
        outputs: The same shapes.
    """
    losses = [of_wholes(t.detach(), o).mean() for t, o in zip(targets, outputs, strict=True)]
    return torch.stack(losses).sum()

"""A network of an encoder's shape that has learnt nothing: the student of a teacher."""

from __future__ import annotations

from typing import Any

import timm
from torch import Tensor, nn

from flawmap.encoders.encoder import Encoder
from flawmap.errors import ConfigError


class Unlearnt(nn.Module):
    """Gives levels of the same shapes as a convolutional encoder's; all of it learns.

    Args:
        encoder: Whose shape it has.

    Raises:
        ConfigError: The encoder's levels are not timm's feature levels, one per stride.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        name = encoder.spec.timm_name.split(".")[0]
        found: list[int] = []
        if encoder.spec.family != "vit":
            whole: Any = timm.create_model(name, features_only=True)
            found = list(whole.feature_info.reduction())
        if any(stride not in found for stride in encoder.strides):
            raise ConfigError(
                "a student of the encoder's shape needs a convolutional encoder with one level per "
                "stride",
                where="encoder.name",
                given=encoder.spec.name,
                hint="use --encoder lite0, or another convolutional one",
            )
        picks = tuple(found.index(stride) for stride in encoder.strides)
        network: Any = timm.create_model(name, features_only=True, out_indices=picks)
        self.network = network
        self.channels: tuple[int, ...] = tuple(network.feature_info.channels())
        self.register_buffer("mean", encoder.mean.clone(), persistent=False)
        self.register_buffer("std", encoder.std.clone(), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Levels, (B, C, h, w) each, of images in [0, 1]."""
        found: list[Tensor] = self.network((images - self.mean) / self.std)
        return found

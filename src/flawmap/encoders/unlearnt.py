"""A network of an encoder's shape that has learnt nothing: the student of a teacher."""

from __future__ import annotations

from torch import Tensor, nn

from flawmap.encoders.encoder import Encoder, channels_last, create, picked
from flawmap.errors import ConfigError


class Unlearnt(nn.Module):
    """Gives levels of the same shapes as a convolutional encoder's; all of it learns.

    Args:
        encoder: Whose shape it has.

    Raises:
        ConfigError: The encoder is not a convolutional one.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        spec = encoder.spec
        if spec.family not in ("efficientnet", "other"):
            raise ConfigError(
                "a student of the encoder's shape needs a convolutional encoder",
                where="encoder.name",
                given=spec.name,
                hint="use --encoder lite0, or another convolutional one",
            )
        network = create(spec, encoder.levels)
        self.channels_last = False
        if spec.family == "other":
            names = network.feature_info.module_name()
            self.picks = [names.index(level) for level in encoder.levels]
            self.network: nn.Module = network
            self.channels_last = channels_last(spec, network)
        else:
            # As the encoder's own, but with its batch normalisation.
            self.picks = [int(level.removeprefix("blocks.")) for level in encoder.levels]
            stages = [nn.Sequential(network.conv_stem, network.bn1), *network.blocks]
            self.network = Stages(stages[: max(self.picks) + 2])
        self.register_buffer("mean", encoder.mean.clone(), persistent=False)
        self.register_buffer("std", encoder.std.clone(), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Levels, (B, C, h, w) each, of images in [0, 1]."""
        found = self.network((images - self.mean) / self.std)
        return picked(found, self.picks, self.channels_last)


class Stages(nn.ModuleList):
    """One after the other; gives what comes out of each but the first."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to one tensor per stage."""
        found = []
        for stage in self:
            x = stage(x)
            found.append(x)
        return found[1:]

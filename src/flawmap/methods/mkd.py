"""MKD: a small network copies a pretrained one on good images only; what it copies badly is flawed.

Source: Salehi et al., Multiresolution Knowledge Distillation for Anomaly Detection, CVPR 2021,
arXiv 2011.11108. Reference code: rohban-lab/Knowledge_Distillation_AD, MIT.

With a VGG16 encoder and the preset "paper" this is the published form: the cloner copies the last
four max-pools, the image score is the loss of the image, the map is the gradient of that loss with
respect to the pixels, through both networks. What differs by default: any encoder is the source;
the networks see normalised images; the loss is its direction term alone; the map shows how far the
layers are from their copies at each place, and the image score is its highest value, since a small
flaw is next to nothing in the loss of a whole image; maps are not scaled one by one, so that they
can be compared between images; bright spots are not removed from them by a morphological opening.
Published figures are of one model for each category; the default here, as for every method, is one
for all, and `--separate` gives the former.
Of several processes each takes its batch normalisations from its own share of the batch, so a fit
depends on how many there are.

A cloner for another encoder has the widths and strides of the levels that it copies. A level that
takes negative values is copied by a convolution without ReLU, which stands behind the pool. A
source whose px per feature px are no power of two (a ViT) is copied from a resized image whose grid
is the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from flawmap.config import MethodConfig
from flawmap.encoders.encoder import Encoder, feature_names
from flawmap.encoders.table import EncoderSpec
from flawmap.errors import ConfigError
from flawmap.methods.base import Features, IterativeMethod
from flawmap.methods.layers.cloner import Cloner, plan_cloner
from flawmap.methods.layers.cosine import at_places, of_wholes
from flawmap.methods.layers.distributed import gathered
from flawmap.training.optim import Schedule, short_schedule


class MKDConfig(MethodConfig):
    """Options of MKD."""

    name: Literal["mkd"] = "mkd"
    levels: tuple[str, ...] | None = None
    """Encoder levels that the cloner copies, finest first; of a VGG, the pools after them."""
    critical_layers: int | None = Field(default=None, ge=1)
    """Compare only the last so many of the levels; None compares all."""
    scored_layers: int = Field(default=3, ge=1)
    """Gradients are of the loss over the last so many of those that are compared, and score=whole
    is that loss."""
    cloner: Literal["smaller", "equal"] = "smaller"
    """equal: inner layers as wide as the level that they lead to, and half as wide for each pool
    before it, but never narrower than `width`."""
    width: int = Field(default=16, ge=1)
    """Channels of the inner layers of the smaller cloner."""
    terms: Literal["both", "value", "direction"] = "direction"
    """What is compared: differences of activations, the angle between them, or (published) both."""
    value_weight: Annotated[float, Field(ge=0, strict=True)] | Literal["auto"] = "auto"
    """Weight of the differences beside the angle; auto: both count alike before any learning."""
    compared: Literal["wholes", "places"] = "wholes"
    """wholes (published): a layer's activations as one vector; places: the vectors at each place,
    whose channels have mean 0 and deviation 1 over the first batch."""
    attribution: Literal["gradients", "smoothgrad", "guided", "distances"] = "distances"
    """What the map shows. distances: how far each place is from its copy, summed over the layers
    that are compared; gradients (published): how much each px changes the loss; smoothgrad: the
    mean of that over noisy copies; guided: that, where the cloner passes no negative gradient."""
    noisy_copies: int = Field(default=50, ge=1)
    """Of smoothgrad."""
    noise: float = Field(default=0.15, gt=0)
    """Of smoothgrad: standard deviation, as a share of the image's range."""
    score: Literal["peak", "whole"] = "peak"
    """The image score. whole: the loss of the image over the layers that are scored, as published;
    peak: the highest distance at one place, summed over the layers that are compared."""
    map_scale: Literal["raw", "image"] = "raw"
    """image: each map between its own minimum and 99th percentile, as published."""
    normalise_input: bool = True
    """Give the networks images with the encoder's mean and deviation taken off; else in 0..1."""
    images_at_once: int = Field(default=16, ge=1)
    """Images that are localised together; more need more memory."""
    learning_rate: float = Field(default=1e-3, gt=0)
    schedule: Schedule = "constant"
    """cosine: a short warm-up, then the rate falls to a hundredth at the last iteration."""

    def idle(self, encoder: str) -> dict[str, str]:
        found = {}
        if self.terms != "both":
            found["value_weight"] = "method.terms=both"
        if self.attribution != "smoothgrad":
            found |= dict.fromkeys(("noisy_copies", "noise"), "method.attribution=smoothgrad")
        if self.attribution == "distances" and self.score == "peak":
            found["scored_layers"] = "method.score=whole, or another method.attribution"
        return found


class MKD(IterativeMethod):
    """Where the cloner differs from its source is anomalous."""

    Config = MKDConfig
    summary = "a small network copies the encoder on good images; where it fails is anomalous"
    source = "Salehi et al., CVPR 2021, arXiv 2011.11108 (reference code MIT)"
    scores_images = True
    defaults: ClassVar[Mapping[str, Any]] = {
        "encoder.name": "lite0",
        "data.size": [256, 256],
        "scoring.sigma": 4.0,
        "scoring.pooling": "method",
        "training.iterations": 5000,
        "training.batch_size": 16,
        "training.precision": "float32",
    }
    defaults_by_encoder: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "vit-*": {"data.size": [252, 252]},
        "dinov2-*": {"data.size": [252, 252]},
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cpu": {"training.iterations": 400},
        "gpu": {"training.batch_size": 64},
        "paper": {
            "encoder.name": "vgg16",
            "data.size": [128, 128],
            "training.batch_size": 64,
            # 601 epochs.
            "training.iterations": 1_000_000,
            "training.max_epochs": 601,
            "method.terms": "both",
            "method.value_weight": 0.5,
            "method.normalise_input": False,
            "method.attribution": "gradients",
            "method.map_scale": "image",
            "method.score": "whole",
            "scoring.opening": 3,
            # Published models learn every training image.
            "calibration.strategy": "off",
        },
    }
    free_on_start = frozenset(
        {
            *("learning_rate", "schedule", "attribution", "noisy_copies", "noise", "map_scale"),
            *("images_at_once", "scored_layers", "score"),
        }
    )

    value_weight: Tensor
    channel_mean: Tensor
    channel_deviation: Tensor

    def __init__(self, config: MKDConfig, encoder: Encoder, size: tuple[int, int]) -> None:
        super().__init__(encoder)
        self.config = config
        # The paper's critical layers are the pools; timm's levels of a VGG lie before them, except
        # the last one, which is a pool.
        self.vgg = encoder.spec.timm_name.startswith("vgg")
        self.pools = tuple(
            self.vgg and level != feature_names(encoder.spec)[-1] for level in encoder.levels
        )
        n_levels = len(encoder.channels)
        critical = config.critical_layers or n_levels
        if critical > n_levels:
            raise ConfigError(
                "more layers are to be compared than there are encoder levels",
                where="method.critical_layers",
                given=critical,
                expected=f"at most {n_levels}",
            )
        self.critical = range(n_levels - critical, n_levels)
        strides = [s * (1 + pool) for s, pool in zip(encoder.strides, self.pools, strict=True)]
        self.scale, stages = plan_cloner(
            encoder.channels, strides, config.width, equal=config.cloner == "equal"
        )
        if min(size) * self.scale < 2 ** sum(stage.pool for stage in stages):
            raise ConfigError(
                "the images are smaller than a px of the deepest level",
                where="data.size",
                given=size,
                expected=f"at least {strides[-1]} px",
            )
        self.cloner = Cloner(stages, self._rectified(size), published=self.vgg)
        weight = 0.0 if config.value_weight == "auto" else config.value_weight
        self.register_buffer("value_weight", torch.tensor(weight))
        if config.compared == "places":
            channels = sum(encoder.channels[i] for i in self.critical)
            self.register_buffer("channel_mean", torch.zeros(channels))
            # Zeros: nothing was learnt yet.
            self.register_buffer("channel_deviation", torch.zeros(channels))

    @classmethod
    def default_levels(cls, spec: EncoderSpec) -> tuple[str, ...]:
        """Four levels, or three of an EfficientNet with few blocks; of a VGG those before the last
        four pools."""
        if spec.family == "vit":
            return ("blocks.2", "blocks.5", "blocks.8", "blocks.11")
        names = feature_names(spec)
        if spec.family == "efficientnet":
            # At 8, 16 and 32 px, and the block before the last: 2, 4, 5 and 6 of most of them.
            *finer, last = names[-3:]
            before = f"blocks.{int(last.removeprefix('blocks.')) - 1}"
            return tuple(dict.fromkeys((*finer, before, last)))
        # timm names the last pool of a VGG as a level of its own.
        return names[-5:-1] if spec.timm_name.startswith("vgg") else names[-4:]

    @classmethod
    def build(
        cls,
        config: MKDConfig,
        encoder: Encoder,
        input_size: tuple[int, int],
        generator: torch.Generator,
    ) -> MKD:
        method = cls(config, encoder, input_size)
        for module in method.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight, generator=generator)
        return method

    def _rectified(self, size: tuple[int, int]) -> tuple[bool, ...]:
        """For each level, whether it comes from a ReLU.

        Args:
            size: (H, W) of the input in px; there are encoders that take no other.
        """
        if self.encoder.spec.family != "other" or self.config.compared == "places":
            return (False,) * len(self.encoder.channels)
        if self.vgg:
            return (True,) * len(self.encoder.channels)
        probe = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
        probe = probe.to(self.encoder.mean.device)
        with torch.no_grad():
            return tuple(bool((level >= 0).all()) for level in self._source(probe))

    def _source(self, images: Tensor) -> list[Tensor]:
        """The levels that are copied, (B, C, h, w) each, of images in [0, 1]."""
        encoder = self.encoder
        if not self.config.normalise_input:
            images = images * encoder.std + encoder.mean
        levels = zip(encoder(images), self.pools, strict=True)
        return [F.max_pool2d(level, 2) if pool else level for level, pool in levels]

    def _clone(self, images: Tensor, *, guided: bool = False) -> list[Tensor]:
        """The cloner's version of them, with their shapes."""
        if self.config.normalise_input:
            images = (images - self.encoder.mean) / self.encoder.std
        if self.scale != 1:
            size = [round(n * self.scale) for n in images.shape[-2:]]
            images = F.interpolate(images, size, mode="bilinear", align_corners=False)
        found: list[Tensor] = self.cloner(images, guided=guided)
        return found

    def extract(self, images: Tensor) -> Features:
        """The images, which the cloner learns from, as float16 with 11 bits, and the levels that
        are compared."""
        levels = self._source(images)
        return (images.half(), *(levels[i] for i in self.critical))

    def loss(self, features: Features, step: int) -> Tensor:
        images, targets = features[0].float(), features[1:]
        clones = self._clone(images)
        # In training alone: held-out images are looked at before the first step too.
        first = self.training and step == 0
        if first and self.config.compared == "places" and not bool(self.channel_deviation.any()):
            self._measure(targets)
        direction, value = self._distances(
            self._standardised(targets), [clones[i] for i in self.critical]
        )
        if first and self.config.value_weight == "auto" and not bool(self.value_weight):
            means = gathered(torch.stack([direction, value], dim=1).detach()).mean(dim=0)
            self.value_weight.copy_(means[0] / means[1].clamp(min=1e-12))
        return self._joined(direction, value).mean()

    def _measure(self, levels: Sequence[Tensor]) -> None:
        """Takes mean and deviation of the channels of the levels that are compared."""
        each = torch.cat([level.detach().float().mean((2, 3)) for level in levels], dim=1)
        squares = [level.detach().float().square().mean((2, 3)) for level in levels]
        mean = gathered(each).mean(dim=0)
        variance = gathered(torch.cat(squares, dim=1)).mean(dim=0) - mean.square()
        deviation = variance.clamp(min=0).sqrt()
        # A channel that hardly ever moves would outweigh all others as soon as it does.
        parts = torch.split(deviation, [level.shape[1] for level in levels])
        floors = [torch.full_like(part, 0.1 * float(part.mean()) + 1e-6) for part in parts]
        self.channel_mean.copy_(mean)
        self.channel_deviation.copy_(torch.maximum(deviation, torch.cat(floors)))

    def _standardised(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """The levels that are compared, as the cloner is to give them."""
        if self.config.compared == "wholes":
            return list(levels)
        known = self.channel_deviation
        scale = torch.where(known > 0, known, 1.0)[:, None, None]
        sizes = [level.shape[1] for level in levels]
        parts = zip(
            levels,
            torch.split(self.channel_mean[:, None, None], sizes),
            torch.split(scale, sizes),
            strict=True,
        )
        return [(level.float() - mean) / deviation for level, mean, deviation in parts]

    def _distances(
        self, source: Sequence[Tensor], clones: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        return distances(source, clones, places=self.config.compared == "places")

    def _joined(self, direction: Tensor, value: Tensor) -> Tensor:
        if self.config.terms == "direction":
            return direction
        if self.config.terms == "value":
            return value
        return direction + self.value_weight * value

    def image_scores(self, images: Tensor) -> Tensor:
        """The scores of `scored_maps`, by a forward pass alone."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            parts = torch.split(images, self.config.images_at_once)
            return torch.cat([self._scores(*self._both(x)) for x in parts])

    def _both(self, images: Tensor, *, guided: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        """The levels that are compared, and the cloner's version of them."""
        source, clones = self._source(images), self._clone(images, guided=guided)
        levels = self._standardised([source[i] for i in self.critical])
        return levels, [clones[i] for i in self.critical]

    def _losses(self, source: Sequence[Tensor], clones: Sequence[Tensor]) -> Tensor:
        """The loss of each image over the layers that are scored, (B,)."""
        last = self.config.scored_layers
        return self._joined(*self._distances(source[-last:], clones[-last:]))

    def _scores(self, source: Sequence[Tensor], clones: Sequence[Tensor]) -> Tensor:
        """The score of each image, (B,)."""
        if self.config.score == "whole":
            return self._losses(source, clones)
        # The loss is a mean over the whole image, in which a small flaw is next to nothing.
        return self._at_places(source, clones).flatten(1).amax(dim=1)

    def _at_places(self, source: Sequence[Tensor], clones: Sequence[Tensor]) -> Tensor:
        """The sum of the compared layers' distances at each place of the finest, (B, 1, h, w)."""
        maps = []
        for target, clone in paired(source, clones):
            value = (target - clone).square().mean(dim=1)
            maps.append(self._joined(at_places(target, clone), value)[:, None])
        size = maps[0].shape[-2:]
        return torch.stack(
            [F.interpolate(m, size, mode="bilinear", align_corners=False) for m in maps]
        ).sum(dim=0)

    def scored_maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, 1, h, w) and scores (B,).

        One forward and one backward pass give many images' gradients at their px; distances need
        no backward pass, and lie on the grid of the finest layer.
        """
        localised = (
            self._distant if self.config.attribution == "distances" else self._differentiated
        )
        found = [localised(part) for part in torch.split(images, self.config.images_at_once)]
        maps, scores = (torch.cat(parts) for parts in zip(*found, strict=True))
        return self._scaled(maps) if self.config.map_scale == "image" else maps, scores

    def anomaly_map(self, features: Features) -> Tensor:
        """(B, 1, h, w), see `scored_maps`."""
        return self.scored_maps(features[0].float())[0]

    def _distant(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            source, clones = self._both(images)
            maps = self._at_places(source, clones)
            whole = self.config.score == "whole"
            return maps, self._losses(source, clones) if whole else maps.flatten(1).amax(dim=1)

    def _differentiated(self, images: Tensor) -> tuple[Tensor, Tensor]:
        # Callers score in inference mode, whose tensors have no gradients: a copy has.
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            # Differences of activations that are nearly equal: bfloat16 would drown them.
            torch.autocast(images.device.type, enabled=False),
        ):
            images = images.detach().clone()
            if self.config.attribution == "smoothgrad":
                scores = self.image_scores(images)
                copies = self._noisy(images)
                gradient = torch.zeros_like(images)
                for copy in copies:
                    gradient += self._gradient(copy)[2] / self.config.noisy_copies
            else:
                source, clones, gradient = self._gradient(images)
                with torch.no_grad():
                    scores = self._scores(source, clones)
        return gradient.abs().sum(dim=1, keepdim=True), scores

    def _gradient(self, images: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """The levels, their copies, and the gradients of the losses with respect to the px,
        (B, 3, H, W)."""
        images.requires_grad_()
        source, clones = self._both(images, guided=self.config.attribution == "guided")
        losses = self._losses(source, clones)
        # An image's loss depends on its own px alone, so the sum's gradient is each one's.
        # Not autograd.grad: torch's counter of operations cannot follow that one to the images.
        torch.autograd.backward([losses.sum()], inputs=[images])
        assert images.grad is not None
        return source, clones, images.grad

    def _noisy(self, images: Tensor) -> Iterator[Tensor]:
        """Copies with noise that is the same for every image and in every call."""
        spread = self.config.noise * (images.amax((1, 2, 3)) - images.amin((1, 2, 3)))
        generator = torch.Generator().manual_seed(0)
        for _ in range(self.config.noisy_copies):
            noise = torch.randn(images.shape[1:], generator=generator).to(images.device)
            yield images + spread.view(-1, 1, 1, 1) * noise

    @staticmethod
    def _scaled(maps: Tensor) -> Tensor:
        """Each map from its minimum to its 99th percentile, in [0, 1]."""
        ordered = maps.flatten(1).sort(dim=1).values
        low, at = ordered[:, 0], 0.99 * (ordered.shape[1] - 1)
        below, above = ordered[:, math.floor(at)], ordered[:, math.ceil(at)]
        span = torch.lerp(below, above, at - math.floor(at)) - low
        shape = (-1, 1, 1, 1)
        # A map without any difference stays zero.
        return ((maps - low.view(shape)) / span.clamp(min=1e-12).view(shape)).clamp(max=1)

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.config.learning_rate)

    def learning_rate(self, step: int, total: int) -> float:
        return short_schedule(self.config.schedule, step, total, self.config.learning_rate)


def distances(
    source: Sequence[Tensor], clones: Sequence[Tensor], *, places: bool = False
) -> tuple[Tensor, Tensor]:
    """How far two networks' layers are apart, for each image and summed over the layers.

    Args:
        source: (B, C, h, w) each.
        clones: As `paired` takes them.
        places: Take the angle at each place, and its mean.

    Returns:
        1 - cosine of the whole activations, and the mean squared difference; (B,) each.
    """
    direction, value = [], []
    for target, clone in paired(source, clones):
        apart = at_places(target, clone).mean(dim=(1, 2)) if places else of_wholes(target, clone)
        direction.append(apart)
        value.append((target - clone).flatten(1).square().mean(dim=1))
    return torch.stack(direction).sum(dim=0), torch.stack(value).sum(dim=0)


def paired(source: Sequence[Tensor], clones: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Each layer and its copy in float32, with the layer's shape.

    Args:
        source: (B, C, h, w) each.
        clones: The same shapes, or some px more at the right and the bottom, which are left out:
            there are encoders that round sizes down.
    """
    for target, clone in zip(source, clones, strict=True):
        yield target.float(), clone[..., : target.shape[-2], : target.shape[-1]].float()

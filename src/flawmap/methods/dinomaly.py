"""Dinomaly: a noisy bottleneck and a linear-attention decoder that reproduce good features only.

Source: Guo et al., Dinomaly: The Less Is More Philosophy in Multi-Class Unsupervised Anomaly
Detection, CVPR 2025, arXiv 2405.14325. Reference code: guojiajeremy/Dinomaly, Apache-2.0.

With a ViT encoder this is the paper's default form, and every option of its ablations is here, as
are the options of its follow-up Dinomaly2 (arXiv 2510.17611). What differs by default: the image is
resized whole instead of cropped; maps are smoothed at input size with a full Gaussian, where the
published code uses a 5 x 5 kernel at 256 x 256; the number of decoder blocks may be smaller for a
CPU. The preset "paper" has the published crop and the published way from raw maps to figures. There
too the positions of a ViT are brought to the grid by timm, with antialiasing. Of Dinomaly2's
subjects, images with depth or infrared channels are left out.

With a convolutional encoder, whose levels have widths and grids of their own: every level is
brought to one grid (average pooling by the whole factor where it is at least twice as fine, then
bilinear where sizes still differ) and each of its vectors to
unit length; the levels together enter the bottleneck through one linear projection to the decoder's
width, with sine-cosine positions added since such features carry none; each of the two groups (the
shallow half and the deep half of the levels, concatenated) is compared with the fused decoder
outputs after a linear projection back to the group's own width. Only the constraints that compare
groups exist there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from flawmap.config import MethodConfig
from flawmap.encoders.encoder import Encoder, ViTEncoder, middle_blocks
from flawmap.encoders.table import EncoderSpec, is_vit
from flawmap.errors import ConfigError
from flawmap.methods.base import Features, IterativeMethod
from flawmap.methods.layers.cosine import at_places
from flawmap.methods.layers.dropout import Dropout
from flawmap.methods.layers.loose import loose_cosine
from flawmap.methods.layers.mixers import (
    HEAD_DIM,
    Block,
    ConvMixer,
    LinearAttention,
    SoftmaxAttention,
    neighbour_mask,
)
from flawmap.training.optim import StableAdamW, scheduled

_NARROW = 256
"""Width of the first Linear of the bottleneck of Dinomaly2."""


class DinomalyConfig(MethodConfig):
    """Options of Dinomaly."""

    name: Literal["dinomaly"] = "dinomaly"
    levels: tuple[str, ...] | None = None
    """Target levels; by default blocks 2..9 of 12, every second of 4..18 of 24, and so on."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Of the noisy bottleneck."""
    jitter: float = Field(default=0.0, ge=0)
    """Instead of dropout: noise on the bottleneck's input, this times length / width."""
    bottleneck: Literal["two-layer", "three-layer"] = "two-layer"
    """three-layer: Dinomaly2's, whose first layer is narrow and learns ten times more slowly."""
    mixer: Literal["linear", "softmax", "conv"] = "linear"
    """How the decoder's blocks mix places: linear attention, softmax attention, convolution."""
    hidden_neighbours: Literal[0, 1, 3] = 0
    """With attention: the square around a place that it may not see, in grid px; 0: none."""
    kernel: Literal[3, 5, 7] = 5
    """With mixer=conv: the side of the convolution."""
    attention_eps: float = Field(default=1e-6, gt=0)
    """Added to the denominator of linear attention."""
    constraint: Literal["two-groups", "one-group", "layers", "every-2", "every-4", "concat"] = (
        "two-groups"
    )
    """What is compared: means of two groups of layers, or of all; every layer, or each second or
    fourth one, with its mirror image; or every second target, joined, with the last output."""
    recentre: bool = False
    """Dinomaly2: targets less their own cls token, to unit variance."""
    loose_loss: bool = True
    """Whether points that are matched well already pass less gradient."""
    depth: int = Field(default=8, ge=2)
    """Decoder blocks (even)."""
    width: int = Field(default=256, ge=64)
    """Decoder width (a multiple of 64) with a convolutional encoder; a ViT's own width is used."""
    stride: int = Field(default=16, ge=1)
    """Input px per grid px with a convolutional encoder."""
    hard_share: float = Field(default=0.1, gt=0, le=1)
    """Share of the points that keep their whole gradient at the end of the loosening."""
    easy_gradient: float = Field(default=0.1, ge=0, le=1)
    """Factor on the gradient of the other points."""
    loosen_iterations: int = Field(default=1000, ge=1)
    """Iterations over which the share falls from 1 to `hard_share`."""
    learning_rate: float = Field(default=2e-3, gt=0)
    final_learning_rate: float = Field(default=2e-4, ge=0)
    """At the end of the cosine; not used with schedule=constant."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up; by iteration, not by epoch."""
    warmup_iterations: int = Field(default=100, ge=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    amsgrad: bool = True
    """Keep the optimiser's second moment at its maximum."""

    def idle(self, encoder: str) -> dict[str, str]:
        found = {}
        if self.jitter:
            found["dropout"] = "method.jitter=0"
        if self.mixer != "conv":
            found["kernel"] = "method.mixer=conv"
        if self.mixer != "linear":
            found["attention_eps"] = "method.mixer=linear"
        if not self.loose_loss:
            for name in ("hard_share", "easy_gradient", "loosen_iterations"):
                found[name] = "method.loose_loss=true"
        if self.schedule == "constant":
            found["final_learning_rate"] = "method.schedule=cosine"
        if is_vit(encoder):
            found |= dict.fromkeys(("width", "stride"), "a convolutional encoder")
        return found


class Dinomaly(IterativeMethod):
    """Features that the decoder cannot reproduce are anomalous."""

    Config = DinomalyConfig
    summary = "a decoder reproduces good features only; one model for many products"
    source = "Guo et al., CVPR 2025, arXiv 2405.14325 (reference code Apache-2.0)"
    defaults: ClassVar[Mapping[str, Any]] = {
        "encoder.name": "vit-s14",
        "data.size": [392, 392],
        "scoring.sigma": 4.0,
        "scoring.pooling": "top",
        "scoring.top_fraction": 0.01,
        "training.iterations": 10_000,
        "training.batch_size": 16,
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cpu": {
            "data.size": [280, 280],
            "training.iterations": 300,
            "training.batch_size": 8,
            "method.depth": 4,
            "method.loosen_iterations": 100,
            "method.warmup_iterations": 20,
        },
        "gpu": {},
        "paper": {
            "encoder.name": "dinov2-base",
            "training.precision": "float32",
            "data.size": [392, 392],
            "data.resize": "crop",
            "data.crop_from": [448, 448],
            # 5 x 5 px of a map of 256 px.
            "scoring.map_size": [256, 256],
            "scoring.reach": 2,
            "scoring.borders": "published",
            # Published models learn every training image.
            "calibration.strategy": "off",
        },
        "dinomaly2": {
            "method.bottleneck": "three-layer",
            "method.dropout": 0.4,
            "method.recentre": True,
            "method.amsgrad": False,
            "method.attention_eps": 1e-8,
            "method.schedule": "constant",
            "training.iterations": 40_000,
        },
    }
    clip_norm = 0.1
    positions: Tensor
    free_on_start = frozenset(
        {
            *("dropout", "jitter", "loose_loss", "hard_share", "easy_gradient", "amsgrad"),
            *("loosen_iterations", "learning_rate", "final_learning_rate", "schedule"),
            *("warmup_iterations", "weight_decay"),
        }
    )

    def __init__(self, config: DinomalyConfig, encoder: Encoder, size: tuple[int, int]) -> None:
        super().__init__(encoder)
        self.config = config
        self.vit = isinstance(encoder, ViTEncoder)
        self._require(config, encoder)
        n_levels = len(encoder.channels)
        self.pairs = _pairs(config.constraint, n_levels, config.depth)
        if self.vit:
            self.grid = encoder.grid(size)[0]
            self.width = encoder.channels[0]
            # Convolutions have no use for tokens that lie on no grid.
            self.prefix = 0 if config.mixer == "conv" else encoder.prefix
            if config.constraint == "concat":
                self.project_out = nn.ModuleList(
                    [nn.Linear(self.width, self.width * len(self.pairs[0][0]))]
                )
        else:
            self.grid = (-(-size[0] // config.stride), -(-size[1] // config.stride))
            self.width = config.width
            self.prefix = 0
            groups = [sum(encoder.channels[i] for i in targets) for targets, _ in self.pairs]
            self.project_in = nn.Linear(sum(groups), self.width)
            self.project_out = nn.ModuleList(nn.Linear(self.width, n) for n in groups)
            self.register_buffer("positions", _sine_cosine(self.grid, self.width), False)
        self.bottleneck = _bottleneck(self.width, config)
        # Blocks after the last one that is compared would compute for nothing.
        n_blocks = config.depth - min(i for _, group in self.pairs for i in group)
        self.decoder = nn.ModuleList(Block(self.width, self._mixer) for _ in range(n_blocks))

    def _mixer(self) -> nn.Module:
        config = self.config
        if config.mixer == "conv":
            return ConvMixer(self.width, self.grid, config.kernel)
        hidden = config.hidden_neighbours
        seen = neighbour_mask(self.grid, hidden, self.prefix) if hidden else None
        if config.mixer == "softmax":
            return SoftmaxAttention(self.width, seen)
        return LinearAttention(self.width, seen, eps=config.attention_eps)

    def _require(self, config: DinomalyConfig, encoder: Encoder) -> None:
        n_levels = len(encoder.channels)
        if n_levels < 2:
            raise ConfigError(
                "at least two encoder levels are needed, for two groups",
                where="method.levels",
                given=encoder.levels,
            )
        if config.constraint not in _GROUPED:
            if not self.vit:
                raise ConfigError(
                    f"the constraint '{config.constraint}' compares single layers of one width, "
                    "which a convolutional encoder does not have",
                    where="method.constraint",
                    given=config.constraint,
                    expected=f"one of: {', '.join(_GROUPED)}",
                )
            if config.constraint != "concat" and config.depth != n_levels:
                raise ConfigError(
                    f"the constraint '{config.constraint}' pairs each target level with a decoder "
                    "block, so there must be as many",
                    where="method.depth",
                    given=config.depth,
                    expected=f"{n_levels}, the number of target levels",
                )
        if not _pairs(config.constraint, n_levels, config.depth):
            raise ConfigError(
                f"the constraint '{config.constraint}' needs more target levels",
                where="method.levels",
                given=encoder.levels,
                expected="at least 4",
            )
        if config.recentre and not encoder.has_cls:
            raise ConfigError(
                "recentring subtracts the cls token, which this encoder does not have",
                where="method.recentre",
                given=encoder.spec.name,
                hint="use a ViT encoder, or --set method.recentre=false",
            )
        if self.vit and encoder.channels[0] % HEAD_DIM:
            raise ConfigError(
                f"the decoder is as wide as the encoder, in heads of {HEAD_DIM}",
                where="encoder.name",
                given=f"{encoder.spec.name}, {encoder.channels[0]} wide",
                expected=f"a width that is a multiple of {HEAD_DIM}",
            )
        if not self.vit and config.width % HEAD_DIM:
            raise ConfigError(
                f"the decoder's width must be a multiple of {HEAD_DIM}",
                where="method.width",
                given=config.width,
            )

    @classmethod
    def check(cls, config: DinomalyConfig) -> None:
        """Refuses an odd depth, and hidden neighbours without attention."""
        if config.depth % 2:
            raise ConfigError(
                "the decoder's depth must be even: its outputs form two groups",
                where="method.depth",
                given=config.depth,
                expected="2, 4, 6, 8, ...",
            )
        if config.hidden_neighbours and config.mixer == "conv":
            raise ConfigError(
                "hiding neighbours belongs to attention",
                where="method.hidden_neighbours",
                given=config.hidden_neighbours,
                hint="use --set method.mixer=linear or softmax, or hide nothing",
            )

    @classmethod
    def default_levels(cls, spec: EncoderSpec) -> tuple[str, ...]:
        """The paper's blocks for a ViT; four levels of a convolutional encoder."""
        if spec.family == "vit":
            return middle_blocks(spec.depth)
        if spec.family == "efficientnet":
            return ("blocks.2", "blocks.3", "blocks.4", "blocks.5")
        return super().default_levels(spec)

    @classmethod
    def build(
        cls,
        config: DinomalyConfig,
        encoder: Encoder,
        input_size: tuple[int, int],
        generator: torch.Generator,
    ) -> Dinomaly:
        method = cls(config, encoder, input_size)
        for module in method.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.01, a=-0.03, b=0.03, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                bound = 1 / module.kernel_size[0]
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
        return method

    def extract(self, images: Tensor) -> Features:
        """The targets, (B, prefix + h * w, C) each, and what else the bottleneck's input needs.

        For a ViT a target is the mean of its group's levels. The input is the mean of all levels:
        where the targets give it, nothing else is kept, otherwise it comes last.
        """
        encoder = self.encoder
        if not isinstance(encoder, ViTEncoder):
            levels = [self._to_grid(level) for level in encoder(images)]
            return tuple(torch.cat([levels[i] for i in group], dim=-1) for group, _ in self.pairs)
        levels = encoder.tokens(images)
        targets = [self._target([levels[i] for i in group]) for group, _ in self.pairs]
        if self._input_from_targets:
            return tuple(targets)
        mean = torch.stack(levels).mean(dim=0)
        return (*targets, mean[:, self.encoder.prefix - self.prefix :])

    @property
    def _input_from_targets(self) -> bool:
        """Whether the mean of all levels follows from the targets."""
        every = sum(len(targets) for targets, _ in self.pairs) == len(self.encoder.channels)
        return every and not self.config.recentre and self.config.constraint != "concat"

    def _target(self, levels: Sequence[Tensor]) -> Tensor:
        if self.config.constraint == "concat":
            target = torch.cat(list(levels), dim=-1)
        else:
            target = torch.stack(list(levels)).mean(dim=0)
        if self.config.recentre:
            target = F.layer_norm(target - target[:, :1], target.shape[-1:], eps=1e-8)
        return target[:, self.encoder.prefix - self.prefix :]

    def _to_grid(self, level: Tensor) -> Tensor:
        factor = level.shape[-2] // self.grid[0]
        if factor > 1:
            level = F.avg_pool2d(level, factor, ceil_mode=True, count_include_pad=False)
        if level.shape[-2:] != self.grid:
            level = F.interpolate(level, self.grid, mode="bilinear", align_corners=False)
        return F.normalize(level.flatten(2).transpose(1, 2), dim=-1)

    def decoded(self, features: Features) -> tuple[Tensor, ...]:
        """The decoder's version of the targets, with their shapes.

        Args:
            features: See `extract`.
        """
        if not self.vit:
            x = self.project_in(torch.cat(features, dim=-1)) + self.positions
        elif self._input_from_targets:
            shares = [len(targets) for targets, _ in self.pairs]
            parts = [f * n for f, n in zip(features, shares, strict=True)]
            x = torch.stack(parts).sum(dim=0) / sum(shares)
        else:
            x = features[-1]
        if self.training and self.config.jitter:
            noise = torch.randn_like(x) * x.norm(dim=-1, keepdim=True)
            x = x + self.config.jitter / x.shape[-1] * noise
        x = self.bottleneck(x)
        # Mirrored: shallow targets are compared with the last outputs, deep ones with the first.
        outputs: dict[int, Tensor] = {}
        for index, block in enumerate(self.decoder):
            x = block(x)
            outputs[self.config.depth - 1 - index] = x
        fused = [torch.stack([outputs[i] for i in group]).mean(dim=0) for _, group in self.pairs]
        if self.vit and self.config.constraint != "concat":
            return tuple(fused)
        return tuple(project(group) for project, group in zip(self.project_out, fused, strict=True))

    def loss(self, features: Features, step: int) -> Tensor:
        share = self._hard_share(step)
        losses = []
        for target, output in self._compared(features):
            target = target[:, self.prefix :].detach().float()
            output = output[:, self.prefix :].float()
            losses.append(loose_cosine(target, output, share, self.config.easy_gradient))
        return torch.stack(losses).mean()

    def _compared(self, features: Features) -> Iterator[tuple[Tensor, Tensor]]:
        outputs = self.decoded(features)
        return zip(features[: len(outputs)], outputs, strict=True)

    def _hard_share(self, step: int) -> float:
        if not self.config.loose_loss:
            return 1.0
        keep = 1 - self.config.hard_share
        return 1 - min(keep * step / self.config.loosen_iterations, keep)

    def anomaly_map(self, features: Features) -> Tensor:
        """Mean over what is compared of 1 - cosine, (B, 1, h, w)."""
        maps = []
        for target, output in self._compared(features):
            maps.append(at_places(target[:, self.prefix :], output[:, self.prefix :], dim=-1))
        mean = torch.stack(maps).mean(dim=0)  # (B, h * w)
        return mean.view(mean.shape[0], 1, *self.grid)

    def optimizer(self) -> torch.optim.Optimizer:
        slow = list(self.bottleneck[0].parameters()) if self._slow_start else []
        known = {id(p) for p in slow}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.parameters() if id(p) not in known]}
        ]
        if slow:
            groups.append({"params": slow, "lr_scale": 0.1})
        return StableAdamW(
            groups,
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            amsgrad=self.config.amsgrad,
        )

    @property
    def _slow_start(self) -> bool:
        return self.config.bottleneck == "three-layer"

    def learning_rate(self, step: int, total: int) -> float:
        config = self.config
        return scheduled(
            config.schedule,
            step,
            total,
            warmup=config.warmup_iterations,
            base=config.learning_rate,
            final=config.final_learning_rate,
        )


_GROUPED = ("two-groups", "one-group")


def _pairs(
    constraint: str, n_levels: int, depth: int
) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """What is compared with what: target levels with decoder outputs, these counted from the last.

    Example:
        >>> _pairs("two-groups", 4, 4)
        (((0, 1), (0, 1)), ((2, 3), (2, 3)))
    """
    levels, blocks = tuple(range(n_levels)), tuple(range(depth))
    if constraint == "one-group":
        return ((levels, blocks),)
    if constraint == "concat":
        return ((levels[1::2], blocks[:1]),)
    if constraint == "two-groups":
        half, middle = n_levels // 2, depth // 2
        return (levels[:half], blocks[:middle]), (levels[half:], blocks[middle:])
    every = {"layers": 1, "every-2": 2, "every-4": 4}[constraint]
    return tuple(((i,), (i,)) for i in levels[every - 1 :: every])


def _bottleneck(width: int, config: DinomalyConfig) -> nn.Sequential:
    p = 0.0 if config.jitter else config.dropout
    last = [
        nn.GELU(),
        Dropout(p),
        nn.Linear(4 * width, width),
        Dropout(p),
    ]
    if config.bottleneck == "three-layer":
        first = [nn.Linear(width, _NARROW), Dropout(p), nn.Linear(_NARROW, 4 * width)]
        return nn.Sequential(*first, *last)
    return nn.Sequential(Dropout(p), nn.Linear(width, 4 * width), *last)


def _sine_cosine(grid: tuple[int, int], width: int) -> Tensor:
    """(h * w, width) positions: a quarter each of sine and cosine of y and of x."""
    quarter = width // 4
    rates = torch.exp(-math.log(10_000.0) * torch.arange(quarter) / quarter)
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    parts = []
    for axis in (y, x):
        angle = axis.flatten()[:, None] * rates
        parts += [angle.sin(), angle.cos()]
    return torch.cat(parts, dim=1)

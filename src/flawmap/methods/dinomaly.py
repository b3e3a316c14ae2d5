"""Dinomaly: a noisy bottleneck and a linear-attention decoder that reproduce good features only.

Source: Guo et al., Dinomaly: The Less Is More Philosophy in Multi-Class Unsupervised Anomaly
Detection, CVPR 2025, arXiv 2405.14325. Reference code: guojiajeremy/Dinomaly, Apache-2.0.

With a ViT encoder this is the paper's default form. What differs: the image is resized whole
instead of cropped; maps are smoothed at input size with a full Gaussian, where the published code
uses a 5 x 5 kernel at 256 x 256; the number of decoder blocks may be smaller for a CPU.

With a convolutional encoder, whose levels have widths and grids of their own: every level is
brought to one grid (bilinear, after average pooling when it shrinks) and each of its vectors to
unit length; the levels together enter the bottleneck through one linear projection to the decoder's
width, with sine-cosine positions added since such features carry none; each of the two groups (the
shallow half and the deep half of the levels, concatenated) is compared with the fused decoder
outputs after a linear projection back to the group's own width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from flawmap.config import MethodConfig
from flawmap.encoders.encoder import Encoder, ViTEncoder
from flawmap.encoders.table import EncoderSpec
from flawmap.errors import ConfigError
from flawmap.methods.base import Features, IterativeMethod
from flawmap.training.optim import StableAdamW, warmup_cosine

_HEAD_DIM = 64


class DinomalyConfig(MethodConfig):
    """Options of Dinomaly."""

    name: Literal["dinomaly"] = "dinomaly"
    levels: tuple[str, ...] | None = None
    """Target levels; by default blocks 2..9 of 12, every second of 4..18 of 24."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Of the noisy bottleneck."""
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
    warmup_iterations: int = Field(default=100, ge=1)
    weight_decay: float = Field(default=1e-4, ge=0)


class LinearAttention(nn.Module):
    """Softmax-free attention: phi(q) (sum phi(k) v) / (phi(q) sum phi(k)), phi = ELU + 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // _HEAD_DIM
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, n, width = x.shape
        qkv = self.qkv(x).view(batch, n, 3, self.heads, _HEAD_DIM)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, N, 64) each
        q, k = F.elu(q) + 1, F.elu(k) + 1
        memory = k.transpose(-2, -1) @ v  # (B, heads, 64, 64)
        weight = q @ k.sum(dim=-2).unsqueeze(-1)  # (B, heads, N, 1)
        y = (q @ memory) / (weight + 1e-6)
        out: Tensor = self.proj(y.transpose(1, 2).reshape(batch, n, width))
        return out


class Block(nn.Module):
    """Pre-norm: attention, then an MLP, each with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-8)
        self.attn = LinearAttention(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-8)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


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
    }
    clip_norm = 0.1

    def __init__(self, config: DinomalyConfig, encoder: Encoder, size: tuple[int, int]) -> None:
        super().__init__(encoder)
        self.config = config
        self._require(config, encoder)
        self.vit = isinstance(encoder, ViTEncoder)
        n_levels = len(encoder.channels)
        self.middle = n_levels // 2
        if self.vit:
            self.grid = encoder.grid(size)[0]
            self.width = encoder.channels[0]
            self.prefix = encoder.prefix
        else:
            self.grid = (-(-size[0] // config.stride), -(-size[1] // config.stride))
            self.width = config.width
            self.prefix = 0
            groups = (sum(encoder.channels[: self.middle]), sum(encoder.channels[self.middle :]))
            self.project_in = nn.Linear(sum(groups), self.width)
            self.project_out = nn.ModuleList(nn.Linear(self.width, n) for n in groups)
            self.register_buffer("positions", _sine_cosine(self.grid, self.width), False)
        width, p = self.width, config.dropout
        self.bottleneck = nn.Sequential(
            nn.Dropout(p),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(p),
            nn.Linear(4 * width, width),
            nn.Dropout(p),
        )
        self.decoder = nn.ModuleList(Block(width) for _ in range(config.depth))

    @staticmethod
    def _require(config: DinomalyConfig, encoder: Encoder) -> None:
        if config.depth % 2:
            raise ConfigError(
                "the decoder's depth must be even: its outputs form two groups",
                where="method.depth",
                given=config.depth,
                expected="2, 4, 6, 8, ...",
            )
        if len(encoder.channels) < 2:
            raise ConfigError(
                "at least two encoder levels are needed, for two groups",
                where="method.levels",
                given=encoder.levels,
            )
        if not isinstance(encoder, ViTEncoder) and config.width % _HEAD_DIM:
            raise ConfigError(
                f"the decoder's width must be a multiple of {_HEAD_DIM}",
                where="method.width",
                given=config.width,
            )

    @classmethod
    def default_levels(cls, spec: EncoderSpec) -> tuple[str, ...]:
        """The paper's blocks for a ViT; four levels of a convolutional encoder."""
        if spec.family == "vit":
            large = (spec.parameters or 0) > 200e6
            return tuple(f"blocks.{i}" for i in (range(4, 19, 2) if large else range(2, 10)))
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
                nn.init.zeros_(module.bias)
        return method

    def extract(self, images: Tensor) -> Features:
        """The two groups' targets, (B, prefix + h * w, C) each.

        For a ViT, the mean of each half of the target levels; the bottleneck's input is the mean
        of all levels, which these two give as well.
        """
        if self.vit:
            levels = self.encoder.tokens(images)
            halves = (levels[: self.middle], levels[self.middle :])
            return tuple(torch.stack(list(half)).mean(dim=0) for half in halves)
        levels = [self._to_grid(level) for level in self.encoder(images)]
        return (
            torch.cat(levels[: self.middle], dim=-1),
            torch.cat(levels[self.middle :], dim=-1),
        )

    def _to_grid(self, level: Tensor) -> Tensor:
        factor = level.shape[-2] // self.grid[0]
        if factor > 1:
            level = F.avg_pool2d(level, factor, ceil_mode=True, count_include_pad=False)
        if level.shape[-2:] != self.grid:
            level = F.interpolate(level, self.grid, mode="bilinear", align_corners=False)
        return F.normalize(level.flatten(2).transpose(1, 2), dim=-1)

    def reconstruct(self, features: Features) -> tuple[Tensor, ...]:
        """The decoder's version of the two targets, with their shapes."""
        if self.vit:
            shares = (self.middle, len(self.encoder.channels) - self.middle)
            x = (features[0] * shares[0] + features[1] * shares[1]) / sum(shares)
        else:
            x = self.project_in(torch.cat(features, dim=-1)) + self.positions
        x = self.bottleneck(x)
        outputs = []
        for block in self.decoder:
            x = block(x)
            outputs.append(x)
        middle = len(outputs) // 2
        # Shallow targets are compared with the last outputs, deep ones with the first.
        fused = (
            torch.stack(outputs[middle:]).mean(dim=0),
            torch.stack(outputs[:middle]).mean(dim=0),
        )
        if self.vit:
            return fused
        return tuple(project(group) for project, group in zip(self.project_out, fused, strict=True))

    def loss(self, features: Features, step: int) -> Tensor:
        share = self._hard_share(step)
        losses = []
        for target, output in zip(features, self.reconstruct(features), strict=True):
            target = target[:, self.prefix :].detach().float()
            output = output[:, self.prefix :].float()
            losses.append(loose_cosine(target, output, share, self.config.easy_gradient))
        return torch.stack(losses).mean()

    def _hard_share(self, step: int) -> float:
        keep = 1 - self.config.hard_share
        return 1 - min(keep * step / self.config.loosen_iterations, keep)

    def anomaly_map(self, features: Features) -> Tensor:
        """Mean over the two groups of 1 - cosine, (B, 1, h, w)."""
        maps = []
        for target, output in zip(features, self.reconstruct(features), strict=True):
            similarity = F.cosine_similarity(
                target[:, self.prefix :].float(), output[:, self.prefix :].float(), dim=-1
            )
            maps.append(1 - similarity)
        mean = torch.stack(maps).mean(dim=0)  # (B, h * w)
        return mean.view(mean.shape[0], 1, *self.grid)

    def optimizer(self) -> torch.optim.Optimizer:
        return StableAdamW(
            self.parameters(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
        )

    def learning_rate(self, step: int, total: int) -> float:
        return warmup_cosine(
            step,
            total,
            warmup=min(self.config.warmup_iterations, max(1, total // 5)),
            base=self.config.learning_rate,
            final=self.config.final_learning_rate,
        )


def loose_cosine(target: Tensor, output: Tensor, hard_share: float, easy_gradient: float) -> Tensor:
    """1 - cosine of whole feature maps; points already well matched pass less gradient.

    Args:
        target: (B, N, C) float32, without gradient.
        output: (B, N, C) float32.
        hard_share: In (0, 1]: this share of the points of the batch, the farthest, passes its
            whole gradient.
        easy_gradient: Factor on the gradient of the others. The value of the loss is unchanged.
    """
    if hard_share < 1:
        with torch.no_grad():
            distance = 1 - F.cosine_similarity(target, output, dim=-1)  # (B, N)
            n = max(1, int(distance.numel() * hard_share))
            limit = distance.flatten().topk(n).values[-1]
            easy = (distance < limit).unsqueeze(-1)
        eased = easy_gradient * output + (1 - easy_gradient) * output.detach()
        output = torch.where(easy, eased, output)
    return (1 - F.cosine_similarity(target.flatten(1), output.flatten(1), dim=-1)).mean()


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

"""DMDD: one student models what is normal and what is not, on images with drawn defects.

Source: Liu, Wang, Leng and Zhang, Unsupervised Multi-class/One-class Anomaly Detection by
Dual-Modeling Decouple Distillation, ACM MM 2024, arXiv 2408.03888. No code was released.

What the abstract and the captions establish is built: a frozen teacher; a student whose features
are split into a branch for normality, which gives the teacher's features of the good image from the
corrupted one, and a branch for abnormality, which leaves the teacher's features where the image is
corrupted; a segmentation network with attention over their distance maps. All else is filled in,
after the authors' later URD (AAAI 2025) and after DeSTSeg (arXiv 2211.11317).

What can be chosen: the student's shape; which branches there are; whether there is a segmentation
network, its attention and its width; whether the student sees good images too; how defects are
drawn; both learning rates and their schedule; what the anomaly map is. What is fixed: cosine
distances, averaged over places and summed over levels; targets that are soft where a cell is partly
corrupted, for the abnormality as for the segmentation; a focal loss with gamma 4, without class
weights, and an L1 loss of the segmentation; weight 1 of each loss; a branch for the whole image in
the segmentation's atrous pyramid; max(8, C // 16) channels inside its attention.

Two things differ from the plain form. By default the maps are joined by Fisher's weights, from
defects that are drawn on training images; their normalised mean, with constants from good px alone,
is `map=mean`. The image score is the mean of the highest 100 px (at 256 px) of the map that is
shown, smoothed and joined as that is: a score from the segmentation or from the distances alone,
beside a joined map, cannot be had.

The default is one model for all categories, one of the two published settings; `--separate` gives
one for each. Of several processes each takes its batch normalisations from its own share of the
batch, so a fit depends on how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from flawmap.config import MethodConfig
from flawmap.data.pool import map_in_threads
from flawmap.data.synthesis import Synthesis, SynthesisConfig, list_textures
from flawmap.encoders.encoder import Encoder
from flawmap.encoders.table import EncoderSpec
from flawmap.encoders.unlearnt import Unlearnt
from flawmap.methods.base import Features, IterativeMethod
from flawmap.methods.layers.cosine import at_places
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
from flawmap.methods.layers.segmentation import AttentionKind, SegmentationNetwork, focal
from flawmap.training.optim import Schedule, short_schedule
from flawmap.types import BoolArray, FloatArray


class DMDDConfig(MethodConfig):
    """Options of DMDD."""

    name: Literal["dmdd"] = "dmdd"
    levels: tuple[str, ...] | None = None
    """Three encoder levels, each half as fine as the one before; finest first."""
    student: Literal["encoder", "reverse"] = "encoder"
    """encoder: a network of the teacher's shape that sees the image; reverse: RD4AD's embedding
    and decoder, which see the teacher's levels of it."""
    branches: Literal["both", "normality", "abnormality"] = "both"
    segmentation: bool = True
    """Train the segmentation network over the branches' distances."""
    attention: AttentionKind = "both"
    """Of the segmentation network."""
    map: Literal["both", "mean", "distance", "segmentation"] = "both"
    """What the anomaly map is. distance: of the first branch; both: joined with the segmentation,
    or without one with the second branch, each map with as much weight as it tells drawn defects
    from good px of training images. On average these are 1 and 0. mean: the mean of the same two,
    each less its mean over good px of training images and in units of its deviation there."""
    clean_pass: bool = True
    """The student also sees each good image beside its copy with a defect. Without it, about as
    much is learnt in half the time if `synthesis.none_share` leaves some copies as they are."""
    synthesis: SynthesisConfig = SynthesisConfig()
    """The defects that it learns from."""
    width: int = Field(default=64, ge=8)
    """Channels of the segmentation network."""
    learning_rate: float = Field(default=5e-3, gt=0)
    """Of the student."""
    segmentation_learning_rate: float = Field(default=1e-3, gt=0)
    schedule: Schedule = "constant"
    """cosine: a warm-up of 20 iterations, then down to a hundredth of both rates."""
    scale_images: int = Field(default=64, ge=1)
    """With map=both or mean: training images that tell how to join the maps."""

    @field_validator("map")
    @classmethod
    def _there(cls, value: str, info: ValidationInfo) -> str:
        if value == "segmentation" and info.data.get("segmentation") is False:
            raise ValueError("without method.segmentation it must be both, mean or distance")
        return value

    @property
    def joins(self) -> bool:
        """Whether there are two maps to be joined."""
        several = self.segmentation or self.branches == "both"
        return self.map in ("both", "mean") and several

    def idle(self, encoder: str) -> dict[str, str]:
        found: dict[str, str] = {}
        if not self.segmentation or self.map == "distance":
            other = "another method.map than distance"
            needs = other if self.segmentation else "method.segmentation=true"
            names = ("attention", "width", "segmentation_learning_rate")
            found |= dict.fromkeys(names, needs)
        if not self.joins:
            found["scale_images"] = "two maps to join, with method.map=both or mean"
        return found


class DMDD(IterativeMethod):
    """Where the student's two branches leave the teacher, something is anomalous."""

    Config = DMDDConfig
    summary = "a student models normality and abnormality apart, on images with drawn defects"
    source = "Liu et al., ACM MM 2024, arXiv 2408.03888 (from abstract and captions; no code)"
    defaults: ClassVar[Mapping[str, Any]] = {
        "encoder.name": "lite0",
        "data.size": [256, 256],
        "scoring.sigma": 4.0,
        "scoring.pooling": "top",
        "scoring.top_fraction": 100 / 256**2,
        "training.iterations": 5000,
        "training.batch_size": 16,
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cpu": {
            "training.iterations": 1200,
            "training.max_epochs": 50,
            "training.batch_size": 8,
            "method.student": "reverse",
            "method.width": 32,
            "method.clean_pass": False,
            "method.synthesis.none_share": 0.4,
            "method.schedule": "cosine",
        },
        "gpu": {"training.max_epochs": 200},
        "paper": {
            "encoder.name": "wide_resnet50_2",
            "method.map": "mean",
            "training.precision": "float32",
            "calibration.strategy": "off",
        },
    }
    free_on_start = frozenset(
        {
            *("learning_rate", "segmentation_learning_rate", "schedule", "clean_pass"),
            *("map", "synthesis", "scale_images"),
        }
    )

    joining: Tensor

    def __init__(self, config: DMDDConfig, encoder: Encoder) -> None:
        super().__init__(encoder)
        require_pyramid(encoder)
        self.config = config
        channels = encoder.channels
        self.student: nn.Module
        if config.student == "encoder":
            self.student, inner = Unlearnt(encoder), channels
        else:
            self.student, inner = Reverse(encoder), tuple(decoder_widths(channels))
        self.branches = nn.ModuleList(
            Branches(start, wanted, config.branches)
            for start, wanted in zip(inner, channels, strict=True)
        )
        n_maps = len(channels) * (2 if config.branches == "both" else 1)
        self.segment = (
            SegmentationNetwork(n_maps, config.width, config.attention)
            if config.segmentation
            else None
        )
        self.final_images = config.scale_images if config.joins else 0
        # Of each map: what is subtracted, and the factor.
        self.register_buffer("joining", torch.tensor([[0.0, 0.5], [0.0, 0.5]]))

    @cached_property
    def synthesis(self) -> Synthesis:
        """Made when it is needed: a fitted model needs no folder of textures."""
        return Synthesis(self.config.synthesis)

    @classmethod
    def default_levels(cls, spec: EncoderSpec) -> tuple[str, ...]:
        """The levels at 4, 8 and 16 px, of an EfficientNet at 8, 16 and 32 px."""
        return pyramid_levels(spec)

    @classmethod
    def check(cls, config: DMDDConfig) -> None:
        if config.synthesis.texture_folder is not None:
            list_textures(config.synthesis.texture_folder)

    @classmethod
    def build(
        cls,
        config: DMDDConfig,
        encoder: Encoder,
        input_size: tuple[int, int],
        generator: torch.Generator,
    ) -> DMDD:
        # What `initialise` leaves alone, such as a Swin's table of positions, follows it too.
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(generator.get_state())
            method = cls(config, encoder)
        initialise(method, generator)
        if method.segment is not None:
            method.segment.initialise(generator)
        return method

    def extract(self, images: Tensor) -> Features:
        """The images, (B, 3, H, W) float16, to draw defects on, and the teacher's levels."""
        return (images.half(), *self.encoder(images))

    def branch_levels(self, images: Tensor, levels: Sequence[Tensor]) -> list[list[Tensor]]:
        """For each branch its three levels, (B, C, h, w) each; normality first.

        Args:
            images: (B, 3, H, W) float32 in [0, 1].
            levels: The teacher's levels of these images.
        """
        found = self.student(levels if self.config.student == "reverse" else images)
        split = [branch(x) for branch, x in zip(self.branches, found, strict=True)]
        return [list(levels) for levels in zip(*split, strict=True)]

    def corrupted(
        self, images: Tensor, seed: int, *, always: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The images with a defect each, (B, 3, H, W) float32, and the masks, (B, 1, H, W) float32.

        Args:
            images: (B, 3, H, W) float32 in [0, 1].
            seed: Decides the defects.
            always: None is left as it is, whatever `synthesis.none_share` says.
        """
        arrays = [np.ascontiguousarray(i) for i in images.permute(0, 2, 3, 1).cpu().numpy()]
        synthesis = self.synthesis

        def draw(n: int) -> tuple[FloatArray, BoolArray]:
            others = arrays[:n] + arrays[n + 1 :]
            return synthesis(arrays[n], np.random.default_rng([seed, n]), others, always=always)

        numbers, threads = range(len(arrays)), self.threads
        drawn = list(map_in_threads(draw, numbers, threads=threads, ahead=len(arrays)))
        found = torch.from_numpy(np.stack([image for image, _ in drawn])).permute(0, 3, 1, 2)
        masks = torch.from_numpy(np.stack([mask for _, mask in drawn]))[:, None].float()
        return found.to(images.device), masks.to(images.device)

    def loss(self, features: Features, step: int) -> Tensor:
        images, teacher = features[0].float(), features[1:]
        # The loop seeds torch's own generator for every step.
        drawn, masks = self.corrupted(images, int(torch.randint(2**31, (1,))))
        with torch.no_grad():
            seen: Sequence[Tensor] = self.encoder(drawn)
        parts = 1
        if self.config.clean_pass:
            parts = 2
            drawn = torch.cat([drawn, images])
            masks = torch.cat([masks, torch.zeros_like(masks)])
            seen = [torch.cat(pair) for pair in zip(seen, teacher, strict=True)]
            teacher = tuple(torch.cat([level, level]) for level in teacher)
        both = self.branch_levels(drawn, seen)
        loss = torch.zeros((), device=images.device)
        for branch, levels in zip(self._names, both, strict=True):
            # A sum of two means, of the copies and of the good images.
            loss = loss + parts * sum(branch_losses(branch, levels, seen, teacher, masks))
        if self.segment is not None:
            # The branches do not learn from the segmentation.
            with torch.no_grad():
                distances = [distance_maps(seen, levels) for levels in both]
            logits = self.segment(torch.cat(distances, dim=1))
            wanted = covered(masks, logits.shape[-2:])
            loss = loss + focal(logits, wanted) + (logits.sigmoid() - wanted).abs().mean()
        return loss

    @property
    def _names(self) -> tuple[str, ...]:
        return (
            ("normality", "abnormality")
            if self.config.branches == "both"
            else (self.config.branches,)
        )

    def maps(self, features: Features) -> list[Tensor]:
        """The sum of the first branch's distances, and the segmentation or, without one, the sum of
        the second branch's distances if there is one; (B, 1, h, w) float32 each."""
        teacher = features[1:]
        distances = [
            distance_maps(teacher, levels)
            for levels in self.branch_levels(features[0].float(), teacher)
        ]
        if self.segment is None:
            return [d.sum(dim=1, keepdim=True) for d in distances]
        segmented = self.segment(torch.cat(distances, dim=1)).sigmoid()
        return [distances[0].sum(dim=1, keepdim=True), segmented]

    def anomaly_map(self, features: Features) -> Tensor:
        """(B, 1, h, w) on the finest level's grid."""
        if self.config.map == "distance":
            teacher = features[1:]
            first = self.branch_levels(features[0].float(), teacher)[0]
            return distance_maps(teacher, first).sum(dim=1, keepdim=True)
        maps = self.maps(features)
        if self.config.joins:
            weighted = [
                weight * (found - low)
                for found, (low, weight) in zip(maps, self.joining, strict=True)
            ]
            return torch.stack(weighted).sum(dim=0)
        return maps[-1]

    def finalise(self, batches: Iterator[Features]) -> None:
        """Takes the constants that join the maps: from drawn defects and the good px around them,
        see `join`, or for map=mean from good images, see `standard`."""
        # Of each map: sums of 1, of the values and of their squares, over good px and defects.
        sums = torch.zeros(2, 2, 3, dtype=torch.float64)
        for number, features in enumerate(batches):
            seen = tuple(t.to(self.joining.device) for t in features)
            images = seen[0].float()
            masks = torch.zeros_like(images[:, :1])
            if self.config.map == "both":
                # Without defects there would be nothing to tell from good px.
                images, masks = self.corrupted(images, number, always=True)
                seen = (images.half(), *self.encoder(images))
            found = self.maps(seen)
            # There are devices without float64.
            share = covered(masks, found[0].shape[-2:]).cpu().double()
            for row, values in enumerate(v.cpu().double() for v in found):
                for column, weight in enumerate((1 - share, share)):
                    sums[row, column] += torch.stack([(weight * values**n).sum() for n in range(3)])
        self.joining.copy_(join(sums) if self.config.map == "both" else standard(sums[:, 0]))

    def release(self) -> None:
        # With the pictures of a texture folder.
        self.__dict__.pop("synthesis", None)

    def optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        groups: list[dict[str, Any]] = [
            {"params": [*self.student.parameters(), *self.branches.parameters()]}
        ]
        if self.segment is not None:
            scale = config.segmentation_learning_rate / config.learning_rate
            groups.append({"params": list(self.segment.parameters()), "lr_scale": scale})
        return torch.optim.Adam(groups, lr=config.learning_rate, betas=(0.5, 0.999))

    def learning_rate(self, step: int, total: int) -> float:
        return short_schedule(self.config.schedule, step, total, self.config.learning_rate)


def branch_losses(
    branch: str,
    levels: Sequence[Tensor],
    seen: Sequence[Tensor],
    teacher: Sequence[Tensor],
    masks: Tensor,
) -> list[Tensor]:
    """What a branch is taught at each level, a scalar each.

    Normality gives the teacher's features of the good image, whether it sees that or a corrupted
    copy. Abnormality gives the teacher's features of what it sees, except where that is corrupted:
    there the distance is to be 1, and in a cell that is partly corrupted as much less.

    Args:
        branch: "normality" or "abnormality".
        levels: The branch's, (B, C, h, w) each.
        seen: The teacher's levels of what the student sees.
        teacher: Its levels of the good images.
        masks: (B, 1, H, W), 1 where the image is corrupted.
    """
    losses = []
    for own, of_seen, of_good in zip(levels, seen, teacher, strict=True):
        if branch == "normality":
            losses.append(at_places(own, of_good.detach()).mean())
        else:
            share = covered(masks, own.shape[-2:])[:, 0]
            losses.append((at_places(own, of_seen.detach()) - share).abs().mean())
    return losses


def covered(masks: Tensor, size: Sequence[int]) -> Tensor:
    """The share of each cell that is masked, (B, 1, h, w), of masks (B, 1, H, W)."""
    found: Tensor = F.adaptive_avg_pool2d(masks, (size[0], size[1]))
    return found


def join(sums: Tensor) -> Tensor:
    """How two maps are joined: each weighs as much as it tells defects from good px.

    That is (m1 - m0) / (v0 + v1) with means and variances over good px (0) and defects (1), as in
    Fisher's discriminant of independent features; a map that is higher on good px has no weight.

    Args:
        sums: (2, 2, 3) float64; of each map, over good px and over defects: the sums of 1, of the
            values and of their squares.

    Returns:
        (2, 2): of each map what is subtracted, and the factor. Joined, good px are 0 on average and
        defects 1. If neither map tells them apart, the first is taken as it is.
    """
    n, first, second = sums.unbind(dim=-1)
    mean = first / n.clamp(min=1)
    variance = (second / n.clamp(min=1) - mean**2).clamp(min=0).sum(dim=1)
    low = mean[:, 0]
    gap = (mean[:, 1] - low).clamp(min=0)
    weight = gap / variance.clamp(min=1e-12)
    whole = (weight * gap).sum()
    if whole <= 0:
        return torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    return torch.stack([low, weight / whole], dim=1)


def standard(sums: Tensor) -> Tensor:
    """How maps are averaged: each less its mean over good px, over its standard deviation there.

    Args:
        sums: (maps, 3) float64; of each map over good px: the sums of 1, of the values and of their
            squares.

    Returns:
        (maps, 2): of each map what is subtracted, and the factor. Joined, good px are 0 on average.
    """
    n, first, second = sums.unbind(dim=-1)
    mean = first / n.clamp(min=1)
    deviation = (second / n.clamp(min=1) - mean**2).clamp(min=1e-12).sqrt()
    return torch.stack([mean, 1 / (len(sums) * deviation)], dim=1)


class Branches(nn.Module):
    """A level of the student, widened and split into its normal and its abnormal part.

    Args:
        start: Channels of the student's level.
        channels: Of the teacher's, and so of each part.
        wanted: Which parts there are.
    """

    def __init__(self, start: int, channels: int, wanted: str) -> None:
        super().__init__()
        self.n = 2 if wanted == "both" else 1
        wide = self.n * channels
        self.widen = nn.Sequential(
            nn.Conv2d(start, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(inplace=True)
        )
        self.parts = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
                nn.Conv2d(channels, channels, 1),
            )
            for _ in range(self.n)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, start, h, w) to (B, C, h, w) per part."""
        halves = self.widen(x).chunk(self.n, dim=1)
        return [part(half) for part, half in zip(self.parts, halves, strict=True)]


class Reverse(nn.Module):
    """RD4AD's embedding and decoder, of one residual block a stage, as a student of the levels that
    it sees. Its levels are as wide as the decoder's stages."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        widths = decoder_widths(encoder.channels)
        block = block_of(encoder.spec, widths[-1])
        self.embedding = Embedding(encoder.channels, widths[-1], block, 1)
        self.decoder = Decoder(widths, widths, block, (1, 1, 1))

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Levels on the same grids."""
        sizes = [(level.shape[-2], level.shape[-1]) for level in levels]
        found: list[Tensor] = self.decoder(self.embedding(levels), sizes)
        return found

"""DMDD: one student models what is normal and what is not, on images with drawn defects.

Source: Liu, Wang, Leng and Zhang, Unsupervised Multi-class/One-class Anomaly Detection by
Dual-Modeling Decouple Distillation, ACM MM 2024, arXiv 2408.03888. No code was released.

What the abstract and the captions establish is built: a frozen teacher; a student whose features
are split into a branch for normality, which gives the teacher's features of the good image from the
corrupted one, and a branch for abnormality, which leaves the teacher's features where the image is
corrupted; a segmentation network with attention over their distance maps. All else is filled in and
can be chosen: losses, sizes, the segmentation network, how the maps are joined.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from flawmap.config import MethodConfig
from flawmap.data.pool import map_in_threads
from flawmap.data.synthesis import Synthesis, SynthesisConfig
from flawmap.encoders.encoder import Encoder
from flawmap.encoders.table import EncoderSpec
from flawmap.encoders.unlearnt import Unlearnt
from flawmap.methods.base import Features, IterativeMethod
from flawmap.methods.layers.residual import initialise
from flawmap.methods.layers.segmentation import Attention, SegmentationNetwork, focal
from flawmap.methods.rd4ad import (
    Decoder,
    Embedding,
    block_of,
    decoder_widths,
    distance_maps,
    pyramid_levels,
    require_pyramid,
)
from flawmap.resources import default_threads
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
    attention: Attention = "both"
    """Of the segmentation network."""
    map: Literal["both", "distance", "segmentation"] = "both"
    """What the anomaly map is; both: their mean, each scaled so that good px of training images
    are 0 and drawn defects 1, on average."""
    synthesis: SynthesisConfig = SynthesisConfig()
    """The defects that it learns from."""
    width: int = Field(default=64, ge=8)
    """Channels of the segmentation network."""
    learning_rate: float = Field(default=5e-3, gt=0)
    """Of the student."""
    segmentation_learning_rate: float = Field(default=1e-3, gt=0)
    scale_images: int = Field(default=64, ge=1)
    """With map=both: training images that scale the two maps."""


class DMDD(IterativeMethod):
    """Where the student's two branches leave the teacher, something is anomalous."""

    Config = DMDDConfig
    summary = "a student models normality and abnormality apart, on images with drawn defects"
    source = "Liu et al., ACM MM 2024, arXiv 2408.03888 (written from the abstract; no code)"
    defaults: ClassVar[Mapping[str, Any]] = {
        "encoder.name": "lite0",
        "data.size": [256, 256],
        "scoring.sigma": 4.0,
        "scoring.pooling": "top",
        # 100 of 65,536 px.
        "scoring.top_fraction": 0.0015,
        "training.iterations": 5000,
        "training.batch_size": 16,
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cpu": {
            "training.iterations": 400,
            "training.batch_size": 8,
            "method.student": "reverse",
        },
        "gpu": {},
        "paper": {"encoder.name": "wide_resnet50_2", "calibration.strategy": "off"},
    }
    free_on_start = frozenset(
        {"learning_rate", "segmentation_learning_rate", "map", "synthesis", "scale_images"}
    )

    scales: Tensor

    def __init__(self, config: DMDDConfig, encoder: Encoder) -> None:
        super().__init__(encoder)
        require_pyramid(encoder)
        self.config = config
        channels = encoder.channels
        self.student: nn.Module
        if config.student == "encoder":
            self.student = Unlearnt(encoder)
        else:
            self.student = Reverse(encoder)
        self.branches = nn.ModuleList(Branches(c, config.branches) for c in channels)
        self.n_maps = len(channels) * (2 if config.branches == "both" else 1)
        self.segment = (
            SegmentationNetwork(self.n_maps, config.width, config.attention)
            if config.segmentation
            else None
        )
        self.final_images = config.scale_images if self._joins else 0
        # Mean of good px and of drawn defects, of the distances and of the segmentation.
        self.register_buffer("scales", torch.tensor([[0.0, 1.0], [0.0, 1.0]]))

    @cached_property
    def synthesis(self) -> Synthesis:
        """Made when it is needed: a fitted model needs no folder of textures."""
        return Synthesis(self.config.synthesis)

    @property
    def _joins(self) -> bool:
        return self.config.segmentation and self.config.map == "both"

    @classmethod
    def default_levels(cls, spec: EncoderSpec) -> tuple[str, ...]:
        """The levels at 4, 8 and 16 px."""
        return pyramid_levels(spec)

    @classmethod
    def build(
        cls,
        config: DMDDConfig,
        encoder: Encoder,
        input_size: tuple[int, int],
        generator: torch.Generator,
    ) -> DMDD:
        method = cls(config, encoder)
        initialise(method, generator)
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

    def corrupted(self, images: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """The images with a defect each, (B, 3, H, W) float32, and the masks, (B, 1, H, W) float32.

        Args:
            images: (B, 3, H, W) float32 in [0, 1].
            seed: Decides the defects.
        """
        arrays = [np.ascontiguousarray(i) for i in images.permute(0, 2, 3, 1).cpu().numpy()]
        synthesis = self.synthesis

        def draw(n: int) -> tuple[FloatArray, BoolArray]:
            others = arrays[:n] + arrays[n + 1 :]
            return synthesis(arrays[n], np.random.default_rng([seed, n]), others)

        numbers, threads = range(len(arrays)), default_threads()
        drawn = list(map_in_threads(draw, numbers, threads=threads, ahead=len(arrays)))
        found = torch.from_numpy(np.stack([image for image, _ in drawn])).permute(0, 3, 1, 2)
        masks = torch.from_numpy(np.stack([mask for _, mask in drawn]))[:, None].float()
        return found.to(images.device), masks.to(images.device)

    def loss(self, features: Features, step: int) -> Tensor:
        clean, teacher = features[0].float(), features[1:]
        # The loop seeds torch's own generator for every step.
        images, masks = self.corrupted(clean, int(torch.randint(2**31, (1,))))
        with torch.no_grad():
            seen = self.encoder(images)
        n = len(clean)
        both = self.branch_levels(
            torch.cat([images, clean]),
            [torch.cat(pair) for pair in zip(seen, teacher, strict=True)],
        )
        loss = torch.zeros((), device=clean.device)
        distances = []
        for branch, levels in zip(self._names, both, strict=True):
            bad, good = [x[:n] for x in levels], [x[n:] for x in levels]
            loss = loss + sum(branch_losses(branch, bad, good, seen, teacher, masks))
            distances.append(distance_maps(seen, bad))
        if self.segment is not None:
            # The branches do not learn from the segmentation.
            logits = self.segment(torch.cat(distances, dim=1).detach())
            wanted = F.adaptive_max_pool2d(masks, logits.shape[-2:])
            loss = loss + focal(logits, wanted) + (logits.sigmoid() - wanted).abs().mean()
        return loss

    @property
    def _names(self) -> tuple[str, ...]:
        return (
            ("normality", "abnormality")
            if self.config.branches == "both"
            else (self.config.branches,)
        )

    def maps(self, features: Features) -> tuple[Tensor, Tensor | None]:
        """The sum of the distances and the segmentation, (B, 1, h, w) float32 each."""
        teacher = features[1:]
        both = self.branch_levels(features[0].float(), teacher)
        distances = [distance_maps(teacher, levels) for levels in both]
        segmented = None
        if self.segment is not None:
            segmented = self.segment(torch.cat(distances, dim=1)).float().sigmoid()
        return distances[0].sum(dim=1, keepdim=True), segmented

    def anomaly_map(self, features: Features) -> Tensor:
        """(B, 1, h, w) on the finest level's grid."""
        distance, segmented = self.maps(features)
        if segmented is None or self.config.map == "distance":
            return distance
        if self.config.map == "segmentation":
            return segmented
        joined = torch.zeros_like(distance)
        for found, (low, high) in zip((distance, segmented), self.scales, strict=True):
            # A map that does not tell drawn defects from good px has no say.
            weight = torch.where(high - low > 1e-3 * high, 0.5 / (high - low), 0.0)
            joined = joined + weight * (found - low)
        return joined

    def finalise(self, batches: Iterator[Features]) -> None:
        """Takes the mean of both maps over good px and over drawn defects."""
        sums = torch.zeros(2, 2, dtype=torch.float64)
        counts = torch.zeros(2, dtype=torch.float64)
        for number, features in enumerate(batches):
            device = self.scales.device
            images, masks = self.corrupted(features[0].float().to(device), number)
            found = self.maps((images.half(), *self.encoder(images)))
            wanted = F.adaptive_max_pool2d(masks, found[0].shape[-2:])
            shares = [1 - wanted, wanted]
            for row, values in enumerate(found):
                assert values is not None
                sums[row] += torch.stack([(values * s).sum() for s in shares]).double().cpu()
            counts += torch.stack([s.sum() for s in shares]).double().cpu()
        self.scales.copy_(sums / counts.clamp(min=1))

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
        return self.config.learning_rate


def branch_losses(
    branch: str,
    bad: Sequence[Tensor],
    good: Sequence[Tensor],
    seen: Sequence[Tensor],
    teacher: Sequence[Tensor],
    masks: Tensor,
) -> list[Tensor]:
    """What a branch is taught at each level, a scalar each.

    Normality gives the teacher's features of the good image, whether it sees that or the corrupted
    one. Abnormality gives the teacher's features of what it sees, except where that is corrupted:
    there the distance is to be 1.

    Args:
        branch: "normality" or "abnormality".
        bad: The branch's levels of corrupted images, (B, C, h, w) each.
        good: Its levels of the images before that.
        seen: The teacher's levels of the corrupted images.
        teacher: Its levels of the good ones.
        masks: (B, 1, H, W), 1 where the image is corrupted.
    """
    losses = []
    for b, g, s, t in zip(bad, good, seen, teacher, strict=True):
        kept = distance(g, t).mean()
        if branch == "normality":
            losses.append(distance(b, t).mean() + kept)
        else:
            mask = F.adaptive_max_pool2d(masks, b.shape[-2:])[:, 0]
            losses.append((distance(b, s) - mask).abs().mean() + kept)
    return losses


def distance(output: Tensor, target: Tensor) -> Tensor:
    """1 - cosine over the channels, (B, h, w) float32; no gradient flows into the target."""
    return 1 - F.cosine_similarity(output.float(), target.detach().float(), dim=1)


class Branches(nn.Module):
    """A level, widened and split into its normal and its abnormal part.

    Args:
        channels: Of the level, and of each part.
        wanted: Which parts there are.
    """

    def __init__(self, channels: int, wanted: str) -> None:
        super().__init__()
        self.n = 2 if wanted == "both" else 1
        wide = self.n * channels
        self.widen = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(inplace=True)
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
        """(B, C, h, w) to one such tensor per part."""
        halves = self.widen(x).chunk(self.n, dim=1)
        return [part(half) for part, half in zip(self.parts, halves, strict=True)]


class Reverse(nn.Module):
    """RD4AD's embedding and decoder as a student of the levels that it sees."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        channels = encoder.channels
        widths = decoder_widths(channels)
        block = block_of(encoder.spec, widths[-1])
        self.embedding = Embedding(channels, widths[-1], block, 1)
        self.decoder = Decoder(channels, widths, block, (1, 1, 1))

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Levels of the same shapes."""
        sizes = [(level.shape[-2], level.shape[-1]) for level in levels]
        found: list[Tensor] = self.decoder(self.embedding(levels), sizes)
        return found

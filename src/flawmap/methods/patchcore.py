"""PatchCore: distance of every patch to the nearest patch of a memory bank of good images.

Source: Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022,
arXiv 2106.08265. Reference code: amazon-science/patchcore-inspection, Apache-2.0.

What differs: the encoder's levels are concatenated at their own widths instead of being pooled to
1024 values; the coreset is the exact greedy one in the full feature space from one seeded start,
without a random projection; memory is bounded for any number of images, by reducing what was
gathered to half whenever the limit is reached (greedy k-center sets compose within a constant
factor); smoothing and pooling are the scoring package's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from flawmap.config import MethodConfig
from flawmap.encoders.encoder import Encoder
from flawmap.errors import FitError
from flawmap.methods.base import Features, OnePassMethod
from flawmap.methods.coreset import greedy_coreset

_NO_IMAGE = -1
_QUERY_CHUNK = 1024


class PatchCoreConfig(MethodConfig):
    """Options of PatchCore."""

    name: Literal["patchcore"] = "patchcore"
    levels: tuple[str, ...] | None = None
    """Encoder levels; the encoder's usual ones by default."""
    neighbourhood: int = Field(default=3, ge=1, le=15)
    """Each patch is the mean of this square of feature px (odd; 1 = none)."""
    normalise: Literal["none", "level"] = "level"
    """level: every level's patch vector has unit length times the square root of its share."""
    coreset_ratio: float = Field(default=0.1, gt=0, le=1)
    """Share of all patches that the bank keeps."""
    max_bank: int = Field(default=20_000, ge=1)
    """The bank never holds more patches than this."""
    memory_mib: int = Field(default=1024, ge=16)
    """Patches gathered before they are reduced."""
    neighbours: int = Field(default=1, ge=1, le=50)
    """The distance is the mean over this many nearest patches."""


class PatchCore(OnePassMethod):
    """Nearest-neighbour distance to a coreset of good patches."""

    Config = PatchCoreConfig
    can_leave_out = True
    summary = "nearest good patch in a memory bank; one pass, no training"
    source = "Roth et al., CVPR 2022, arXiv 2106.08265 (reference code Apache-2.0)"
    defaults: ClassVar[Mapping[str, Any]] = {
        "encoder.name": "lite0",
        "data.size": [256, 256],
        "scoring.sigma": 4.0,
        "scoring.pooling": "max",
        "training.batch_size": 16,
        "training.precision": "float32",
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cpu": {},
        "gpu": {"training.batch_size": 64, "method.max_bank": 100_000},
    }

    bank: Tensor

    def __init__(self, config: PatchCoreConfig, encoder: Encoder, size: tuple[int, int]) -> None:
        super().__init__(encoder)
        self.config = config
        self.grid = max(encoder.grid(size), key=lambda g: g[0] * g[1])
        width = sum(encoder.channels)
        self.register_buffer("bank", torch.empty(0, width))
        self._norms: Tensor | None = None
        self._owners = torch.empty(0, dtype=torch.int32)
        self._gathered: list[Tensor] = []
        self._gathered_owners: list[Tensor] = []
        self._seen = 0
        self._held = 0
        self._limit = max(config.max_bank * 2, config.memory_mib * 2**20 // (width * 4))

    @classmethod
    def build(
        cls,
        config: PatchCoreConfig,
        encoder: Encoder,
        input_size: tuple[int, int],
        generator: torch.Generator,
    ) -> PatchCore:
        return cls(config, encoder, input_size)

    def extract(self, images: Tensor) -> Features:
        """Patch vectors, ((B, h * w, C) float32,)."""
        parts = []
        k = self.config.neighbourhood
        for level in self.encoder(images):
            if k > 1:
                # Borders average what exists, so that they are not pulled to zero.
                level = F.avg_pool2d(level, k, stride=1, padding=k // 2, count_include_pad=False)
            if level.shape[-2:] != self.grid:
                level = F.interpolate(level, self.grid, mode="bilinear", align_corners=False)
            if self.config.normalise == "level":
                level = F.normalize(level.float(), dim=1) * level.shape[1] ** 0.5
            parts.append(level)
        joined = torch.cat(parts, dim=1)
        return (joined.flatten(2).transpose(1, 2).float().contiguous(),)

    def observe(self, features: Features, images: Sequence[int]) -> None:
        (patches,) = features
        batch, per_image, width = patches.shape
        self._gathered.append(patches.reshape(-1, width))
        owners = torch.tensor(list(images), dtype=torch.int32)
        self._gathered_owners.append(owners.repeat_interleave(per_image))
        self._seen += batch * per_image
        self._held += batch * per_image
        if self._held > self._limit:
            self._reduce(self._limit // 2, start=0)

    def finalise(self, generator: torch.Generator) -> None:
        if not self._held:
            raise FitError(
                "no good image was observed", where="patchcore", hint="give at least one good image"
            )
        wanted = max(1, int(self._seen * self.config.coreset_ratio))
        wanted = min(wanted, self.config.max_bank, self._held)
        start = int(torch.randint(self._held, (1,), generator=generator))
        self._reduce(wanted, start=start)
        self.bank = self._gathered[0].contiguous()
        self._owners = self._gathered_owners[0]
        self._gathered, self._gathered_owners, self._held = [], [], 0
        self._norms = None

    def _reduce(self, n: int, *, start: int) -> None:
        points = torch.cat(self._gathered)
        owners = torch.cat(self._gathered_owners)
        self._gathered, self._gathered_owners = [], []
        kept = greedy_coreset(points, n, start=start)
        self._gathered = [points[kept]]
        self._gathered_owners = [owners[kept.cpu()]]
        self._held = len(kept)

    def anomaly_map(self, features: Features) -> Tensor:
        """Distances to the bank, (B, 1, h, w)."""
        return self._distances(features[0], None)

    def anomaly_map_without(self, features: Features, images: Sequence[int]) -> Tensor:
        return self._distances(features[0], torch.tensor(list(images), dtype=torch.int32))

    def _distances(self, patches: Tensor, images: Tensor | None) -> Tensor:
        # Differences of large products: bfloat16 would drown the distances in rounding.
        with torch.autocast(patches.device.type, enabled=False):
            return self._nearest(patches, images)

    def _nearest(self, patches: Tensor, images: Tensor | None) -> Tensor:
        batch = patches.shape[0]
        if self._norms is None:
            self._norms = self.bank.square().sum(dim=1)
        k = min(self.config.neighbours, self.bank.shape[0])
        found = []
        for index, queries in enumerate(patches):
            forbidden = None
            if images is not None:
                forbidden = (self._owners == images[index]).to(self.bank.device)
            for part in queries.split(_QUERY_CHUNK):
                squared = torch.addmm(self._norms, part, self.bank.T, alpha=-2)
                if forbidden is not None:
                    squared = squared.masked_fill(forbidden, torch.inf)
                if k == 1:
                    nearest = squared.amin(dim=1)
                else:
                    nearest = squared.topk(k, dim=1, largest=False).values
                    part = part.unsqueeze(1)
                distance = (nearest + part.square().sum(dim=-1)).clamp(min=0).sqrt()
                found.append(distance if k == 1 else distance.mean(dim=1))
        return torch.cat(found).view(batch, 1, *self.grid)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.bank = state["bank"].to(self.bank.device)
        self._norms = None

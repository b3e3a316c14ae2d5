"""PatchCore: distance of every patch to the nearest patch of a memory bank of good images.

Source: Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022,
arXiv 2106.08265. Reference code: amazon-science/patchcore-inspection, Apache-2.0.

What differs:
* Images are seen whole, at 256 px with Lite-0, not cropped to 224.
* The encoder's levels are concatenated at their own widths instead of being pooled to 1024 values.
* The coreset is the exact greedy one in the full feature space from one seeded start, without a
  random projection. It keeps a tenth of all patches, but up to `min_bank` all, and never more than
  `max_bank`. Memory is bounded for any number of images, by reducing what was gathered to the
  bank's size whenever the limit is reached, then from the first patch (greedy k-center sets compose
  within a constant factor).
* On a CPU each patch is compared with the most promising twentieth of a large bank
  (`search`), and the farthest thirty-second of an image's patches with all of it: other distances
  may come out slightly too large.
* The image score is the mean of the highest thousandth of the smoothed map, neither its maximum nor
  the published one, which weighs it by the neighbours in the bank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from flawmap.config import MethodConfig, Odd
from flawmap.encoders.encoder import Encoder
from flawmap.encoders.table import VIT_NAMES, EncoderSpec
from flawmap.errors import FitError
from flawmap.methods.base import Features, OnePassMethod
from flawmap.methods.coreset import greedy_coreset
from flawmap.methods.nearest import Groups, NearestSearch, split_bank

_LEAST_GROUPED = 4096
"""Smaller banks are searched whole: that costs next to nothing."""

_PEAKS = 1 / 32
"""The share of an image's patches, the farthest ones, that a search by groups compares with the
whole bank after all: they decide its score."""


class PatchCoreConfig(MethodConfig):
    """Options of PatchCore."""

    name: Literal["patchcore"] = "patchcore"
    levels: tuple[str, ...] | None = None
    """Encoder levels; the encoder's usual ones by default."""
    neighbourhood: Odd = Field(default=3, ge=1, le=15)
    """Each patch is the mean of this square of feature px (odd; 1 = none)."""
    border: Literal["inside", "zero"] = "zero"
    """What that mean counts beyond the border: nothing, or zeros as the reference code does. Zeros
    weaken the border's patches: fewer false alarms where parts do not lie alike, and less is seen
    of a flaw in the outermost patches."""
    normalise: Literal["none", "level"] = "none"
    """level: every level's patch vector has unit length times the square root of its share."""
    coreset_ratio: float = Field(default=0.1, gt=0, le=1)
    """Share of all patches that the bank keeps."""
    min_bank: int = Field(default=10_000, ge=1)
    """Up to this many patches all are kept: thinning a small bank would save nothing."""
    max_bank: int = Field(default=50_000, ge=1)
    """The bank never holds more patches than this, nor more than half of `memory_mib` holds."""
    memory_mib: int = Field(default=2048, ge=16)
    """Memory for patches gathered before they are reduced, the work space of it included."""
    neighbours: int = Field(default=1, ge=1, le=50)
    """The distance is the mean over this many nearest patches; with more than one the whole bank is
    searched, whatever `search` says."""
    search: Literal["clusters", "exact"] = "clusters"
    """clusters: on a CPU, compare each patch with the most promising part of a large
    bank only, which may overestimate a distance slightly, and the farthest thirty-second of an
    image's patches with all of it; exact: each with the whole bank, as always with several
    `neighbours`."""
    probed_share: float = Field(default=0.05, gt=0, le=1)
    """With search=clusters: the share of the bank that each patch is compared with."""

    def idle(self, encoder: str) -> dict[str, str]:
        found = {}
        if self.neighbourhood == 1:
            found["border"] = "method.neighbourhood above 1"
        if self.search == "exact":
            found["probed_share"] = "method.search=clusters"
        if self.neighbours > 1:
            found |= dict.fromkeys(("search", "probed_share"), "method.neighbours=1")
        return found


_VIT: Mapping[str, Any] = {
    "data.size": [392, 392],
    "scoring.sigma": 6.0,
    "scoring.top_fraction": 0.01,
    # Deep blocks of a ViT have far longer vectors than the ones before.
    "method.normalise": "level",
    "method.border": "inside",
}


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
        "scoring.pooling": "top",
        "scoring.top_fraction": 0.001,
        "training.batch_size": 16,
        "training.precision": "float32",
    }
    defaults_by_encoder: ClassVar[Mapping[str, Mapping[str, Any]]] = dict.fromkeys(VIT_NAMES, _VIT)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cpu": {},
        "gpu": {"training.batch_size": 64, "method.max_bank": 100_000},
    }

    bank: Tensor
    centers: Tensor
    labels: Tensor

    def __init__(self, config: PatchCoreConfig, encoder: Encoder, size: tuple[int, int]) -> None:
        super().__init__(encoder)
        self.config = config
        self.grid = max(encoder.grid(size), key=lambda g: g[0] * g[1])
        width = sum(encoder.channels)
        self.register_buffer("bank", torch.empty(0, width))
        # Split where it is learnt, also on a GPU, which needs none: a CPU may score with it.
        self.register_buffer("centers", torch.empty(0, width))
        self.register_buffer("labels", torch.empty(0, dtype=torch.int64))
        self._search: NearestSearch | None = None
        self._owners = torch.empty(0, dtype=torch.int32)
        self._gathered: list[Tensor] = []
        self._gathered_owners: list[Tensor] = []
        self._seen = 0
        self._held = 0
        # Reducing holds a centred copy beside the patches.
        self._limit = config.memory_mib * 2**20 // (width * 4 * 3)
        self._most = max(1, min(config.max_bank, self._limit // 2))

    @classmethod
    def default_levels(cls, spec: EncoderSpec) -> tuple[str, ...]:
        """The usual ones (strides 8 and 16); of a ViT, the sixth and the ninth block."""
        if spec.family == "vit":
            return ("blocks.5", "blocks.8")
        return super().default_levels(spec)

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
                level = F.avg_pool2d(
                    level,
                    k,
                    stride=1,
                    padding=k // 2,
                    count_include_pad=self.config.border == "zero",
                )
            if level.shape[-2:] != self.grid:
                level = F.interpolate(level, self.grid, mode="bilinear", align_corners=False)
            if self.config.normalise == "level":
                level = F.normalize(level.float(), dim=1) * level.shape[1] ** 0.5
            parts.append(level)
        joined = torch.cat(parts, dim=1)
        return (joined.flatten(2).transpose(1, 2).float().contiguous(),)

    def observe(
        self,
        features: Features,
        images: Sequence[int],
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        (patches,) = features
        batch, per_image, width = patches.shape
        self._gathered.append(patches.reshape(-1, width))
        owners = torch.tensor(list(images), dtype=torch.int32)
        self._gathered_owners.append(owners.repeat_interleave(per_image))
        self._seen += batch * per_image
        self._held += batch * per_image
        if self._held > self._limit:
            self._reduce(min(self._most, self._held), start=0, on_progress=on_progress)

    def finalise(
        self, generator: torch.Generator, on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        if not self._held:
            raise FitError(
                "no good image was observed", where="patchcore", hint="give at least one good image"
            )
        wanted = max(self.config.min_bank, int(self._seen * self.config.coreset_ratio))
        wanted = min(wanted, self._most, self._held)
        start = int(torch.randint(self._held, (1,), generator=generator))
        one = self.config.neighbours == 1
        grouped = self.config.search == "clusters" and one
        # Of a bank that keeps all, the selection decides the order alone, and that copies are
        # left out. Where the nearest patch of the whole bank is sought, neither matters.
        if wanted < self._held or not one or (grouped and wanted >= _LEAST_GROUPED):
            self._reduce(wanted, start=start, on_progress=on_progress)
        self.bank = torch.cat(self._gathered).contiguous()
        self._owners = torch.cat(self._gathered_owners)
        self._gathered, self._gathered_owners, self._held = [], [], 0
        if grouped and len(self.bank) >= _LEAST_GROUPED:
            self.centers, self.labels = split_bank(self.bank, round(len(self.bank) ** 0.5))
        self._search = None

    def _reduce(
        self, n: int, *, start: int, on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        points = torch.cat(self._gathered)
        owners = torch.cat(self._gathered_owners)
        self._gathered, self._gathered_owners = [], []
        kept = greedy_coreset(points, n, start=start, on_progress=on_progress)
        self._gathered = [points[kept]]
        self._gathered_owners = [owners[kept.cpu()]]
        self._held = len(kept)

    def anomaly_map(self, features: Features) -> Tensor:
        """Distances to the bank, (B, 1, h, w)."""
        patches = features[0].float()
        # Differences of large products: bfloat16 would drown the distances in rounding.
        with torch.autocast(patches.device.type, enabled=False):
            found = self._distances(patches)
        return found.view(-1, 1, *self.grid)

    def anomaly_map_without(self, features: Features, images: Sequence[int]) -> Tensor:
        maps = []
        with torch.autocast(features[0].device.type, enabled=False):
            for patches, image in zip(features[0].float(), images, strict=True):
                own = (self._owners == image).to(self.bank.device)
                if bool(own.all()):
                    raise FitError(
                        "an image cannot be left out: the bank holds its patches alone",
                        where="patchcore",
                        hint="give more good images, or --set calibration.strategy=off",
                    )
                maps.append(self._distances(patches[None], own))
        return torch.cat(maps).view(-1, 1, *self.grid)

    def _distances(self, patches: Tensor, ignored: Tensor | None = None) -> Tensor:
        """Distances of patches (B, n, C) to the bank but the rows ignored, (B, n)."""
        search, k = self._searcher(), self.config.neighbours
        found = search(patches.flatten(0, 1), k=k, ignored=ignored).view(patches.shape[:2])
        if search.approximate(k):
            # What is unlike the bank lies between its groups: its nearest patch is missed most.
            farthest = found.topk(max(1, round(_PEAKS * found.shape[1])), dim=1).indices
            rows = patches.gather(1, farthest[..., None].expand(-1, -1, patches.shape[2]))
            exact = search(rows.flatten(0, 1), ignored=ignored, exact=True)
            found.scatter_(1, farthest, exact.view(farthest.shape))
        return found

    def _searcher(self) -> NearestSearch:
        if self._search is None or self._search.bank.device != self.bank.device:
            # On a GPU the whole product is faster than many small ones.
            grouped = len(self.centers) > 0 and self.bank.device.type == "cpu"
            groups = Groups(self.centers, self.labels) if grouped else None
            self._search = NearestSearch(self.bank, groups, share=self.config.probed_share)
        return self._search

    def restore(self, state: Mapping[str, Tensor]) -> None:
        for name in ("bank", "centers", "labels"):
            setattr(self, name, state[name].to(self.bank.device))
        self._search = None

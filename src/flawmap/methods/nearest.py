"""Nearest-neighbour search in a bank of vectors, by matrix products.

The exact search compares every query with every vector. The grouped search splits the bank by
k-means, gives each query to the group whose center is nearest, and compares it with the vectors of
that group and of the groups around it only; it can miss the true nearest vector and then gives a
slightly larger distance, never a smaller one. On a CPU it does a tenth of the work.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_CHUNK = 1024
_MOST = 64 * 2**20
"""Distances that are held at a time: 256 MiB."""

_ROUNDS = 10
_LEAST_CANDIDATES = 512
"""Fewer would save nothing and find the wrong neighbour too often."""


def squared_distances(queries: Tensor, bank: Tensor, norms: Tensor) -> Tensor:
    """(Q, N) squared L2 distances without the queries' own squared norm.

    Args:
        queries: (Q, D) float32.
        bank: (N, D) float32.
        norms: (N,) squared norms of the bank.
    """
    return torch.addmm(norms, queries, bank.T, alpha=-2)


class Groups(NamedTuple):
    """A bank split by k-means.

    Attributes:
        centers: (g, D) float32, of the bank less its mean.
        labels: (N,) int64, the group of each vector.
    """

    centers: Tensor
    labels: Tensor


def split_bank(bank: Tensor, groups: int) -> Groups:
    """Split a bank (N, D) into at most `groups` groups by k-means."""
    return Groups(*_k_means(bank - bank.mean(dim=0), groups))


class NearestSearch:
    """Distances to the nearest of a bank's vectors.

    Args:
        bank: (N, D) float32.
        groups: How the bank is split; None for the exact search.
        share: Share of the bank that each query is compared with, at least 512 vectors.
    """

    def __init__(self, bank: Tensor, groups: Groups | None = None, *, share: float = 1.0) -> None:
        # Centred vectors have smaller norms, hence smaller rounding errors.
        self.mean = bank.mean(dim=0)
        self.bank = bank - self.mean
        self.norms = self.bank.square().sum(dim=1)
        self.candidates: list[Tensor] = []
        wanted = max(round(share * len(bank)), _LEAST_CANDIDATES)
        if groups is not None and wanted < len(bank):
            self.centers = groups.centers
            self.center_norms = self.centers.square().sum(dim=1)
            self.candidates = _candidates(self.centers, groups.labels, wanted)

    def approximate(self, k: int) -> bool:
        """Whether the distance to the `k` nearest vectors may come out too large."""
        return bool(self.candidates) and k == 1

    def __call__(
        self,
        queries: Tensor,
        *,
        k: int = 1,
        ignored: Tensor | None = None,
        exact: bool = False,
    ) -> Tensor:
        """The mean distance of each query to its `k` nearest vectors.

        Args:
            queries: (Q, D) float32.
            k: Number of neighbours; more than one is always searched exactly.
            ignored: (N,) bool; these vectors of the bank do not count. At least one must remain.
            exact: Compare each query with the whole bank.

        Returns:
            (Q,) float32.
        """
        queries = queries - self.mean
        own = queries.square().sum(dim=1)
        norms, left = self.norms, len(self.bank)
        if ignored is not None:
            norms = norms.masked_fill(ignored, torch.inf)
            left -= int(ignored.sum())
        if self.approximate(k) and not exact:
            return (self._probe(queries, norms) + own).clamp_(min=0).sqrt_()
        k = min(k, left)
        found = []
        rows = max(1, min(_CHUNK, _MOST // len(self.bank)))
        for part, norm in zip(queries.split(rows), own.split(rows), strict=True):  # type: ignore[no-untyped-call]
            squared = squared_distances(part, self.bank, norms)
            if k == 1:
                found.append((squared.amin(dim=1) + norm).clamp_(min=0).sqrt_())
            else:
                nearest = squared.topk(k, dim=1, largest=False).values + norm[:, None]
                found.append(nearest.clamp_(min=0).sqrt_().mean(dim=1))
        return torch.cat(found)

    def _probe(self, queries: Tensor, norms: Tensor) -> Tensor:
        """Smallest squared distance (without the query's norm) among each query's candidates."""
        label = squared_distances(queries, self.centers, self.center_norms).argmin(dim=1)
        # Queries sorted by group: each group is one matrix product.
        order = label.argsort(stable=True)
        queries = queries[order]
        counts = torch.bincount(label, minlength=len(self.centers)).tolist()
        found = []
        begin = 0
        for count, rows in zip(counts, self.candidates, strict=True):
            if count:
                part = queries[begin : begin + count]
                squared = squared_distances(part, self.bank[rows], norms[rows])
                found.append(squared.amin(dim=1))
            begin += count
        nearest = torch.cat(found)
        # Where every candidate is ignored, the whole bank is searched.
        lost = nearest.isinf()
        if lost.any():
            nearest[lost] = squared_distances(queries[lost], self.bank, norms).amin(dim=1)
        return torch.empty_like(nearest).index_copy_(0, order, nearest)


def _candidates(centers: Tensor, label: Tensor, wanted: int) -> list[Tensor]:
    """For each group, the rows of the nearest groups that together hold `wanted` vectors."""
    order = label.argsort(stable=True)
    sizes = torch.bincount(label, minlength=len(centers))
    members = order.split(sizes.tolist())  # type: ignore[no-untyped-call]
    nearest = torch.cdist(centers, centers).argsort(dim=1, stable=True)
    rows = []
    for row in nearest:
        held = sizes[row].cumsum(0)
        n = int((held < wanted).sum()) + 1
        rows.append(torch.cat([members[i] for i in row[:n].tolist()]))
    return rows


def _nearest(points: Tensor, centers: Tensor) -> Tensor:
    """The index of the nearest center of each point, (N,)."""
    norms = centers.square().sum(dim=1)
    parts = points.split(max(1, _MOST // len(centers)))  # type: ignore[no-untyped-call]
    return torch.cat([squared_distances(part, centers, norms).argmin(dim=1) for part in parts])


def _k_means(points: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from evenly spread rows; empty groups vanish.

    Returns:
        The centers (g, D) and each point's group (N,), g <= groups.
    """
    step = len(points) / groups
    centers = points[(torch.arange(groups, device=points.device) * step).long()]
    for _ in range(_ROUNDS):
        label = _nearest(points, centers)
        sums = torch.zeros_like(centers).index_add_(0, label, points)
        sizes = torch.bincount(label, minlength=len(centers))
        kept = sizes > 0
        centers = sums[kept] / sizes[kept, None]
    label = _nearest(points, centers)
    used = torch.bincount(label, minlength=len(centers)) > 0
    renumbered = used.long().cumsum(0) - 1
    return centers[used], renumbered[label]

"""Exact greedy k-center selection (farthest-point traversal), computed in blocks.

The greedy rule picks, again and again, the point farthest from what is already picked (Gonzalez,
1985). Updating every point after every pick is bound by memory traffic. Distances to the picked set
only ever fall, so a stale distance is an upper bound: as long as the farthest of a small group of
candidates is at least as far as the best stale distance outside the group, it is the farthest of
all. So picks are made inside the group, and all other points are updated once per group, by one
matrix product. The picks are those of the plain algorithm, up to ties and float32 rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_CHUNK = 32768
_BLOCK = 512


def greedy_coreset(
    points: Tensor,
    n: int,
    *,
    start: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Indices of `n` points, in the order of the greedy rule.

    Args:
        points: (N, D) float32.
        n: How many to pick, 1 <= n <= N.
        start: The first pick.
        on_progress: Called with (picked, n).

    Returns:
        (n,) int64. Fewer if all points that remain equal a picked one.

    Raises:
        ValueError: n or start out of range.
    """
    total = points.shape[0]
    if not 1 <= n <= total:
        raise ValueError(f"n must lie in 1..{total}, got {n}")
    if not 0 <= start < total:
        raise ValueError(f"start must lie in 0..{total - 1}, got {start}")
    # Centred points have smaller norms, hence smaller rounding errors in the products.
    points = points - points.mean(dim=0)
    norms = points.square().sum(dim=1)
    distances = torch.full((total,), torch.inf, dtype=points.dtype, device=points.device)
    picked = torch.tensor([start], device=points.device)
    _lower(distances, points, norms, picked)
    chosen = [picked]
    count, width = 1, 256
    while count < n:
        width = min(width, total - 1)
        values, group = distances.topk(width + 1)
        if values[0] <= 0:
            break
        picked = _pick_in_group(
            points[group[:-1]], norms[group[:-1]], values[:-1].clone(), values[-1], n - count
        )
        picked = group[picked]
        chosen.append(picked)
        count += len(picked)
        if on_progress:
            on_progress(count, n)
        _lower(distances, points, norms, picked)
        # The group should be several times what it yields, but no larger than cache allows.
        if len(picked) * 4 > width:
            width = min(width * 2, 4096)
        elif len(picked) * 16 < width:
            width = max(width // 2, 256)
    return torch.cat(chosen)


def covering_radius(points: Tensor, picked: Tensor) -> float:
    """The objective: the largest distance of any point to the nearest picked one, in float64."""
    centers = points[picked].double()
    worst = 0.0
    for chunk in torch.split(points, 2048):
        nearest = torch.cdist(
            chunk.double(), centers, compute_mode="donot_use_mm_for_euclid_dist"
        ).amin(dim=1)
        worst = max(worst, float(nearest.max()))
    return worst


def _pick_in_group(
    points: Tensor, norms: Tensor, distances: Tensor, bound: Tensor, limit: int
) -> Tensor:
    """Greedy picks inside a group while they are certainly the farthest of all points."""
    picks: list[int] = []
    limit = min(limit, _BLOCK)
    floor = float(bound)
    while len(picks) < limit:
        best = int(distances.argmax())
        value = float(distances[best])
        if value <= 0 or (value < floor and picks):
            break
        picks.append(best)
        squared = torch.addmv(norms, points, points[best], alpha=-2).add_(norms[best])
        torch.minimum(distances, squared, out=distances)
        distances[best] = 0
    return torch.tensor(picks, device=points.device)


def _lower(distances: Tensor, points: Tensor, norms: Tensor, picked: Tensor) -> None:
    """Lower the distances of all points by newly picked ones, in place."""
    centers = points[picked]
    center_norms = norms[picked]
    for begin in range(0, points.shape[0], _CHUNK):
        part = slice(begin, begin + _CHUNK)
        squared = torch.addmm(center_norms, points[part], centers.T, alpha=-2)
        nearest = squared.amin(dim=1).add_(norms[part])
        torch.minimum(distances[part], nearest, out=distances[part])
    distances.clamp_(min=0)
    distances[picked] = 0

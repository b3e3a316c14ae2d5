"""The blocked greedy coreset against the plain algorithm."""

from __future__ import annotations

import pytest
import torch

from flawmap.methods.coreset import covering_radius, greedy_coreset


def plain(points: torch.Tensor, n: int, start: int) -> list[int]:
    points = points.double()
    distances = torch.full((len(points),), torch.inf, dtype=torch.float64)
    picked = [start]
    while len(picked) < n:
        latest = (points - points[picked[-1]]).square().sum(dim=1)
        distances = torch.minimum(distances, latest)
        picked.append(int(distances.argmax()))
    return picked


@pytest.mark.parametrize(("total", "width", "n"), [(2500, 20, 400), (700, 3, 700), (40, 5, 1)])
def test_it_picks_what_the_plain_algorithm_picks(total: int, width: int, n: int) -> None:
    points = torch.randn(total, width, generator=torch.Generator().manual_seed(total))
    assert greedy_coreset(points, n, start=7).tolist() == plain(points, n, 7)


def test_clustered_points_far_from_the_origin() -> None:
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(30, 16, generator=generator) * 5 + 300
    points = centers.repeat(60, 1) + torch.randn(1800, 16, generator=generator) * 0.05
    ours = greedy_coreset(points, 30, start=0)
    wanted = torch.tensor(plain(points, 30, 0))
    assert covering_radius(points, ours) == pytest.approx(covering_radius(points, wanted), rel=1e-3)


def test_copies_are_picked_once() -> None:
    points = torch.randn(10, 4, generator=torch.Generator().manual_seed(0)).repeat(50, 1)
    picked = greedy_coreset(points, 100, start=3)
    assert len({tuple(points[i].tolist()) for i in picked}) == 10
    assert covering_radius(points, picked) == pytest.approx(0, abs=1e-6)


def test_the_covering_radius_by_hand() -> None:
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
    assert covering_radius(points, torch.tensor([0])) == pytest.approx(10.0)
    assert covering_radius(points, torch.tensor([1])) == pytest.approx(5.0)


def test_wrong_numbers_are_refused() -> None:
    points = torch.zeros(5, 2)
    with pytest.raises(ValueError, match=r"1\.\.5"):
        greedy_coreset(points, 6, start=0)
    with pytest.raises(ValueError, match=r"0\.\.4"):
        greedy_coreset(points, 2, start=5)


def test_progress_ends_at_the_wanted_number() -> None:
    seen: list[tuple[int, int]] = []
    points = torch.randn(900, 8, generator=torch.Generator().manual_seed(1))
    greedy_coreset(points, 200, start=0, on_progress=lambda done, n: seen.append((done, n)))
    assert seen[-1] == (200, 200)
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)

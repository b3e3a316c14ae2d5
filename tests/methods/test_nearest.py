"""Nearest-neighbour search against brute force in float64."""

from __future__ import annotations

import pytest
import torch

from flawmap.methods.nearest import NearestSearch, split_bank


def vectors(n: int, seed: int, width: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(20, width, generator=torch.Generator().manual_seed(99)) * 3 + 50
    label = torch.randint(20, (n,), generator=generator)
    return centers[label] + torch.randn(n, width, generator=generator)


def brute(queries: torch.Tensor, bank: torch.Tensor, k: int = 1) -> torch.Tensor:
    distances = torch.cdist(queries.double(), bank.double())
    return distances.topk(k, largest=False).values.mean(dim=1)


@pytest.mark.parametrize("k", [1, 4])
def test_exact_search_equals_brute_force(k: int) -> None:
    queries, bank = vectors(1500, 0), vectors(700, 1)
    found = NearestSearch(bank)(queries, k=k)
    torch.testing.assert_close(found.double(), brute(queries, bank, k), rtol=1e-4, atol=1e-4)


def test_clusters_never_underestimate_and_seldom_overestimate() -> None:
    queries, bank = vectors(1500, 0), vectors(9000, 1)
    exact = brute(queries, bank)
    found = NearestSearch(bank, split_bank(bank, 30), share=0.2)(queries).double()
    assert float((found - exact).min()) > -1e-3
    assert float(((found - exact) < 1e-3).double().mean()) > 0.9
    assert float((found / exact).max()) < 1.5


def test_probing_every_group_but_one_is_nearly_exact() -> None:
    queries, bank = vectors(300, 0), vectors(4000, 1)
    found = NearestSearch(bank, split_bank(bank, 10), share=0.9)(queries).double()
    torch.testing.assert_close(found, brute(queries, bank), rtol=1e-4, atol=1e-4)


def test_ignored_vectors_do_not_count() -> None:
    queries, bank = vectors(200, 0), vectors(9000, 1)
    ignored = torch.arange(9000) % 3 == 0
    wanted = brute(queries, bank[~ignored])
    exact = NearestSearch(bank)(queries, ignored=ignored)
    torch.testing.assert_close(exact.double(), wanted, rtol=1e-4, atol=1e-4)
    grouped = NearestSearch(bank, split_bank(bank, 30), share=0.15)
    found = grouped(queries, ignored=ignored).double()
    assert float((found - wanted).min()) > -1e-3
    only_last = torch.arange(9000) < 8999
    lone = grouped(queries, ignored=only_last).double()
    torch.testing.assert_close(lone, brute(queries, bank[8999:]), rtol=1e-4, atol=1e-4)


def test_a_query_gets_the_same_answer_alone_and_among_others() -> None:
    queries, bank = vectors(200, 0), vectors(9000, 1)
    search = NearestSearch(bank, split_bank(bank, 30), share=0.15)
    together = search(queries)
    alone = torch.cat([search(query[None]) for query in queries[:20]])
    torch.testing.assert_close(alone, together[:20], rtol=1e-4, atol=1e-4)


def test_equal_vectors_leave_no_group_empty() -> None:
    bank = torch.ones(800, 8)
    found = NearestSearch(bank, split_bank(bank, 7), share=0.3)(torch.zeros(3, 8))
    torch.testing.assert_close(found, torch.full((3,), 8.0**0.5))


def test_more_neighbours_than_vectors_means_all() -> None:
    queries, bank = vectors(5, 0), vectors(3, 1)
    torch.testing.assert_close(
        NearestSearch(bank)(queries, k=10).double(), brute(queries, bank, 3), rtol=1e-4, atol=1e-4
    )

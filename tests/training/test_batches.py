from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import torch

from flawmap.methods.base import Features
from flawmap.training.batches import Batches, streamed


def epoch(batches: Batches, number: int) -> list[list[int]]:
    first = number * batches.per_epoch
    return [batches.rows(step) for step in range(first, first + batches.per_epoch)]


def test_batches_visit_every_image_once_an_epoch() -> None:
    batches = Batches(12, 4, seed=3)
    first, second = epoch(batches, 0), epoch(batches, 1)
    assert sorted(row for batch in first for row in batch) == list(range(12))
    assert sorted(row for batch in second for row in batch) == list(range(12))
    assert first != second
    # Any step can be asked for at any time.
    assert Batches(12, 4, seed=3).rows(4) == second[1]
    assert Batches(12, 4, seed=4).rows(4) != second[1]


def test_the_incomplete_batch_is_dropped_and_small_data_is_one_batch() -> None:
    batches = Batches(10, 4, seed=0)
    assert {len(batches.rows(step)) for step in range(8)} == {4}
    assert sorted(Batches(3, 16, seed=0).rows(0)) == [0, 1, 2]
    assert Batches(1, 16, seed=0).rows(7) == [0]


def test_processes_share_each_batch() -> None:
    whole = Batches(20, 6, seed=1)
    shares = [Batches(20, 6, seed=1, rank=rank, world_size=3) for rank in range(3)]
    for step in range(7):
        parts = [share.rows(step) for share in shares]
        assert [len(part) for part in parts] == [2, 2, 2]
        assert sorted(row for part in parts for row in part) == sorted(whole.rows(step))


def test_balanced_epochs_show_every_category_equally_often() -> None:
    groups = ["many"] * 10 + ["few"] * 3
    batches = Batches(13, 5, seed=0, groups=groups)
    rows = [row for batch in epoch(batches, 0) for row in batch]
    assert len(rows) == 20
    assert Counter(groups[row] for row in rows) == {"many": 10, "few": 10}
    # Of the smaller one each image comes three times or four.
    assert set(Counter(row for row in rows if row >= 10).values()) <= {3, 4}
    assert sorted(row for row in rows if row < 10) == list(range(10))


def test_features_that_are_not_kept_come_in_the_order_of_the_steps() -> None:
    batches = Batches(7, 2, seed=0)
    opened: list[int] = []

    def read(rows: Sequence[int], step: int) -> Iterator[Features]:
        opened.append(step)
        for i in range(0, len(rows), 2):
            yield (torch.tensor(rows[i : i + 2]),)

    fetch = streamed(batches, read)
    for step in (0, 1, 2, 3, 4, 1, 2):
        assert fetch(step)[0].tolist() == batches.rows(step)
    # Anew at the start of an epoch, and after a jump.
    assert opened == [0, 3, 1]

"""Which images a step sees, and how features that are not kept are read for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from flawmap.methods.base import Features


class Batches:
    """The images of each step, from (seed, step) alone: shuffled each epoch, the rest dropped.

    A batch larger than the data is the whole data. Of several processes each gets an equal share of
    every batch.

    Args:
        images: How many there are.
        batch_size: Images a step, over all processes.
        seed: Of the run.
        groups: The category of each image, to show all categories equally often: in an epoch the
            images of smaller ones come several times. None shows every image once.
        rank: This process.
        world_size: How many processes there are.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        seed: int,
        *,
        groups: Sequence[str] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._images, self._seed = images, seed
        self._rank, self._world_size = rank, world_size
        self._members = _members(groups) if groups is not None else None
        length = images
        if self._members is not None:
            length = len(self._members) * max(len(m) for m in self._members)
        self.size = min(batch_size, images)
        self.per_epoch = length // self.size
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def rows(self, step: int) -> list[int]:
        """The images of a step that this process sees."""
        epoch, index = divmod(step, self.per_epoch)
        batch = self._order(epoch)[index * self.size : (index + 1) * self.size]
        # What cannot be shared alike is left out.
        whole = len(batch) // self._world_size * self._world_size
        mine = batch[:whole][self._rank :: self._world_size] if whole else batch
        return [int(row) for row in mine]

    def _shuffled(self, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        generator = np.random.default_rng([self._seed, epoch])
        if self._members is None:
            return generator.permutation(self._images)
        longest = max(len(m) for m in self._members)
        drawn = []
        for members in self._members:
            rounds = -(-longest // len(members))
            # Each image once before any comes again.
            order = np.concatenate([generator.permutation(members) for _ in range(rounds)])
            drawn.append(order[:longest])
        return generator.permutation(np.concatenate(drawn))


def _members(groups: Sequence[str]) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    names = np.asarray(groups)
    return [np.flatnonzero(names == name) for name in sorted(set(groups))]


def streamed(
    batches: Batches, read: Callable[[Sequence[int], int], Iterator[Features]]
) -> Callable[[int], Features]:
    """A `fetch` for features that are not kept: each epoch is read through the encoder anew.

    Args:
        batches: Which images a step sees.
        read: (rows of the images, first step) to an iterator over the batches of the steps from
            that one to the end of its epoch.
    """
    ahead = -1
    found: Iterator[Features] = iter(())

    def fetch(step: int) -> Features:
        nonlocal ahead, found
        if step != ahead or step % batches.per_epoch == 0:
            end = (step // batches.per_epoch + 1) * batches.per_epoch
            rows = [row for s in range(step, end) for row in batches.rows(s)]
            found = read(rows, step)
        ahead = step + 1
        features: Features = next(found)
        return features

    return fetch

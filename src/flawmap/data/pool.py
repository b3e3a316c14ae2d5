"""Work on many items, in order: in threads with bounded memory, and in several processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_in_threads(
    work: Callable[[T], R], items: Iterable[T], *, threads: int, ahead: int
) -> Generator[R, None, None]:
    """The results in the order of the items.

    At most `ahead` items are under way or waiting, so memory does not grow with their number. An
    error of an item, or of the items' iterator, is raised in its turn, after the results of all
    items before it; then, as when the iterator is closed early, items not yet begun are dropped and
    the threads end.

    Args:
        work: Called in a thread for each item.
        items: Read lazily.
        threads: Number of threads, at least 1.
        ahead: Number of items under way, at least 1.
    """
    pending: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="flawmap-data")
    source = iter(items)
    failure: Exception | None = None
    try:
        while True:
            try:
                item = next(source)
            except StopIteration:
                break
            except Exception as error:  # Raised again below, after what came before it.
                failure = error
                break
            pending.append(pool.submit(work, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
        if failure is not None:
            raise failure
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class Share:
    """What one of several processes does of work that all of them need.

    Attributes:
        rank: Of this process, from 0.
        gather: Gives every process the lists of all, in the order of their ranks.
        processes: How many there are.
    """

    rank: int
    processes: int
    gather: Callable[[list[Any]], list[list[Any]]]

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part: every so many-th one, since neighbours take equally long."""
        return items[self.rank :: self.processes]

    def joined(self, results: list[T]) -> list[T]:
        """The results of all processes, in the order of the items."""
        parts = self.gather(results)
        total = sum(len(part) for part in parts)
        return [parts[i % self.processes][i // self.processes] for i in range(total)]

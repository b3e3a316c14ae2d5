"""Work on many items in threads, in order and with bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

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

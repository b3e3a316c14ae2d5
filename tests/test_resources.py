"""Cores, memory and the threads of numpy's products."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
from threadpoolctl import threadpool_info

from flawmap.resources import available_memory, default_threads, one_blas_thread, usable_cores


def blas_threads() -> list[int]:
    return [i["num_threads"] for i in threadpool_info() if i["internal_api"] == "openblas"]


def test_one_blas_thread_is_given_back_by_the_last_who_asked() -> None:
    np.ones((2, 2)) @ np.ones((2, 2))
    before = blas_threads()
    first, second = one_blas_thread(), one_blas_thread()
    with first:
        assert set(blas_threads()) <= {1}
        second.__enter__()
    # The second still asks for it.
    assert set(blas_threads()) <= {1}
    second.__exit__(None, None, None)
    assert blas_threads() == before


def test_one_blas_thread_in_many_threads() -> None:
    before = blas_threads()
    barrier = Barrier(4)

    def work(_: int) -> None:
        barrier.wait()
        for _ in range(200):
            with one_blas_thread():
                pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert blas_threads() == before


def test_cores_and_memory() -> None:
    assert 1 <= default_threads() <= min(8, usable_cores())
    memory = available_memory()
    assert memory is None or memory > 0

"""What this process may use of the machine: devices, cores and memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from threadpoolctl import ThreadpoolController

from flawmap.errors import unknown_name

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
"""What a user may name; auto: a CUDA device if there is one, else the CPU."""

_MOST_THREADS = 8


def require_device(name: str) -> None:
    """Refuse what is no name of a device.

    Raises:
        ConfigError: It is none of `DeviceName`.
    """
    if name not in get_args(DeviceName):
        raise unknown_name("device", name, get_args(DeviceName), where="--device")


def usable_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_threads() -> int:
    """As many threads for reading images as there are usable cores, at most 8."""
    return min(_MOST_THREADS, usable_cores())


def available_memory() -> int | None:
    """Bytes that this process may still take, or None where that cannot be told."""
    return min(filter(None, (_of_the_machine(), _of_the_container())), default=None)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within it numpy's products use one thread each; blocks may nest and overlap.

    It belongs around a whole loop: OpenBLAS wakes its threads whenever the limit is lifted.

    The threads that OpenBLAS keeps spinning would take the cores from torch's, which costs a tenth
    of the throughput. Other libraries are left alone, since torch may compute with them.
    """
    with _limit.lock:
        if _limit.users == 0:
            _limit.limiter = _openblas().limit(limits=1)
        _limit.users += 1
    try:
        yield
    finally:
        with _limit.lock:
            _limit.users -= 1
            if _limit.users == 0:
                _limit.limiter.restore_original_limits()


class _Limit:
    lock = threading.Lock()
    users = 0
    limiter: Any = None


_limit = _Limit()


@lru_cache(maxsize=1)
def _openblas() -> Any:
    # Looking for the loaded libraries takes longer than a product.
    return ThreadpoolController().select(internal_api="openblas")


def _of_the_machine() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def _of_the_container() -> int | None:
    """A container's own limit may be far below the machine's memory."""
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        if limit.isdecimal():
            used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
            for line in Path("/sys/fs/cgroup/memory.stat").read_text(encoding="ascii").splitlines():
                # Pages of files that were read count as used, but are given up when needed.
                if line.startswith("inactive_file "):
                    used -= int(line.split()[1])
            return max(1, int(limit) - used)
    except (OSError, ValueError):
        pass
    return None

"""What this process may use of the machine: cores and memory."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

from threadpoolctl import ThreadpoolController

_MOST_THREADS = 8


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


def one_blas_thread() -> AbstractContextManager[object]:
    """Within it numpy's products use one thread each.

    The threads that OpenBLAS keeps spinning would take the cores from torch's, which costs a tenth
    of the throughput. Other libraries are left alone, since torch may compute with them.
    """
    openblas = ThreadpoolController().select(internal_api="openblas")
    limited: AbstractContextManager[object] = openblas.limit(limits=1)
    return limited


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
            used = Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii")
            return max(1, int(limit) - int(used))
    except (OSError, ValueError):
        pass
    return None

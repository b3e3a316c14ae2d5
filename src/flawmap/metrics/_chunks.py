"""Scores kept as sorted chunks, in memory up to a budget and in a temporary file beyond it."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedRandom
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from flawmap.errors import FlawmapError
from flawmap.metrics._counts import count_ge_gt

if TYPE_CHECKING:
    from typing_extensions import Self

BLOCK_ITEMS = 1 << 20
"""Scores handled at once: enough for numpy to run at speed, few enough for the CPU's cache."""

_MIN_CHUNK_BYTES = 4096
_CHUNKS_OF_A_WRITER = 4
"""Of its share of the budget."""

ScalarT = TypeVar("ScalarT", bound=np.generic)


class Stored(Generic[ScalarT]):
    """A one-dimensional array that lies in memory, or in a file from an offset on."""

    def __init__(
        self, array: NDArray[ScalarT], file: BufferedRandom | None = None, offset: int = 0
    ) -> None:
        self.size = array.size
        self._dtype = array.dtype
        self._array = array if file is None else None
        self._file = file
        self._offset = offset

    def read(self, start: int, stop: int) -> NDArray[ScalarT]:
        """Items start..stop; read from the file each time, since mapped pages would stay."""
        if self._array is not None:
            return self._array[start:stop]
        assert self._file is not None
        block = np.empty(min(stop, self.size) - start, dtype=self._dtype)
        self._file.seek(self._offset + start * block.itemsize)
        n_read = self._file.readinto(block.view(np.uint8).data)
        if n_read != block.nbytes:
            raise OSError(f"temporary file of scores: got {n_read} bytes, expected {block.nbytes}")
        return block


class MemoryBudget:
    """Keeps arrays in memory until a budget is used up, then in one temporary file.

    Several collectors may share one: what they keep together is bounded, and so are the buffers
    they write to, which take up to a quarter of it on top.

    The file is made when first needed. It has no name where the system allows that, so nothing is
    left behind even if the process is killed.

    Args:
        max_bytes: bytes to keep in memory, at least 1.
        directory: where the temporary file goes; None is the system's place for such files, which
            on some systems is itself in memory.

    Attributes:
        writers: how many buffers are filled.
        spilled_bytes: bytes of scores that lie in the temporary file.

    Raises:
        ValueError: if max_bytes is below 1.
    """

    DEFAULT: ClassVar[int] = 512 * 1024**2
    """Bytes, where nobody says how many."""

    def __init__(
        self,
        max_bytes: int = DEFAULT,
        directory: str | os.PathLike[str] | None = None,
    ) -> None:
        if max_bytes < 1:
            raise ValueError(f"max_bytes: got {max_bytes}, expected at least 1")
        self.max_bytes = max_bytes
        self.writers = 0
        self.spilled_bytes = 0
        self._free_bytes = max_bytes
        self._directory = directory
        self._file: BufferedRandom | None = None

    @property
    def chunk_bytes(self) -> int:
        """Of a full buffer."""
        return max(_MIN_CHUNK_BYTES, self.max_bytes // (_CHUNKS_OF_A_WRITER * self.writers))

    def keep(self, array: NDArray[ScalarT]) -> Stored[ScalarT]:
        """Takes over a one-dimensional contiguous array.

        Raises:
            FlawmapError: if the disk of the temporary file is full.
        """
        if array.nbytes <= self._free_bytes:
            self._free_bytes -= array.nbytes
            return Stored(array)
        offset = self.spilled_bytes
        try:
            if self._file is None:
                # Open for as long as arrays lie in it; `close` or the end of the budget closes it.
                self._file = tempfile.TemporaryFile(prefix="flawmap-", dir=self._directory)  # noqa: SIM115
                weakref.finalize(self, self._file.close)
            self._file.seek(offset)
            self._file.write(array.view(np.uint8).data)
            self._file.flush()
        except OSError as error:
            with suppress(OSError):
                self.close()
            raise FlawmapError(
                f"scores of pixels cannot be kept in a temporary file: {error.strerror or error}",
                where=os.fspath(self._directory or tempfile.tempdir or "the temporary folder"),
                hint="free some space there, or name another folder by the environment variable "
                "TMPDIR",
            ) from error
        self.spilled_bytes += array.nbytes
        return Stored(array, self._file, offset)

    def close(self) -> None:
        """Removes the temporary file; arrays kept in it can no longer be read."""
        if self._file is not None:
            self._file.close()


@dataclass(frozen=True)
class _Chunk:
    """Ascending scores with their regions; the ends of each block stay in memory."""

    scores: Stored[np.floating]
    regions: Stored[np.int32] | None
    first: NDArray[np.floating]
    last: NDArray[np.floating]


class SortedChunks:
    """Scores, each with the number of its region if wanted, in sorted chunks.

    Scores are stored as float32 until float64 ones arrive and as float64 from then on. Both are
    compared exactly, also with each other.

    Args:
        budget: where full chunks go.
        with_regions: whether each score carries an int32 region.
    """

    def __init__(self, budget: MemoryBudget, *, with_regions: bool) -> None:
        self.size = 0
        self._budget = budget
        self._with_regions = with_regions
        self._chunks: list[_Chunk] = []
        self._dtype: np.dtype[np.floating] = np.dtype(np.float32)
        budget.writers += 1
        self._new_buffers(0)

    def append(self, scores: NDArray[np.floating], regions: NDArray[np.int32] | None) -> None:
        """Adds (N,) finite scores, float16/32/64, and their (N,) regions."""
        assert (regions is not None) == self._with_regions
        if scores.dtype.itemsize > self._dtype.itemsize:
            self._seal()
            self._dtype = np.dtype(np.float64)
            self._new_buffers(0)
        start = 0
        while start < scores.size:
            if not self._scores.size:
                # Not before: until then it is not known how many share the budget.
                self._new_buffers(self._budget.chunk_bytes)
            n = min(scores.size - start, self._scores.size - self._used)
            self._scores[self._used : self._used + n] = scores[start : start + n]
            if self._regions is not None and regions is not None:
                self._regions[self._used : self._used + n] = regions[start : start + n]
            self._used += n
            start += n
            if self._used == self._scores.size:
                self._seal()
                self._new_buffers(0)
        self.size += scores.size

    def count_ge_gt(
        self, queries: NDArray[np.floating]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Counts the scores >= and > each query.

        Args:
            queries: (Q,) ascending and distinct.

        Returns:
            Two (Q,) int64 arrays.
        """
        n_ge = np.zeros(queries.size, dtype=np.int64)
        n_gt = np.zeros(queries.size, dtype=np.int64)
        # whole[i] holds the scores that are above every query before i and no other.
        whole = np.zeros(queries.size + 1, dtype=np.int64)
        for chunk in self._all_chunks():
            dtype = np.result_type(queries, chunk.first)
            keys = queries.astype(dtype, copy=False)
            starts = np.searchsorted(keys, chunk.first.astype(dtype, copy=False), side="left")
            stops = np.searchsorted(keys, chunk.last.astype(dtype, copy=False), side="right")
            for block, (start, stop) in enumerate(zip(starts, stops, strict=True)):
                low = block * BLOCK_ITEMS
                high = min(low + BLOCK_ITEMS, chunk.scores.size)
                whole[start] += high - low
                if start == stop:
                    continue
                scores = chunk.scores.read(low, high).astype(dtype, copy=False)
                block_ge, block_gt = count_ge_gt(scores, keys[start:stop])
                n_ge[start:stop] += block_ge
                n_gt[start:stop] += block_gt
        above = whole[::-1].cumsum()[::-1][1:]
        return n_ge + above, n_gt + above

    def blocks(self) -> Iterator[tuple[NDArray[np.floating], NDArray[np.int32]]]:
        """Yields ascending scores with their regions, at most BLOCK_ITEMS at a time.

        Each block is sorted; the blocks of different chunks overlap.
        """
        for chunk in self._all_chunks():
            assert chunk.regions is not None
            for low in range(0, chunk.scores.size, BLOCK_ITEMS):
                high = low + BLOCK_ITEMS
                yield chunk.scores.read(low, high), chunk.regions.read(low, high)

    def _new_buffers(self, n_bytes: int) -> None:
        n_items = n_bytes // (self._dtype.itemsize + (4 if self._with_regions else 0))
        self._used = self._n_sorted = 0
        self._scores = np.empty(n_items, dtype=self._dtype)
        self._regions = np.empty(n_items, dtype=np.int32) if self._with_regions else None

    def _sorted_buffers(self) -> tuple[NDArray[np.floating], NDArray[np.int32] | None]:
        """Sorts the used part of the buffers in place and returns views of it."""
        scores = self._scores[: self._used]
        regions = None if self._regions is None else self._regions[: self._used]
        if self._n_sorted < self._used:
            if regions is None:
                scores.sort()
            else:
                order = np.argsort(scores)
                scores[:] = scores[order]
                regions[:] = regions[order]
            self._n_sorted = self._used
        return scores, regions

    def _seal(self) -> None:
        """Turns what the buffers hold into a chunk; the buffers must be replaced afterwards."""
        if not self._used:
            return
        scores, regions = self._sorted_buffers()
        if self._used < self._scores.size:
            # A view would keep the whole buffer alive.
            scores, regions = scores.copy(), None if regions is None else regions.copy()
        first, last = _block_ends(scores)
        kept_regions = None if regions is None else self._budget.keep(regions)
        self._chunks.append(_Chunk(self._budget.keep(scores), kept_regions, first, last))

    def _all_chunks(self) -> Iterator[_Chunk]:
        yield from self._chunks
        if self._used:
            scores, regions = self._sorted_buffers()
            first, last = _block_ends(scores)
            kept_regions = None if regions is None else Stored(regions)
            yield _Chunk(Stored(scores), kept_regions, first, last)


def _block_ends(
    scores: NDArray[np.floating],
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    starts = np.arange(0, scores.size, BLOCK_ITEMS)
    ends = np.minimum(starts + BLOCK_ITEMS, scores.size) - 1
    return scores[starts], scores[ends]


class ScoreCollector:
    """Base of what collects the scores of many maps: bounded memory, a file beyond it.

    Args:
        budget: what bounds it, alone or together with others; one of its own by default.
    """

    def __init__(self, budget: MemoryBudget | None = None) -> None:
        self._budget = MemoryBudget() if budget is None else budget
        self._normals = SortedChunks(self._budget, with_regions=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the budget's temporary file, if there is one; scores in it can no longer be
        used, neither here nor by others that share it."""
        self._budget.close()

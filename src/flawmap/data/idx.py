"""MNIST, Fashion-MNIST and other data sets in IDX files, one class against all others.

Four files as downloaded, plain or compressed with gzip: `train-images-idx3-ubyte[.gz]`,
`train-labels-idx1-ubyte[.gz]`, and `t10k-...` for the test split. An IDX file begins with two zero
bytes, the type (8 = unsigned bytes) and the number of dimensions, then each dimension as 4 bytes,
the highest first.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from flawmap.data.one_vs_rest import Packed, Part, Pixels, different_counts, one_vs_rest
from flawmap.data.samples import SampleTable
from flawmap.errors import DataError
from flawmap.files import is_file
from flawmap.wording import shown

_PREFIX: dict[Part, str] = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTES = 8
_MOST = 2**31
"""Bytes: a header that promises more is broken, or compressed to do harm."""

_MNIST_TEST = (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
_FASHION_TEST = (1000,) * 10


class Idx:
    """Reads each class as a category; its number is its name."""

    name: ClassVar[str] = "idx"
    expects: ClassVar[str] = (
        "{train,t10k}-{images-idx3,labels-idx1}-ubyte, plain or .gz, in the folder or in raw/"
    )
    generic: ClassVar[bool] = False
    classes: ClassVar[Sequence[str]] = ()

    def matches(self, root: Path) -> str | None:
        """The four files are there, and are not those of a data set with a name of its own."""
        counts = _test_counts(root)
        if counts is None or _known(root, counts) is not None:
            return None
        return "it has IDX files of images and labels"

    def read(self, root: Path, seed: int) -> SampleTable:
        """Unpack the images, and list each class against the others.

        Raises:
            DataError: A file is missing, cut off or of another kind, or two contradict each other.
        """
        files = _files(root)
        if files is None:
            raise DataError(
                "this is not a data set of IDX files: not all four are there",
                where=shown(root),
                expected=self.expects,
                hint="put the four files into one folder, or name another layout with --format",
            )
        labels: dict[Part, list[int]] = {}
        for part in _PREFIX:
            labels[part] = [int(v) for v in read_idx(files[part, "labels-idx1"], 1)]
        found = max((max(v, default=-1) for v in labels.values()), default=-1) + 1
        names = self.classes or [str(i) for i in range(found)]
        if found > len(names):
            raise DataError(
                "a label names a class that this data set does not have",
                where=shown(root),
                given=found - 1,
                expected=f"0 to {len(names) - 1}",
                hint="fetch the files again, or read them with --format idx",
            )

        def images(part: Part) -> Iterator[Pixels]:
            pixels = read_idx(files[part, "images-idx3"], 3)
            if len(pixels) != len(labels[part]):
                raise different_counts(root, part, len(pixels), len(labels[part]))
            yield pixels

        table = one_vs_rest(self, Packed(root, list(files.values()), labels, names, images))
        if not self.classes and _counts(labels["test"]) == _FASHION_TEST:
            note = (
                "as many test images of each class as Fashion-MNIST has: if it is that, "
                f"--format {FashionMnist.name} gives its classes their names"
            )
            table = replace(table, notes=(*table.notes, note))
        return table


class Mnist(Idx):
    """Reads the ten digits (LeCun et al., 1998)."""

    name: ClassVar[str] = "mnist"
    expects: ClassVar[str] = "MNIST's four IDX files"
    classes: ClassVar[Sequence[str]] = tuple("0123456789")

    def matches(self, root: Path) -> str | None:
        """The test labels are as many of each digit as MNIST has."""
        if _known(root, _test_counts(root)) != self.name:
            return None
        return "its test labels are MNIST's"


class FashionMnist(Idx):
    """Reads the ten kinds of clothes (Xiao et al., arXiv 1708.07747)."""

    name: ClassVar[str] = "fashion-mnist"
    expects: ClassVar[str] = "Fashion-MNIST's four IDX files"
    classes: ClassVar[Sequence[str]] = (
        *("t-shirt", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle-boot"),
    )

    def matches(self, root: Path) -> str | None:
        """1,000 test labels of each of ten kinds, as others have too: the folder's name tells."""
        if _known(root, _test_counts(root)) != self.name:
            return None
        return "its test labels and its folder are Fashion-MNIST's"


def read_idx(path: Path, dimensions: int) -> Pixels:
    """The values of an IDX file.

    Args:
        path: Compressed with gzip if its name ends in .gz.
        dimensions: How many there must be.

    Returns:
        uint8, in the shape that the file names.

    Raises:
        DataError: The file cannot be read, is cut off, or holds something else.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 + 4 * dimensions)
            shape = tuple(int.from_bytes(head[i : i + 4], "big") for i in range(4, len(head), 4))
            wanted = bytes((0, 0, _UNSIGNED_BYTES, dimensions))
            size = math.prod(shape)
            if head[:4] != wanted or len(shape) != dimensions or size > _MOST:
                raise _broken(path, f"it does not begin as {dimensions} dimensions of bytes do")
            content = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _broken(path, str(error) or type(error).__name__) from error
    if len(content) != size:
        more = "more" if len(content) > size else "less"
        raise _broken(path, f"it holds {more} than the {size} bytes that its header names")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _broken(path: Path, reason: str) -> DataError:
    return DataError(
        f"the IDX file cannot be read: {reason}", where=shown(path), hint="fetch the file again"
    )


def _files(root: Path) -> dict[tuple[Part, str], Path] | None:
    """The four files by part and content, or None."""
    for base in (root, root / "raw"):
        found: dict[tuple[Part, str], Path] = {}
        for part, prefix in _PREFIX.items():
            for content in ("images-idx3", "labels-idx1"):
                names = [
                    f"{prefix}-{content.replace('-', mark)}-ubyte{ending}"
                    for mark in "-."
                    for ending in ("", ".gz")
                ]
                there = [base / name for name in names if is_file(base / name)]
                if there:
                    found[part, content] = there[0]
        if len(found) == 4:
            return found
    return None


def _known(root: Path, counts: tuple[int, ...] | None) -> str | None:
    """The reader of a data set with a name of its own; None for any other."""
    place = root.resolve()
    folder = place.parent if place.name == "raw" else place
    if counts == _FASHION_TEST and "fashion" in folder.name.casefold():
        return FashionMnist.name
    return Mnist.name if counts == _MNIST_TEST else None


def _test_counts(root: Path) -> tuple[int, ...] | None:
    """How many test images each class has; None without IDX files."""
    files = _files(root)
    if files is None:
        return None
    try:
        labels = read_idx(files["test", "labels-idx1"], 1)
    except DataError:
        # The reader that is asked by name says what is wrong.
        return ()
    return _counts(labels)


def _counts(labels: Sequence[int] | Pixels) -> tuple[int, ...]:
    """How many images each class has."""
    return tuple(int(n) for n in np.bincount(np.asarray(labels, dtype=np.int64)))

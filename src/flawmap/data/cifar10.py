"""CIFAR-10 (Krizhevsky, 2009), one class against all others.

Read as downloaded: the binary version (`data_batch_1.bin` to `data_batch_5.bin`, `test_batch.bin`:
a byte for the class, then 3,072 for the red, green and blue planes of 32 x 32 px) or the Python
version (`data_batch_1`, ...). The latter are pickles, which can run any code when they are read
as such: here nothing is called but what builds an array of bytes, and all else is refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from flawmap.data.one_vs_rest import Packed, Part, Pixels, different_counts, one_vs_rest
from flawmap.data.samples import SampleTable
from flawmap.errors import DataError
from flawmap.files import is_file
from flawmap.wording import shown

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
_SIDE = 32
_VALUES = 3 * _SIDE * _SIDE
_FOLDERS = ("", "cifar-10-batches-bin", "cifar-10-batches-py")
_PARTS: dict[Part, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
    "test": ("test_batch",),
}


class Cifar10:
    """Reads the ten classes as categories."""

    name: ClassVar[str] = "cifar-10"
    expects: ClassVar[str] = (
        "data_batch_1 to data_batch_5 and test_batch, all with or all without .bin, in the folder "
        "or in cifar-10-batches-{bin,py}"
    )
    generic: ClassVar[bool] = False

    def matches(self, root: Path) -> str | None:
        """All six batches are there."""
        return "it has CIFAR-10's six batches" if _base(root) else None

    def read(self, root: Path, seed: int) -> SampleTable:
        """Unpack the images, and list each class against the others.

        Raises:
            DataError: A batch is missing, cut off, or holds something else.
        """
        found = _base(root)
        if found is None:
            raise DataError(
                "this is not CIFAR-10: not all six batches are there",
                where=shown(root),
                expected=self.expects,
                hint="unpack the whole archive, or name another layout with --format",
            )
        base, ending = found
        read = read_binary if ending else read_pickled
        files = {part: [base / (n + ending) for n in names] for part, names in _PARTS.items()}
        labels = {
            part: [label for path in paths for label in read(path)[1]]
            for part, paths in files.items()
        }

        def images(part: Part) -> Iterator[Pixels]:
            for path in files[part]:
                yield read(path)[0]

        every = [path for paths in files.values() for path in paths]
        return one_vs_rest(self, Packed(root, every, labels, CLASSES, images))


def read_binary(path: Path) -> tuple[Pixels, list[int]]:
    """Images (n, 32, 32, 3) RGB and classes of a batch of the binary version.

    Raises:
        DataError: The file cannot be read, or is no such batch.
    """
    try:
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    except OSError as error:
        raise _broken(path, error.strerror or str(error)) from error
    if content.size == 0 or content.size % (_VALUES + 1):
        raise _broken(path, f"its {content.size} bytes are no multiple of {_VALUES + 1}")
    rows = content.reshape(-1, _VALUES + 1)
    return _images(rows[:, 1:], [int(v) for v in rows[:, 0]], path)


def read_pickled(path: Path) -> tuple[Pixels, list[int]]:
    """Images (n, 32, 32, 3) RGB and classes of a batch of the Python version.

    Raises:
        DataError: The file cannot be read, is no such batch, or would call anything else than what
            builds an array of bytes.
    """
    try:
        with path.open("rb") as file:
            tree = _Unpickler(file).load()
        plain = {_text(key): value for key, value in tree.items()}
        if lacking := [name for name in ("data", "labels") if name not in plain]:
            raise ValueError(f"it has no {' and no '.join(lacking)}")
        data, labels = plain["data"].values, plain["labels"]
        if data.ndim != 2 or data.shape[1] != _VALUES or not all(type(v) is int for v in labels):
            raise ValueError("its arrays have other shapes or types")
    except OSError as error:
        raise _broken(path, error.strerror or str(error)) from error
    except Exception as error:  # a broken pickle raises whatever its parser stumbles on
        raise _broken(path, str(error) or type(error).__name__) from error
    return _images(data, labels, path)


def _images(rows: Pixels, labels: list[int], path: Path) -> tuple[Pixels, list[int]]:
    if len(rows) != len(labels):
        part: Part = "test" if path.stem == "test_batch" else "train"
        raise different_counts(path, part, len(rows), len(labels))
    if labels and not 0 <= min(labels) <= max(labels) < len(CLASSES):
        raise _broken(path, f"it names a class beyond 0 to {len(CLASSES) - 1}")
    # Not copied: most who read a batch ask for its labels alone.
    return rows.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1), labels


def _base(root: Path) -> tuple[Path, str] | None:
    """Where the batches lie, and how their names end."""
    names = [name for part in _PARTS.values() for name in part]
    for folder in _FOLDERS:
        for ending in (".bin", ""):
            if all(is_file(root / folder / (name + ending)) for name in names):
                return root / folder, ending
    return None


def _broken(path: Path, reason: str) -> DataError:
    return DataError(
        f"the CIFAR-10 batch cannot be read: {reason}",
        where=shown(path),
        hint="fetch the archive again, from a source that you trust",
    )


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


class _Dtype:
    """Stands for numpy.dtype in a pickle: its name alone."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name = _text(name)

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """Stands for an array in a pickle: of unsigned bytes, or refused."""

    values: Pixels

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_columns, content = state
        if not isinstance(dtype, _Dtype) or dtype.name.lstrip("|") != "u1":
            raise pickle.UnpicklingError("it holds an array that is not of bytes")
        values = np.frombuffer(content, dtype=np.uint8)
        # Fortran's order: the first index runs fastest.
        self.values = values.reshape(shape[::-1]).T if by_columns else values.reshape(shape)


class _Token:
    """What is named in a pickle as an argument, and can do nothing."""

    __slots__ = ()


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Token,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    """Builds plain values and arrays of bytes; refuses whatever else a pickle names."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="bytes")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        return _ALLOWED[module, name]

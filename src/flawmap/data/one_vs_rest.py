"""Classification data sets as anomaly detection: each class in turn is good, all others are not.

Images that lie together in one file are unpacked once, as BMP files whose bytes do not depend on
any library's version, into a hidden folder beside the data, or into the user's cache where that
folder may not be written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from flawmap.data.lister import Lister
from flawmap.data.samples import Reader, SampleTable, table_of
from flawmap.errors import DataError
from flawmap.files import as_path
from flawmap.types import GOOD, Sample
from flawmap.wording import shown

Part = Literal["train", "test"]
PARTS: tuple[Part, ...] = ("train", "test")

Pixels = npt.NDArray[np.uint8]

_FOLDER = ".flawmap-images"
_DONE = "complete.json"
_VERSION = 1


@dataclass(frozen=True)
class Packed:
    """Images that lie together in files, not yet read.

    Attributes:
        root: The folder that was asked for.
        files: All files that hold them.
        labels: For each part the class number of every image, in order.
        names: The name of each class.
        images: Gives the images of a part in order, in pieces of (n, H, W) or (n, H, W, 3).
    """

    root: Path
    files: Sequence[Path]
    labels: Mapping[Part, Sequence[int]]
    names: Sequence[str]
    images: Callable[[Part], Iterator[Pixels]]


def one_vs_rest(reader: Reader, packed: Packed) -> SampleTable:
    """A category for each class: its training images teach, all test images test.

    Raises:
        DataError: The images cannot be unpacked.
    """
    folder = _unpacked(packed)
    samples = []
    taught = set(packed.labels["train"])
    notes = [
        f"'{name}' has no training image: left out"
        for number, name in enumerate(packed.names)
        if number not in taught
    ]
    for number, category in enumerate(packed.names):
        if number not in taught:
            continue
        for part in PARTS:
            for index, label in enumerate(packed.labels[part]):
                good = label == number
                if part == "test" or good:
                    path = _path(folder, part, label, index)
                    kind = GOOD if good else packed.names[label]
                    samples.append(Sample(path, category, part, int(not good), kind))
    table = table_of(reader, folder, samples, Lister())
    return replace(table, one_vs_rest=True, notes=(*table.notes, *notes))


def _path(folder: Path, part: Part, label: int, index: int) -> str:
    # A Path per image costs much more than its name: there is one for each image and category.
    return f"{folder}{os.sep}{part}{os.sep}{label}{os.sep}{index:05d}.bmp"


def _unpacked(packed: Packed) -> Path:
    """The folder of the unpacked images, made if it is not there."""
    state = {
        "version": _VERSION,
        "files": [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in packed.files],
    }
    place = hashlib.sha256(str(packed.root.resolve()).encode("utf-8", "surrogateescape"))
    cache = as_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    folders = (packed.root / _FOLDER, cache / "flawmap" / place.hexdigest()[:16])
    for folder in folders:
        if _read(folder / _DONE) == state:
            return folder
    reasons = []
    for folder in folders:
        token = secrets.token_hex(4)
        part, old = (folder.with_name(f"{folder.name}.{token}{end}") for end in ("", ".old"))
        try:
            part.mkdir(parents=True)
            _write(packed, part)
            (part / _DONE).write_text(json.dumps(state), encoding="utf-8")
            # Another process may have been faster: its images are the same, and are being read.
            if _read(folder / _DONE) != state:
                with contextlib.suppress(OSError):
                    # What is there belongs to other files; readers of it keep what they opened.
                    folder.rename(old)
                with contextlib.suppress(OSError):
                    part.rename(folder)
            if _read(folder / _DONE) == state:
                return folder
            reasons.append(f"{shown(folder)}: the folder is in use")
        except OSError as error:
            reasons.append(f"{shown(folder)}: {error.strerror or error}")
        finally:
            shutil.rmtree(part, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
    raise DataError(
        f"the images cannot be unpacked: {'; '.join(reasons)}",
        where=shown(packed.root),
        expected="a folder that may be written, with some hundred MB free",
        hint="copy the data set to a place of your own, or set XDG_CACHE_HOME",
    )


def _read(path: Path) -> object:
    try:
        found: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _write(packed: Packed, folder: Path) -> None:
    for part in PARTS:
        labels = packed.labels[part]
        for label in set(labels):
            (folder / part / str(label)).mkdir(parents=True)
        index = 0
        for piece in packed.images(part):
            for pixels in piece:
                Image.fromarray(pixels).save(_path(folder, part, labels[index], index), "BMP")
                index += 1
        if index != len(labels):
            raise different_counts(packed.root, part, index, len(labels))


def different_counts(root: Path, part: Part, images: int, labels: int) -> DataError:
    """The error for images and labels that do not belong together."""
    return DataError(
        f"the {part} split has {images} images and {labels} labels",
        where=shown(root),
        expected="as many of both",
        hint="fetch the files again: some are of another data set, or cut off",
    )

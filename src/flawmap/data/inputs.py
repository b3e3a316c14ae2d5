"""What `predict` is given: images, folders, tables and data sets, as one list of images."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flawmap.data.detect import existing, read_data
from flawmap.data.lister import Lister, Problem, listed_once, raise_unreadable
from flawmap.data.samples import SampleTable
from flawmap.data.table import CSV_ENDINGS, JSON_ENDINGS
from flawmap.data.words import is_masks
from flawmap.errors import ConfigError, DataError, unknown_name
from flawmap.files import as_path, is_file, is_folder
from flawmap.registry import FORMATS
from flawmap.types import EVERY, Sample
from flawmap.wording import counted, shown

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Inputs:
    """Images to score.

    Attributes:
        samples: In the order given; images named twice count once.
        roots: The folders asked for, and the folders of files, for names of outputs.
        problems: What could not be listed; empty unless asked to skip.
        notes: How each path was understood, where that is not plain.
    """

    samples: tuple[Sample, ...]
    roots: tuple[str, ...]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


def images_below(folder: Path, known: Collection[str] = ()) -> Inputs:
    """All images below a folder that is no data set.

    Folders of masks are left out, and the maps and overlays of an earlier run.

    Args:
        folder: It counts itself, whatever it is called.
        known: Names of products: such a folder counts too.
    """

    def masks(name: str) -> str | None:
        return "masks" if is_masks(name) and name not in known else None

    lister = Lister()
    paths = lister.tree(folder, leave_out=masks)
    return Inputs(
        samples=tuple(map(_sample, paths)),
        roots=(str(folder),),
        problems=tuple(lister.problems),
        notes=tuple(f"{shown(folder)}: {note}" for note in lister.notes(folder)),
    )


def find_images(
    paths: Sequence[PathLike],
    *,
    format: str | None = None,
    skip_bad: bool = False,
    leave_out: Iterable[PathLike] = (),
    seed: int = 0,
    known: Collection[str] = (),
) -> Inputs:
    """List the images at paths.

    A file is an image unless it ends like a table. A folder is a data set if its layout has marks
    of its own (such as train/good): then its test split counts, or everything if it has none, so
    that masks are never scored. Any other folder stands for its `images_below`.

    Args:
        paths: Images, folders, tables or data sets.
        format: Read every path as a data set of this layout.
        skip_bad: Do without what cannot be listed.
        leave_out: Files that do not count: maps and overlays of an earlier run.
        seed: As for `read_data`, for layouts without a split of their own.
        known: As for `images_below`.

    Raises:
        DataError: A path does not exist, or there is no image.
        ConfigError: The format is unknown.
    """
    samples: dict[str, Sample] = {}
    roots: list[str] = []
    problems: list[Problem] = []
    notes: list[str] = []
    for given in paths:
        path = as_path(given)
        before, told = len(problems), len(notes)
        table = _as_table(path, format, seed)
        if table is not None:
            chosen = [s for s in table.samples if s.split == "test"]
            part = "its test split" if chosen else "all its images"
            chosen = chosen or list(table.samples)
            notes.append(f"{shown(path)}: format {table.format}, {part}, {len(chosen)} images")
            roots.append(table.root if is_folder(table.root) else str(Path(table.root).parent))
            problems += table.problems
        elif is_folder(path):
            plain = images_below(path, known)
            chosen = list(plain.samples)
            roots += plain.roots
            problems += plain.problems
            notes += plain.notes
        else:
            chosen = [_sample(str(path))]
            roots.append(str(path.parent))
        if not chosen and len(problems) == before:
            raise DataError(
                "there is no image here",
                where=shown(path),
                given="; ".join(notes[told:]) or None,
                hint="check the path; .png, .jpg, .bmp, .tif and .webp files are read, those of a "
                "folder of masks if you name it",
            )
        for sample in chosen:
            samples.setdefault(sample.path, sample)
    if not skip_bad:
        raise_unreadable(problems, where=", ".join(shown(p) for p in paths))
    drawn = {os.path.abspath(path) for path in leave_out}  # noqa: PTH100
    kept = tuple(s for s in samples.values() if os.path.abspath(s.path) not in drawn)  # noqa: PTH100
    if n := len(samples) - len(kept):
        what = counted(n, "map or overlay", "maps and overlays")
        notes.append(f"left out: {what} of an earlier run")
    if not kept:
        raise DataError(
            "no image is left to score",
            where=", ".join(shown(p) for p in paths),
            hint="maps and overlays of an earlier run do not count",
        )
    return Inputs(kept, tuple(roots), tuple(problems), tuple(notes))


def with_categories(
    samples: Iterable[Sample],
    known: Sequence[str],
    *,
    category: str | None = None,
    unified: bool = True,
) -> list[Sample]:
    """Say which product each image shows.

    The category that was given wins; then the data set's own; then the nearest folder above the
    image that is named like a product; then the only product there is. A unified detector takes
    the rest under the threshold over all products.

    Args:
        samples: The images.
        known: The detector's products.
        category: What all of them show.
        unified: Whether one model serves all products.

    Raises:
        ConfigError: The category is unknown, or needed and cannot be told.
    """
    if category is not None and known and category not in known:
        raise unknown_name("category", category, known, where="--category")
    find = _category_finder(known, category)
    result = []
    for sample in samples:
        name = find(sample)
        if name is None:
            if not unified:
                raise ConfigError(
                    "this detector has one model per product, and nothing says which product an "
                    "image shows",
                    where=shown(sample.path),
                    expected=f"one of: {', '.join(known)}",
                    hint="pass --category NAME, or keep images in folders named by product",
                )
            name = EVERY
        result.append(replace(sample, category=name))
    return result


def _category_finder(known: Sequence[str], category: str | None) -> Callable[[Sample], str | None]:
    names = set(known)

    def find(sample: Sample) -> str | None:
        if category is not None:
            return category
        if len(names) == 1:
            return known[0]
        return sample.category if sample.category in names else product_of(sample.path, known)

    return find


def product_of(path: PathLike, known: Sequence[str]) -> str | None:
    """The nearest folder above an image that is named like a product, or None."""
    folders = Path(os.path.abspath(path)).parts[-2::-1]  # noqa: PTH100
    return next((folder for folder in folders if folder in known), None)


def _as_table(path: Path, format: str | None, seed: int) -> SampleTable | None:
    if format is not None:
        return read_data(path, format=format, seed=seed, check=False)
    if is_file(existing(path)):
        is_table = path.suffix.lower() in CSV_ENDINGS | JSON_ENDINGS
        return read_data(path, format="table", check=False) if is_table else None
    readers = [FORMATS.load(name)() for name in FORMATS]
    with listed_once():
        marked = (r.name for r in readers if not r.generic and r.matches(path) is not None)
        name = next(marked, None)
    return None if name is None else read_data(path, format=name, seed=seed, check=False)


def _sample(path: str) -> Sample:
    return Sample(path=path, category="", split="test", label=None)

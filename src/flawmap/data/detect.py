"""Recognises the layout of a data set and reads it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from flawmap.data.check import require_sound
from flawmap.data.lister import Lister, listed_once
from flawmap.data.samples import Reader, SampleTable
from flawmap.errors import ConfigError, DataError
from flawmap.files import as_path, is_file, is_folder
from flawmap.registry import FORMATS
from flawmap.wording import counted, shown


def read_data(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    categories: Sequence[str] | None = None,
    seed: int = 0,
    skip_bad: bool = False,
    check: bool = True,
    training: bool = True,
) -> SampleTable:
    """Read the table of images at a path.

    Args:
        path: A folder, or the file of a table.
        format: The name of a layout; None recognises it.
        categories: The categories to keep; None keeps all.
        seed: For layouts without a split of their own.
        skip_bad: Do without files and folders that cannot be listed; they stay in `problems`.
        check: Raise for what would make a fit fail; `inspect` does without.
        training: With `check`: whether good training images must be there.

    Raises:
        ConfigError: The format or a category is unknown, or the seed is negative.
        DataError: The path is missing, its layout is unclear, or the data set has errors.
    """
    if seed < 0:
        raise ConfigError(
            "seed must not be negative",
            where="seed",
            given=seed,
            expected="an integer of 0 or more",
        )
    root = existing(path)
    reader = recognise(root) if format is None else _reader(format)
    try:
        table = reader.read(root, seed)
    except OSError as error:
        raise DataError(
            f"a file of the data cannot be read: {error.strerror or error}",
            where=shown(error.filename or root),
            hint="see who may read it, and whether its drive is there",
        ) from error
    if categories is not None:
        table = table.only(categories)
    if check:
        require_sound(table, skip_bad=skip_bad, training=training)
    return table


def read_joined(
    paths: Sequence[str | os.PathLike[str]],
    *,
    format: str | None = None,
    categories: Sequence[str] | None = None,
    seed: int = 0,
) -> SampleTable:
    """Several data sets as one, each in its own layout.

    Args:
        paths: At least one.
        format: As for `read_data`, of all of them.
        categories: The categories to keep, of all together; None keeps all.
        seed: For layouts without a split of their own.

    Raises:
        ConfigError: The format or a category is unknown.
        DataError: As `read_data`; or two of them have a category of one name.
    """
    if len(paths) == 1:
        return read_data(paths[0], format=format, categories=categories, seed=seed)
    tables = [read_data(path, format=format, seed=seed, check=False) for path in paths]
    owners: dict[str, str] = {}
    for table in tables:
        for category in table.categories:
            if category in owners:
                raise DataError(
                    f"two data sets have a category '{category}'",
                    where=f"{shown(owners[category])} and {shown(table.root)}",
                    hint="rename a folder, or name the categories in a table (.csv, .jsonl)",
                )
            owners[category] = table.root
    joined = SampleTable(
        root=_common([os.path.abspath(t.root) for t in tables]),  # noqa: PTH100
        format="+".join(t.format for t in tables),
        samples=tuple(
            sorted(
                (s for t in tables for s in t.samples),
                key=lambda s: (s.category, s.split, s.defect, s.path),
            )
        ),
        problems=tuple(p for t in tables for p in t.problems),
        orphan_masks=tuple(m for t in tables for m in t.orphan_masks),
        notes=tuple(n for t in tables for n in t.notes),
        saturation={k: v for t in tables for k, v in t.saturation.items()},
        judged_apart={k: v for t in tables for k, v in t.judged_apart.items()},
        owners={k: v for t in tables for k, v in t.owners.items()},
        unsorted_training=any(t.unsorted_training for t in tables),
        unread_verdict=next((t.unread_verdict for t in tables if t.unread_verdict), ""),
        one_vs_rest=any(t.one_vs_rest for t in tables),
    )
    if categories is not None:
        joined = joined.only(categories)
    require_sound(joined)
    return joined


def recognise(root: Path) -> Reader:
    """The reader whose layout lies at a path.

    A layout with marks of its own wins over the generic ones, which any folder of images may fit.

    Raises:
        DataError: No layout fits, or several do; the message says what was found and expected.
    """
    readers = [_reader(name) for name in FORMATS]
    with listed_once():
        reasons = {r.name: why for r in readers if (why := r.matches(root)) is not None}
    found = [r for r in readers if r.name in reasons]
    marked = [r for r in found if not r.generic]
    found = marked or found
    if len(found) == 1:
        return found[0]
    if found:
        choices = "\n".join(f"  --format {r.name}: {reasons[r.name]}" for r in found)
        raise DataError(
            f"the layout is ambiguous, {len(found)} formats fit:\n{choices}",
            where=shown(root),
            hint="name the format with --format",
        )
    if is_folder(root) and not Lister().tree(root):
        raise DataError(
            "there is no image here",
            where=shown(root),
            given=_found(root),
            expected=".png, .jpg, .bmp, .tif or .webp files",
            hint="check the path; other pictures, such as .heic or camera raw, must be converted",
        )
    expected = "\n".join(f"    {r.name}: {r.expects}" for r in readers)
    raise DataError(
        f"the layout is unknown or ambiguous; found {_found(root)}",
        where=shown(root),
        expected=f"one of these layouts:\n{expected}",
        hint="rearrange the folder, or name a format with --format (folder takes every image "
        "below as good)",
    )


def _reader(name: str) -> Reader:
    reader: Reader = FORMATS.load(name)()
    return reader


def existing(path: str | os.PathLike[str]) -> Path:
    """A path that a user gave, if it is there and may be read.

    Raises:
        DataError: Says which of these it is not.
    """
    root = as_path(path)
    try:
        there = root.exists()
        if there and root.is_dir():
            with os.scandir(root):
                pass
        dangles = not there and root.is_symlink()
    except PermissionError as error:
        raise DataError(
            "no permission to read the path",
            where=shown(root),
            hint="give this user the right to read and enter the folder, or run as one who has it",
        ) from error
    if dangles:
        raise DataError(
            "the path is a link to a place that does not exist",
            where=shown(root),
            given=shown(root.readlink()),
            hint="connect the drive or correct the link",
        )
    if not there:
        raise DataError(
            "the path does not exist",
            where=shown(root),
            hint="check it; relative paths start at the current folder",
        )
    return root


def _found(root: Path) -> str:
    if is_file(root):
        return f"a file ending with '{root.suffix}'; give a folder, or a .csv or .jsonl table"
    lister = Lister()
    folders, images = lister.level(root)
    parts = [_count(len(images), "image")]
    for name in folders[:8]:
        inner_folders, inner_images = lister.level(root / name)
        inner = _count(len(inner_images), "image")
        if inner_folders:
            inner += f" and {_count(len(inner_folders), 'sub-folder')}"
        parts.append(f"sub-folder '{shown(name)}' with {inner}")
    if len(folders) > 8:
        parts.append(f"{len(folders) - 8} more sub-folders")
    if lister.ignored:
        other = ", ".join(f"{ext or 'no extension'} ({n})" for ext, n in lister.ignored.items())
        parts.append(f"files that are not images: {other}")
    parts += [str(problem) for problem in lister.problems[:3]]
    return "; ".join(parts)


def _count(number: int, noun: str) -> str:
    return counted(number, noun) if number else f"no {noun}s"


def _common(folders: Sequence[str]) -> str:
    """The folder above all of them; the first one, where they lie on several drives."""
    try:
        return os.path.commonpath(folders)
    except ValueError:
        return folders[0]

"""Whether a data set was unpacked whole, and where in its folder it begins."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flawmap.data.folder import category_name
from flawmap.data.lister import Lister, around
from flawmap.errors import DataError
from flawmap.files import is_folder
from flawmap.wording import counted, listed, shown

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".7z", ".rar")


class Listing:
    """The files of one category, to look up those that a data set's own list names.

    One listing of the folders is much faster than a question to the disk for each file.

    Args:
        lister: Lists, and collects what cannot be read.
        folder: The category's folder.
    """

    def __init__(self, lister: Lister, folder: Path) -> None:
        self._base = str(folder)
        self._there = frozenset(lister.tree(folder))
        self._broken = frozenset(p.path for p in lister.problems)

    def path(self, name: str) -> str:
        """The path of a file that is named relative to the folder, with forward slashes."""
        return f"{self._base}{os.sep}{name.replace('/', os.sep)}"

    def has(self, path: str) -> bool:
        """Whether the file is there."""
        return path in self._there

    def broken(self, path: str) -> bool:
        """Whether the file, or a folder above it, is among what cannot be read."""
        return any(p in self._broken for p in around(path))


@dataclass(frozen=True)
class Place:
    """Where the categories of a data set lie.

    Attributes:
        base: The folder of the categories, or the only category itself.
        categories: The folder of each category by its name.
        others: The names of the folders beside them.
        note: How the base was found, "" when it is what was asked for.
    """

    base: Path
    categories: Mapping[str, Path]
    others: tuple[str, ...] = ()
    note: str = ""

    @property
    def owners(self) -> dict[str, str]:
        """The `SampleTable.owners`: whatever lies in a category's folder concerns it alone."""
        return {str(folder): name for name, folder in self.categories.items()}


def locate(
    lister: Lister, root: Path, is_category: Callable[[Path], bool], *, inside: str = ""
) -> Place | None:
    """Find the categories of a data set, or None.

    They lie in the root, in its folder `inside`, or in a folder that is the only one in the root:
    archives are often unpacked into a folder of their own. A category may lie in a folder of its
    own name once more. The root may be a category itself.

    Args:
        lister: Collects what cannot be read.
        root: The folder that was asked for.
        is_category: Tells the folder of a category.
        inside: The name of the folder that the data set's archive unpacks to.
    """
    if is_category(root):
        return Place(root, {category_name(root): root})
    names = lister.folders(root)
    bases = [root]
    if inside in names:
        bases.append(root / inside)
    if len(names) == 1 and names[0] != inside:
        only = root / names[0]
        bases.append(only)
        if inside and is_folder(only / inside):
            bases.append(only / inside)
    for base in bases:
        inner = names if base is root else lister.folders(base)
        found = {}
        for name in inner:
            folders = (base / name, twice(base / name))
            folder = next((f for f in folders if is_category(f)), None)
            if folder is not None:
                found[name] = folder
        if found:
            others = tuple(name for name in inner if name not in found)
            return Place(base, found, others, wrapped(root, base))
    return None


def twice(folder: Path) -> Path:
    """The folder, or the one of the same name in it: some archives unpack to `can/can`."""
    inner = folder / folder.name
    return inner if is_folder(inner) else folder


def wrapped(root: Path, base: Path) -> str:
    """The note on a data set that begins below the folder that was asked for; else ""."""
    if base == root:
        return ""
    return f"the data set begins in the folder '{shown(base.relative_to(root).as_posix())}'"


def named_root(root: Path) -> Path:
    """The root with a name and a parent, also for the current folder."""
    return root.resolve() if root.name in ("", "..") else root


def archives(folder: Path) -> dict[str, str]:
    """The names of the archives in a folder by their name without an ending."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except OSError:
        # A lister names the folder that cannot be read.
        return {}
    endings = {name: e for name in names for e in _ARCHIVES if name.lower().endswith(e)}
    return {name[: -len(ending)]: name for name, ending in endings.items()}


def not_there(number: int, noun: str, first: str) -> str:
    """A count of missing files with the first one, such as "2 images that are not there ..."."""
    what = counted(number, f"{noun} that is", f"{noun}s that are")
    return f"{what} not there, the first {shown(first)}"


def require_whole(title: str, gaps: Sequence[str], *, where: Path, hint: str) -> None:
    """Say all that is missing from a data set, if anything is.

    Raises:
        DataError: There are gaps; the first 20 are in its message.
    """
    if gaps:
        raise DataError(f"{title} is not complete:\n{listed(gaps)}", where=shown(where), hint=hint)

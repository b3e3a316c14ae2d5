"""Lists folders, and collects what in them cannot be read; decodes nothing."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from flawmap.data.drawn import drawn_folders
from flawmap.errors import DataError
from flawmap.wording import counted, few, listed, shown

EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp"}
)
"""Names of files that are taken as images, in lower case."""

_NOT_DATA = frozenset({"thumbs.db", "desktop.ini", "__macosx", "$recycle.bin"})


@dataclass(frozen=True, slots=True)
class Problem:
    """A file or a folder that cannot be used.

    Attributes:
        path: The file or folder.
        reason: Why, in a few words.
    """

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{shown(self.path)}: {self.reason}"


class UnreadableFilesError(DataError):
    """Files of a data set cannot be read; all of them are in `problems`."""

    def __init__(self, message: str, *, problems: tuple[Problem, ...], where: str | None) -> None:
        super().__init__(
            message,
            where=where,
            hint="repair or remove these files, or leave them out with --skip-bad",
        )
        self.problems = problems


class UnreadableImageError(DataError):
    """An image cannot be read; `reason` says why, in a few words, as that of a `Problem` does."""

    def __init__(self, reason: str, *, where: str | None = None) -> None:
        super().__init__(
            f"the image cannot be read: {reason}",
            where=where,
            hint="repair or replace the file, or leave broken files out with --skip-bad",
        )
        self.reason = reason

    def to_dict(self) -> dict[str, object]:
        """As any other error of the data."""
        return {**super().to_dict(), "error": DataError.__name__}


@dataclass
class _Level:
    """What lies directly in one folder."""

    folders: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    drawn: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)

    def scan(self, folder: Path) -> None:
        """Ask the disk."""
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    self._place(entry)
        except OSError as error:
            self.problems.append(Problem(str(folder), _os_reason(error, "folder")))
        # Here, not for each of the readers that ask.
        self.drawn = sorted(drawn_folders(folder, self.folders))
        self.folders = sorted(set(self.folders).difference(self.drawn))
        self.images.sort()

    def _place(self, entry: os.DirEntry[str]) -> None:
        name = entry.name
        if name.startswith(".") or name.casefold() in _NOT_DATA:
            return
        extension = os.path.splitext(name)[1].lower()  # noqa: PTH122
        is_image = extension in EXTENSIONS
        try:
            if entry.is_dir():
                self.folders.append(name)
            elif entry.is_file():
                if is_image:
                    self.images.append(name)
                else:
                    self.ignored[extension] += 1
            elif is_image or not extension:
                reason = (
                    f"a link to {shown(os.readlink(entry.path))}, which does not exist"  # noqa: PTH115
                    if entry.is_symlink()
                    else "neither a file nor a folder"
                )
                self.problems.append(Problem(entry.path, reason))
        except OSError as error:
            self.problems.append(Problem(entry.path, _os_reason(error, "file")))


_listed_once: ContextVar[dict[str, _Level] | None] = ContextVar("listed_once", default=None)


@contextmanager
def listed_once() -> Iterator[None]:
    """While it lasts, every `Lister` takes what any of them has seen in a folder.

    Many readers look at the same folders to recognise a layout, and a network drive takes its time
    for each listing.
    """
    token = _listed_once.set({})
    try:
        yield
    finally:
        _listed_once.reset(token)


@dataclass
class Lister:
    """Lists folders through os.scandir and collects what cannot be read.

    Hidden files and the droppings of file managers are passed over, and so are the maps and
    overlays of an earlier run. Links are followed; a link to a folder that is being listed already
    is passed over.

    Attributes:
        problems: Dangling links, folders without permission and things that are no files.
        ignored: How many files of each other extension lay beside the images.
        left_out: Folders that were passed over because of what they hold, and what that is.
    """

    problems: list[Problem] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, str] = field(default_factory=dict)

    def notes(self, root: Path) -> list[str]:
        """What was left out, in sentences for the user; places are relative to the root."""
        places: dict[str, list[str]] = {}
        for path, what in self.left_out.items():
            place = os.path.relpath(path, root).replace(os.sep, "/")
            places.setdefault(what, []).append(shown(place))
        return [f"left out, {what}: {few(sorted(names))}" for what, names in places.items()]

    def level(self, folder: Path) -> tuple[list[str], list[str]]:
        """The names of the sub-folders and of the images of one folder, each sorted; not to be
        changed."""
        known = _listed_once.get()
        level = None if known is None else known.get(str(folder))
        if level is None:
            level = _Level()
            level.scan(folder)
            if known is not None:
                known[str(folder)] = level
        self.problems += level.problems
        self.ignored.update(level.ignored)
        for name in level.drawn:
            self.left_out[str(folder / name)] = "maps and overlays of an earlier run"
        return level.folders, level.images

    def folders(self, folder: Path) -> list[str]:
        """The names of the sub-folders, sorted."""
        return self.level(folder)[0]

    def images(self, folder: Path) -> list[str]:
        """The paths of the images that lie directly in a folder, sorted by name."""
        base = str(folder)
        return [os.path.join(base, name) for name in self.level(folder)[1]]  # noqa: PTH118

    def tree(
        self, folder: Path, *, leave_out: Callable[[str], str | None] | None = None
    ) -> list[str]:
        """The paths of the images at any depth below a folder, sorted.

        Args:
            folder: Where to begin; it is never left out.
            leave_out: Says by a folder's name what it holds, if that is to be left out.
        """
        return sorted(self._walk(folder, frozenset(), leave_out or (lambda name: None)))

    def _walk(
        self,
        folder: Path,
        above: frozenset[tuple[int, int]],
        leave_out: Callable[[str], str | None],
    ) -> list[str]:
        try:
            status = folder.stat()
        except OSError as error:
            self.problems.append(Problem(str(folder), _os_reason(error, "folder")))
            return []
        here = (status.st_dev, status.st_ino)
        if here in above:
            return []
        folders, names = self.level(folder)
        base = str(folder)
        # A Path per file costs four times the memory of its name: plain strings here.
        found = [os.path.join(base, name) for name in names]  # noqa: PTH118
        for name in folders:
            if what := leave_out(name):
                self.left_out[str(folder / name)] = what
            else:
                found.extend(self._walk(folder / name, above | {here}, leave_out))
        return found


def _os_reason(error: OSError, kind: str) -> str:
    if isinstance(error, PermissionError):
        return f"no permission to read this {kind}"
    if isinstance(error, FileNotFoundError):
        return f"this {kind} does not exist"
    return error.strerror or str(error)


def list_images(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """The paths of all images below a folder, sorted.

    Raises:
        DataError: A link dangles or a folder cannot be entered; each one is named.
    """
    lister = Lister()
    found = tuple(lister.tree(Path(folder)))
    raise_unreadable(lister.problems, where=shown(folder))
    return found


def raise_unreadable(problems: Sequence[Problem], *, where: str) -> None:
    """Name the files that cannot be read, if there are any.

    Raises:
        UnreadableFilesError: There is at least one; the first 20 are in its message.
    """
    if problems:
        count = counted(len(problems), "file or folder", "files or folders")
        raise UnreadableFilesError(
            f"{count} cannot be used:\n{listed([str(p) for p in problems])}",
            problems=tuple(problems),
            where=where,
        )


def around(path: str) -> Iterator[str]:
    """The path, and the folders above it from the nearest one."""
    while path:
        yield path
        path = path.rpartition(os.sep)[0]


def canonical(path: str) -> str:
    """A name in one Unicode form: a disk of a Mac may give the same name in another."""
    return unicodedata.normalize("NFC", path)


def stem(path: str) -> str:
    """The name of a file without folder and extension, in one Unicode form."""
    return canonical(os.path.splitext(os.path.basename(path))[0])  # noqa: PTH119, PTH122

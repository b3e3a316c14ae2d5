"""Names of output files that keep the inputs' folders and never collide."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from flawmap.data.lister import canonical


class OutputNames:
    """Gives every input an output name without an extension.

    Args:
        roots: What was asked for: folders, or the folders of files. Names are relative to what
            they have in common.
    """

    def __init__(self, roots: Iterable[str]) -> None:
        absolute = [os.path.abspath(root) for root in roots]  # noqa: PTH100
        try:
            self._base = os.path.commonpath(absolute) if absolute else ""
        except ValueError:  # several drives
            self._base = ""
        self._taken: set[str] = set()

    def name(self, path: str) -> PurePosixPath:
        """The name for an input; asked again, another one."""
        relative = Path(self._relative(path))
        stem = relative.with_suffix("").as_posix()
        name, number = stem, 1
        # Disks that ignore case or Unicode forms would take two names for one.
        while canonical(name).casefold() in self._taken:
            number += 1
            name = f"{stem}-{number}"
        self._taken.add(canonical(name).casefold())
        return PurePosixPath(name)

    def _relative(self, path: str) -> str:
        absolute = os.path.abspath(path)  # noqa: PTH100
        try:
            relative = os.path.relpath(absolute, self._base)
        except ValueError:  # another drive
            relative = os.pardir
        if not self._base or Path(relative).parts[0] == os.pardir:
            return os.path.join("elsewhere", os.path.basename(absolute))  # noqa: PTH118, PTH119
        return relative

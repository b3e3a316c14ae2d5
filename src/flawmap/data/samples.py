"""The table of images that every reader gives, and what the readers share.

A reader lists files and knows a layout; it decodes nothing. What it finds wrong (a dangling link, a
folder it may not enter, a mask without an image) travels with the table, so that everything can be
named at once: `flawmap.data.check` judges it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np

from flawmap.data.lister import Lister, Problem, around, canonical
from flawmap.errors import ConfigError, DataError, unknown_name
from flawmap.types import Sample, Saturation, Split, categories_of
from flawmap.wording import counted, few, shown

_OTHER_PICTURES = frozenset(
    {
        *(".heic", ".heif", ".avif", ".gif", ".jp2", ".psd"),
        *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"),
    }
)
"""Endings of pictures that are not read: of phones, editors and cameras' own formats."""


@dataclass(frozen=True)
class SampleTable:
    """The images of one data set.

    Attributes:
        root: The folder that the names in messages and fingerprints are relative to.
        format: The name of the reader.
        samples: One per image, sorted by category, split, defect and path.
        problems: What could not be listed.
        orphan_masks: Mask files that belong to no image.
        notes: What the reader left out or assumed, in sentences for the user.
        saturation: For categories whose data set defines it: how much of a region must be found,
            by the value of its mask's pixels. There each mask file is one region.
        judged_apart: For categories whose data set judges kinds of defects apart: each one's
            `Sample.defect` by the word for it in names of metrics, such as "logical".
        unsorted_training: The training split is known to hold defects that nobody sorted out: its
            images may do without a label, and a fit learns from all of them.
        unread_verdict: A column of a table without labels that seems to tell good from defective,
            though it is not read; "" where there is none.
        one_vs_rest: The good images of a category are defects in all others, so one model over
            several would have learnt every defect.
        owners: Of folders and files that concern one category alone, that category by the path.
            What is wrong elsewhere may concern any.
        sizes: In bytes, of the files that were asked about, by path. Tables that are made from
            this one share it: a network drive takes its time for each answer.
    """

    root: str
    format: str
    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...] = ()
    orphan_masks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    saturation: Mapping[str, Mapping[int, Saturation]] = field(default_factory=dict)
    judged_apart: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    unsorted_training: bool = False
    unread_verdict: str = ""
    one_vs_rest: bool = False
    owners: Mapping[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """The categories that occur, sorted."""
        return categories_of(self.samples)

    @cached_property
    def tested(self) -> tuple[Sample, ...]:
        """The images of the test split with a label: those that figures are measured on."""
        return tuple(s for s in self.samples if s.split == "test" and s.label is not None)

    def require_tested(self) -> tuple[Sample, ...]:
        """The same, of which there must be some.

        Raises:
            DataError: There is none.
        """
        if not self.tested:
            raise DataError(
                "there is no labelled test image to measure on",
                where=shown(self.root),
                expected="a test split with good images, defects, or both",
                hint="docs/your-own-data.md shows how to lay them out; 'flawmap predict' is for "
                "images without labels",
            )
        return self.tested

    def select(
        self,
        *,
        category: str | None = None,
        split: Split | None = None,
        label: int | None = None,
    ) -> tuple[Sample, ...]:
        """The samples that meet every condition given, in the table's order.

        Raises:
            ConfigError: The category is not in the table.
        """
        if category is not None:
            self._require_known(category)
        return tuple(
            s
            for s in self.samples
            if (category is None or s.category == category)
            and (split is None or s.split == split)
            and (label is None or s.label == label)
        )

    def only(self, categories: Sequence[str]) -> SampleTable:
        """The same table with these categories alone.

        Raises:
            ConfigError: A category is not in the table; the nearest name is given.
        """
        for category in categories:
            self._require_known(category)
        # Of some categories nothing but problems was found.
        unwanted = {*self.categories, *self.owners.values()} - set(categories)

        def kept(path: str) -> bool:
            owner = next((self.owners[p] for p in around(path) if p in self.owners), None)
            return owner not in unwanted

        return replace(
            self,
            samples=tuple(s for s in self.samples if s.category not in unwanted),
            problems=tuple(p for p in self.problems if kept(p.path)),
            orphan_masks=tuple(m for m in self.orphan_masks if kept(m)),
            saturation={c: s for c, s in self.saturation.items() if c not in unwanted},
            judged_apart={c: k for c, k in self.judged_apart.items() if c not in unwanted},
        )

    def relative(self, path: str) -> str:
        """A path relative to the root, with forward slashes."""
        prefix = self.root if self.root.endswith(os.sep) else self.root + os.sep
        if path.startswith(prefix):
            return path[len(prefix) :].replace(os.sep, "/")
        try:
            return os.path.relpath(path, self.root).replace(os.sep, "/")
        except ValueError:  # another drive
            return path

    def few(self, paths: Sequence[str]) -> str:
        """The first few paths, relative to the root, to be printed."""
        return few([shown(self.relative(path)) for path in paths])

    def fingerprint(self) -> str:
        """A sha256 that changes when an image or a mask is added, removed, relabelled or resized.

        It reads file sizes, once for each table, never contents: see
        `verify.Verification.content_fingerprint` for those. The place of the data set does not
        matter.
        """
        rows = sorted(
            json.dumps(
                [
                    canonical(self.relative(s.path)),
                    s.category,
                    s.split,
                    s.label,
                    s.defect,
                    self._size(s.path),
                    [[canonical(self.relative(m)), self._size(m)] for m in s.masks],
                    *([s.group] if s.group else []),
                ]
            )
            for s in self.samples
        )
        for category, rules in sorted(self.saturation.items()):
            known = [[value, r.amount, r.relative] for value, r in sorted(rules.items())]
            rows.append(json.dumps([category, known]))
        digest = hashlib.sha256()
        for row in rows:
            digest.update(row.encode())
            digest.update(b"\n")
        return digest.hexdigest()

    def _size(self, path: str) -> int:
        if path not in self.sizes:
            try:
                self.sizes[path] = Path(path).stat().st_size
            except OSError:
                self.sizes[path] = -1
        return self.sizes[path]

    def require_apart(self, separate: bool) -> None:
        """Refuse one model over categories that are defects to each other.

        Args:
            separate: Whether each category gets a model of its own.

        Raises:
            ConfigError: It does not, and there are several such categories.
        """
        if self.one_vs_rest and not separate and len(self.categories) > 1:
            raise ConfigError(
                "each class is a task of its own: one model over all would learn every defect",
                where=shown(self.root),
                given=f"{len(self.categories)} categories for one model",
                hint="fit with --separate (in a grid: settings: separate), or name one --category",
            )

    def _require_known(self, category: str) -> None:
        # Also one of which nothing could be read: that is said elsewhere, and better.
        known = sorted({*self.categories, *self.owners.values()} - {""})
        if category not in known:
            raise unknown_name("category", category, known, where=shown(self.root))


class Reader(Protocol):
    """Knows one layout.

    A reader is made without arguments by the registry.

    Attributes:
        name: The name for `--format`.
        expects: What the layout looks like, in one line.
        generic: The layout has no marks of its own (any folder of images fits); a reader that
            recognises marks wins over it.
    """

    name: ClassVar[str]
    expects: ClassVar[str]
    generic: ClassVar[bool]

    def matches(self, root: Path) -> str | None:
        """Why the layout fits what lies at `root`, or None."""
        ...

    def read(self, root: Path, seed: int) -> SampleTable:
        """List the data set.

        Args:
            root: A folder, or the file of a table.
            seed: For layouts without a split of their own.

        Raises:
            DataError: The layout at `root` is another one or contradicts itself.
        """
        ...


def training_part(names: Sequence[str], seed: int) -> frozenset[str]:
    """The names that a seeded shuffle puts into the training split.

    The names are sorted first, so the order of a folder's listing does not matter; the first
    int(0.8 * n) of the shuffled names train.

    Example:
        >>> sorted(training_part(["c", "a", "b", "e", "d"], seed=0))
        ['a', 'c', 'd', 'e']
    """
    ordered = sorted(names)
    generator = np.random.Generator(np.random.PCG64(seed))
    chosen = generator.permutation(len(ordered))[: int(0.8 * len(ordered))]
    return frozenset(ordered[int(i)] for i in chosen)


def table_of(
    reader: Reader,
    root: Path,
    samples: Sequence[Sample],
    lister: Lister,
    *,
    orphan_masks: Sequence[str] = (),
    notes: Sequence[str] = (),
    saturation: Mapping[str, Mapping[int, Saturation]] | None = None,
    judged_apart: Mapping[str, Mapping[str, str]] | None = None,
    owners: Mapping[str, str] | None = None,
) -> SampleTable:
    """Sort the samples and add what the lister noticed."""
    notes = [*notes, *lister.notes(root)]
    pictures = {e: n for e, n in lister.ignored.items() if e in _OTHER_PICTURES}
    files = {e: n for e, n in lister.ignored.items() if e not in _OTHER_PICTURES}
    if pictures:
        what = counted(sum(pictures.values()), "picture")
        notes = [
            *notes,
            f"{what} in a format that is not read, left out: {_kinds(pictures)}; convert to JPEG "
            "or PNG",
        ]
    if files:
        what = counted(sum(files.values()), "file")
        notes = [*notes, f"{what} beside the images that are no images: {_kinds(files)}"]
    return SampleTable(
        root=str(root),
        format=reader.name,
        samples=tuple(sorted(samples, key=lambda s: (s.category, s.split, s.defect, s.path))),
        problems=tuple(dict.fromkeys(lister.problems)),
        orphan_masks=tuple(sorted(orphan_masks)),
        notes=tuple(notes),
        saturation=dict(saturation or {}),
        judged_apart=dict(judged_apart or {}),
        owners=dict(owners or {}),
    )


def _kinds(files: Mapping[str, int]) -> str:
    return ", ".join(f"{ending or 'no extension'} ({n})" for ending, n in sorted(files.items()))

"""What a data set holds and what would go wrong with it: the work of `flawmap inspect`."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from flawmap.data.check import Finding, by_severity, check_table
from flawmap.data.detect import read_data
from flawmap.data.lister import Problem
from flawmap.data.odd import odd_findings
from flawmap.data.samples import SampleTable
from flawmap.data.verify import ImageFacts, Verification, range_findings, verify
from flawmap.types import Sample, Split
from flawmap.wording import counted, listed, shown

_NAMED = 5
_WHOLE = 0.99
_LOSSY = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})


@dataclass(frozen=True, slots=True)
class Count:
    """How many images one kind has.

    Attributes:
        category: The product.
        split: "train", "validation" or "test".
        defect: The kind of defect, "good", or "" when unknown.
        images: Number of images.
        with_masks: How many of them have a mask.
    """

    category: str
    split: Split
    defect: str
    images: int
    with_masks: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of the images, (height, width) in px, ordered by their number of pixels."""

    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    distinct: int


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Images whose pixels are all equal, by their paths."""

    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """A data set in numbers, with what would go wrong.

    Attributes:
        root: The data set.
        format: The layout that was read.
        fingerprint: `SampleTable.fingerprint`.
        content_fingerprint: `Verification.content_fingerprint`.
        counts: Images per category, split and kind of defect.
        sizes: None when no image can be read.
        modes: Images per way of storing pixels, in Pillow's words ("L", "RGB", "I;16").
        grey: Images whose three channels are equal.
        colour: The other images.
        broken: Files that cannot be used, with the reason.
        leaks: Images that occur in training or validation and in test.
        repeats: Number of images that repeat another one inside the training split.
        problems: Errors, warnings and notes, in this order.
    """

    root: str
    format: str
    fingerprint: str
    content_fingerprint: str
    counts: tuple[Count, ...]
    sizes: Sizes | None
    modes: dict[str, int]
    grey: int
    colour: int
    broken: tuple[Problem, ...]
    leaks: tuple[Duplicate, ...]
    repeats: int
    problems: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """There is no error: fitting and evaluating would go through."""
        return not any(p.severity == "error" for p in self.problems)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "root": shown(self.root),
            "format": self.format,
            "fingerprint": self.fingerprint,
            "content_fingerprint": self.content_fingerprint,
            "ok": self.ok,
            "counts": [
                {
                    "category": shown(c.category),
                    "split": c.split,
                    "defect": shown(c.defect),
                    "images": c.images,
                    "with_masks": c.with_masks,
                }
                for c in self.counts
            ],
            "sizes": None
            if self.sizes is None
            else {
                "smallest": list(self.sizes.smallest),
                "median": list(self.sizes.median),
                "largest": list(self.sizes.largest),
                "distinct": self.sizes.distinct,
            },
            "modes": dict(self.modes),
            "grey": self.grey,
            "colour": self.colour,
            "broken": [{"path": shown(p.path), "reason": p.reason} for p in self.broken],
            "leaks": [
                {"train": [shown(p) for p in d.train], "test": [shown(p) for p in d.test]}
                for d in self.leaks
            ],
            "repeats": self.repeats,
            "problems": [p.to_dict() for p in self.problems],
        }

    def to_text(self) -> str:
        """The same for a terminal, in plain text."""
        total = sum(c.images for c in self.counts)
        lines = [f"{shown(self.root)}: {total} images, format {self.format}", ""]
        lines += _columns(
            [("category", "split", "defect", "images", "masks")]
            + [
                (
                    shown(c.category),
                    c.split,
                    shown(c.defect) or "(unknown)",
                    str(c.images),
                    str(c.with_masks),
                )
                for c in self.counts
            ]
        )
        lines.append("")
        if self.sizes is not None:
            names = ("smallest", "median", "largest")
            sizes = (self.sizes.smallest, self.sizes.median, self.sizes.largest)
            of = ", ".join(f"{n} {w} x {h}" for n, (h, w) in zip(names, sizes, strict=True))
            distinct = "one size" if self.sizes.distinct == 1 else f"{self.sizes.distinct} sizes"
            lines.append(f"width x height in px: {of}; {distinct}")
            modes = ", ".join(f"{mode} {n}" for mode, n in self.modes.items())
            lines.append(f"stored as: {modes}; {self.grey} grey, {self.colour} in colour")
        lines.append(f"fingerprint: {self.fingerprint}")
        for problem in self.problems:
            lines += ["", f"{problem.severity}: {problem.message}"]
            lines += [f"  what to do: {problem.hint}"] if problem.hint else []
        if not self.problems:
            lines += ["", "nothing is wrong"]
        return "\n".join(lines)


def inspect(
    data: str | os.PathLike[str] | SampleTable,
    *,
    format: str | None = None,
    seed: int = 0,
    threads: int | None = None,
    white_level: int | None = None,
    skip_bad: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Decode a whole data set and say what it holds and what would go wrong.

    Args:
        data: A path, or a table that has been read.
        format: The name of a layout; None recognises it.
        seed: For layouts without a split of their own.
        threads: Number of threads; None is the number of cores, at most 8.
        white_level: As for `images.read_image`.
        skip_bad: Look at the data as a fit does that leaves unusable files out.
        on_progress: Called as on_progress(done, total) after each image.

    Raises:
        ConfigError: The format is unknown.
        DataError: The path is missing or its layout is unclear.
    """
    if isinstance(data, SampleTable):
        table = data
    else:
        table = read_data(data, format=format, seed=seed, check=False)
    verification = verify(
        table,
        threads=threads,
        white_level=white_level,
        on_progress=on_progress,
    )
    if skip_bad:
        table = verification.table
    leaks, repeats = _duplicates(verification.facts)
    grey = sum(f.grey for f in verification.facts)
    findings = [
        *_broken_findings(verification, table, skip_bad),
        *check_table(table),
        *_duplicate_findings(leaks, repeats, table),
        *_mask_findings(verification.facts, table),
        *range_findings(verification.facts, white_level),
        *odd_findings(verification.facts, table),
    ]
    return Inspection(
        root=table.root,
        format=table.format,
        fingerprint=table.fingerprint(),
        content_fingerprint=verification.content_fingerprint,
        counts=_counts(table.samples),
        sizes=_sizes(verification.sizes),
        modes=dict(sorted(Counter(f.info.mode for f in verification.facts).items())),
        grey=grey,
        colour=len(verification.facts) - grey,
        broken=verification.problems,
        leaks=leaks,
        repeats=repeats,
        problems=by_severity(findings),
    )


def _counts(samples: Iterable[Sample]) -> tuple[Count, ...]:
    images: Counter[tuple[str, Split, str]] = Counter()
    masked: Counter[tuple[str, Split, str]] = Counter()
    for sample in samples:
        key = (sample.category, sample.split, sample.defect)
        images[key] += 1
        masked[key] += bool(sample.masks)
    splits = ("train", "validation", "test")
    ordered = sorted(images, key=lambda k: (k[0], splits.index(k[1]), k[2] != "good", k[2]))
    return tuple(Count(*key, images[key], masked[key]) for key in ordered)


def _sizes(sizes: tuple[tuple[int, int], ...]) -> Sizes | None:
    if not sizes:
        return None
    ordered = sorted(sizes, key=lambda s: (s[0] * s[1], s))
    return Sizes(ordered[0], ordered[len(ordered) // 2], ordered[-1], len(set(sizes)))


def _duplicates(facts: tuple[ImageFacts, ...]) -> tuple[tuple[Duplicate, ...], int]:
    """Duplicates between test and the other splits, and the repeats inside training."""
    groups: defaultdict[bytes, list[Sample]] = defaultdict(list)
    for fact in facts:
        groups[fact.pixels].append(fact.sample)
    leaks, repeats = [], 0
    for group in groups.values():
        test = tuple(s.path for s in group if s.split == "test")
        others = tuple(s.path for s in group if s.split != "test")
        repeats += max(0, sum(s.split == "train" for s in group) - 1)
        if test and others:
            leaks.append(Duplicate(others, test))
    return tuple(leaks), repeats


def _broken_findings(
    verification: Verification, table: SampleTable, skip_bad: bool
) -> Iterable[Finding]:
    if verification.problems:
        lines = [
            f"{shown(table.relative(p.path))}: {p.reason}".replace("\n", " ")
            for p in verification.problems
        ]
        yield Finding(
            "warning" if skip_bad else "error",
            f"{counted(len(lines), 'file')} cannot be used:\n{listed(lines)}",
            "repair or remove them" + ("" if skip_bad else ", or leave them out with --skip-bad"),
            tuple(p.path for p in verification.problems),
        )


def _duplicate_findings(
    leaks: tuple[Duplicate, ...], repeats: int, table: SampleTable
) -> Iterable[Finding]:
    if leaks:
        pairs = [
            f"{shown(table.relative(d.train[0]))} = {shown(table.relative(d.test[0]))}"
            for d in leaks
        ]
        count = counted(len(leaks), "image is", "images are")
        yield Finding(
            "warning",
            f"{count} in training and in test, pixel for pixel:\n" + listed(pairs, _NAMED),
            "remove one of each pair: a test on training images looks better than it is",
            tuple(path for d in leaks for path in (*d.train, *d.test)),
        )
    if repeats:
        count = counted(repeats, "training image repeats", "training images repeat")
        yield Finding(
            "note",
            f"{count} another one, pixel for pixel",
            "nothing has to be done: a fit counts each picture once",
        )


def _mask_findings(facts: tuple[ImageFacts, ...], table: SampleTable) -> Iterable[Finding]:
    masked = [f for f in facts if f.mask_fraction is not None]
    empty = [f.sample.path for f in masked if f.mask_fraction == 0 and f.sample.label == 1]
    if empty:
        yield Finding(
            "warning",
            f"{len(empty)} defect images have an empty mask: {table.few(empty)}",
            "draw the defect, or drop the mask",
            tuple(empty),
        )
    full = [f.sample.path for f in masked if (f.mask_fraction or 0) >= _WHOLE]
    if full:
        yield Finding(
            "warning",
            f"{len(full)} masks cover the whole image: {table.few(full)}",
            "defects are nonzero and the rest is zero: these masks may be inverted",
            tuple(full),
        )
    lossy = [m for f in masked for m in f.sample.masks if PurePath(m).suffix.lower() in _LOSSY]
    if lossy:
        yield Finding(
            "warning",
            f"{len(lossy)} masks are JPEG files: {table.few(lossy)}",
            "its compression leaves nonzero pixels around each defect: save masks as PNG",
            tuple(lossy),
        )


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    numbers = {3, 4}
    return [
        "  ".join(
            cell.rjust(widths[i]) if i in numbers else cell.ljust(widths[i])
            for i, cell in enumerate(row)
        ).rstrip()
        for row in rows
    ]

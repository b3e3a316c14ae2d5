"""Data sets with a folder for each split, in each a folder for each kind of defect.

What the readers of MVTec AD and of its relatives share.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from flawmap.data.folder import below_good
from flawmap.data.lister import Lister, canonical
from flawmap.data.samples import SampleTable, table_of
from flawmap.data.unpacked import Place, locate, named_root, require_whole
from flawmap.data.words import folded, is_good
from flawmap.errors import DataError
from flawmap.files import is_folder
from flawmap.types import GOOD, Sample, Saturation, Split
from flawmap.wording import listed, shown

MASKS = "ground_truth"
_MASK_ENDING = "_mask"

MaskDemand = Literal["every", "some", "none"]
"""Of the defects of one kind: which must have a mask, or something was not unpacked."""


@dataclass
class Found:
    """What the categories hold.

    Attributes:
        samples: The images.
        orphans: Masks without an image.
        unused: Number of masks of good images.
        masked: Which defects must have a mask.
        gaps: What is missing, one sentence each.
        notes: What was left out or assumed.
        saturation: As in `SampleTable`.
        judged_apart: As in `SampleTable`.
    """

    samples: list[Sample] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    unused: int = 0
    masked: MaskDemand = "every"
    gaps: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    saturation: dict[str, Mapping[int, Saturation]] = field(default_factory=dict)
    judged_apart: dict[str, Mapping[str, str]] = field(default_factory=dict)


class SplitFolders:
    """Reads one category, or a folder of categories; a reader of a data set states its marks.

    Attributes:
        title: The data set's name.
        splits: The folders of the splits, in lower case.
        masks: The folder of the masks below a category.
        inside: The folder that the archive unpacks to, or "".
        needed: The folders that every category must have.
        masked: Which defects must have a mask.
    """

    name: ClassVar[str]
    expects: ClassVar[str]
    generic: ClassVar[bool] = False

    title: ClassVar[str]
    splits: ClassVar[Mapping[str, Split]] = {
        "train": "train",
        "validation": "validation",
        "test": "test",
    }
    masks: ClassVar[tuple[str, ...]] = (MASKS,)
    inside: ClassVar[str] = ""
    needed: ClassVar[tuple[str, ...]] = ("train", "test")
    masked: ClassVar[MaskDemand] = "every"

    def demands(self, categories: Collection[str]) -> tuple[tuple[str, ...], MaskDemand]:
        """What must be there, `needed` and `masked`, of a data set with these categories."""
        return self.needed, self.masked

    def mark(self, folder: Path) -> str | None:
        """What tells a category of this data set from those of others, or None."""
        raise NotImplementedError

    def is_category(self, folder: Path) -> bool:
        """Whether a folder holds a split."""
        return any(is_folder(folder / name) for name in self.splits)

    def matches(self, root: Path) -> str | None:
        """A category has the marks of the data set."""
        if not is_folder(root):
            return None
        root = named_root(root)
        place = locate(Lister(), root, self.is_category, inside=self.inside)
        for name, folder in place.categories.items() if place is not None else ():
            why = self.mark(folder)
            if why is not None:
                return f"it has {why}" if folder == root else f"'{shown(name)}' has {why}"
        return None

    def read(self, root: Path, seed: int) -> SampleTable:
        """List the categories.

        Raises:
            DataError: There is no category in this layout, or something is missing from one.
        """
        lister = Lister()
        # Of what lies beside the splits, licences and the like need no note.
        structure = Lister(problems=lister.problems, left_out=lister.left_out)
        place = locate(structure, root, self.is_category, inside=self.inside)
        found = Found()
        needed, found.masked = self.demands(place.categories if place is not None else ())
        for category, folder in place.categories.items() if place is not None else ():
            names = structure.folders(folder)
            have = {name.casefold() for name in names}
            found.gaps += [
                f"category '{shown(category)}' has no folder '{name}'"
                for name in needed
                if name not in have
            ]
            self.read_category(lister, folder, names, category, found)
        if not lister.problems:
            hint = "unpack its archive again, or leave the category out by moving it away"
            require_whole(self.title, found.gaps, where=root, hint=hint)
        if not found.samples and not lister.problems:
            raise DataError(
                f"no images in the layout of {self.title}",
                where=shown(root),
                expected=self.expects,
                hint="check the folder, or name another layout with --format",
            )
        notes = [*(place_notes(place) if place is not None else ()), *dict.fromkeys(found.notes)]
        if found.gaps:
            notes.append("missing:\n" + listed(found.gaps))
        if found.unused:
            notes.append(f"{found.unused} masks of good images are not used")
        return table_of(
            self,
            root if place is None else place.base,
            found.samples,
            lister,
            orphan_masks=found.orphans,
            notes=notes,
            saturation=found.saturation,
            judged_apart=found.judged_apart,
            owners={} if place is None else place.owners,
        )

    def read_category(
        self, lister: Lister, folder: Path, names: list[str], category: str, found: Found
    ) -> None:
        """Add the images of one category.

        Args:
            lister: Lists, and collects what cannot be read.
            folder: The category's folder.
            names: The names of the folders in it.
            category: The category's name.
            found: Gets what is found.
        """
        by_kind = self._masks_by_kind(lister, folder, names)
        for name in names:
            split = self.splits.get(name.casefold())
            if split is None:
                continue
            kinds, loose = lister.level(folder / name)
            for image in loose:
                # No folder says what it shows. In a training folder, good is what was promised.
                label = None if split == "test" else 0
                kind = "" if label is None else GOOD
                path = str(folder / name / image)
                found.samples.append(Sample(path, category, split, label, kind))
            for kind in kinds:
                if (name, kind) == self.masks:
                    continue
                base = folder / name / kind
                if is_good(kind):
                    paths = below_good(lister, base)
                    found.samples += [Sample(p, category, split, 0, GOOD) for p in paths]
                    continue
                paths = lister.tree(base)
                masks = _masks_of(kind, by_kind) if split == "test" else {}
                keys = {_key(p, base): p for p in paths}
                attached = attach(keys, masks, found)
                found.samples += [
                    Sample(p, category, split, 1, kind, attached.get(_key(p, base), ()))
                    for p in paths
                ]
                if split != "test" or found.masked == "none":
                    continue
                bare = [p for p in paths if _key(p, base) not in attached]
                if found.masked == "every" or len(bare) == len(paths):
                    where = "/".join((*self.masks, kind))
                    found.gaps += masks_missing(category, bare, len(paths), where)
        for kind, masks in by_kind.items():
            files = [path for paths in masks.values() for path in paths]
            if is_good(kind):
                found.unused += len(files)
            else:
                found.orphans += files

    def _masks_by_kind(
        self, lister: Lister, folder: Path, names: list[str]
    ) -> dict[str, dict[str, list[str]]]:
        """For each kind of defect, the mask files by their key."""
        tops = [name for name in names if folded(name) == folded(self.masks[0])]
        result: dict[str, dict[str, list[str]]] = {}
        for top in tops:
            masks = folder.joinpath(top, *self.masks[1:])
            for kind in lister.folders(masks) if is_folder(masks) else ():
                base = masks / kind
                by_key = result.setdefault(kind, {})
                for path in lister.tree(base):
                    by_key.setdefault(_key(path, base), []).append(path)
        return result


def place_notes(place: Place) -> list[str]:
    """Where the categories were found, and the folders that are none."""
    notes = [place.note] if place.note else []
    if place.others:
        notes.append(
            "left out, without a train or test folder:\n"
            + listed([shown(name) for name in place.others])
        )
    return notes


def attach(
    images: Mapping[str, str], masks: Mapping[str, list[str]], found: Found
) -> dict[str, tuple[str, ...]]:
    """The masks of each image, by the image's key; masks without an image become orphans.

    Args:
        images: Paths by their key.
        masks: Mask files by their key: the image's, with or without `_mask`, or a name in a
            folder that is called like the image.
        found: Gets the orphans.
    """
    attached: dict[str, list[str]] = {}
    for key, files in masks.items():
        candidates = (key.removesuffix(_MASK_ENDING), key, key.rpartition("/")[0])
        owner = next((c for c in candidates if c in images), None)
        if owner is None:
            found.orphans += files
        else:
            attached.setdefault(owner, []).extend(files)
    return {owner: tuple(sorted(files)) for owner, files in attached.items()}


def masks_missing(category: str, bare: list[str], number: int, where: str) -> list[str]:
    """The gap that defect images without a mask are.

    Args:
        category: The category's name.
        bare: The defect images without a mask.
        number: Number of defect images of this kind.
        where: The folder that should hold the masks.
    """
    if not bare:
        return []
    start = f"category '{shown(category)}': "
    if len(bare) == number:
        return [f"{start}no mask in {shown(where)}, for {number} defect images"]
    return [
        f"{start}{len(bare)} of {number} defect images have no mask in {shown(where)}, the first "
        f"is that of {shown(Path(bare[0]).name)}"
    ]


def _masks_of(kind: str, by_kind: dict[str, dict[str, list[str]]]) -> dict[str, list[str]]:
    """Take out the masks of a kind of defect; another system may spell its folder another way."""
    same = canonical(kind).casefold()
    spelt = (k for k in by_kind if canonical(k).casefold() == same)
    return by_kind.pop(kind if kind in by_kind else next(spelt, kind), {})


def _key(path: str, base: Path) -> str:
    """The path below the folder of its kind, without extension, in one Unicode form."""
    relative = path[len(str(base)) + 1 :].replace(os.sep, "/")
    return canonical(os.path.splitext(relative)[0])  # noqa: PTH122

"""The layout of MVTec AD, which many other data sets share.

One category is a folder with `train/good`, `test/<kind of defect>` and
`ground_truth/<kind of defect>`; a data set is one category or a folder of them. Also read:
`validation/good`, "ok" for "good" (BTAD), and several masks for one image in a folder named like
the image (MVTec LOCO); their union counts.
"""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from flawmap.data.folder import GOOD_NAMES, category_name
from flawmap.data.samples import Lister, SampleTable, listed, shown, table_of
from flawmap.errors import DataError
from flawmap.types import GOOD, Sample, Split

_SPLITS: dict[str, Split] = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "test": "test",
}
_MASKS = "ground_truth"
_MASK_ENDING = "_mask"


@dataclass
class _Found:
    samples: list[Sample] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    unused: int = 0


class MVTec:
    """Reads one category, or a folder of categories, in the layout of MVTec AD."""

    name: ClassVar[str] = "mvtec"
    expects: ClassVar[str] = (
        "train/good, test/good, test/<defect> and ground_truth/<defect>/<name>_mask.png, in the "
        "folder itself or in one folder per product"
    )
    generic: ClassVar[bool] = False

    def matches(self, root: Path) -> str | None:
        """There is a train/good, here or one level below."""
        if not root.is_dir():
            return None
        lister = Lister()
        if _has_good_training(lister, root):
            return "it has train/good"
        found = [n for n in lister.folders(root) if _has_good_training(lister, root / n)]
        return f"'{shown(found[0])}' has train/good" if found else None

    def read(self, root: Path, seed: int) -> SampleTable:
        """List the categories.

        Raises:
            DataError: There is no category in this layout.
        """
        lister = Lister()
        found = _Found()
        notes: list[str] = []
        names, _ = lister.level(root)
        if any(name.casefold() in _SPLITS for name in names):
            _read_category(lister, root, names, category_name(root), found)
        else:
            others = []
            for name in names:
                inner = lister.folders(root / name)
                if any(n.casefold() in _SPLITS for n in inner):
                    _read_category(lister, root / name, inner, name, found)
                else:
                    others.append(shown(name))
            if others:
                notes.append("left out, without a train or test folder:\n" + listed(others))
        if not found.samples and not lister.problems:
            raise DataError(
                "no images in the layout of MVTec AD",
                where=shown(root),
                expected=self.expects,
                hint="check the folder, or name another layout with --format",
            )
        if found.unused:
            notes.append(f"{found.unused} masks of good images are not used")
        return table_of(self, root, found.samples, lister, orphan_masks=found.orphans, notes=notes)


def _has_good_training(lister: Lister, folder: Path) -> bool:
    return any(
        inner.casefold() in GOOD_NAMES
        for name in lister.folders(folder)
        if name.casefold() == "train"
        for inner in lister.folders(folder / name)
    )


def _read_category(
    lister: Lister, folder: Path, names: list[str], category: str, found: _Found
) -> None:
    by_kind = _masks_by_kind(lister, folder, names)
    for name in names:
        split = _SPLITS.get(name.casefold())
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
            base = folder / name / kind
            paths = lister.tree(base)
            if kind.casefold() in GOOD_NAMES:
                found.samples += [Sample(p, category, split, 0, GOOD) for p in paths]
                continue
            masks = by_kind.pop(kind, {}) if split == "test" else {}
            keys = {_key(p, base): p for p in paths}
            attached: dict[str, list[str]] = {}
            for mask_key, files in masks.items():
                owner = _owner(mask_key, keys)
                if owner is None:
                    found.orphans += files
                else:
                    attached.setdefault(owner, []).extend(files)
            found.samples += [
                Sample(p, category, split, 1, kind, tuple(sorted(attached.get(_key(p, base), ()))))
                for p in paths
            ]
    for kind, masks in by_kind.items():
        files = [path for paths in masks.values() for path in paths]
        if kind.casefold() in GOOD_NAMES:
            found.unused += len(files)
        else:
            found.orphans += files


def _masks_by_kind(
    lister: Lister, folder: Path, names: list[str]
) -> dict[str, dict[str, list[str]]]:
    """For each kind of defect, the mask files by their key."""
    result: dict[str, dict[str, list[str]]] = {}
    for name in names:
        if name.casefold() == _MASKS:
            for kind in lister.folders(folder / name):
                base = folder / name / kind
                by_key = result.setdefault(kind, {})
                for path in lister.tree(base):
                    by_key.setdefault(_key(path, base), []).append(path)
    return result


def _key(path: str, base: Path) -> str:
    """The path below the folder of its kind, without extension, in one Unicode form."""
    relative = path[len(str(base)) + 1 :].replace(os.sep, "/")
    return unicodedata.normalize("NFC", os.path.splitext(relative)[0])  # noqa: PTH122


def _owner(mask: str, images: dict[str, str]) -> str | None:
    """The key of the image that a mask belongs to."""
    candidates = [mask.removesuffix(_MASK_ENDING), mask, mask.rpartition("/")[0]]
    return next((c for c in candidates if c in images), None)

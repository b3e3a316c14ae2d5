"""MVTec 3D-AD (Bergmann et al., 2022), its colour images.

`train/good`, `validation/good`, `test/good` and `test/<defect>`, each with the folders `rgb`
(images), `xyz` (point clouds, not read) and `gt` (masks called like their image; those of good
images are empty and not read).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from flawmap.data.lister import Lister, stem
from flawmap.data.splits import Found, SplitFolders, attach, masks_missing
from flawmap.files import is_folder
from flawmap.types import GOOD, Sample
from flawmap.wording import shown

_IMAGES = "rgb"
_MASKS = "gt"
_POINTS = "xyz"


class MVTec3D(SplitFolders):
    """Reads the colour images of the categories."""

    name: ClassVar[str] = "mvtec-3d"
    expects: ClassVar[str] = (
        "{train,validation,test}/<good or defect>/{rgb,xyz,gt}, in the folder itself or in one "
        "folder per category"
    )
    title: ClassVar[str] = "MVTec 3D-AD"
    needed: ClassVar[tuple[str, ...]] = ("train", "validation", "test")

    def mark(self, folder: Path) -> str | None:
        """The folders of good and defective parts hold rgb beside xyz or gt."""
        lister = Lister()
        for split in self.splits:
            for kind in lister.folders(folder / split) if is_folder(folder / split) else ():
                parts = set(lister.folders(folder / split / kind))
                if _IMAGES in parts and parts & {_POINTS, _MASKS}:
                    return f"{shown(f'{split}/{kind}')}/rgb"
        return None

    def read_category(
        self, lister: Lister, folder: Path, names: list[str], category: str, found: Found
    ) -> None:
        """Add the colour images of one category."""
        for name, split in self.splits.items():
            for kind in lister.folders(folder / name) if name in names else ():
                base = folder / name / kind
                place = f"{name}/{kind}"
                parts = lister.folders(base)
                if _IMAGES not in parts:
                    found.gaps.append(
                        f"category '{shown(category)}': {shown(place)} has no folder '{_IMAGES}'"
                    )
                    continue
                paths = lister.images(base / _IMAGES)
                if kind == GOOD:
                    found.samples += [Sample(p, category, split, 0, GOOD) for p in paths]
                    continue
                masks: dict[str, list[str]] = {}
                for mask in lister.images(base / _MASKS) if _MASKS in parts else ():
                    masks.setdefault(stem(mask), []).append(mask)
                attached = attach({stem(p): p for p in paths}, masks, found)
                found.samples += [
                    Sample(p, category, split, 1, kind, attached.get(stem(p), ())) for p in paths
                ]
                bare = [p for p in paths if stem(p) not in attached]
                found.gaps += masks_missing(category, bare, len(paths), f"{place}/{_MASKS}")

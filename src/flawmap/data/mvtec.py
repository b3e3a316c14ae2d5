"""The layout of MVTec AD, which many other data sets share.

One category is a folder with `train/good`, `test/<kind of defect>` and
`ground_truth/<kind of defect>/000_mask.png`; a data set is one category or a folder of them. Also
read: `validation/good`, "ok" for "good", masks called like their image, and several masks for one
image in a folder called like the image; their union counts. MPDD comes in this layout.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import ClassVar

from flawmap.data.btad import BTAD
from flawmap.data.lister import Lister
from flawmap.data.mvtec_3d import MVTec3D
from flawmap.data.mvtec_ad_2 import MVTecAD2
from flawmap.data.mvtec_loco import MVTecLOCO
from flawmap.data.splits import MASKS, MaskDemand, SplitFolders
from flawmap.data.visa import VisA
from flawmap.data.words import is_good
from flawmap.types import Split

# Their trees fit this layout too, but a reader of their own knows more of them.
_RELATIVES = (BTAD, MVTec3D, MVTecAD2, MVTecLOCO, VisA)


MVTEC_AD_TEST_IMAGES = {
    "bottle": 83,
    "cable": 150,
    "capsule": 132,
    "carpet": 117,
    "grid": 78,
    "hazelnut": 110,
    "leather": 124,
    "metal_nut": 115,
    "pill": 167,
    "screw": 160,
    "tile": 117,
    "toothbrush": 42,
    "transistor": 100,
    "wood": 79,
    "zipper": 151,
}
"""MVTec AD's categories and their test images: parts of one's own may well have the same names."""

_PUBLIC = (
    frozenset(MVTEC_AD_TEST_IMAGES),
    frozenset(
        {"bracket_black", "bracket_brown", "bracket_white", "connector", "metal_plate", "tubes"}
    ),
)
"""The categories of MVTec AD and of MPDD, which are complete when they are unpacked."""

_SURELY_PUBLIC = 3
"""So many categories with their names are these data sets, and no parts of one's own."""


class MVTec(SplitFolders):
    """Reads one category, or a folder of categories, in the layout of MVTec AD.

    It is the layout for data of one's own, too: a category may do without tests or masks.
    """

    name: ClassVar[str] = "mvtec"
    expects: ClassVar[str] = (
        "train/good, test/good, test/<defect> and ground_truth/<defect>/<name>_mask.png, in the "
        "folder itself or in one folder per product"
    )
    title: ClassVar[str] = "MVTec AD"
    splits: ClassVar[Mapping[str, Split]] = {
        "train": "train",
        "validation": "validation",
        "val": "validation",
        "test": "test",
    }
    needed: ClassVar[tuple[str, ...]] = ()
    masked: ClassVar[MaskDemand] = "none"

    def demands(self, categories: Collection[str]) -> tuple[tuple[str, ...], MaskDemand]:
        """Of the public data sets, everything."""
        if len(categories) >= _SURELY_PUBLIC and any(names >= set(categories) for names in _PUBLIC):
            return ("train", "test", MASKS), "every"
        return super().demands(categories)

    def mark(self, folder: Path) -> str | None:
        """There is a train/good."""
        lister = Lister()
        good = any(
            is_good(inner)
            for name in lister.folders(folder)
            if name.casefold() == "train"
            for inner in lister.folders(folder / name)
        )
        return "train/good" if good else None

    def is_category(self, folder: Path) -> bool:
        """Whether a folder holds a split, in upper or lower case."""
        return any(name.casefold() in self.splits for name in Lister().folders(folder))

    def matches(self, root: Path) -> str | None:
        """There is a train/good, and no mark of a data set that has a reader of its own."""
        why = super().matches(root)
        return why if why and not any(r().matches(root) for r in _RELATIVES) else None

"""BTAD, the beanTech anomaly detection data set (Mishra et al., 2021).

MVTec AD's layout with "ok" and "ko" for good and defect: `01`, `02` and `03`, below
`BTech_Dataset_transformed`. Images and masks are BMP or PNG, each pair with one stem.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from flawmap.data.folder import category_name
from flawmap.data.splits import MaskDemand, SplitFolders
from flawmap.files import is_folder

_CATEGORIES = frozenset({"01", "02", "03"})


class BTAD(SplitFolders):
    """Reads the products 01, 02 and 03, or one of them."""

    name: ClassVar[str] = "btad"
    expects: ClassVar[str] = (
        "{01,02,03}/{train/ok,test/ok,test/ko,ground_truth/ko}, in the folder itself or in "
        "BTech_Dataset_transformed"
    )
    title: ClassVar[str] = "BTAD"
    # Not every defect of the set was annotated, as its published counts say.
    masked: ClassVar[MaskDemand] = "some"
    inside: ClassVar[str] = "BTech_Dataset_transformed"

    def mark(self, folder: Path) -> str | None:
        """It is called 01, 02 or 03 and has ok and ko."""
        named = category_name(folder) in _CATEGORIES
        kinds = ("train/ok", "test/ok", "test/ko")
        return next((k for k in kinds if named and is_folder(folder / k)), None)

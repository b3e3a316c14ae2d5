"""MVTec AD 2 (Heckler-Kram et al., 2025).

`train/good`, `validation/good` and `test_public/{good,bad}`, with the masks in
`test_public/ground_truth/bad/<name>_mask.png`. The ground truth of `test_private` and
`test_private_mixed` is not public: they are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from flawmap.data.lister import Lister
from flawmap.data.splits import MASKS, Found, SplitFolders
from flawmap.files import is_folder
from flawmap.types import Split

_PUBLIC = "test_public"
_PRIVATE = ("test_private", "test_private_mixed")


class MVTecAD2(SplitFolders):
    """Reads the categories with their public test split."""

    name: ClassVar[str] = "mvtec-ad-2"
    expects: ClassVar[str] = (
        "train/good, validation/good, test_public/{good,bad} and "
        "test_public/ground_truth/bad/<name>_mask.png, in the folder itself or in one folder per "
        "category"
    )
    title: ClassVar[str] = "MVTec AD 2"
    splits: ClassVar[Mapping[str, Split]] = {
        "train": "train",
        "validation": "validation",
        _PUBLIC: "test",
    }
    masks: ClassVar[tuple[str, ...]] = (_PUBLIC, MASKS)
    needed: ClassVar[tuple[str, ...]] = ("train", "validation", _PUBLIC)

    def mark(self, folder: Path) -> str | None:
        """There is a public or a private test split."""
        return next((n for n in (_PUBLIC, *_PRIVATE) if is_folder(folder / n)), None)

    def read_category(
        self, lister: Lister, folder: Path, names: list[str], category: str, found: Found
    ) -> None:
        """Add the images of one category; name the splits that are left out."""
        super().read_category(lister, folder, names, category, found)
        private = [name for name in _PRIVATE if name in names]
        if private:
            found.notes.append(
                f"left out, because their ground truth is not public: {' and '.join(private)}"
            )

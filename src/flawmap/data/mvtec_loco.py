"""MVTec LOCO AD (Bergmann et al., "Beyond Dents and Scratches", IJCV 2022).

`train/good`, `validation/good` and `test/{good,logical_anomalies,structural_anomalies}`; the masks
of test/logical_anomalies/000.png are ground_truth/logical_anomalies/000/000.png, 001.png and so on,
one for each region. The value of a mask's pixels names the defect in `defects_config.json`, which
says how much of the region must be found. The two kinds of anomalies are judged apart.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

from flawmap.data.lister import Lister
from flawmap.data.splits import MASKS, Found, SplitFolders
from flawmap.errors import DataError
from flawmap.files import is_file, is_folder
from flawmap.types import Saturation
from flawmap.wording import shown

_CONFIG = "defects_config.json"
_KINDS = {"logical": "logical_anomalies", "structural": "structural_anomalies"}


class MVTecLOCO(SplitFolders):
    """Reads the categories with their logical and structural anomalies, and the saturation."""

    name: ClassVar[str] = "mvtec-loco"
    expects: ClassVar[str] = (
        "{train,validation,test}/good, test/{logical_anomalies,structural_anomalies}, "
        "ground_truth/<kind>/<name>/*.png and defects_config.json, in the folder itself or in one "
        "folder per category"
    )
    title: ClassVar[str] = "MVTec LOCO"
    needed: ClassVar[tuple[str, ...]] = ("train", "validation", "test")

    def mark(self, folder: Path) -> str | None:
        """There are logical or structural anomalies, or the configuration of the defects."""
        if is_file(folder / _CONFIG):
            return _CONFIG
        places = [f"{top}/{kind}" for top in ("test", MASKS) for kind in _KINDS.values()]
        return next((p for p in places if is_folder(folder / p)), None)

    def read_category(
        self, lister: Lister, folder: Path, names: list[str], category: str, found: Found
    ) -> None:
        """Add the images of one category, its kinds of anomalies and its saturation."""
        super().read_category(lister, folder, names, category, found)
        found.judged_apart[category] = _KINDS
        found.gaps += [
            f"category '{shown(category)}' has no folder '{name}/{kind}'"
            for name in names
            for kind in _KINDS.values()
            if self.splits.get(name.casefold()) == "test" and not is_folder(folder / name / kind)
        ]
        if is_file(folder / _CONFIG):
            found.saturation[category] = read_saturation(folder / _CONFIG)
        else:
            found.notes.append(
                f"category '{shown(category)}' has no {_CONFIG}: the saturated overlap of regions "
                "cannot be measured"
            )


def read_saturation(file: Path) -> dict[int, Saturation]:
    """The saturation of each defect by the value of its mask's pixels.

    Args:
        file: A list of objects with defect_name, pixel_value, saturation_threshold and
            relative_saturation.

    Raises:
        DataError: The file is no such list.
    """
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(entries, list) or not entries:
            raise ValueError("it is no list of defects")
        found: dict[int, Saturation] = {}
        for number, entry in enumerate(entries, start=1):
            value, saturation = _entry(entry, number)
            if value in found:
                raise ValueError(f"defect {number}: pixel_value {value} is that of another defect")
            found[value] = saturation
    except (OSError, ValueError) as error:
        raise DataError(
            f"the configuration of the defects cannot be read: {error}",
            where=shown(file),
            expected="a list of objects with pixel_value (1 to 255), saturation_threshold (pixels, "
            "or a share) and relative_saturation (true or false)",
            hint="unpack the archive of the data set again",
        ) from error
    return found


def _entry(entry: object, number: int) -> tuple[int, Saturation]:
    if not isinstance(entry, dict):
        raise ValueError(f"defect {number} is no object")
    value = entry.get("pixel_value")
    amount = entry.get("saturation_threshold")
    relative = entry.get("relative_saturation")
    # In Python, True is a number.
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 255:
        raise ValueError(f"defect {number}: pixel_value is {json.dumps(value)}")
    if not isinstance(relative, bool):
        raise ValueError(f"defect {number}: relative_saturation is {json.dumps(relative)}")
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        raise ValueError(f"defect {number}: saturation_threshold is {json.dumps(amount)}")
    if not amount > 0 or (relative and amount > 1):
        raise ValueError(f"defect {number}: saturation_threshold is {amount}")
    return value, Saturation(amount=float(amount), relative=relative)

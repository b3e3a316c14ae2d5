"""Magnetic tiles (Huang et al., "Saliency of magnetic tile surface defects").

The set's own layout: a folder per kind, `MT_Free` being the good tiles, with `Imgs/*.jpg` and a
mask `Imgs/*.png` beside each image. It has no split: 80% of the good tiles train, chosen by the
seed. Most tiles were photographed six times in a row, with rising exposure: the images of one tile
are one part, on one side of the split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from flawmap.data.lister import Lister, stem
from flawmap.data.samples import SampleTable, table_of, training_part
from flawmap.data.splits import masks_missing
from flawmap.data.unpacked import require_whole
from flawmap.errors import DataError
from flawmap.files import is_folder
from flawmap.types import GOOD, Sample
from flawmap.wording import listed, shown

CATEGORY = "magnetic_tile"
_KINDS = ("Blowhole", "Break", "Crack", "Fray", "Free", "Uneven")
_GOOD_KIND = "Free"
_TAKEN = re.compile(r"exp(\d)_num_(\d+)")
_IN_TURN = 60
"""Between the images of two tiles that were photographed in turn, the number rises by less."""


def tiles_of(names: Iterable[str]) -> dict[str, str]:
    """Which images show one tile, by their names, such as exp3_num_1855: the exposure, and a number
    that rises with time.

    Exposures of one tile rise from image to image. Where they do not, the next tile begins, unless
    hardly any time has passed: then two tiles were photographed in turn, and are taken as one.

    Returns:
        The name of each tile's first image. Images of other names are tiles of their own.

    Example:
        >>> found = tiles_of(["exp2_num_834", "exp1_num_824", "exp1_num_2038"])
        >>> found["exp2_num_834"], found["exp1_num_2038"]
        ('exp1_num_824', 'exp1_num_2038')
    """
    taken = {name: (int(m[2]), int(m[1])) for name in names if (m := _TAKEN.fullmatch(name))}
    found = {name: name for name in names if name not in taken}
    tile, before = "", (0, 0)
    for name in sorted(taken, key=lambda name: (taken[name], name)):
        number, exposure = taken[name]
        if not tile or (exposure <= before[1] and number - before[0] > _IN_TURN):
            tile = name
        found[name] = tile
        before = number, exposure
    return found


class MagneticTile:
    """Reads the folders MT_Blowhole, MT_Break, MT_Crack, MT_Fray, MT_Free and MT_Uneven."""

    name: ClassVar[str] = "magnetic-tile"
    expects: ClassVar[str] = (
        "MT_Free/Imgs/*.jpg (good) and MT_{Blowhole,Break,Crack,Fray,Uneven}/Imgs/*.jpg with a "
        "mask *.png beside each"
    )
    generic: ClassVar[bool] = False

    def matches(self, root: Path) -> str | None:
        """There is an MT_Free/Imgs."""
        return "it has MT_Free/Imgs" if is_folder(root / f"MT_{_GOOD_KIND}" / "Imgs") else None

    def read(self, root: Path, seed: int) -> SampleTable:
        """List the tiles; the masks of good tiles are empty and are not attached.

        Raises:
            DataError: MT_Free/Imgs is missing, or the tiles or masks of another kind are.
        """
        if self.matches(root) is None:
            raise DataError(
                "this is not the magnetic-tile data set: there is no MT_Free/Imgs",
                where=shown(root),
                expected=self.expects,
                hint="give the folder that holds MT_Free, or name another layout with --format",
            )
        lister = Lister()
        samples: list[Sample] = []
        orphans: list[str] = []
        gaps: list[str] = []
        for kind in _KINDS:
            place = f"MT_{kind}/Imgs"
            folder = root / place
            files = lister.images(folder) if is_folder(folder) else []
            masks = {stem(p): p for p in files if p.lower().endswith(".png")}
            images = {stem(p): p for p in files if not p.lower().endswith(".png")}
            orphans += [masks[name] for name in masks.keys() - images.keys()]
            if not images:
                gaps.append(f"no image in {place}")
            if kind == _GOOD_KIND:
                tiles = tiles_of(images)
                training = training_part(sorted(set(tiles.values())), seed)
                samples += [
                    Sample(
                        path,
                        CATEGORY,
                        "train" if tiles[name] in training else "test",
                        0,
                        GOOD,
                        group=tiles[name],
                    )
                    for name, path in images.items()
                ]
            else:
                samples += [
                    Sample(
                        path,
                        CATEGORY,
                        "test",
                        1,
                        kind.lower(),
                        (masks[name],) if name in masks else (),
                    )
                    for name, path in images.items()
                ]
                bare = [path for name, path in images.items() if name not in masks]
                gaps += masks_missing(CATEGORY, bare, len(images), place)
        if not lister.problems:
            hint = "unpack its archive again"
            require_whole("the magnetic-tile data set", gaps, where=root, hint=hint)
        notes = ["missing:\n" + listed(gaps)] if gaps else []
        return table_of(self, root, samples, lister, orphan_masks=orphans, notes=notes)

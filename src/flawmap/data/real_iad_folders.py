"""Where the images and the JSON files of Real-IAD lie, and which of them are meant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flawmap.data.lister import Lister
from flawmap.data.unpacked import named_root, twice
from flawmap.errors import DataError
from flawmap.files import is_folder
from flawmap.wording import shown

_IMAGES = re.compile(r"realiad_(256|512|1024|raw)")
_JSONS = re.compile(r"realiad_jsons(|_sv|_fuiad_[\d.]+)")
PLAIN, SINGLE, NOISY = "", "_sv", "_fuiad"
FORMATS = {PLAIN: "real-iad", SINGLE: "real-iad-single-view", NOISY: "real-iad-noisy"}
"""The formats by the flavour of their JSON files, the first that is there wins."""

_KINDS = ("OK", "NG")


@dataclass(frozen=True)
class Parts:
    """The folders that belong together.

    Attributes:
        images: Folders of images by their name.
        jsons: Folders of JSON files by their name.
        category: The category that was asked for, "" for all.
    """

    images: Mapping[str, Path]
    jsons: Mapping[str, Path]
    category: str = ""

    def of(self, flavour: str) -> dict[str, Path]:
        """The folders of JSON files of one flavour."""
        return {
            name: folder
            for name, folder in self.jsons.items()
            if name.removeprefix("realiad_jsons").rstrip("0123456789._") == flavour
        }


def has_kinds(folder: Path) -> bool:
    """Whether a folder is that of a category."""
    return any(is_folder(folder / kind) for kind in _KINDS)


def parts_around(lister: Lister, root: Path) -> Parts | None:
    """The folders of Real-IAD around a path.

    It may be the folder that they lie in, one of them, or one category; for all but the first, the
    others are looked for beside it.
    """
    here = named_root(root)
    category = ""
    if has_kinds(here):
        outer = here.parent if here.parent.name == here.name else here
        here, category = outer.parent, outer.name
        if not _IMAGES.fullmatch(here.name):
            return None
    if _IMAGES.fullmatch(here.name) or _JSONS.fullmatch(here.name):
        # Archives unpack to a folder inside the folder that they are unpacked to.
        nested = _IMAGES.fullmatch(here.parent.name) or _JSONS.fullmatch(here.parent.name)
        images, jsons = _found(lister, here.parent.parent if nested else here.parent)
        if _IMAGES.fullmatch(here.name):
            return Parts({here.name: twice(here)}, jsons, category)
        return Parts(images, _flavours(lister, here))
    images, jsons = _found(lister, root)
    names = lister.folders(root)
    if not images and not jsons and len(names) == 1:
        images, jsons = _found(lister, root / names[0])
    return Parts(images, jsons) if images or jsons else None


def _found(lister: Lister, home: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """The folders of images and of JSON files in one folder."""
    names = lister.folders(home)
    jsons: dict[str, Path] = {}
    for name in names:
        if _JSONS.fullmatch(name):
            jsons |= _flavours(lister, home / name)
    return {name: twice(home / name) for name in names if _IMAGES.fullmatch(name)}, jsons


def _flavours(lister: Lister, folder: Path) -> dict[str, Path]:
    """The folders of JSON files in a folder that is called like one, or the folder itself."""
    inner = {name: folder / name for name in lister.folders(folder) if _JSONS.fullmatch(name)}
    return inner or {folder.name: folder}


def only_jsons(parts: Parts, flavour: str, root: Path) -> Path:
    """The folder of JSON files that is meant.

    Raises:
        DataError: There is none of this flavour, or several.
    """
    found = parts.of(flavour)
    if len(found) == 1:
        return next(iter(found.values()))
    if len(found) > 1:
        raise _several("folders of JSON files", found, root)
    others = [
        f"--format {name} reads {', '.join(parts.of(other))}"
        for other, name in FORMATS.items()
        if parts.of(other)
    ]
    wanted = f"realiad_jsons{flavour}{'_0.0 to _0.4' if flavour == NOISY else ''}"
    raise DataError(
        f"Real-IAD has {'no folder' if others else 'images, but no folder'} {wanted}: the split "
        "and the labels stand in its JSON files",
        where=shown(root),
        given=", ".join([*parts.images, *parts.jsons]),
        expected=f"{wanted}/<category>.json beside the folder of the images",
        hint="; ".join(others)
        or f"download {wanted}.zip where the images come from and unpack it beside them",
    )


def only_images(parts: Parts, root: Path) -> Path:
    """The folder of images that is meant.

    Raises:
        DataError: There is none, or several.
    """
    if len(parts.images) == 1:
        return next(iter(parts.images.values()))
    if parts.images:
        raise _several("folders of images", parts.images, root)
    raise DataError(
        "Real-IAD has JSON files, but there are no images beside them",
        where=shown(root),
        given=", ".join(parts.jsons),
        expected="one of realiad_256, realiad_512, realiad_1024 and realiad_raw",
        hint="download one of them and unpack it beside the folder of the JSON files",
    )


def _several(what: str, found: Mapping[str, Path], root: Path) -> DataError:
    return DataError(
        f"Real-IAD has several {what} here",
        where=shown(root),
        given=", ".join(found),
        expected="one of them",
        hint="give the path of the one that is meant; to choose images and JSON files both, put "
        "links to the two folders into a folder of their own",
    )

"""Real-IAD (Wang et al., "Real-IAD: A Real-World Multi-View Dataset", CVPR 2024).

The images lie in `realiad_256`, `realiad_512`, `realiad_1024` or `realiad_raw`, as
`<category>/OK/S0001/*.jpg` and `<category>/NG/<defect>/S0001/*.jpg`, each mask as a PNG beside its
image; one folder S0001 holds the five views of one part. The labels and the split stand in one
JSON file per category: in `realiad_jsons`, in `realiad_jsons_sv` (one view of each part), and in
`realiad_jsons_fuiad_0.0` to `_0.4`, where this share of the training images shows defects.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from flawmap.data.lister import Lister
from flawmap.data.real_iad_folders import (
    FORMATS,
    NOISY,
    PLAIN,
    SINGLE,
    Parts,
    has_kinds,
    only_images,
    only_jsons,
    parts_around,
)
from flawmap.data.samples import SampleTable, table_of
from flawmap.data.unpacked import Listing, archives, not_there, require_whole, twice
from flawmap.errors import DataError
from flawmap.files import is_folder
from flawmap.types import GOOD, Sample, Split
from flawmap.wording import listed, shown


@dataclass
class _Tally:
    """What is missing, what was left out, and how many training images are defects."""

    gaps: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    training: int = 0
    defects: int = 0


@dataclass(frozen=True, slots=True)
class _Item:
    """One image of a JSON file; its paths are relative to the category's folder."""

    split: Split
    defect: str
    image: str
    mask: str


class RealIAD:
    """Reads the images that `realiad_jsons` names; all five views."""

    name: ClassVar[str] = FORMATS[PLAIN]
    expects: ClassVar[str] = (
        "realiad_{256,512,1024,raw}/<category>/{OK,NG/<defect>}/S0001/*.jpg beside "
        "realiad_jsons/<category>.json"
    )
    generic: ClassVar[bool] = False
    flavour: ClassVar[str] = PLAIN

    def matches(self, root: Path) -> str | None:
        """Folders of Real-IAD are there, and the first flavour of them is this format's."""
        parts = parts_around(Lister(), root) if is_folder(root) else None
        if parts is None:
            return None
        first = next((f for f in FORMATS if parts.of(f)), PLAIN)
        names = ", ".join([*parts.images, *parts.jsons])
        return f"the folders of Real-IAD are there: {names}" if first == self.flavour else None

    def read(self, root: Path, seed: int) -> SampleTable:
        """List the images that the JSON files name.

        Raises:
            DataError: The images or the JSON files are missing, several of them could be meant, a
                JSON file cannot be understood, or files that it names are missing.
        """
        lister = Lister()
        # Beside the folders lie the archives that they came from, which need no note.
        structure = Lister(problems=lister.problems)
        parts = parts_around(structure, root)
        if parts is None:
            raise DataError(
                "this is not Real-IAD: there is no folder realiad_256, realiad_512, realiad_1024, "
                "realiad_raw or realiad_jsons",
                where=shown(root),
                expected=self.expects,
                hint="check the folder, or name another layout with --format",
            )
        jsons, images = only_jsons(parts, self.flavour, root), only_images(parts, root)
        tally = _Tally()
        samples: list[Sample] = []
        owners: dict[str, str] = {}
        for category, file, folder in _categories(structure, parts, jsons, images, tally):
            owners[str(folder)] = category
            items = _read_items(file, category)
            samples += self._read_category(lister, category, folder, items, tally)
        hint = "unpack the archives of these categories again"
        require_whole("Real-IAD", tally.gaps, where=images, hint=hint)
        if not samples and not lister.problems:
            raise DataError(
                "Real-IAD has JSON files, but no category has images",
                where=shown(images),
                expected=self.expects,
                hint="download the archives of the categories and unpack them into this folder",
            )
        notes = [f"labels and split from '{shown(jsons.name)}', images from '{shown(images.name)}'"]
        if tally.absent:
            notes.append("left out, with a JSON file but no images:\n" + listed(tally.absent))
        return replace(self._table(images, samples, lister, notes, tally), owners=owners)

    def _table(
        self,
        base: Path,
        samples: list[Sample],
        lister: Lister,
        notes: list[str],
        tally: _Tally,
    ) -> SampleTable:
        return table_of(self, base, samples, lister, notes=notes)

    def _sample(self, item: _Item, path: str, mask: str, category: str, group: str) -> Sample:
        label = int(item.defect != GOOD)
        masks = (mask,) if mask else ()
        return Sample(path, category, item.split, label, item.defect, masks, group)

    def _read_category(
        self, lister: Lister, category: str, folder: Path, items: list[_Item], tally: _Tally
    ) -> list[Sample]:
        listing = Listing(lister, folder)
        lost: dict[str, list[str]] = {"image": [], "mask": []}
        samples = []
        for item in items:
            path, mask = (listing.path(f) if f else "" for f in (item.image, item.mask))
            if listing.broken(path) or listing.broken(mask):
                continue
            if not listing.has(path):
                lost["image"].append(item.image)
            elif mask and not listing.has(mask):
                lost["mask"].append(item.mask)
            else:
                # The views of one part lie in one folder.
                group = f"{category}/{item.image.rpartition('/')[0]}"
                samples.append(self._sample(item, path, mask, category, group))
                tally.training += item.split == "train"
                tally.defects += item.split == "train" and item.defect != GOOD
        tally.gaps += [
            f"category '{shown(category)}': {shown(category)}.json names "
            f"{not_there(len(files), kind, files[0])}"
            for kind, files in lost.items()
            if files
        ]
        return samples


class RealIADSingleView(RealIAD):
    """Reads the images that `realiad_jsons_sv` names: one view of each part."""

    name: ClassVar[str] = FORMATS[SINGLE]
    expects: ClassVar[str] = "as real-iad, with realiad_jsons_sv"
    flavour: ClassVar[str] = SINGLE


class RealIADNoisy(RealIAD):
    """Reads a training split with defects in it: `realiad_jsons_fuiad_0.0` to `_0.4`.

    That a method learns from images which nobody sorted is the point of these sets, so no training
    image has a label.
    """

    name: ClassVar[str] = FORMATS[NOISY]
    expects: ClassVar[str] = "as real-iad, with one of realiad_jsons_fuiad_0.0 to _0.4"
    flavour: ClassVar[str] = NOISY

    def _table(
        self,
        base: Path,
        samples: list[Sample],
        lister: Lister,
        notes: list[str],
        tally: _Tally,
    ) -> SampleTable:
        table = super()._table(base, samples, lister, notes, tally)
        note = (
            f"{tally.defects} of {tally.training} training images show defects; none keeps its "
            "label, and all are learnt from"
        )
        return replace(table, notes=(*table.notes, note), unsorted_training=True)

    def _sample(self, item: _Item, path: str, mask: str, category: str, group: str) -> Sample:
        if item.split == "train":
            return Sample(path, category, "train", None, "", (), group)
        return super()._sample(item, path, mask, category, group)


def _categories(
    lister: Lister, parts: Parts, jsons: Path, images: Path, tally: _Tally
) -> Iterator[tuple[str, Path, Path]]:
    """Name, JSON file and folder of each category that has both; the others are tallied."""
    # A Mac leaves hidden files beside those that it unpacks or copies.
    files = {f.stem: f for f in sorted(jsons.glob("*.json")) if not f.name.startswith(".")}
    folders = {name for name in lister.folders(images) if has_kinds(twice(images / name))}
    packed = archives(images)
    wanted = {parts.category} if parts.category else files.keys() | folders
    for name in sorted(wanted):
        if name not in files:
            tally.gaps.append(f"category '{shown(name)}' has images but no {shown(name)}.json")
        elif name in folders:
            yield name, files[name], twice(images / name)
        elif name in packed:
            tally.gaps.append(f"category '{shown(name)}' is still packed: {shown(packed[name])}")
        else:
            tally.absent.append(shown(name))


def _read_items(file: Path, category: str) -> list[_Item]:
    """The images of one JSON file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        normal = content["meta"]["normal_class"]
        prefix = content["meta"]["prefix"].strip("/")
        if prefix != category:
            raise ValueError(f"its prefix is '{prefix}'")
        return [
            _item(entry, split, normal) for split in ("train", "test") for entry in content[split]
        ]
    except KeyError as error:
        reason = f"{error} is missing"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = str(error)
    raise DataError(
        f"this is no JSON file of Real-IAD: {reason}",
        where=shown(file),
        expected='{"meta": {"normal_class", "prefix"}, "train": [...], "test": [...]} with '
        "anomaly_class, image_path and mask_path for each image",
        hint="unpack the archive of the JSON files again",
    )


def _item(entry: Any, split: Split, normal: str) -> _Item:
    defect, image, mask = entry["anomaly_class"], entry["image_path"], entry["mask_path"]
    if not (isinstance(defect, str) and isinstance(image, str) and isinstance(mask, str | None)):
        raise ValueError(f"an image is {json.dumps(entry)}")
    if defect == normal:
        return _Item(split, GOOD, image, "")
    return _Item(split, defect, image, mask or "")

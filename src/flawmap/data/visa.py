"""VisA, the Visual Anomaly data set (Zou et al., "SPot-the-Difference", ECCV 2022).

Two layouts are read. As downloaded: `<object>/Data/Images/{Normal,Anomaly}`,
`<object>/Data/Masks/Anomaly` and the split in `split_csv/1cls.csv`, whose training images are all
good (those of the tables beside it are not). As prepared by the authors' script: MVTec AD's layout
below a folder `1cls`, masks called like their image. The pixels of a mask as downloaded hold the
number of a kind of defect; nonzero is a defect.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from flawmap.data.lister import Lister
from flawmap.data.samples import SampleTable, table_of
from flawmap.data.splits import SplitFolders
from flawmap.data.unpacked import Listing, locate, named_root, not_there, require_whole
from flawmap.errors import DataError
from flawmap.files import is_file, is_folder
from flawmap.types import GOOD, Sample, Split
from flawmap.wording import listed, shown

_SPLIT = "split_csv/1cls.csv"
_COLUMNS = frozenset({"object", "split", "label", "image", "mask"})
_SPLITS: dict[str, Split] = {"train": "train", "test": "test"}
_LABELS = {"normal": 0, "anomaly": 1}
_DEFECT = "anomaly"
_PREPARED = "1cls"
_ORIGIN = (
    "it comes in the archive of VisA, beside the folders of the objects, and in the folder "
    "split_csv of the authors' repository (amazon-science/spot-diff): put it there"
)


@dataclass(frozen=True, slots=True)
class _Row:
    """One image; its paths are relative to the object's folder."""

    split: Split
    label: int
    image: str
    mask: str


class _Prepared(SplitFolders):
    """Reads what the authors' script writes."""

    name: ClassVar[str] = "visa"
    expects: ClassVar[str] = (
        "<object>/Data/Images/{Normal,Anomaly}, <object>/Data/Masks/Anomaly and "
        "split_csv/1cls.csv; or 1cls/<object>/{train/good,test/good,test/bad,ground_truth/bad}"
    )
    title: ClassVar[str] = "VisA"
    inside: ClassVar[str] = _PREPARED

    def mark(self, folder: Path) -> str | None:
        """It lies in a folder 1cls."""
        inside = folder.absolute().parent.name == _PREPARED
        return f"train or test, in a folder {_PREPARED}" if inside else None


class VisA:
    """Reads VisA as downloaded, or as prepared in the folder 1cls."""

    name: ClassVar[str] = _Prepared.name
    expects: ClassVar[str] = _Prepared.expects
    generic: ClassVar[bool] = False

    def matches(self, root: Path) -> str | None:
        """There is <object>/Data/Images or <object>/Data/Masks, or a folder 1cls of categories."""
        if not is_folder(root):
            return None
        place = locate(Lister(), root, _is_object)
        if place is None:
            return _Prepared().matches(root)
        return f"'{shown(next(iter(place.categories)))}' has Data/Images or Data/Masks"

    def read(self, root: Path, seed: int) -> SampleTable:
        """List the images that the split names.

        Raises:
            DataError: The split is missing or has wrong lines, or files that it names are missing.
        """
        lister = Lister()
        place = locate(Lister(problems=lister.problems), root, _is_object)
        if place is None:
            return _Prepared().read(root, seed)
        alone = place.base == root and _is_object(root)
        table = (named_root(root).parent if alone else place.base) / _SPLIT
        rows = _read_split(table)
        gaps: list[str] = []
        samples: list[Sample] = []
        for name, folder in place.categories.items():
            if name not in rows:
                gaps.append(f"category '{shown(name)}' has images but no line in {_SPLIT}")
                continue
            samples += _read_object(lister, name, folder, rows[name], gaps)
        absent = [] if alone else sorted(rows.keys() - place.categories.keys())
        for name in place.others:
            if name in absent:
                gaps.append(f"category '{shown(name)}' has a folder but no Data/Images in it")
        require_whole("VisA", gaps, where=root, hint="unpack its archive again")
        notes = [place.note] if place.note else []
        if absent:
            notes.append(f"left out, in {_SPLIT} but without a folder:\n{listed(absent)}")
        return table_of(self, place.base, samples, lister, notes=notes, owners=place.owners)


def _is_object(folder: Path) -> bool:
    return any(is_folder(folder / "Data" / name) for name in ("Images", "Masks"))


def _read_split(file: Path) -> Mapping[str, list[_Row]]:
    """The lines of the split by their object."""
    if not is_file(file):
        raise DataError(
            f"VisA has images, but the table of its split is missing: {_SPLIT}",
            where=shown(file),
            expected="a table with the columns object, split, label, image and mask "
            "(image_anno.csv in an object's folder says nothing of the split)",
            hint=_ORIGIN,
        )
    wrong: list[str] = []
    rows: dict[str, list[_Row]] = {}
    try:
        for line, cells in _lines(file):
            try:
                name = cells["object"]
                rows.setdefault(name, []).append(_row(name, cells))
            except ValueError as error:
                wrong.append(f"line {line}: {error}")
    except (UnicodeDecodeError, csv.Error) as error:
        wrong.append(f"it is no table: {error}")
    if wrong:
        raise DataError(
            f"the table of VisA's split cannot be used:\n{listed(wrong)}",
            where=shown(file),
            expected="the columns object, split (train, test), label (normal, anomaly), image and "
            "mask",
            hint="unpack the archive of VisA again; its file was altered or cut off",
        )
    return rows


def _lines(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    with file.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text)
        missing = _COLUMNS.difference(reader.fieldnames or ())
        if missing:
            raise csv.Error(f"the columns {', '.join(sorted(missing))} are missing")
        for cells in reader:
            yield reader.line_num, {k: (v or "").strip() for k, v in cells.items() if k}


def _row(name: str, cells: Mapping[str, str]) -> _Row:
    split, label = _SPLITS.get(cells["split"]), _LABELS.get(cells["label"])
    if split is None:
        raise ValueError(f"split is '{cells['split']}'")
    if label is None:
        raise ValueError(f"label is '{cells['label']}'")
    if not name or not cells["image"].startswith(f"{name}/"):
        raise ValueError(f"image is '{cells['image']}', which does not lie in '{name}'")
    if label == 1 and not cells["mask"].startswith(f"{name}/"):
        raise ValueError(f"mask is '{cells['mask']}', which does not lie in '{name}'")
    return _Row(
        split,
        label,
        cells["image"][len(name) + 1 :],
        cells["mask"][len(name) + 1 :] if label == 1 else "",
    )


def _read_object(
    lister: Lister, name: str, folder: Path, rows: list[_Row], gaps: list[str]
) -> list[Sample]:
    """The samples of one object; what is missing is added to the gaps."""
    listing = Listing(lister, folder)
    # The object's own image_anno.csv needs no note.
    lister.ignored.clear()
    without = _missing_folders(folder, rows)
    gaps += [f"category '{shown(name)}' has no {place}" for place in without]
    lost: dict[str, list[str]] = {"image": [], "mask": []}
    samples = []
    for row in rows:
        files = {kind: f for kind, f in (("image", row.image), ("mask", row.mask)) if f}
        paths = {kind: listing.path(file) for kind, file in files.items()}
        missing = [kind for kind, path in paths.items() if not listing.has(path)]
        if not missing:
            masks = (paths["mask"],) if row.mask else ()
            defect = _DEFECT if row.label else GOOD
            samples.append(Sample(paths["image"], name, row.split, row.label, defect, masks))
        for kind in missing:
            above = any(files[kind].startswith(f"{place}/") for place in without)
            if not above and not listing.broken(paths[kind]):
                lost[kind].append(f"{name}/{files[kind]}")
    gaps += [
        f"category '{shown(name)}': {_SPLIT} names {not_there(len(names), kind, names[0])}"
        for kind, names in lost.items()
        if names
    ]
    return samples


def _missing_folders(folder: Path, rows: list[_Row]) -> list[str]:
    """The folders that the lines name and that are not there, the highest of each branch."""
    missing: list[str] = []
    for parent in sorted({f.rpartition("/")[0] for r in rows for f in (r.image, r.mask) if f}):
        parts = parent.split("/")
        branch = ("/".join(parts[: n + 1]) for n in range(len(parts)))
        gone = next((b for b in branch if not is_folder(folder / b)), None)
        if gone is not None and gone not in missing:
            missing.append(gone)
    return missing

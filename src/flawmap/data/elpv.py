"""ELPV: electroluminescence images of solar cells (Buerhop-Lutz et al., 2018).

`labels.csv` (path, probability of a defect, type of module, separated by blanks) beside `images/`,
as the package `elpv-dataset` carries it. It has no split: of each type, 80% of the cells with
probability 0 train, chosen by the seed. Cells on which the experts were not sure (1/3 and 2/3) are
left out, or tested on as defects.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from flawmap.data.lister import Lister, Problem
from flawmap.data.samples import SampleTable, table_of, training_part
from flawmap.errors import DataError
from flawmap.files import is_file, is_folder
from flawmap.types import GOOD, Sample, Split
from flawmap.wording import listed, shown

_LABELS = "labels.csv"
_SURE = 0.01


@dataclass(frozen=True)
class _Cell:
    path: str
    probability: float
    category: str


class Elpv:
    """Reads the solar cells as the categories "mono" and "poly"."""

    name: ClassVar[str] = "elpv"
    expects: ClassVar[str] = (
        "labels.csv (path, probability, type; separated by blanks) beside images/, or the folder "
        "of the installed package elpv_dataset"
    )
    generic: ClassVar[bool] = False
    tests_uncertain: ClassVar[bool] = False

    def matches(self, root: Path) -> str | None:
        """There are labels.csv and images/, and the first label has the set's three columns."""
        base = _base(root)
        if base is None:
            return None
        try:
            with (base / _LABELS).open(encoding="utf-8") as file:
                _parse(file.readline())
        except (OSError, ValueError):
            return None
        return f"it has {_LABELS} with probabilities beside images/"

    def read(self, root: Path, seed: int) -> SampleTable:
        """List the cells.

        Raises:
            DataError: labels.csv is missing or has wrong lines; each is named.
        """
        base = _base(root)
        if base is None:
            raise DataError(
                "this is not the ELPV data set: there is no labels.csv beside images/",
                where=shown(root),
                expected=self.expects,
                hint="pip install elpv-dataset, or name another layout with --format",
            )
        lister = Lister()
        cells = self._present(_read_labels(base), base, lister)
        good: dict[str, list[str]] = {}
        for cell in cells:
            if cell.probability < _SURE:
                good.setdefault(cell.category, []).append(cell.path)
        training = {category: training_part(paths, seed) for category, paths in good.items()}
        samples: list[Sample] = []
        left_out = 0
        for cell in cells:
            path = str(base / cell.path)
            if cell.probability < _SURE:
                trains = cell.path in training[cell.category]
                split: Split = "train" if trains else "test"
                samples.append(Sample(path, cell.category, split, 0, GOOD))
            elif cell.probability > 1 - _SURE:
                samples.append(Sample(path, cell.category, "test", 1, "defect"))
            elif self.tests_uncertain:
                samples.append(Sample(path, cell.category, "test", 1, "uncertain"))
            else:
                left_out += 1
        notes = []
        if left_out:
            notes.append(f"{left_out} cells on which the experts were not sure are left out")
        return table_of(self, base, samples, lister, notes=notes)

    def _present(self, cells: list[_Cell], base: Path, lister: Lister) -> list[_Cell]:
        listing = {str(base / "images" / name) for name in lister.level(base / "images")[1]}
        known = {p.path for p in lister.problems}
        present = []
        for cell in cells:
            path = str(base / cell.path)
            if path in listing:
                present.append(cell)
            elif path not in known:
                lister.problems.append(Problem(path, f"named in {_LABELS} but missing"))
        return present


class ElpvUncertain(Elpv):
    """Reads the cells on which the experts were not sure too: as defects to test on."""

    name: ClassVar[str] = "elpv-uncertain"
    expects: ClassVar[str] = "as elpv"
    tests_uncertain: ClassVar[bool] = True

    def matches(self, root: Path) -> str | None:
        """Nothing tells it from `elpv`, so it must be named."""
        return None


def _base(root: Path) -> Path | None:
    for base in (root, root / "data"):
        if is_file(base / _LABELS) and is_folder(base / "images"):
            return base
    return None


def _read_labels(base: Path) -> list[_Cell]:
    cells: list[_Cell] = []
    wrong: list[str] = []
    with (base / _LABELS).open(encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                cells.append(_parse(line))
            except ValueError as error:
                wrong.append(f"line {number}: {error}")
    if wrong:
        raise DataError(
            f"{len(wrong)} wrong lines in {_LABELS}:\n{listed(wrong)}",
            where=shown(base / _LABELS),
            expected="path, probability from 0 to 1, type; separated by blanks",
            hint="install elpv-dataset again; its file was altered",
        )
    return cells


def _parse(line: str) -> _Cell:
    columns = line.split()
    if len(columns) != 3:
        raise ValueError(f"{len(columns)} columns instead of 3")
    path, probability, category = columns
    value = float(probability)
    if not 0 <= value <= 1:
        raise ValueError(f"probability {probability} is not from 0 to 1")
    return _Cell(path, value, category)

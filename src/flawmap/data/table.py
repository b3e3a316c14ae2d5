"""A table of images: CSV with a header, or JSON Lines.

Columns: path, category, split, label, mask, defect, part_id; only path is needed. Paths are
relative to the table's folder. Without a word to the contrary an image is good and trains.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import json
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from flawmap.data.lister import Lister, Problem
from flawmap.data.samples import SampleTable, table_of
from flawmap.data.words import is_defect, is_good, is_nothing, is_yes
from flawmap.errors import DataError
from flawmap.files import is_file
from flawmap.types import GOOD, Sample, Split
from flawmap.wording import counted, listed, shown

CSV_ENDINGS = frozenset({".csv", ".tsv"})
JSON_ENDINGS = frozenset({".jsonl", ".ndjson"})

_COLUMNS = {
    "path": "path",
    "image": "path",
    "image_path": "path",
    "file": "path",
    "filename": "path",
    "category": "category",
    "product": "category",
    "object": "category",
    "split": "split",
    "label": "label",
    "mask": "mask",
    "masks": "mask",
    "mask_path": "mask",
    "defect": "defect",
    "part_id": "part_id",
    "serial": "part_id",
    "serial_number": "part_id",
}
_GOOD_NUMBERS = frozenset({"0", "0.0"})
_DEFECT_NUMBERS = frozenset({"1", "1.0"})
_SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
_DEFAULT_CATEGORY = "default"
_MOST_WORDS = 50
"""Different values of a column that is not read, before it is taken for something else."""


@dataclass(frozen=True)
class _Row:
    line: int
    cells: Mapping[str, str | tuple[str, ...]]
    """Values by our names of the columns; masks as a tuple."""

    def text(self, column: str) -> str:
        value = self.cells.get(column, "")
        assert isinstance(value, str)
        return value

    @property
    def masks(self) -> tuple[str, ...]:
        value = self.cells.get("mask", ())
        assert isinstance(value, tuple)
        return value


class _WrongLineError(ValueError):
    """A line that cannot be understood; its text names the column and what is expected."""


_VERDICTS = frozenset({"class", "target", "verdict", "result", "status", "quality", "y"})
"""Names under which 0 and 1, or true and false, mean good and defective too."""
_FLAGS = frozenset({"0", "1", "0.0", "1.0", "true", "false", "yes", "no"})


class _Unread:
    """Columns that are not read, and whether one of them tells good from defective."""

    def __init__(self) -> None:
        self.words: dict[str, set[str]] = {}

    def add(self, column: str, value: object) -> None:
        words = self.words.setdefault(column, set())
        if len(words) < _MOST_WORDS and str(value).strip():
            words.add(str(value).strip())

    def verdict(self) -> str:
        """The column that seems to tell, with some of its values; "" where none does."""
        for column, words in self.words.items():
            if _tell_by_words(words) or _tell_by_flags(column, words):
                values = ", ".join(shown(word) for word in sorted(words)[:5])
                return f"{shown(column)} ({values})"
        return ""


def _tell_by_words(words: set[str]) -> bool:
    """A word for defects, or one for good images among others, such as kinds of defects."""
    return any(map(is_defect, words)) or (len(words) > 1 and any(map(is_good, words)))


def _tell_by_flags(column: str, words: set[str]) -> bool:
    """0 and 1, or true and false, under a name that says what they mean."""
    name = column.casefold().removeprefix("is_").removeprefix("has_")
    if not words or any(word.casefold() not in _FLAGS for word in words):
        return False
    return is_defect(name) or (len(words) > 1 and (is_good(name) or name in _VERDICTS))


class Table:
    """Reads a CSV or JSON Lines table, or a folder that holds exactly one."""

    name: ClassVar[str] = "table"
    expects: ClassVar[str] = (
        "a .csv, .tsv or .jsonl file with the column path and, as needed, category, split "
        "(train, validation, test), label (good, defect), mask, defect and part_id"
    )
    generic: ClassVar[bool] = True

    def matches(self, root: Path) -> str | None:
        """It is such a file, or a folder with one that has the columns path and label or split."""
        if is_file(root):
            if root.suffix.lower() in CSV_ENDINGS | JSON_ENDINGS:
                return f"it is a {root.suffix.lower()} file"
            return None
        tables = _tables_in(root)
        return f"it holds the table '{shown(tables[0].name)}'" if len(tables) == 1 else None

    def read(self, root: Path, seed: int) -> SampleTable:
        """Read the rows and look for every file they name.

        Raises:
            DataError: Lines are wrong; each is named with its number.
        """
        file = _table_file(root)
        lister = Lister()
        samples: list[Sample] = []
        wrong: list[str] = []
        seen: dict[str, int] = {}
        owners: dict[str, str] = {}
        has_label = False
        unread = _Unread()
        try:
            for row in _rows(file, wrong, unread):
                has_label = has_label or bool(row.text("label") or row.text("defect"))
                try:
                    sample = _sample(row, file.parent)
                    if sample.path in seen:
                        raise _WrongLineError(
                            f"'{shown(row.text('path'))}' is named on line {seen[sample.path]} too"
                        )
                except _WrongLineError as error:
                    wrong.append(f"line {row.line}: {error}")
                    continue
                seen[sample.path] = row.line
                missing = [p for p in (sample.path, *sample.masks) if not is_file(p)]
                for p in missing:
                    shared = owners.get(p, sample.category) != sample.category
                    owners[p] = "" if shared else sample.category
                lister.problems += [
                    Problem(p, f"named on line {row.line} but not there") for p in missing
                ]
                if not missing:
                    samples.append(sample)
        except UnicodeDecodeError as error:
            raise DataError(
                f"the table is not UTF-8 text (byte {error.start})",
                where=shown(file),
                hint="save it as UTF-8; in a spreadsheet program choose 'CSV UTF-8'",
            ) from error
        if wrong:
            raise DataError(
                f"{counted(len(wrong), 'wrong line')} in the table:\n{listed(wrong)}",
                where=shown(file),
                expected=self.expects,
                hint="correct these lines; nothing was read",
            )
        notes = []
        if samples and not has_label:
            notes.append(
                "no image has a label: those that are not in the test split are taken as good"
            )
        table = table_of(self, file.parent, samples, lister, notes=notes, owners=owners)
        return table if has_label else replace(table, unread_verdict=unread.verdict())


def _tables_in(folder: Path) -> list[Path]:
    found = []
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if not e.name.startswith("."))
    except OSError:
        return []
    for name in names:
        path = folder / name
        if path.suffix.lower() in CSV_ENDINGS | JSON_ENDINGS and is_file(path):
            try:
                columns = {c for row in _first_row(path) for c in row}
            except (csv.Error, OSError):
                continue
            # A list of scores may name paths too: only labels or splits make a data set.
            if "path" in columns and columns & {"label", "split"}:
                found.append(path)
    return found


def _first_row(path: Path) -> Iterator[set[str]]:
    # A table in another encoding is recognised too, so that reading it says what is wrong.
    with _open(path, errors="replace") as file:
        if path.suffix.lower() in JSON_ENDINGS:
            try:
                value = json.loads(file.readline())
            except ValueError:
                return
            if isinstance(value, dict):
                yield {_COLUMNS.get(str(k).strip().casefold(), "") for k in value}
        else:
            header = file.readline()
            for cells in csv.reader([header], delimiter=_delimiter(header)):
                yield {_COLUMNS.get(c.strip().casefold(), "") for c in cells}


def _table_file(root: Path) -> Path:
    if is_file(root):
        if root.suffix.lower() not in CSV_ENDINGS | JSON_ENDINGS:
            raise DataError(
                "this file is not a table",
                where=shown(root),
                given=root.suffix or "no extension",
                expected="a name that ends with .csv, .tsv or .jsonl",
                hint="rename or convert it",
            )
        return root
    tables = _tables_in(root)
    if len(tables) != 1:
        names = ", ".join(shown(t.name) for t in tables) or "none"
        raise DataError(
            "the folder does not hold exactly one table of images",
            where=shown(root),
            given=names,
            expected=Table.expects,
            hint="give the path of the table itself",
        )
    return tables[0]


def _open(path: Path, *, errors: str = "strict") -> io.TextIOWrapper:
    with path.open("rb") as file:
        start = file.read(4)
    # Spreadsheet programs save "Unicode text" as UTF-16 with a mark at the start.
    utf16 = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return path.open(encoding="utf-16" if utf16 else "utf-8-sig", errors=errors, newline="")


def _delimiter(header: str) -> str:
    return max(",;\t", key=header.count)


def _rows(path: Path, wrong: list[str], unread: _Unread) -> Iterator[_Row]:
    with _open(path) as file:
        if path.suffix.lower() in JSON_ENDINGS:
            yield from _json_rows(file, wrong, unread)
        else:
            yield from _csv_rows(file, wrong, unread, shown(path))


def _csv_rows(
    file: io.TextIOWrapper, wrong: list[str], unread: _Unread, where: str
) -> Iterator[_Row]:
    header = file.readline()
    delimiter = _delimiter(header)
    names = next(csv.reader([header], delimiter=delimiter), [])
    columns = [_COLUMNS.get(name.strip().casefold(), "") for name in names]
    _check_header(names, columns, where)
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            wrong.append(f"line {reader.line_num + 1}: no valid CSV: {error}")
            return
        line = reader.line_num + 1
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) > len(columns):
            wrong.append(
                f"line {line}: {len(cells)} cells for {len(columns)} columns; put a cell that "
                f"holds a '{delimiter}' in double quotes"
            )
            continue
        row: dict[str, str | tuple[str, ...]] = {}
        for name, column, cell in zip(names, columns, cells, strict=False):
            if column == "mask":
                row[column] = tuple(m.strip() for m in cell.split(";") if m.strip())
            elif column:
                row[column] = cell.strip()
            else:
                unread.add(name, cell)
        yield _Row(line, row)


def _json_rows(file: io.TextIOWrapper, wrong: list[str], unread: _Unread) -> Iterator[_Row]:
    for line, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except ValueError as error:
            wrong.append(f"line {line}: no valid JSON: {error}")
            continue
        if not isinstance(value, dict):
            wrong.append(f"line {line}: expected an object in braces with the key 'path'")
            continue
        row: dict[str, str | tuple[str, ...]] = {}
        try:
            for key, given in value.items():
                column = _COLUMNS.get(key.strip().casefold(), "")
                if column == "mask":
                    row[column] = _json_masks(given)
                elif column:
                    row[column] = _json_text(key, given)
                elif meant := _nearest(key, _COLUMNS.values()):
                    raise _WrongLineError(f"unknown key '{shown(key)}'; did you mean '{meant}'?")
                elif given is not None:
                    unread.add(key, given)
        except _WrongLineError as error:
            wrong.append(f"line {line}: {error}")
            continue
        yield _Row(line, row)


def _json_masks(given: object) -> tuple[str, ...]:
    if given is None:
        return ()
    if isinstance(given, str):
        return (given,) if given else ()
    if isinstance(given, list) and all(isinstance(m, str) and m for m in given):
        return tuple(given)
    raise _WrongLineError(f"mask is {given!r}, expected a path or a list of paths")


def _json_text(key: str, given: object) -> str:
    if given is None:
        return ""
    if isinstance(given, bool) and key == "defect":
        return str(given)
    # Elsewhere it could mean good or defective.
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        raise _WrongLineError(f"{key} is {json.dumps(given)}, expected text or a number")
    return str(given).strip()


def _check_header(names: list[str], columns: list[str], where: str) -> None:
    if "path" not in columns:
        raise DataError(
            "the table has no column 'path'",
            where=where,
            given=", ".join(names) or "an empty first line",
            expected=Table.expects,
            hint="name the columns in the first line",
        )
    doubles = sorted({c for c in columns if c and columns.count(c) > 1})
    if doubles:
        raise DataError(
            f"two columns of the table mean '{doubles[0]}'",
            where=where,
            given=", ".join(names),
            hint="keep one of them",
        )
    for name, column in zip(names, columns, strict=True):
        known = [c for c in ("category", "split", "label", "mask", "defect") if c not in columns]
        # Passing over a misspelt 'label' would train on defects.
        if not column and (guess := _nearest(name, known)):
            raise DataError(
                f"unknown column '{name}'",
                where=where,
                given=", ".join(names),
                hint=f"did you mean '{guess}'? If not, rename or drop the column",
            )


def _nearest(name: str, known: Iterable[str]) -> str:
    """The column that a misspelt one seems to mean, or ""."""
    found = difflib.get_close_matches(name.strip().casefold(), set(known), n=1, cutoff=0.8)
    return found[0] if found else ""


def _sample(row: _Row, base: Path) -> Sample:
    if not row.text("path"):
        raise _WrongLineError("path is empty")
    label = _label(row)
    if label is None and row.masks:
        raise _WrongLineError("it has a mask but no label, expected good or defect")
    split = _split(row, label)
    if label is None and split != "test":
        label = 0
    kind = row.text("defect")
    if label == 0:
        kind = GOOD
    elif label == 1 and (not kind or is_nothing(kind) or is_yes(kind)):
        kind = "defect"
    return Sample(
        path=_located(row.text("path"), base),
        category=row.text("category") or _DEFAULT_CATEGORY,
        split=split,
        label=label,
        defect=kind,
        masks=tuple(_located(m, base) for m in row.masks),
        group=row.text("part_id"),
    )


def _label(row: _Row) -> int | None:
    word = row.text("label")
    kind = row.text("defect")
    by_kind = None if not kind else 0 if _says_good(kind) or is_nothing(kind) else 1
    if word and (kind in _GOOD_NUMBERS or is_nothing(kind)):
        # Beside a label this is the number of a kind, or says that none is known: no verdict.
        by_kind = None
    if not word:
        return by_kind
    good = _says_good(word)
    if not good and not is_defect(word) and word not in _DEFECT_NUMBERS:
        raise _WrongLineError(
            f"label is '{word}', expected good or 0, defect or 1; the kind of defect "
            "goes into the column 'defect'"
        )
    label = 0 if good else 1
    if by_kind is not None and by_kind != label:
        raise _WrongLineError(f"label is '{word}' but defect is '{kind}'")
    return label


def _says_good(word: str) -> bool:
    return word in _GOOD_NUMBERS or is_good(word)


def _split(row: _Row, label: int | None) -> Split:
    word = row.text("split").casefold()
    if not word:
        # An empty cell in a column of labels is an image that nobody has judged yet.
        unjudged = label is None and ("label" in row.cells or "defect" in row.cells)
        return "test" if label == 1 or unjudged else "train"
    if word not in _SPLITS:
        raise _WrongLineError(f"split is '{row.text('split')}', expected train, validation or test")
    return _SPLITS[word]


def _located(name: str, base: Path) -> str:
    """The file that a table names, also when it was written on another system; one path for all
    spellings of it."""
    path = _plain(os.path.join(base, name))  # noqa: PTH118
    if not Path(path).exists():
        forms = [unicodedata.normalize(form, name) for form in ("NFC", "NFD")]
        forms += [name.replace("\\", "/")]
        for form in forms:
            other = os.path.join(base, form)  # noqa: PTH118
            if Path(other).exists():
                return _plain(other)
    return path


def _plain(path: str) -> str:
    """Without . and .., unless these lead elsewhere: behind a link to a folder they may."""
    plain = os.path.normpath(path)
    same = ".." not in path or os.path.realpath(plain) == os.path.realpath(path)
    return plain if same else path

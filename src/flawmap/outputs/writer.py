"""Writes predictions as they come: after a crash, what was written before is complete."""

from __future__ import annotations

import csv
import errno
import json
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

from flawmap.data.drawn import RECORDS, drawn_before
from flawmap.data.images import read_image
from flawmap.errors import ConfigError, ExportError
from flawmap.outputs.maps import write_map_npy, write_map_png
from flawmap.outputs.names import OutputNames
from flawmap.outputs.overlay import draw_overlay
from flawmap.outputs.records import COLUMNS, csv_row, to_json
from flawmap.types import Prediction
from flawmap.wording import shown

MapFormat = Literal["png", "npy"]

_JPEG_LIMIT = 65500
"""The longest side, in px, that a JPEG can have."""


class PredictionWriter:
    """Writes predictions.csv, predictions.jsonl, maps/ and overlays/ into a folder.

    Files of an earlier run in the same folder are replaced. What is skipped goes to skipped.jsonl.

    Args:
        folder: Made if it is not there.
        roots: See `OutputNames`.
        maps: Write a map per image, or None.
        overlays: Write an overlay per image.
        white_level: As for `read_image`, for overlays.

    Raises:
        ConfigError: The place is a file, the folder cannot be written, or another program's
            predictions lie there.

    Example:
        >>> with PredictionWriter(Path("out"), roots=["photos"]) as out:  # doctest: +SKIP
        ...     for prediction in detector.predict_samples(samples):
        ...         out.write(prediction)
    """

    def __init__(
        self,
        folder: Path,
        *,
        roots: Iterable[str],
        maps: MapFormat | None = None,
        overlays: bool = False,
        white_level: int | None = None,
    ) -> None:
        self.folder = folder
        self.maps = maps
        self.overlays = overlays
        self.white_level = white_level
        self._names = OutputNames(roots)
        self._stack = ExitStack()
        self._tables: _Tables | None = None
        self._skipped: IO[str] | None = None
        self._waiting: list[tuple[str, str]] = []
        _require_own(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # What an earlier run wrote stays until there is something to replace it.
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ConfigError(
                f"the output folder cannot be written: {error.strerror}",
                where="--output",
                given=folder,
                hint="choose another place",
            ) from error

    def write(self, prediction: Prediction) -> dict[str, Any]:
        """Write one prediction and give back its record.

        The record is `Prediction.to_dict` and, where written, "map" and "overlay" (paths inside
        the folder) with "map_min" and "map_max": a px of a PNG map stands for
        png / 65535 * (map_max - map_min) + map_min.

        Raises:
            ExportError: The disk is full or the folder cannot be written.
        """
        record = prediction.to_dict()
        with self._writing():
            tables = self._begun()
            name = self._names.name(prediction.path)
            if self.maps is not None:
                place = self._place("maps", f"{name}.{self.maps}")
                write = write_map_png if self.maps == "png" else write_map_npy
                with _whole_or_gone(place):
                    low, high = write(prediction.anomaly_map, place)
                record.update(map=self._inside(place), map_min=low, map_max=high)
            if self.overlays:
                record["overlay"] = self._inside(self._overlay(prediction, str(name)))
            # The lines come last: they never name a file that is not complete.
            tables.lines.write(to_json(record) + "\n")
            tables.lines.flush()
            tables.rows.writerow(csv_row(record))
            tables.table.flush()
        return record

    def skip(self, path: str, reason: str) -> None:
        """Note an image that could not be read, or a path that could not be listed."""
        # What an earlier run wrote outlives one that fails before its first image.
        self._waiting.append((path, reason))
        if self._tables is not None:
            with self._writing():
                self._write_skipped()

    def _write_skipped(self) -> None:
        if self._waiting and self._skipped is None:
            self._skipped = self._open("skipped.jsonl")
        for path, reason in self._waiting:
            assert self._skipped is not None
            self._skipped.write(to_json({"path": path, "reason": reason}) + "\n")
            self._skipped.flush()
        self._waiting.clear()

    def close(self) -> None:
        """Close the files."""
        self._stack.close()

    def __enter__(self) -> PredictionWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                with self._writing():
                    self._begun()
        finally:
            self.close()

    def _begun(self) -> _Tables:
        """The tables of this run; with the first line those of an earlier one go."""
        if self._tables is None:
            self._forget()
            lines, table = self._open(RECORDS), self._open("predictions.csv")
            self._tables = _Tables(lines, table, csv.DictWriter(table, COLUMNS))
            self._tables.rows.writeheader()
            table.flush()
            self._write_skipped()
        return self._tables

    def _forget(self) -> None:
        """Remove what an earlier run wrote: its maps and overlays would pass for those of this."""
        (self.folder / "skipped.jsonl").unlink(missing_ok=True)
        for path in drawn_before(self.folder):
            path.unlink(missing_ok=True)

    def _overlay(self, prediction: Prediction, name: str) -> Path:
        image = read_image(prediction.path, white_level=self.white_level)
        drawn = draw_overlay(
            image,
            prediction.anomaly_map,
            pixel_threshold=prediction.pixel_threshold,
            regions=prediction.regions,
        )
        fits = max(drawn.size) <= _JPEG_LIMIT
        place = self._place("overlays", f"{name}.{'jpg' if fits else 'png'}")
        with _whole_or_gone(place):
            if fits:
                drawn.save(place, "JPEG", quality=90, subsampling=0)
            else:
                drawn.save(place, "PNG")
        return place

    def _open(self, name: str) -> IO[str]:
        # Names of files that are no UTF-8 go out as they came in.
        file = (self.folder / name).open(
            "w", encoding="utf-8", errors="surrogateescape", newline=""
        )
        return self._stack.enter_context(file)

    def _place(self, kind: str, name: str) -> Path:
        place = self.folder / kind / name
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def _inside(self, place: Path) -> str:
        return place.relative_to(self.folder).as_posix()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise ExportError(
                "the disk is full"
                if full
                else f"the predictions cannot be written: {error.strerror or error}",
                where=shown(self.folder),
                hint="free some space or choose another place; what was written before is complete",
            ) from error


def _require_own(folder: Path) -> None:
    """Nobody else's tables lie where those of this run will."""
    for name, own in (("predictions.csv", _own_table), (RECORDS, _own_records)):
        try:
            with (folder / name).open(encoding="utf-8-sig", errors="replace") as file:
                text = file.read(2**16)
        except OSError:
            continue
        if text.strip() and not own(text):
            raise ConfigError(
                f"there is a {name} that flawmap has not written, and it would be replaced",
                where="--output",
                given=folder,
                hint="choose another folder, or move the file away",
            )


def _own_table(text: str) -> bool:
    # A spreadsheet may have written it anew.
    cells = re.split("[,;\t]", text.partition("\n")[0])
    return {"path", "verdict"} <= {cell.strip().strip('"') for cell in cells}


def _own_records(text: str) -> bool:
    line, newline, _ = text.partition("\n")
    try:
        return {"path", "verdict"} <= set(json.loads(line))
    except (ValueError, TypeError):
        # A run may have died within its first line.
        return line.startswith('{"path":') and not newline


@dataclass(frozen=True, slots=True)
class _Tables:
    lines: IO[str]
    table: IO[str]
    rows: csv.DictWriter[str]


@contextmanager
def _whole_or_gone(place: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        place.unlink(missing_ok=True)
        raise

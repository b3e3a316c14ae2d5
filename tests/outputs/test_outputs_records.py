from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from flawmap.outputs.names import OutputNames
from flawmap.outputs.records import COLUMNS, csv_row, to_json
from flawmap.types import Prediction, Region


def test_json_has_no_nan() -> None:
    value = {"a": math.nan, "b": [math.inf, 1.5], "c": (-math.inf,)}
    assert json.loads(to_json(value)) == {"a": None, "b": [None, 1.5], "c": [None]}


def test_json_keeps_unicode_and_escapes_what_is_none() -> None:
    assert "Größe" in to_json({"name": "Größe"})
    assert to_json({"name": "Größe"}, ascii_only=True).isascii()
    broken = "bad\udcff.png"
    text = to_json({"name": broken})
    text.encode()
    assert json.loads(text)["name"] == broken


def test_a_row_counts_regions_and_tells_the_largest_and_the_peak() -> None:
    prediction = Prediction(
        path="a.png",
        category="screw",
        anomaly_map=np.zeros((20, 30), dtype=np.float32),
        score=7.0,
        threshold=5.0,
        pixel_threshold=4.0,
        verdict="defect",
        regions=(
            Region(box=(1, 2, 3, 4), area=10, peak=7.0, peak_at=(2, 3)),
            Region(box=(10, 5, 6, 7), area=30, peak=6.0, peak_at=(11, 6)),
        ),
    )
    row = csv_row(prediction.to_dict())
    assert tuple(row) == COLUMNS
    assert row["n_regions"] == 2
    assert (row["height"], row["width"]) == (20, 30)
    assert (row["largest_area"], row["largest_left"], row["largest_height"]) == (30, 10, 7)
    assert (row["peak"], row["peak_x"], row["peak_y"]) == (7.0, 2, 3)
    assert row["map"] is None


def test_names_keep_folders_below_the_root(tmp_path: Path) -> None:
    names = OutputNames([str(tmp_path / "photos")])
    assert str(names.name(str(tmp_path / "photos" / "a b" / "ü.png"))) == "a b/ü"


@pytest.mark.parametrize("other", ["x.jpg", "X.png", "x.png"])
def test_two_inputs_never_share_a_name(tmp_path: Path, other: str) -> None:
    names = OutputNames([str(tmp_path)])
    first = names.name(str(tmp_path / "x.png"))
    second = names.name(str(tmp_path / other))
    assert str(first) == "x"
    assert str(second).casefold() == "x-2"


def test_a_name_that_looks_like_a_second_one_is_kept_apart(tmp_path: Path) -> None:
    names = OutputNames([str(tmp_path)])
    found = [str(names.name(str(tmp_path / n))) for n in ("x.png", "x.jpg", "x-2.png")]
    assert found == ["x", "x-2", "x-2-2"]


def test_two_unicode_forms_of_a_name_are_one_name(tmp_path: Path) -> None:
    names = OutputNames([str(tmp_path)])
    names.name(str(tmp_path / "\u00fc.png"))
    assert str(names.name(str(tmp_path / "u\u0308.png"))).endswith("-2")


def test_several_roots_keep_their_own_names(tmp_path: Path) -> None:
    names = OutputNames([str(tmp_path / "a"), str(tmp_path / "b")])
    assert str(names.name(str(tmp_path / "a" / "1.png"))) == "a/1"
    assert str(names.name(str(tmp_path / "b" / "1.png"))) == "b/1"


def test_an_input_from_outside_never_leaves_the_folder(tmp_path: Path) -> None:
    names = OutputNames([str(tmp_path / "table")])
    assert str(names.name(str(tmp_path / "far" / "1.png"))) == "elsewhere/1"
    assert str(names.name(str(tmp_path / "near" / "1.png"))) == "elsewhere/1-2"

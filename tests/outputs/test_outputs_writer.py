from __future__ import annotations

import csv
import errno
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import ConfigError, DataError, ExportError
from flawmap.outputs import PredictionWriter, read_map_png
from flawmap.types import Prediction, Region


def predicted(path: Path, *, value: float = 2.0) -> Prediction:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 16, 3), 90, dtype=np.uint8)).save(path)
    anomaly_map = np.zeros((12, 16), dtype=np.float32)
    anomaly_map[4:6, 5:9] = value
    return Prediction(
        path=str(path),
        category="screw",
        anomaly_map=anomaly_map,
        score=value,
        threshold=1.0,
        pixel_threshold=1.0,
        verdict="defect" if value > 1 else "good",
        regions=(Region(box=(5, 4, 4, 2), area=8, peak=value, peak_at=(5, 4)),)
        if value > 1
        else (),
    )


def test_all_files_of_a_run(tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    with PredictionWriter(out, roots=[str(photos)], maps="png", overlays=True) as writer:
        first = writer.write(predicted(photos / "day 1" / "ü.png"))
        writer.write(predicted(photos / "day 2" / "b.png", value=0.5))
    records = [
        json.loads(line) for line in (out / "predictions.jsonl").read_text("utf-8").splitlines()
    ]
    assert records[0] == json.loads(json.dumps(first))
    assert records[0] == {
        "path": str(photos / "day 1" / "ü.png"),
        "category": "screw",
        "score": 2.0,
        "threshold": 1.0,
        "verdict": "defect",
        "size": [12, 16],
        "pixel_threshold": 1.0,
        "regions": [{"box": [5, 4, 4, 2], "area": 8, "peak": 2.0, "peak_at": [5, 4]}],
        "map": "maps/day 1/ü.png",
        "map_min": 0.0,
        "map_max": 2.0,
        "overlay": "overlays/day 1/ü.jpg",
    }
    back = read_map_png(out / records[0]["map"], records[0]["map_min"], records[0]["map_max"])
    assert back[4, 5] == 2.0
    assert back[0, 0] == 0.0
    with Image.open(out / records[0]["overlay"]) as overlay:
        assert overlay.size == (16, 12)
    with (out / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["verdict"] for row in rows] == ["defect", "good"]
    assert rows[0]["largest_left"] == "5"
    assert rows[0]["score"] == "2.0"
    assert rows[1]["n_regions"] == "0"
    assert rows[1]["largest_area"] == ""
    assert not (out / "skipped.jsonl").exists()


def test_npy_maps_and_no_overlays(tmp_path: Path) -> None:
    with PredictionWriter(tmp_path / "out", roots=[str(tmp_path)], maps="npy") as writer:
        record = writer.write(predicted(tmp_path / "a.png"))
    assert np.load(tmp_path / "out" / record["map"])[4, 5] == 2.0
    assert "overlay" not in record
    assert not (tmp_path / "out" / "overlays").exists()


def test_what_was_written_before_a_failure_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def full(anomaly_map: np.ndarray, path: Path) -> tuple[float, float]:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with PredictionWriter(out, roots=[str(tmp_path)], maps="png") as writer:
        writer.write(predicted(tmp_path / "a.png"))
        monkeypatch.setattr("flawmap.outputs.writer.write_map_png", full)
        with pytest.raises(ExportError, match="the disk is full"):
            writer.write(predicted(tmp_path / "b.png"))
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 1
    assert len((out / "predictions.csv").read_text().splitlines()) == 2
    assert [p.name for p in (out / "maps").iterdir()] == ["a.png"]


def test_skipped_images_are_listed_apart_and_forgotten_by_the_next_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with PredictionWriter(out, roots=[]) as writer:
        writer.skip("x.png", "it is truncated")
    line = json.loads((out / "skipped.jsonl").read_text())
    assert line == {"path": "x.png", "reason": "it is truncated"}
    with PredictionWriter(out, roots=[]):
        pass
    assert not (out / "skipped.jsonl").exists()


def test_an_earlier_run_stays_until_there_is_something_to_replace_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    names = ("a.png", "b.png")
    mine = out / "maps" / "mine.png"
    with PredictionWriter(out, roots=[str(tmp_path)], maps="png") as writer:
        for name in names:
            writer.write(predicted(tmp_path / name))
    mine.write_bytes(b"mine")
    before = (out / "predictions.csv").read_bytes()
    with pytest.raises(DataError), PredictionWriter(out, roots=[str(tmp_path)]):
        raise DataError("the first image cannot be read")
    assert (out / "predictions.csv").read_bytes() == before
    # Maps of the earlier run would pass for those of this one; other files are left alone.
    with PredictionWriter(out, roots=[str(tmp_path)], maps="png") as writer:
        writer.write(predicted(tmp_path / "b.png"))
    assert sorted(p.name for p in (out / "maps").iterdir()) == ["b.png", "mine.png"]
    assert len((out / "predictions.csv").read_text().splitlines()) == 2


def test_no_name_in_a_strange_table_leads_out_of_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "kept.png").write_bytes(b"kept")
    own = '{"path": "a.png", "verdict": null}'
    lines = [own, '{"map": "maps/../../kept.png", "overlay": "/kept.png"}', "[1]", '{"map": 3', ""]
    (out / "predictions.jsonl").write_text("\n".join(lines))
    with PredictionWriter(out, roots=[]):
        pass
    assert (tmp_path / "kept.png").read_bytes() == b"kept"
    assert (out / "predictions.jsonl").read_text() == ""


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigError, match="output folder cannot be written"):
        PredictionWriter(tmp_path / "out", roots=[])
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("predictions.csv", "image_path,label,score\n"),
        ("predictions.csv", "image-path;final-verdict;operator\n"),
        ("predictions.csv", "\nimage,label\n"),
        ("predictions.jsonl", '{"image": "a"}\n'),
        ("predictions.jsonl", '{"image": "/path/verdict/a.png"}\n'),
        ("predictions.jsonl", '{"path": "a.png", "label": "ok"}\n'),
        ("predictions.jsonl", '{"path": "a.png", \n"label": "ok"}\n'),
        ("predictions.jsonl", "3\n"),
    ],
)
def test_tables_of_others_are_not_replaced(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=f"a {name} that flawmap has not written"):
        PredictionWriter(tmp_path, roots=[])
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == text


def test_skipped_images_alone_replace_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with PredictionWriter(out, roots=[str(tmp_path)], maps="png") as writer:
        writer.write(predicted(tmp_path / "a.png"))
    before = {p: p.read_bytes() for p in out.rglob("*.*")}
    stopped = PredictionWriter(out, roots=[str(tmp_path)])
    stopped.skip("x.png", "it is a link to nothing")
    stopped.close()
    assert {p: p.read_bytes() for p in out.rglob("*.*")} == before
    with PredictionWriter(out, roots=[str(tmp_path)]) as writer:
        writer.skip("x.png", "it is a link to nothing")
        writer.write(predicted(tmp_path / "b.png"))
        writer.skip("y.png", "it is truncated")
    lines = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == ["x.png", "y.png"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("predictions.csv", "\ufeffpath;category;verdict;score\r\n"),
        ("predictions.csv", '"path","category","verdict"\n'),
        ("predictions.jsonl", '{"path": "a.png", "sc'),
        ("predictions.jsonl", ""),
    ],
)
def test_own_tables_are_known_whatever_became_of_them(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with PredictionWriter(tmp_path, roots=[]):
        pass
    assert (tmp_path / name).read_text(encoding="utf-8") != text or not text

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flawmap import loading
from flawmap.cli.main import run
from flawmap.data.images import read_image
from flawmap.types import Prediction, Sample


class Brightness:
    """Takes bright images for defects."""

    categories: tuple[str, ...] = ("cable", "screw")
    models = MappingProxyType({"*": None})
    calibration = SimpleNamespace(categories={"cable": None, "screw": None})
    config = SimpleNamespace(
        seed=0,
        training=SimpleNamespace(batch_size=2),
        data=SimpleNamespace(white_level=None),
    )

    def predict_samples(
        self, samples: Sequence[Sample], *, batch_size: int | None = None
    ) -> Iterator[Prediction]:
        size = batch_size or 2
        for begin in range(0, len(samples), size):
            batch = [(s, read_image(s.path)) for s in samples[begin : begin + size]]
            for sample, pixels in batch:
                value = float(pixels.mean())
                yield Prediction(
                    path=sample.path,
                    category=sample.category,
                    anomaly_map=pixels[..., 0].astype(np.float32),
                    score=value,
                    threshold=100.0,
                    pixel_threshold=100.0,
                    verdict="defect" if value > 100 else "good",
                )


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    called: dict[str, Any] = {}

    def load(path: Path, **options: Any) -> Brightness:
        called.update(options, path=path)
        return Brightness()

    monkeypatch.setattr(loading, "load", load)
    monkeypatch.setattr("flawmap.bundle.require_file", lambda path: None)
    return called


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name, value in (("cable/a.png", 50), ("cable/b.png", 150), ("c ü.png", 60)):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 8, 3), value, dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def test_a_table_of_verdicts(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", "m.flawmap", str(photos), "--quiet"]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        f"good       60.0000  {photos}/c ü.png",
        f"good       50.0000  {photos}/cable/a.png",
        f"defect    150.0000  {photos}/cable/b.png",
    ]
    assert shown.err.splitlines() == [
        "1 image of no product that the model knows (cable, screw): judged by the threshold over "
        "all of them; --category names the product",
        "3 images: 1 defect, 2 good",
    ]


def test_the_json_is_one_array(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", "m.flawmap", str(photos), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(Path(r["path"]).name, r["category"], r["verdict"]) for r in found] == [
        ("c ü.png", "*", "good"),
        ("a.png", "cable", "good"),
        ("b.png", "cable", "defect"),
    ]


def test_files_and_json_at_once(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = photos / "out"
    arguments = ["predict", "m.flawmap", str(photos), "--output", str(out), "--maps", "--overlays"]
    assert run([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (out / found[1]["map"]).is_file()
    assert found[1]["overlay"] == "overlays/cable/a.jpg"
    assert len((out / "predictions.jsonl").read_text("utf-8").splitlines()) == 3
    # A second run does not take the first one's overlays for photographs.
    assert run(arguments) == 0
    assert len((out / "predictions.jsonl").read_text("utf-8").splitlines()) == 3


def test_npy_maps(photos: Path) -> None:
    out = photos.parent / "out"
    code = run(
        ["predict", "m.flawmap", str(photos), "-o", str(out), "--maps", "--map-format", "npy"]
    )
    assert code == 0
    assert (np.load(out / "maps" / "cable" / "b.npy") == 150).all()


@pytest.mark.parametrize(("name", "code"), [("cable/a.png", 0), ("cable/b.png", 10)])
def test_fail_on_defect(photos: Path, name: str, code: int) -> None:
    assert run(["predict", "m.flawmap", str(photos / name), "--fail-on-defect"]) == code
    assert run(["predict", "m.flawmap", str(photos / name)]) == 0


def test_an_image_that_nobody_saw_is_no_pass(photos: Path) -> None:
    (photos / "cable" / "b.png").write_bytes(b"no image")
    command = ["predict", "m.flawmap", str(photos / "cable"), "--fail-on-defect", "--skip-bad"]
    assert run(command) == 3


def test_fail_on_defect_needs_a_threshold(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Brightness, "calibration", SimpleNamespace(categories={}))
    assert run(["predict", "m.flawmap", str(photos), "--fail-on-defect"]) == 2
    assert "flawmap calibrate" in capsys.readouterr().err
    assert run(["predict", "m.flawmap", str(photos)]) == 0


def test_an_unreadable_image_ends_the_array_with_an_error(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "cable" / "b.png").write_bytes(b"no image")
    assert run(["predict", "m.flawmap", str(photos), "--json", "--batch-size", "1"]) == 3
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert len(found) == 3
    assert found[2]["error"] == "DataError"
    assert found[2]["where"].endswith("b.png")
    assert "b.png" in shown.err


def test_an_unreadable_first_image_is_an_error_object(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "cable" / "b.png").write_bytes(b"no image")
    assert run(["predict", "m.flawmap", str(photos / "cable" / "b.png"), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["error"] == "DataError"


def test_skip_bad_goes_on(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "cable" / "a.png").write_bytes(b"no image")
    out = photos.parent / "out"
    code = run(["predict", "m.flawmap", str(photos), "-o", str(out), "--skip-bad", "--json"])
    assert code == 0
    shown = capsys.readouterr()
    assert [Path(r["path"]).name for r in json.loads(shown.out)] == ["c ü.png", "b.png"]
    assert "a.png" in shown.err
    assert "1 skipped" in shown.err
    assert json.loads((out / "skipped.jsonl").read_text())["path"].endswith("a.png")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--maps"], "add --output DIR"),
        (["--overlays"], "add --output DIR"),
        (["--map-format", "pgn"], "did you mean 'png'?"),
        (["--category", "scerw"], "did you mean 'screw'?"),
    ],
)
def test_wrong_options(
    photos: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", "m.flawmap", str(photos), *options]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""


def test_device_and_weights_reach_the_loader(photos: Path, loaded: dict[str, Any]) -> None:
    run(["predict", "m.flawmap", str(photos), "--device", "cpu", "--encoder-weights", "w.pth"])
    assert loaded == {
        "path": Path("m.flawmap"),
        "device": "cpu",
        "encoder_weights": Path("w.pth"),
    }


def test_what_cannot_be_listed_is_among_the_skipped(photos: Path) -> None:
    (photos / "gone.png").symlink_to(photos / "nowhere.png")
    out = photos.parent / "out"
    assert run(["predict", "m.flawmap", str(photos), "-o", str(out), "--skip-bad", "-q"]) == 0
    skipped = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert [Path(s["path"]).name for s in skipped] == ["gone.png"]
    assert skipped[0]["reason"]

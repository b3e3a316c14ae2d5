from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flawmap import bundle as bundles
from flawmap import loading
from flawmap.cli.main import run
from flawmap.data import read_data
from flawmap.data.images import read_image
from flawmap.data.verify import verify
from flawmap.errors import DataError, FitError
from flawmap.recalibrate import calibrate
from flawmap.scoring.calibration import Calibration, CategoryCalibration, conformal
from flawmap.types import Sample

SCORES = np.arange(1.0, 100.0)


def write_bundle(path: Path, *, scores: bool = True, **data: Any) -> Path:
    parts = {
        name: CategoryCalibration(SCORES + add, SCORES + add, True)
        for name, add in (("cable", 0.0), ("screw", 100.0))
    }
    bundles.write(
        bundles.Bundle(
            config={"seed": 0, "data": {"white_level": None}},
            models={"*": {"bank": np.zeros((2, 3), dtype=np.float32)}},
            encoder=None,
            calibration=Calibration(0.01, parts if scores else {}),
            info={"fitted": {"data": {"categories": ["cable", "screw"], **data}}},
        ),
        path,
    )
    return path


def write_images(folder: Path, values: Sequence[int]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, value in enumerate(values):
        Image.fromarray(np.full((6, 8, 3), value, dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def brightness(monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector whose score of an image is its brightness."""

    def raw_maps(samples: Sequence[Sample]) -> Iterator[tuple[Sample, None, float]]:
        for sample in samples:
            yield sample, None, float(read_image(sample.path).mean())

    detector = SimpleNamespace(
        raw_maps=raw_maps,
        scorer=SimpleNamespace(score=lambda raw, geometry: (raw, raw + 1)),
        config=SimpleNamespace(
            training=SimpleNamespace(batch_size=1), data=SimpleNamespace(white_level=None)
        ),
    )
    monkeypatch.setattr(loading, "detector_of", lambda found, path, **options: detector)


def test_a_rate_moves_the_threshold_and_keeps_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_bundle(tmp_path / "m.flawmap")
    assert run(["calibrate", str(model), "--false-reject-rate", "0.1"]) == 0
    text = capsys.readouterr().out
    assert "1.000% -> 10.000%" in text
    for kind, rate in (("old", 0.01), ("new", 0.1)):
        expected = conformal(SCORES, rate)
        assert f"{kind} {expected.value:.4g}; {expected.explain()}" in text
    found = bundles.read(model)
    threshold = found.calibration.threshold("cable")
    assert threshold is not None
    assert threshold.value == 90
    assert (found.models["*"]["bank"] == 0).all()


def test_a_new_file_leaves_the_old_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, new = write_bundle(tmp_path / "m.flawmap"), tmp_path / "n.flawmap"
    before = model.read_bytes()
    arguments = ["calibrate", str(model), "--false-reject-rate", "0.1", "-o", str(new), "--json"]
    assert run(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bundle"] == str(new)
    assert found["false_reject_rate"] == {"old": 0.01, "new": 0.1}
    assert found["categories"]["screw"]["old"]["value"] == 199
    assert found["categories"]["screw"]["new"]["value"] == 190
    assert model.read_bytes() == before
    assert bundles.read(new).calibration.rate == 0.1


@pytest.mark.parametrize("rate", ["0", "1", "-0.5", "nan"])
def test_a_wrong_rate_changes_nothing(
    tmp_path: Path, rate: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_bundle(tmp_path / "m.flawmap")
    before = model.read_bytes()
    assert run(["calibrate", str(model), f"--false-reject-rate={rate}"]) == 2
    assert "between 0 and 1" in capsys.readouterr().err
    assert model.read_bytes() == before


def test_nothing_to_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["calibrate", str(write_bundle(tmp_path / "m.flawmap"))]) == 2
    assert "nothing to change" in capsys.readouterr().err
    model = write_bundle(tmp_path / "n.flawmap", scores=False)
    assert run(["calibrate", str(model), "--false-reject-rate", "0.1"]) == 2
    assert "good images that were not in the fit" in capsys.readouterr().err


def test_the_model_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_bundle(tmp_path / "m.flawmap")
    assert run(["calibrate", str(tmp_path), str(model)]) == 6
    assert "the model comes first" in capsys.readouterr().err
    assert run(["calibrate", str(tmp_path / "typo" / "m.flawmap"), str(tmp_path)]) == 6
    assert not (tmp_path / "typo").exists()


def test_no_bundle(tmp_path: Path) -> None:
    assert run(["calibrate", str(tmp_path / "m.flawmap"), "--false-reject-rate", "0.1"]) == 6


@pytest.mark.usefixtures("brightness")
def test_new_good_images_set_the_threshold_and_defects_never_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_bundle(tmp_path / "m.flawmap")
    data = tmp_path / "cable"
    write_images(data / "good", [10, 30, 20])
    write_images(data / "scratch", [250])
    assert run(["calibrate", str(model), str(data), "--false-reject-rate", "0.25"]) == 0
    shown = capsys.readouterr()
    expected = conformal([10, 20, 30], 0.25)
    assert f"new 30; {expected.explain()}" in shown.out
    assert "1 image that is a defect or has no label" in shown.err
    assert "no images of screw" in shown.err
    calibration = bundles.read(model).calibration
    assert sorted(calibration.categories["cable"].scores) == [10, 20, 30]
    assert sorted(calibration.categories["cable"].peaks) == [11, 21, 31]
    assert calibration.categories["cable"].exact
    assert calibration.categories["screw"].scores.max() == 199


@pytest.mark.usefixtures("brightness")
def test_scores_that_are_taken_the_place_of_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_bundle(tmp_path / "m.flawmap")
    before = model.read_bytes()
    data = write_images(tmp_path / "cable", [10, 30, 20])
    assert run(["calibrate", str(model), str(data)]) == 0
    shown = capsys.readouterr().err
    assert f"the model that was there is kept: {model}.old" in shown
    assert "'cable': 3 good images where there were 99, so the promise is weaker" in shown
    assert (tmp_path / "m.flawmap.old").read_bytes() == before
    # A rate can be set back: nothing else is kept for it.
    assert run(["calibrate", str(model), "--false-reject-rate", "25%"]) == 0
    assert bundles.read(model).calibration.rate == 0.25
    assert (tmp_path / "m.flawmap.old").read_bytes() == before


def test_a_column_of_verdicts_under_another_name_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_bundle(tmp_path / "m.flawmap")
    write_images(tmp_path / "photos", [10, 250])
    (tmp_path / "list.csv").write_text("path,class\nphotos/0.png,OK\nphotos/1.png,NG\n")
    assert run(["calibrate", str(model), str(tmp_path / "list.csv"), "--category", "cable"]) == 3
    assert "seems to tell good from defective: class (NG, OK)" in capsys.readouterr().err


@pytest.mark.usefixtures("brightness")
def test_the_bundle_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_bundle(tmp_path / "m.flawmap")
    reads = []
    read = bundles.read
    monkeypatch.setattr(bundles, "read", lambda path: reads.append(path) or read(path))
    calibrate(model, write_images(tmp_path / "cable", [10, 20]), category="cable")
    assert reads == [model]


@pytest.mark.usefixtures("brightness")
def test_exact_copies_count_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_bundle(tmp_path / "m.flawmap")
    data = write_images(tmp_path / "cable" / "good", [10, 30, 20, 30, 10]).parent
    assert run(["calibrate", str(model), str(data), "--false-reject-rate", "0.25"]) == 0
    assert "2 exact copies" in capsys.readouterr().err
    assert sorted(bundles.read(model).calibration.categories["cable"].scores) == [10, 20, 30]


def test_a_target_that_cannot_be_written_is_told_before_any_image_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_bundle(tmp_path / "m.flawmap")
    command = ["calibrate", str(model), str(tmp_path / "no such data"), "-o", str(tmp_path)]
    assert run(command) == 2
    assert "the output is a folder" in capsys.readouterr().err


@pytest.mark.usefixtures("brightness")
def test_the_product_of_a_folder_with_another_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_bundle(tmp_path / "m.flawmap")
    data = write_images(tmp_path / "new photos", [10, 20])
    assert run(["calibrate", str(model), str(data)]) == 2
    assert "--category NAME" in capsys.readouterr().err
    assert run(["calibrate", str(model), str(data), "--category", "scerw"]) == 2
    assert "did you mean 'screw'?" in capsys.readouterr().err
    assert run(["calibrate", str(model), str(data), "--category", "screw"]) == 0
    assert sorted(bundles.read(model).calibration.categories["screw"].scores) == [10, 20]


@pytest.mark.usefixtures("brightness")
def test_a_folder_inside_a_product_is_known_by_it(tmp_path: Path) -> None:
    model = write_bundle(tmp_path / "m.flawmap")
    data = write_images(tmp_path / "screw" / "test" / "good", [10, 20])
    calibrate(model, data)
    assert sorted(bundles.read(model).calibration.categories["screw"].scores) == [10, 20]


@pytest.mark.usefixtures("brightness")
def test_images_of_other_products_are_left_out_and_counted(tmp_path: Path) -> None:
    model = write_bundle(tmp_path / "m.flawmap")
    rows = ["path,category,split,label"]
    for i, (path, category) in enumerate([("a", "screw"), ("b", "cable"), ("c", "cable")]):
        write_images(tmp_path / path, [10 + i])
        rows.append(f"{path}/0.png,{category},train,good")
    table = tmp_path / "t.csv"
    table.write_text("\n".join(rows))
    found = calibrate(model, table, category="screw")
    assert list(bundles.read(model).calibration.categories["screw"].scores) == [10]
    assert "left out: 2 good images of other products" in found.notes


@pytest.mark.usefixtures("brightness")
def test_of_the_data_of_the_fit_only_what_was_not_learnt_counts(tmp_path: Path) -> None:
    data = tmp_path / "cable"
    write_images(data / "train" / "good", [10, 20, 30])
    write_images(data / "test" / "good", [40])
    facts = verify(read_data(data)).facts
    learnt = [
        fact.pixels.hex()
        for fact in facts
        if fact.sample.split == "train" and not fact.sample.path.endswith("1.png")
    ]
    # The test image is called 0.png as well: pictures count, not names.
    model = write_bundle(tmp_path / "m.flawmap", learnt_pictures=learnt)
    result = calibrate(model, data)
    assert sorted(bundles.read(model).calibration.categories["cable"].scores) == [20, 40]
    assert any(
        n.startswith("left out: 2 images that the detector has learnt") for n in result.notes
    )
    assert any("test split" in n for n in result.notes)
    # A copy under another name, in another folder and another format, was learnt as well.
    other = tmp_path / "more" / "cable"
    other.mkdir(parents=True)
    Image.open(data / "train" / "good" / "0.png").save(other / "new.bmp")
    with pytest.raises(DataError, match="no good image"):
        calibrate(model, other)


@pytest.mark.usefixtures("brightness")
def test_unreadable_good_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_bundle(tmp_path / "m.flawmap")
    data = write_images(tmp_path / "cable", [10, 20, 30])
    (data / "1.png").write_bytes(b"no image")
    before = model.read_bytes()
    assert run(["calibrate", str(model), str(data)]) == 3
    assert model.read_bytes() == before
    capsys.readouterr()
    assert run(["calibrate", str(model), str(data), "--skip-bad", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [Path(s["path"]).name for s in found["skipped"]] == ["1.png"]
    assert found["categories"]["cable"]["new"]["n"] == 2


def test_data_without_good_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_bundle(tmp_path / "m.flawmap")
    write_images(tmp_path / "data", [10])
    (tmp_path / "data" / "t.csv").write_text("path,label,split\n0.png,defect,test\n")
    assert run(["calibrate", str(model), str(tmp_path / "data" / "t.csv")]) == 3
    assert "no good image" in capsys.readouterr().err


def test_a_bundle_says_where_its_thresholds_come_from(tmp_path: Path, brightness: None) -> None:
    bundle = write_bundle(tmp_path / "m.flawmap")
    calibrate(bundle, false_reject_rate=0.05)
    found = bundles.read(bundle)
    assert found.config["calibration"] == {"false_reject_rate": 0.05}
    assert "calibrated_on" not in found.info["fitted"]["data"]
    photos = write_images(tmp_path / "photos", range(10, 40))
    calibrate(bundle, photos, category="screw")
    data = bundles.read(bundle).info["fitted"]["data"]
    assert data["calibrated_on"]["images"] == {"screw": 30}
    assert data["calibrated_on"]["root"] == str(photos)


@pytest.mark.usefixtures("brightness")
def test_copies_in_folders_of_one_product_count_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_bundle(tmp_path / "m.flawmap")
    for day in ("monday", "tuesday"):
        write_images(tmp_path / "cable" / day, [10, 20, 30])
    write_images(tmp_path / "cable" / "tuesday", [10, 20, 30, 40])
    data = str(tmp_path / "cable")
    assert run(["calibrate", str(model), data, "--false-reject-rate", "0.25"]) == 0
    assert "3 exact copies" in capsys.readouterr().err
    assert sorted(bundles.read(model).calibration.categories["cable"].scores) == [10, 20, 30, 40]


def test_another_model_that_is_written_over_is_kept(tmp_path: Path) -> None:
    model = write_bundle(tmp_path / "m.flawmap")
    other = write_bundle(tmp_path / "o.flawmap", learnt_images=7)
    before = bundles.read(other)
    done = calibrate(model, false_reject_rate=0.1, output=other)
    assert done.notes == (f"the model that was there is kept: {other}.old",)
    assert bundles.read(bundles.older(other)).digest == before.digest
    # Its own rate can be set back.
    assert calibrate(model, false_reject_rate=0.1).notes == ()
    assert not bundles.older(model).exists()


def test_a_model_that_a_fit_is_writing_is_left_alone(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    model = write_bundle(tmp_path / "m.flawmap")
    link = tmp_path / "current.flawmap"
    link.symlink_to(model)
    for name in (model, link):
        with (
            bundles.alone(model),
            pytest.raises(FitError, match="another process is writing this model"),
        ):
            calibrate(name, false_reject_rate=0.1)
    calibrate(link, false_reject_rate=0.1)
    assert link.is_symlink()
    assert bundles.read(model).calibration.rate == 0.1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["current.flawmap", "m.flawmap"]

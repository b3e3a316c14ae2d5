"""A fitted detector on broken files, on another device's precision, and on unknown products."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import flawmap
from flawmap import bundle as bundles
from flawmap.data import read_data
from flawmap.errors import BundleError, ConfigError, DataError, FlawmapWarning
from flawmap.loading import detector_of
from flawmap.outputs.stream import skipping
from flawmap.types import Sample

OPTIONS = {
    "encoder.name": "lite0",
    "data.size": 64,
    "method.levels": ["blocks.1", "blocks.2"],
    "training.device": "cpu",
    "training.threads": 1,
    "training.batch_size": 3,
}


@pytest.fixture(scope="module")
def bundle(rings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "ring.flawmap"
    flawmap.fit(rings, output=path, method="patchcore", options=OPTIONS)
    return path


@pytest.fixture(scope="module")
def detector(bundle: Path) -> flawmap.Detector:
    return flawmap.load(bundle)


@pytest.mark.parametrize("bad", [0, 4, 7])
def test_a_broken_image_in_any_batch_costs_itself_alone(
    bad: int, detector: flawmap.Detector, rings: Path, tmp_path: Path
) -> None:
    sources = sorted((rings / "train" / "good").iterdir())[:8]
    samples = []
    for i, source in enumerate(sources):
        path = tmp_path / f"{i}.png"
        shutil.copy(source, path)
        samples.append(Sample(str(path), "rings", "test", None))
    wanted = [p.score for p in detector.predict_samples(samples)]
    Path(samples[bad].path).write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot be read"):
        list(detector.predict_samples(samples))
    left_out = []
    found = list(
        skipping(
            detector.predict_samples,
            samples,
            batch_size=3,
            on_skip=lambda sample, _: left_out.append(sample.path),
        )
    )
    assert left_out == [samples[bad].path]
    assert [p.path for p in found] == [s.path for s in samples if s.path != samples[bad].path]
    # Another batch size may round differently.
    np.testing.assert_allclose(
        [p.score for p in found], [v for i, v in enumerate(wanted) if i != bad], rtol=1e-3
    )


def test_images_and_folders_may_lie_in_the_home_folder(
    detector: flawmap.Detector, rings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(rings / "train"))
    whole = detector.predict("~/good")
    assert isinstance(whole, list)
    one = detector.predict(f"~/good/{Path(whole[0].path).name}")
    assert isinstance(one, flawmap.Prediction)
    assert one.path == whole[0].path == str(min((rings / "train" / "good").iterdir()))


def test_masks_below_a_folder_are_no_pictures(
    detector: flawmap.Detector, rings: Path, tmp_path: Path
) -> None:
    for name in ("test/stain", "ground_truth/stain"):
        shutil.copytree(rings / name, tmp_path / name)
    with pytest.warns(FlawmapWarning, match="left out, masks: ground_truth"):
        found = detector.predict(tmp_path)
    assert isinstance(found, list)
    assert [Path(p.path).parent for p in found] == [tmp_path / "test" / "stain"] * 4
    named = detector.predict(tmp_path / "ground_truth")
    assert isinstance(named, list)
    assert len(named) == 4


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_has_images(size: int, detector: flawmap.Detector) -> None:
    with pytest.raises(ConfigError, match="batch_size must be positive"):
        detector.predict(np.zeros((8, 8), np.uint8), batch_size=size)


@pytest.mark.parametrize("verb", [flawmap.load, flawmap.calibrate])
def test_an_unknown_device_is_not_blamed_on_the_file(verb: Any, bundle: Path) -> None:
    with pytest.raises(ConfigError, match="unknown device 'gpu'") as caught:
        verb(bundle, device="gpu")
    assert caught.value.where == "--device"


def test_weights_for_a_bundle_that_carries_its_own_are_refused(bundle: Path) -> None:
    with pytest.raises(ConfigError, match="carries its encoder"):
        flawmap.load(bundle, encoder_weights="weights.pth")


def test_another_precision_than_that_of_the_fit_is_said(bundle: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flawmap.load(bundle)
    found = bundles.read(bundle)
    fitted = {**found.info["fitted"], "precision": "bf16-mixed"}
    other = tmp_path / "other.flawmap"
    bundles.write(replace(found, info={**found.info, "fitted": fitted}), other)
    with pytest.warns(FlawmapWarning, match=r"fitted with precision bf16-mixed.*flawmap calibrate"):
        flawmap.load(other)


def test_test_images_alone_can_be_evaluated(
    detector: flawmap.Detector, rings: Path, tmp_path: Path
) -> None:
    table = tmp_path / "test.csv"
    rows = [
        f"{path},rings,test,{label}"
        for label, kind in (("good", "good"), ("defect", "stain"))
        for path in sorted((rings / "test" / kind).iterdir())
    ]
    table.write_text("\n".join(["path,category,split,label", *rows]), encoding="utf-8")
    result = flawmap.evaluate(detector, table)
    assert result.categories["rings"].counts == {"good": 4, "defect": 4, "defects_with_mask": 0}


def test_good_test_images_that_were_learnt_are_counted(
    rings: Path, bundle: Path, tmp_path: Path
) -> None:
    learnt = "the model has learnt"
    assert not any(learnt in note for note in flawmap.evaluate(bundle, rings).notes)
    folder = tmp_path / "rings"
    shutil.copytree(rings, folder)
    taught = sorted((folder / "train" / "good").iterdir())[0]
    # Under another name and in another format.
    with Image.open(taught) as image:
        image.save(folder / "test" / "good" / "again.bmp")
    good = len(list((folder / "test" / "good").iterdir()))
    (note,) = (n for n in flawmap.evaluate(bundle, folder).notes if learnt in n)
    assert f"has learnt 1 of the {good} good test images" in note


def test_what_is_skipped_in_an_evaluation_is_said(
    detector: flawmap.Detector, rings: Path, tmp_path: Path
) -> None:
    data = tmp_path / "rings"
    shutil.copytree(rings / "test", data / "test")
    shutil.copytree(rings / "ground_truth", data / "ground_truth")
    (data / "test" / "good" / "000.png").write_bytes(b"")
    (data / "ground_truth" / "stain" / "001_mask.png").write_bytes(b"")
    result = flawmap.evaluate(detector, data, format="mvtec", skip_bad=True)
    assert result.n_images == 6
    assert result.notes == ("2 files or folders could not be read and are left out",)
    assert [Path(path).name for path, _ in result.data["skipped"]] == ["000.png", "001_mask.png"]


@pytest.mark.slow
def test_the_search_of_the_fit_is_the_search_of_the_bundle(rings: Path, tmp_path: Path) -> None:
    """A large bank keeps its groups, so that a loaded detector scores as the threshold was set."""
    path = tmp_path / "x.flawmap"
    options = {**OPTIONS, "data.size": 256, "method.coreset_ratio": 0.2}
    fitted = flawmap.fit(rings, output=path, method="patchcore", options=options)
    state = fitted.models["*"].state_dict()
    assert len(state["bank"]) >= 4096
    assert len(state["centers"]) > 1
    image = rings / "test" / "stain" / "000.png"
    one, two = fitted.predict(image), flawmap.load(path).predict(image)
    np.testing.assert_array_equal(one.anomaly_map, two.anomaly_map)  # type: ignore[union-attr]


def test_products_that_were_not_fitted_are_left_out_and_named(
    two_products: Path, tmp_path: Path
) -> None:
    table = read_data(two_products)
    detector = flawmap.fit(table, method="patchcore", categories=["bolt"], options=OPTIONS)
    result = flawmap.evaluate(detector, table)
    assert list(result.categories) == ["bolt"]
    assert any("not fitted on them: nut" in note for note in result.notes)


def test_a_bundle_of_another_version_is_told_as_such(bundle: Path, tmp_path: Path) -> None:
    found = bundles.read(bundle)
    more = {**found.info["fitted"], "weather": "sunny", "versions": {"flawmap": "9.1"}}
    other = tmp_path / "other.flawmap"
    bundles.write(replace(found, info={**found.info, "fitted": more}), other)
    assert flawmap.load(other).fitted.versions == {"flawmap": "9.1"}
    scoring = {**found.config["scoring"], "sharpen": 2}
    config = {**found.config, "scoring": scoring}
    bundles.write(replace(found, config=config, info={**found.info, "fitted": more}), other)
    with pytest.raises(BundleError, match="options that this flawmap does not take") as raised:
        flawmap.load(other)
    assert raised.value.given == "written by flawmap 9.1"


def test_products_that_are_judged_by_the_threshold_over_all_are_named(
    two_products: Path, rings: Path
) -> None:
    detector = flawmap.fit(two_products, method="patchcore", options=OPTIONS)
    image = next((two_products / "nut" / "test" / "good").iterdir())
    # Where a picture lies says what it shows, as on the command line.
    assert detector.predict(image).threshold == detector.calibration.threshold("nut").value
    everywhere = detector.calibration.threshold().value
    assert detector.predict(next((rings / "test" / "good").iterdir())).threshold == everywhere
    result = flawmap.evaluate(detector, rings)
    expected = "not fitted on rings: judged by the threshold over all that it was fitted on"
    assert any(expected in note for note in result.notes)
    assert not any("not fitted" in note for note in flawmap.evaluate(detector, two_products).notes)


def test_a_bundle_in_memory_is_shared_not_copied(bundle: Path) -> None:
    found = bundles.read(bundle)
    detector = detector_of(found, bundle, device="cpu")
    bank = next(iter(found.models.values()))["bank"]
    assert np.shares_memory(bank, detector.models["*"].state_dict()["bank"].numpy())

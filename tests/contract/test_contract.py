"""One contract for every registered method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import flawmap
from drawn import make_mvtec
from flawmap.config import Config, validate
from flawmap.data import read_data
from flawmap.data.images import read_image
from flawmap.detector import Detector
from flawmap.errors import ConfigError
from flawmap.methods.base import IterativeMethod, OnePassMethod
from flawmap.registry import METHODS
from flawmap.training.interrupt import Interrupted
from watching import StopAt

SMALL: dict[str, dict[str, Any]] = {
    "dmdd": {
        "data.size": 64,
        "training.iterations": 40,
        "training.batch_size": 4,
        "method.levels": ["blocks.1", "blocks.2", "blocks.4"],
        "method.width": 16,
    },
    "dinomaly": {
        "encoder.name": "lite0",
        "data.size": 64,
        "training.iterations": 100,
        "method.stride": 8,
        "training.batch_size": 4,
        "method.width": 64,
        "method.depth": 2,
    },
    "mkd": {
        "data.size": 64,
        "training.iterations": 60,
        "training.batch_size": 4,
        "method.levels": ["blocks.1", "blocks.2"],
    },
    "intra": {
        "data.size": 64,
        "method.patch": 8,
        "method.window": 5,
        "method.width": 32,
        "method.depth": 3,
        "method.heads": 2,
        "method.windows": 8,
        "method.mean_filter": 5,
        # What is found at the end of the fit.
        "method.map": "squared",
        "training.iterations": 150,
        "training.batch_size": 4,
        "training.validate_every": 50,
    },
    "rd4ad": {
        "data.size": 64,
        "training.iterations": 40,
        "training.batch_size": 4,
        "method.levels": ["blocks.1", "blocks.2", "blocks.4"],
        "method.embedding_blocks": 1,
        "method.decoder_blocks": [1, 1, 1],
    },
    "patchcore": {
        "data.size": 64,
        "method.levels": ["blocks.1", "blocks.2"],
        "method.max_bank": 200,
    },
}
COMMON = {
    "scoring.sigma": 1.0,
    "training.precision": "float32",
    "training.device": "cpu",
    "training.threads": 1,
}


def options(name: str, **more: Any) -> dict[str, Any]:
    return {**COMMON, **SMALL.get(name, {}), **more}


STOPPED: dict[str, dict[str, Any]] = {
    "": {"training.iterations": 20},
    "intra": {"training.validate_every": 5},
    # With a weight and channels that are found in the first step.
    "mkd": {"method.terms": "both", "method.compared": "places"},
}
"""Further options of a fit that is stopped in its middle: of every method, and of single ones."""

QUICK = ("mkd", "patchcore")
"""A one-pass and an iterative method: the fast tests look at these alone."""


@pytest.fixture(
    scope="module",
    params=[
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in sorted(METHODS)
    ],
)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def detector(name: str, rings: Path) -> Detector:
    return flawmap.fit(rings, method=name, options=options(name))


def maps(detector: Detector, folder: Path) -> np.ndarray:
    return np.stack([p.anomaly_map for p in detector.predict(folder)])


def test_it_states_what_it_is(name: str) -> None:
    cls = METHODS.load(name)
    assert cls.kind == ("iterative" if issubclass(cls, IterativeMethod) else "one-pass")
    assert issubclass(cls, IterativeMethod | OnePassMethod)
    assert {"cpu", "gpu"} <= set(cls.presets)
    assert len(cls.summary) > 10
    assert "arXiv" in cls.source
    # An image left out is scored from its map alone.
    assert not (cls.scores_images and getattr(cls, "can_leave_out", False))
    assert cls.needs_encoder == (cls.defaults.get("encoder.name", "lite0") != "none")


def test_the_flaw_is_where_the_map_is_highest(detector: Detector, rings: Path) -> None:
    flaws = sorted((rings / "test" / "stain").iterdir())
    hits = 0
    for path in flaws:
        mask = np.array(Image.open(rings / "ground_truth" / "stain" / f"{path.stem}_mask.png")) > 0
        anomaly_map = detector.predict(path).anomaly_map
        hits += anomaly_map[mask].mean() > 1.5 * anomaly_map[~mask].mean()
    assert hits == len(flaws)


def test_the_same_seed_gives_the_same_maps(name: str, detector: Detector, rings: Path) -> None:
    again = flawmap.fit(rings, method=name, options=options(name))
    np.testing.assert_array_equal(
        maps(again, rings / "test" / "stain"), maps(detector, rings / "test" / "stain")
    )


def test_another_seed_gives_other_maps(name: str, detector: Detector, rings: Path) -> None:
    other = flawmap.fit(rings, method=name, seed=1, options=options(name))
    folder = rings / "test" / "stain"
    assert not np.array_equal(maps(other, folder), maps(detector, folder))


def test_a_stopped_fit_goes_on_to_the_same_weights(name: str, rings: Path, tmp_path: Path) -> None:
    """With the optimiser's moments, the means of batch normalisations, and what is found at the end
    of the fit."""
    if METHODS.load(name).kind == "one-pass":
        pytest.skip("it takes no steps")
    output = tmp_path / "x.flawmap"
    wanted = {"method": name, "options": options(name, **STOPPED[""], **STOPPED.get(name, {}))}
    whole = flawmap.fit(rings, **wanted)
    with pytest.raises(Interrupted):
        flawmap.fit(rings, output=output, progress=StopAt(10), **wanted)
    assert not output.exists()
    resumed = flawmap.fit(rings, output=output, resume=True, **wanted)
    (first,), (second,) = (d.models.values() for d in (whole, resumed))
    for key, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key
    assert resumed.fitted.curves["*"]["validation"] == whole.fitted.curves["*"]["validation"]


def test_saved_and_loaded_gives_the_same_maps(
    detector: Detector, rings: Path, tmp_path: Path
) -> None:
    detector.save(tmp_path / "x.flawmap")
    loaded = flawmap.load(tmp_path / "x.flawmap", device="cpu")
    folder = rings / "test" / "stain"
    np.testing.assert_array_equal(maps(loaded, folder), maps(detector, folder))
    assert loaded.calibration.thresholds() == detector.calibration.thresholds()
    for category in detector.calibration.categories:
        pixel = detector.calibration.pixel_threshold(category)
        assert loaded.calibration.pixel_threshold(category) == pixel
    assert loaded.config.model_dump() == detector.config.model_dump()


def test_a_batch_gives_what_single_images_give(detector: Detector, rings: Path) -> None:
    paths = sorted((rings / "test" / "stain").iterdir())
    together = detector.predict(paths, batch_size=4)
    for path, prediction in zip(paths, together, strict=True):
        alone = detector.predict(path)
        np.testing.assert_allclose(alone.anomaly_map, prediction.anomaly_map, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(37, 91), (1, 1), (300, 40, 3), (50, 50, 4), (20, 30, 1)])
def test_odd_sizes_and_channels(detector: Detector, shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    prediction = detector.predict(image)
    assert prediction.anomaly_map.shape == shape[:2]
    assert np.isfinite(prediction.anomaly_map).all()
    assert np.isfinite(prediction.score)


def test_own_scores_are_given_or_refused(name: str, detector: Detector, rings: Path) -> None:
    method = next(iter(detector.models.values()))
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    maps, scores = method.scored_maps(images)
    assert maps.shape[:2] == (3, 1)
    assert (scores is not None) == method.scores_images
    if scores is not None:
        assert scores.shape == (3,)
        torch.testing.assert_close(method.image_scores(images), scores)
        return
    with pytest.raises(ConfigError, match="maps only"):
        flawmap.fit(rings, method=name, options=options(name, **{"scoring.pooling": "method"}))


def test_path_array_and_pil_agree(detector: Detector, rings: Path) -> None:
    path = rings / "test" / "stain" / "000.png"
    from_path = detector.predict(path).anomaly_map
    with Image.open(path) as image:
        np.testing.assert_array_equal(detector.predict(image).anomaly_map, from_path)
        np.testing.assert_array_equal(detector.predict(np.array(image)).anomaly_map, from_path)


def test_the_configuration_survives_json(name: str) -> None:
    config = flawmap.configure(method=name, options=options(name))
    assert validate(Config.model_validate_json(config.model_dump_json()).model_dump()) == config


def test_a_wrong_option_is_refused_with_the_nearest(name: str) -> None:
    field = next(f for f in METHODS.load(name).Config.model_fields if f != "name")
    with pytest.raises(ConfigError) as caught:
        flawmap.configure(method=name, options={f"method.{field}x": 1})
    assert f"method.{field}x" in str(caught.value)
    assert f"did you mean 'method.{field}'" in str(caught.value)


def test_the_encoder_is_frozen_and_no_part_of_the_state(detector: Detector) -> None:
    method = next(iter(detector.models.values()))
    before = detector.encoder.fingerprint
    assert not any(p.requires_grad for p in detector.encoder.parameters())
    assert not detector.encoder.training
    assert not any("encoder" in key for key in method.state_dict())
    from flawmap.encoders.encoder import fingerprint

    assert fingerprint(detector.encoder.state_dict()) == before


def test_a_reconstruction_lies_over_the_image(detector: Detector, rings: Path) -> None:
    (sample, *_) = read_data(rings).select(split="test")
    found = detector.reconstruct(sample, (20, 30))
    if found is not None:
        assert found.shape == (20, 30, 3)
        assert 0 <= found.min() <= found.max() <= 1


def test_separate_models_and_unknown_products(name: str, two_products: Path) -> None:
    detector = flawmap.fit(two_products, method=name, separate=True, options=options(name))
    assert sorted(detector.models) == ["bolt", "nut"]
    image = two_products / "nut" / "test" / "stain" / "000.png"
    nut = detector.predict(image, category="nut")
    bolt = detector.predict(image, category="bolt")
    assert nut.category == "nut"
    assert not np.array_equal(nut.anomaly_map, bolt.anomaly_map)
    # The folder says which product it is.
    assert detector.predict(image).category == "nut"
    with pytest.raises(ConfigError, match="one model per product"):
        detector.predict(read_image(image))
    with pytest.raises(ConfigError, match="did you mean 'nut'"):
        detector.predict(image, category="nuts")


def test_one_image_is_enough_to_learn_from(name: str, rings: Path, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    Image.open(rings / "train" / "good" / "000.png").save(folder / "a.png")
    detector = flawmap.fit(folder, method=name, options=options(name))
    flaw = detector.predict(rings / "test" / "stain" / "000.png")
    assert flaw.threshold is None
    assert flaw.verdict is None
    assert flaw.score > detector.predict(folder / "a.png").score


def test_memory_is_bounded_by_the_configuration(name: str, rings: Path, tmp_path: Path) -> None:
    """What is learnt has the same size for twice the images."""
    more = make_mvtec(tmp_path / "more", train=24)
    sizes = []
    for data in (rings, more):
        detector = flawmap.fit(
            data, method=name, options=options(name, **{"calibration.strategy": "off"})
        )
        method = next(iter(detector.models.values()))
        sizes.append(sum(t.numel() for t in method.state_dict().values()))
    assert sizes[0] == sizes[1]
    assert all(torch.isfinite(t).all() for t in method.state_dict().values())

"""Options that would do nothing are refused where somebody names them."""

from __future__ import annotations

from pathlib import Path

import pytest

from flawmap.api import configure
from flawmap.config import make_config, validate
from flawmap.errors import ConfigError
from flawmap.registry import METHODS


@pytest.mark.parametrize(
    ("method", "option", "value", "beside", "needs"),
    [
        ("patchcore", "training.iterations", 5000, {}, "an iterative method"),
        ("patchcore", "training.cache", "disk", {}, "an iterative method"),
        ("patchcore", "training.max_epochs", 7, {}, "an iterative method"),
        ("patchcore", "method.probed_share", 0.1, {"method.search": "exact"}, "clusters"),
        ("patchcore", "method.probed_share", 0.1, {"method.neighbours": 3}, "neighbours=1"),
        ("patchcore", "method.border", "zero", {"method.neighbourhood": 1}, "above 1"),
        ("patchcore", "scoring.top_fraction", 0.1, {"scoring.pooling": "max"}, "pooling=top"),
        ("rd4ad", "training.validate_every", 9, {}, "training.validation_fraction above 0"),
        ("rd4ad", "training.cache", "disk", {"training.augment": "views"}, "augment=off"),
        ("rd4ad", "training.cache_disk_mib", 9, {"training.cache": "memory"}, "auto or disk"),
        ("intra", "scoring.reach", 2, {}, "scoring.sigma above 0"),
        ("intra", "method.mean_images", 9, {"method.map": "difference"}, "squared"),
        ("mkd", "calibration.fraction", 0.3, {"calibration.strategy": "off"}, "auto or holdout"),
        ("mkd", "method.noisy_copies", 9, {}, "method.attribution=smoothgrad"),
        ("mkd", "method.value_weight", 0.5, {}, "method.terms=both"),
        ("mkd", "method.scored_layers", 2, {}, "method.score=whole"),
        ("dinomaly", "method.kernel", 3, {}, "method.mixer=conv"),
        ("dinomaly", "method.attention_eps", 0.1, {"method.mixer": "softmax"}, "mixer=linear"),
        ("dinomaly", "method.width", 128, {}, "a convolutional encoder"),
        ("dinomaly", "method.dropout", 0.1, {"method.jitter": 5}, "method.jitter=0"),
        ("dinomaly", "method.hard_share", 0.2, {"method.loose_loss": False}, "loose_loss=true"),
        ("dinomaly", "method.final_learning_rate", 0.1, {"method.schedule": "constant"}, "cosine"),
        ("dmdd", "method.width", 16, {"method.segmentation": False}, "segmentation=true"),
        ("dmdd", "method.scale_images", 9, {"method.map": "distance"}, "two maps"),
        ("dmdd", "method.attention", "none", {"method.map": "distance"}, "another method.map"),
        ("dinomaly", "method.width", 96, {"encoder.name": "vit_base_patch16_dinov3"}, "convol"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    method: str, option: str, value: object, beside: dict[str, object], needs: str
) -> None:
    assert make_config(method=method, overrides=beside)
    with pytest.raises(ConfigError, match=f"with {method} the option does nothing") as caught:
        make_config(method=method, overrides={**beside, option: value})
    error = caught.value
    assert (error.where, error.given) == (option, value)
    assert needs in error.message
    assert error.hint is not None
    assert needs in error.hint


def test_it_is_refused_in_a_file_and_in_a_section_too(tmp_path: Path) -> None:
    file = tmp_path / "fit.yaml"
    file.write_text("method: patchcore\ntraining: {iterations: 5}\n", encoding="utf-8")
    for given in ({"file": file}, {"overrides": ["training={iterations: 5}"]}):
        with pytest.raises(ConfigError) as caught:
            make_config(**given)  # type: ignore[arg-type]
        assert caught.value.where == "training.iterations"


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("patchcore", ["training.patience=null", "training.augment=off", "training.balance=false"]),
        ("dinomaly", ["method.dropout=0", "method.jitter=5"]),
        ("dinomaly", ["encoder.name=lite0", "method.width=128"]),
        ("dinomaly", ["method.mixer=conv", "method.kernel=3"]),
        ("rd4ad", ["training.validation_fraction=0.1", "training.validate_every=9"]),
    ],
)
def test_what_asks_for_nothing_or_does_something_may_stand(method: str, options: list[str]) -> None:
    assert make_config(method=method, overrides=options).method.name == method


def test_what_presets_and_stored_configurations_hold_may_stand() -> None:
    for method in METHODS:
        for preset in METHODS.load(method).presets:
            config = make_config(method=method, preset=preset)
            assert validate(config.model_dump(mode="json")) == config
    # A preset of smoothing is of no use without it, which is no fault of whoever turns it off.
    config = make_config(method="dinomaly", preset="paper", overrides={"scoring.sigma": 0})
    assert config.scoring.reach == 2


def test_before_the_images_are_known_auto_refuses_nothing() -> None:
    options = {"training.iterations": 5}
    assert configure(method="auto", options=options).training.iterations == 5
    with pytest.raises(ConfigError, match="with patchcore"):
        configure(method="patchcore", options=options)
    with pytest.raises(ConfigError, match="with patchcore"):
        configure(options={**options, "scoring.sigma": 3}, method="patchcore", idle=["separate"])
    assert configure(method="patchcore", options=options, idle=options)

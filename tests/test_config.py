"""Defaults that depend on what else was chosen."""

from __future__ import annotations

from pathlib import Path

import pytest

from flawmap.api import configure, fit
from flawmap.config import make_config
from flawmap.data.synthesis import make_synthesis
from flawmap.errors import ConfigError, DataError
from flawmap.methods.dinomaly import Dinomaly


@pytest.mark.parametrize(
    ("encoder", "preset", "size"),
    [
        ("vit-s14", "cpu", (280, 280)),
        ("vit_base_patch14_dinov2.lvd142m", "cpu", (280, 280)),
        ("vit_base_patch16_224.mae", "cpu", (288, 288)),
        ("vit_small_patch16_dinov3.lvd1689m", "gpu", (384, 384)),
        ("vit_base_patch32_224", "gpu", (384, 384)),
    ],
)
def test_the_default_size_fits_the_patches(
    encoder: str, preset: str, size: tuple[int, int]
) -> None:
    def configured(**more: object) -> tuple[int, int]:
        named = {"encoder.name": encoder, **more}
        return make_config(method="dinomaly", preset=preset, named=named).data.size

    assert configured() == size
    # What somebody asks for stays, and is refused later if it does not fit.
    assert configured(**{"data.size": [300, 300]}) == (300, 300)


@pytest.mark.parametrize(("defaults", "size"), [({"data.size": 300}, (294, 294)), ({}, (252, 252))])
def test_a_method_may_name_its_size_by_one_number_or_not_at_all(
    defaults: dict[str, int], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dinomaly, "defaults", defaults)
    named = {"encoder.name": "vit_base_patch14_dinov2.lvd142m"}
    assert make_config(method="dinomaly", preset="gpu", named=named).data.size == size


@pytest.mark.parametrize(("opening", "fits"), [(0, True), (3, True), (4, False)])
def test_an_opening_is_odd_or_none(opening: int, fits: bool) -> None:
    options = {"scoring.opening": opening}
    if fits:
        assert make_config(overrides=options).scoring.opening == opening
    else:
        with pytest.raises(ConfigError, match="must be odd, got 4"):
            make_config(overrides=options)


def test_iterations_that_somebody_names_are_not_cut_by_the_preset_s_epochs(tmp_path: Path) -> None:
    def epochs(**options: object) -> int | None:
        return make_config(method="dmdd", overrides=options).training.max_epochs

    assert epochs() == 50
    assert epochs(**{"training.iterations": 3000}) is None
    assert epochs(**{"training.iterations": 3000, "training.max_epochs": 7}) == 7
    file = tmp_path / "fit.yaml"
    file.write_text("method: dmdd\ntraining: {iterations: 3000}\n", encoding="utf-8")
    assert make_config(file=file).training.max_epochs is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Auto", "a valid number or 'auto'"),
        (True, "a valid number or 'auto'"),
        (-1, "greater than or equal to 0 or 'auto'"),
    ],
)
def test_an_option_of_several_kinds_has_one_name_and_all_its_kinds(
    value: object, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(method="mkd", overrides={"method.value_weight": value})
    assert caught.value.where == "method.value_weight"
    assert caught.value.expected == expected


@pytest.mark.parametrize(
    ("option", "value"),
    [("scoring.map_size", 0), ("scoring.map_size", 100_000), ("scoring.sigma", float("inf"))],
)
def test_sizes_and_widths_that_no_map_can_have_are_refused(option: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(method="patchcore", overrides={option: value})
    assert caught.value.where == option


@pytest.mark.parametrize(
    ("text", "words"),
    [("training: 5", "'training' must be a section"), ("method: {name: 5}", "must be a word")],
)
def test_a_file_of_other_types_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=words) as caught:
        make_config(file=file)
    assert caught.value.where == str(file)


def test_a_decoder_without_blocks_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(method="rd4ad", overrides={"method.decoder_blocks": [0, 1, 1]})
    assert caught.value.where == "method.decoder_blocks.0"


def test_files_that_options_name_may_lie_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "options.yaml").write_text("encoder: {weights: ~/w.pth}\n")
    config = configure(config_file="~/options.yaml", method="patchcore")
    assert config.encoder.weights == tmp_path / "w.pth"
    named = {"textures": ["folder"], "texture_folder": "~/dtd"}
    assert make_synthesis(named).texture_folder == tmp_path / "dtd"


@pytest.mark.parametrize(
    "option", ["seed", "false_reject_rate", "time_budget", "separate", "options"]
)
def test_a_whole_configuration_leaves_no_room_for_options(option: str, tmp_path: Path) -> None:
    value = {"separate": True, "options": ["seed=3"]}.get(option, 0)
    with pytest.raises(ConfigError, match="leaves no room") as caught:
        fit(tmp_path, config=make_config(), **{option: value})
    assert caught.value.given == option
    nothing = {"separate": False, "options": []}.get(option)
    with pytest.raises(DataError, match="there is no image here"):
        fit(tmp_path, config=make_config(), **{option: nothing})


def test_a_rate_in_percent() -> None:
    found = make_config(overrides={"calibration.false_reject_rate": "5%"})
    assert found.calibration.false_reject_rate == 0.05
    with pytest.raises(ConfigError, match="must lie between 0 and 1"):
        make_config(overrides={"calibration.false_reject_rate": "500%"})

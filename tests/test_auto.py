from __future__ import annotations

from pathlib import Path

import pytest

import flawmap
from flawmap.api import configure
from flawmap.auto import Choice, Situation, choose, situation
from flawmap.bench.grid import cells_of, deciding, make_grid
from flawmap.config import make_config
from flawmap.data import read_data
from flawmap.errors import ConfigError

TINY = {"data.size": 64, "method.levels": ["blocks.1", "blocks.2"]}


@pytest.mark.parametrize(
    ("given", "method", "preset"),
    [
        (Situation(images=100), "patchcore", "cpu"),
        (Situation(images=100, gpu=True), "patchcore", "gpu"),
        (Situation(images=100, gpu=True, encoder="dinov2-base"), "dinomaly", "gpu"),
        (Situation(images=100, encoder="dinov2-base"), "patchcore", "cpu"),
    ],
)
def test_the_rules(given: Situation, method: str, preset: str) -> None:
    choice = choose(given)
    assert (choice.method, choice.preset, choice.options) == (method, preset, {})
    assert choice.reasons[0].startswith(f"{method}: ")


def bank_and_images(choice: Choice) -> tuple[int, int | None]:
    images = choice.options.get("training.images_per_category")
    return choice.options.get("method.max_bank", 50_000), images


def test_a_short_time_takes_a_smaller_bank_and_then_fewer_images() -> None:
    found = [
        bank_and_images(choose(Situation(images=800, categories=2, budget=seconds)))
        for seconds in (600, 100, 60, 30, 10, 1)
    ]
    banks = [bank for bank, _ in found]
    assert banks[0] == 50_000
    assert banks == sorted(banks, reverse=True)
    assert len(set(banks)) > 2
    shown = [images for _, images in found]
    assert shown[:2] == [None, None]
    assert shown[-1] is not None
    assert shown[-2] is not None
    assert 1 <= shown[-1] < shown[-2] < 400
    more_cores = choose(Situation(images=800, categories=2, budget=60, cores=16))
    assert bank_and_images(more_cores) == (50_000, None)


def test_the_options_of_a_choice_are_valid() -> None:
    choice = choose(Situation(images=100_000, budget=60))
    config = make_config(method=choice.method, preset=choice.preset, chosen=choice.options)
    assert config.training.images_per_category is not None
    assert make_config(method=choice.method, chosen=choice.options, overrides=["data.size=64"])


def test_what_it_sees_of_the_images(rings: Path) -> None:
    table = read_data(rings)
    few = make_config(method="patchcore", overrides=["training.images_per_category=2"])
    good = len(table.select(split="train", label=0))
    assert situation(table, make_config(method="patchcore"), None).images == good > 2
    assert situation(table, few, None).images == 2


def test_it_is_the_default_and_says_so(rings: Path, tmp_path: Path) -> None:
    detector = flawmap.fit(rings, output=tmp_path / "m.flawmap", options=TINY)
    assert detector.config.method.name == "patchcore"
    assert detector.config.chosen[0].startswith("patchcore: ")
    assert flawmap.load(tmp_path / "m.flawmap").config.chosen == detector.config.chosen
    named = flawmap.fit(rings, method="patchcore", options=TINY)
    assert named.config.chosen == ()
    scores = [[p.score for p in one.predict(rings)] for one in (named, detector)]
    assert scores[0] == scores[1]


def test_options_of_the_user_win(tmp_path: Path) -> None:
    config = configure(time_budget=1, options={"training.images_per_category": 7, "data.size": 96})
    assert config.training.images_per_category == 7
    assert config.data.size == (96, 96)
    file = tmp_path / "options.yaml"
    file.write_text("method: {coreset_ratio: 0.5}\nencoder: {name: lite1}\n", encoding="utf-8")
    config = configure(config_file=file)
    assert config.chosen
    assert config.method.model_dump()["coreset_ratio"] == 0.5
    assert config.encoder.name == "lite1"
    file.write_text("method: auto\n", encoding="utf-8")
    assert configure(config_file=file).chosen
    file.write_text("method: dinomaly\n", encoding="utf-8")
    assert configure(config_file=file).method.name == "dinomaly"
    assert configure(config_file=file).chosen == ()
    assert configure(config_file=file, method="auto").method.name == "patchcore"


def test_a_wrong_option_is_named_before_images_are_read() -> None:
    with pytest.raises(ConfigError, match=r"unknown option 'data\.siz'"):
        flawmap.fit("nowhere", options={"data.siz": 64})
    with pytest.raises(ConfigError, match=r"unknown option 'method\.depth'"):
        configure(options={"method.depth": 4})


def test_it_goes_on_as_the_model_began() -> None:
    start = make_config(
        method="dinomaly",
        overrides={"data.size": 112, "method.dropout": 0.3, "data.resize": "crop"},
    )
    choice = choose(Situation(images=10), start)
    config = make_config(method=choice.method, chosen=choice.options)
    assert config.method == start.method
    assert (config.encoder, config.data) == (start.encoder, start.data)


def test_it_is_a_line_of_a_benchmark(rings: Path) -> None:
    grid = make_grid({"data": {"rings": str(rings)}, "methods": ["auto", "patchcore"]})
    auto, patchcore = cells_of(grid)
    assert (auto.label, auto.config.method.name) == ("auto", "patchcore")
    assert auto.key != patchcore.key
    one = auto.config.model_dump(mode="json")
    assert deciding(one) == deciding({**one, "chosen": ["another wording"]})
    assert "chosen" not in deciding(patchcore.config.model_dump(mode="json"))

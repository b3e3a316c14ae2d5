from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import flawmap
from flawmap.api import configure
from flawmap.auto import Situation, choose, situation, within_budget
from flawmap.bench.grid import cells_of, deciding, make_grid
from flawmap.config import Config, make_config
from flawmap.data import read_data
from flawmap.data.samples import SampleTable
from flawmap.detector import Detector
from flawmap.errors import ConfigError
from flawmap.types import Sample

TINY = {"data.size": 64, "method.levels": ["blocks.1", "blocks.2"]}


@pytest.fixture(autouse=True)
def weights_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flawmap.auto.readable", lambda spec: True)


def table(images: int, *categories: str) -> SampleTable:
    """Good images that nobody opens."""
    return SampleTable(
        "/data",
        "folder",
        tuple(
            Sample(path=f"/data/{name}/{i:04}.png", category=name, split="train", label=0)
            for name in categories
            for i in range(images)
        ),
    )


@pytest.mark.parametrize(
    ("given", "method", "preset"),
    [
        (Situation(), "patchcore", "cpu"),
        (Situation(gpu=True), "patchcore", "gpu"),
        (Situation(gpu=True, together=True), "patchcore", "gpu"),
        (Situation(gpu=True, encoder="dinov2-base"), "patchcore", "gpu"),
        (Situation(gpu=True, together=True, encoder="dinov2-base"), "dinomaly", "gpu"),
        (
            Situation(gpu=True, together=True, encoder="vit_base_patch14_reg4_dinov2"),
            "dinomaly",
            "gpu",
        ),
        (Situation(together=True, encoder="dinov2-base"), "patchcore", "cpu"),
        (Situation(learnt=488), "patchcore", "cpu"),
        (Situation(learnt=489), "dinomaly", "cpu"),
        (Situation(learnt=489, gpu=True), "patchcore", "gpu"),
        (Situation(learnt=489, own=True), "patchcore", "cpu"),
        (Situation(learnt=489, spared=False), "patchcore", "cpu"),
        (Situation(learnt=1500, products=2, together=True), "patchcore", "cpu"),
        (Situation(learnt=1500, products=2), "patchcore", "cpu"),
        (Situation(learnt=489, budget=299), "patchcore", "cpu"),
        (Situation(learnt=489, budget=300), "dinomaly", "cpu"),
        (Situation(learnt=489, images=611, budget=300), "patchcore", "cpu"),
        (Situation(learnt=489, budget=300, cores=1), "patchcore", "cpu"),
        (Situation(learnt=489, budget=149, cores=64), "patchcore", "cpu"),
        (Situation(learnt=489, budget=150, cores=64), "dinomaly", "cpu"),
    ],
)
def test_the_rules(given: Situation, method: str, preset: str) -> None:
    choice = choose(given)
    assert (choice.method, choice.preset, choice.options) == (method, preset, {})
    assert choice.reasons[0].startswith(f"{method}: ")


def test_so_many_images_are_more_than_the_bank_keeps_a_tenth_of() -> None:
    config = make_config(method="patchcore")
    method = config.method.model_dump()
    patches = (config.data.size[0] // 8) * (config.data.size[1] // 8)
    assert 488 * patches * method["coreset_ratio"] < method["max_bank"]
    assert 489 * patches * method["coreset_ratio"] > method["max_bank"]


@pytest.mark.parametrize(
    ("options", "method"),
    [
        ({}, "dinomaly"),
        ({"options": {"data.white_level": 4095}}, "dinomaly"),
        ({"options": {"training.batch_size": 4}}, "patchcore"),
        ({"options": {"data": {"size": 384}}}, "patchcore"),
        ({"options": ["encoder={name: lite0}"]}, "patchcore"),
        ({"preset": "cpu"}, "dinomaly"),
        ({"preset": "gpu"}, "patchcore"),
        ({"encoder": "lite0"}, "patchcore"),
        ({"options": ["data.size=384"]}, "patchcore"),
        ({"options": {"method.max_bank": 40_000}}, "patchcore"),
    ],
)
def test_many_images_of_one_product(options: dict[str, Any], method: str) -> None:
    assert configure(data=table(620, "bolt"), device="cpu", **options).method.name == method


@pytest.mark.parametrize(
    ("images", "categories", "options", "method"),
    [
        # A fifth is held out.
        (610, ["bolt"], {}, "patchcore"),
        (611, ["bolt"], {}, "dinomaly"),
        (611, ["bolt", "nut"], {}, "patchcore"),
        (611, ["bolt", "nut"], {"separate": True}, "patchcore"),
        # 100 for the threshold are enough for 1%, and not for 0.5%.
        (620, ["bolt"], {"false_reject_rate": 0.005}, "patchcore"),
        (1100, ["bolt"], {"false_reject_rate": 0.005}, "dinomaly"),
        (620, ["bolt"], {"options": {"calibration.strategy": "leave-one-out"}}, "patchcore"),
        (489, ["bolt"], {"options": {"calibration.strategy": "off"}}, "dinomaly"),
        (800, ["bolt"], {"options": {"training.images_per_category": 400}}, "patchcore"),
    ],
)
def test_it_counts_the_images_that_teach(
    images: int, categories: list[str], options: dict[str, Any], method: str
) -> None:
    config = configure(data=table(images, *categories), device="cpu", **options)
    assert config.method.name == method


def test_a_file_that_decides_the_input_keeps_the_method(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    many = table(620, "bolt")
    for text, method in (
        ("data: {size: 384}", "patchcore"),
        ("data: {white_level: 4095}", "dinomaly"),
    ):
        file.write_text(text, encoding="utf-8")
        assert configure(data=many, device="cpu", config_file=file).method.name == method


def test_without_the_weights_of_a_vit_nothing_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    many = table(620, "bolt")
    monkeypatch.setattr("flawmap.auto.readable", lambda spec: False)
    config = configure(data=many, device="cpu")
    assert config.method.name == "patchcore"
    assert "flawmap doctor" in config.chosen[1]
    assert len(configure(data=table(30, "bolt"), device="cpu").chosen) == 1


def test_several_processes_come_to_one_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    # A cluster may set it where torchrun does not run.
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert configure(data=table(620, "bolt"), device="cpu").method.name == "dinomaly"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert configure(data=table(620, "bolt"), device="cpu").method.name == "patchcore"


def test_options_that_keep_patchcore_are_told() -> None:
    many = table(620, "bolt")
    config = configure(data=many, device="cpu", options={"training.batch_size": 4})
    assert "--method dinomaly" in config.chosen[1]


def test_dinomalys_usual_encoder_is_the_one_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_for = []
    monkeypatch.setattr("flawmap.auto.readable", lambda spec: looked_for.append(spec.name) or True)
    config = configure(data=table(620, "bolt"), device="cpu")
    assert looked_for == [config.encoder.name]


def test_beside_a_validation_split_all_others_teach() -> None:
    samples = tuple(
        replace(s, split="validation") if i >= 489 else s
        for i, s in enumerate(table(600, "bolt").samples)
    )
    data = SampleTable("/data", "folder", samples)
    assert configure(data=data, device="cpu").method.name == "dinomaly"
    fewer = SampleTable("/data", "folder", samples[1:])
    assert configure(data=fewer, device="cpu").method.name == "patchcore"


def bank(seconds: float | None, images: int = 800, cores: int = 2) -> int:
    given = Situation(images=images, learnt=images, budget=seconds, cores=cores)
    options, why = within_budget(given, make_config(method="patchcore"))
    assert not options or "a bank of at most" in why
    assert options.get("method.min_bank", 10_000) <= options.get("method.max_bank", 50_000)
    found: int = options.get("method.max_bank", 50_000)
    return found


def test_a_short_time_takes_a_smaller_bank() -> None:
    assert [bank(s) for s in (None, 600, 100, 70, 10, 1)] == [50_000] * 2 + [20_000, 10_000] + [
        5_000
    ] * 2
    assert bank(100, cores=16) == 50_000
    # A bank that holds everything, or a tenth of it, takes less than its limit would.
    assert bank(15, images=100) == 50_000


def test_where_the_time_is_not_known_nothing_is_left_out() -> None:
    slow = Situation(images=10_000, learnt=10_000, budget=1)
    own = make_config(method="patchcore")
    assert within_budget(slow, own)[0]
    other = make_config(method="patchcore", overrides=["encoder.name=vit-s14"])
    for given, config in ((slow, other), (replace(slow, gpu=True), own)):
        options, why = within_budget(given, config)
        assert options == {}
        assert why.startswith("the time budget is not followed")
    assert within_budget(replace(slow, budget=None), other) == ({}, "")


def test_a_time_that_is_too_short_is_told() -> None:
    config = make_config(method="patchcore")
    options, why = within_budget(Situation(images=5000, learnt=5000, budget=30), config)
    assert options["method.max_bank"] == 5_000
    assert why == "a bank of at most 5000 patches still takes over the time given, about 5 min 27 s"
    least = make_config(method="patchcore", overrides={"method.max_bank": 1_000})
    options, why = within_budget(Situation(images=5000, learnt=5000, budget=30), least)
    assert (options, "at most 1000 patches still takes over" in why) == ({}, True)


def test_a_bank_that_is_named_is_not_made_smaller() -> None:
    options = {"method.max_bank": 50_000, "training.device": "cpu"}
    config = configure(data=table(800, "bolt"), options=options, time_budget=10)
    assert config.method.model_dump()["max_bank"] == 50_000
    assert config.method.model_dump()["min_bank"] == 10_000
    assert config.chosen[-1] == "the time budget is not followed: method.max_bank is named"


def test_a_model_of_each_product_has_a_bank_of_its_own() -> None:
    config = make_config(method="patchcore")
    together = Situation(images=800, learnt=800, budget=150, products=2, together=True)
    apart = replace(together, together=False)
    assert within_budget(together, config)[0]["method.max_bank"] == 20_000
    assert within_budget(apart, config) == ({}, "")


def test_the_estimate_counts_what_the_method_keeps() -> None:
    given = Situation(images=800, learnt=800, budget=100)
    thin = make_config(method="patchcore", overrides={"method.coreset_ratio": 0.01})
    assert within_budget(given, thin) == ({}, "")
    small = make_config(method="patchcore", overrides={"data.size": 128})
    assert within_budget(given, small) == ({}, "")


def test_what_it_sees_of_the_images() -> None:
    two = table(30, "bolt", "nut")
    common = make_config(method="patchcore", overrides={"training.device": "cpu"})
    given = situation(two, common, None)
    assert (given.images, given.learnt, given.together, given.gpu) == (60, 60, True, False)
    few = make_config(
        overrides={"training.images_per_category": 2, "separate": True, "training.device": "cuda"}
    )
    given = situation(two, few, "lite1")
    assert (given.images, given.learnt, given.together, given.gpu) == (60, 4, False, True)
    assert given.encoder == "lite1"


def test_it_is_the_default_and_says_so(rings: Path, tmp_path: Path) -> None:
    detector = flawmap.fit(rings, output=tmp_path / "m.flawmap", options=TINY)
    assert detector.config.method.name == "patchcore"
    assert detector.config.chosen[0].startswith("patchcore: ")
    assert flawmap.load(tmp_path / "m.flawmap").config.chosen == detector.config.chosen
    named = flawmap.fit(rings, method="patchcore", options=TINY)
    assert named.config.chosen == ()


def test_options_of_the_user_win(monkeypatch: pytest.MonkeyPatch) -> None:
    many = table(1000, "bolt")
    monkeypatch.setattr("flawmap.auto.usable_cores", lambda: 2)
    short: dict[str, Any] = {"time_budget": 60, "data": many, "device": "cpu"}
    chosen = configure(**short)
    assert chosen.method.model_dump()["max_bank"] < 50_000
    assert len(chosen.chosen) == 2
    given = configure(**short, options={"method.max_bank": 40_000, "method.min_bank": 9})
    assert given.method.model_dump()["max_bank"] == 40_000
    assert given.chosen[1:] == ("the time budget is not followed: method.max_bank is named",)


def test_a_file_names_the_method_or_does_not(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"

    def made(text: str, **options: Any) -> Config:
        file.write_text(text, encoding="utf-8")
        return configure(config_file=file, device="cpu", **options)

    for text in ("method: {max_bank: 5000}", "method: {name: auto, max_bank: 5000}"):
        config = made(f"{text}\nencoder: {{name: lite1}}\n")
        assert config.chosen
        assert config.method.model_dump()["max_bank"] == 5000
        assert config.encoder.name == "lite1"
    assert made("method: auto\n").chosen
    named = made("method: {name: dinomaly, dropout: 0.3}\n")
    assert (named.method.name, named.chosen) == ("dinomaly", ())
    assert made("method: {name: dinomaly, dropout: 0.3}\n", method="auto").chosen
    with pytest.raises(ConfigError, match="is no option"):
        made("chosen: [mine]\n")
    with pytest.raises(ConfigError, match="is no option"):
        configure(options={"chosen": ["mine"]})


def test_wrong_names_are_told_before_images_are_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown option 'data\.siz'"):
        flawmap.fit(tmp_path, options={"data.siz": 64})
    with pytest.raises(ConfigError, match="did you mean 'auto'"):
        configure(method="atuo")
    with pytest.raises(ConfigError, match="'patchcore' was chosen; --method names another"):
        configure(options={"method.zzz": 4})


def test_it_goes_on_as_the_model_began(two_products: Path) -> None:
    options = {
        "encoder.name": "lite0",
        "data.size": 64,
        "training.iterations": 2,
        "training.batch_size": 4,
        "method.dropout": 0.3,
    }
    bolt = read_data(two_products).only(["bolt"])
    start = flawmap.fit(bolt, method="dinomaly", options=options)
    more = flawmap.fit(
        two_products, start=start, options={"training.iterations": 2, "training.batch_size": 4}
    )
    assert isinstance(more, Detector)
    assert more.config.method == start.config.method
    assert (more.config.encoder, more.config.data) == (start.config.encoder, start.config.data)
    assert more.config.chosen == ("dinomaly: as the model that the fit starts with",)


def test_it_is_a_line_of_a_benchmark(rings: Path) -> None:
    grid = make_grid({"data": {"rings": str(rings)}, "methods": ["auto", "patchcore"]})
    auto, patchcore = cells_of(grid)
    assert (auto.label, auto.config.method.name) == ("auto", "patchcore")
    assert auto.key != patchcore.key
    one = auto.config.model_dump(mode="json")
    assert deciding(one) == deciding({**one, "chosen": ["another wording"]})
    assert "chosen" not in deciding(patchcore.config.model_dump(mode="json"))
    assert (auto.about["named"], "named" in patchcore.about) == ({}, False)
    named = {"method": "auto", "encoder": "lite1", "options": {"training.batch_size": 4}}
    (more,) = cells_of(make_grid({"data": {"rings": str(rings)}, "methods": [named]}))
    assert more.about["named"] == {"encoder.name": "lite1", "training.batch_size": 4}


def test_a_benchmark_chooses_for_its_device(rings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    grid = make_grid({"data": {"rings": str(rings)}, "methods": ["auto"]})
    batch = [cells_of(grid, device=d)[0].config.training.batch_size for d in ("auto", "cpu")]
    assert batch == [64, 16]

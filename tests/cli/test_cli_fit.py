from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flawmap import api
from flawmap.cli.main import run
from flawmap.scoring.calibration import Calibration, CategoryCalibration, conformal


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replaces the fit; holds what it was called with."""
    called: dict[str, Any] = {}
    scores = np.arange(1.0, 100.0)
    detector = SimpleNamespace(
        fabric=SimpleNamespace(is_global_zero=True),
        config=SimpleNamespace(
            method=SimpleNamespace(name="patchcore"),
            encoder=SimpleNamespace(name="lite0"),
            separate=False,
            chosen=("patchcore: for a reason",),
            calibration=SimpleNamespace(strategy="auto"),
        ),
        categories=("cable", "screw"),
        calibration=Calibration(0.01, {"screw": CategoryCalibration(scores, scores, True)}),
        fitted=SimpleNamespace(
            data={
                "learnt_images": 396,
                "held_out_images": 99,
                "test_images": 7,
                "skipped": [["bad.png", "it is truncated"]],
                "fingerprint": "f" * 64,
            },
            seconds={"read images": 1.5, "learn": 70.0},
            device="cpu, 2 threads",
            precision="32-true",
        ),
    )

    def fit(data: Path, **options: Any) -> Any:
        called.update(options, data=data)
        options["progress"].note("learning")
        options["progress"].warn("no threshold")
        options["output"].write_bytes(b"x" * 4200)
        return detector

    monkeypatch.setattr(api, "fit", fit)
    return called


def test_every_option_reaches_the_fit(fitted: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "m.flawmap"
    options = (
        "--method dinomaly --encoder vit-s14 --preset gpu --format mvtec --category cable "
        "--category screw --separate --seed 3 --time-budget 5m --false-reject-rate 0.02 "
        "--set a.b=c --set d.e=f --config c.yaml --resume --start old.flawmap --skip-bad"
    )
    assert run(["fit", "photos", "--output", str(output), *options.split()]) == 0
    fitted.pop("progress")
    assert fitted == {
        "data": Path("photos"),
        "output": output,
        "method": "dinomaly",
        "encoder": "vit-s14",
        "preset": "gpu",
        "format": "mvtec",
        "categories": ["cable", "screw"],
        "separate": True,
        "seed": 3,
        "time_budget": "5m",
        "false_reject_rate": 0.02,
        "config_file": Path("c.yaml"),
        "options": ["a.b=c", "d.e=f"],
        "resume": True,
        "start": Path("old.flawmap"),
        "skip_bad": True,
    }


def test_the_summary_and_the_next_command(
    fitted: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "my model.flawmap"
    assert run(["fit", "photos", "-o", str(output)]) == 0
    shown = capsys.readouterr()
    assert f"{output}  4.2 kB" in shown.out
    assert "    chosen    patchcore: for a reason\n" in shown.out
    assert "396 learnt, 99 held out, 1 skipped" in shown.out
    assert "skipped bad.png: it is truncated" in shown.out
    assert "1 min 12 s (read images 1.5 s, learn 1 min 10 s)" in shown.out
    assert f"screw: 99; {conformal(np.arange(1.0, 100.0), 0.01).explain()}" in shown.out
    assert "cable: no threshold" in shown.out
    assert f"flawmap evaluate '{output}' photos --report report.html" in shown.err
    assert "learning" in shown.err


def test_the_output_may_lie_in_the_home_folder(
    fitted: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(["fit", "photos", "--output=~/m.flawmap"]) == 0
    assert fitted["output"] == tmp_path / "m.flawmap"
    assert capsys.readouterr().out.startswith(f"{tmp_path}/m.flawmap  4.2 kB")


def test_the_json_stands_alone(
    fitted: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "m.flawmap"
    assert run(["fit", "photos", "-o", str(output), "--json", "--quiet"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    # Quiet is no progress: what a user must know is said all the same.
    assert shown.err == "warning: no threshold\n"
    assert found["bundle"] == str(output)
    assert found["bytes"] == 4200
    assert found["chosen"] == ["patchcore: for a reason"]
    assert found["images"] == {
        "learnt": 396,
        "held_out": 99,
        "skipped": [{"path": "bad.png", "reason": "it is truncated"}],
    }
    assert found["thresholds"]["screw"]["value"] == 99.0
    assert found["thresholds"]["screw"]["exact"] is True
    assert "cable" not in found["thresholds"]

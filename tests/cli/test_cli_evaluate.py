"""The figures that `flawmap evaluate` prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flawmap import api
from flawmap.cli.main import run
from flawmap.evaluation import CategoryResult, Evaluation
from flawmap.metrics.catalog import ALWAYS


def evaluation(format: str, *metrics: str) -> Evaluation:
    """One category; the figures are 0.01, 0.02 and so on."""
    found = {name: i / 100 for i, name in enumerate((*ALWAYS, *metrics), start=1)}
    counts = {"good": 3, "defect": 2, "defects_with_mask": 2}
    part = CategoryResult(found, {}, None, (), counts)
    return Evaluation({"bolt": part}, found, 2.0, {"format": format})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the Python verb is given; it finds what it is asked for, on the data named "format"."""
    given: dict[str, Any] = {}

    def evaluate(detector: str, data: Path, **options: Any) -> Evaluation:
        given.update(options)
        return evaluation(data.name, *(m for m in options["metrics"] if m not in ALWAYS))

    monkeypatch.setattr(api, "evaluate", evaluate)
    monkeypatch.setattr("flawmap.loading.load", lambda *_, **__: "detector")
    monkeypatch.setattr("flawmap.bundle.require_file", lambda path: None)
    return given


def lines(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_the_seven_alone_need_no_mark(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", "m", "mvtec"]) == 0
    head, bolt, mean, *rest = lines(capsys)
    shown = "category I-AUROC I-AP I-F1max P-AUROC P-AP P-F1max AUPRO false reject escape"
    assert head == shown.split()
    assert bolt == ["bolt", *(f"0.0{i}00" for i in range(1, 8)), "13.00%", "14.00%"]
    assert mean[1:] == bolt[1:]
    assert not any("*" in word for line in rest for word in line)
    assert asked["metrics"] == ()


def test_metrics_that_are_asked_for_stand_beside_and_are_marked(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("aupro_0.05", "segf1", "aupro_original", "aupro", "segf1")
    assert run(["evaluate", "m", "mvtec", *(f"--metric={name}" for name in names)]) == 0
    out = capsys.readouterr().out
    head, bolt, *_ = out.splitlines()
    assert head.endswith("  AUPRO  AUPRO.05*  SegF1*  AUPRO orig.  false reject  escape")
    assert bolt.split()[8:11] == ["0.1500", "0.1600", "0.1100"]
    assert "\n* AUPRO.05: not the official metric: AUPRO up to an FPR of 0.05" in out
    assert "\n* SegF1: not the official metric: pixel F1 at the calibrated" in out
    assert asked["metrics"] == ("aupro_0.05", "segf1", "aupro_original", "aupro")


def test_what_is_official_for_the_data_is_not_marked(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", "m", "mvtec-ad-2", "--metric", "segf1"]) == 0
    head, *_ = out = capsys.readouterr().out.splitlines()
    shown = "category I-AUROC I-AP I-F1max P-AUROC* P-AP* P-F1max* AUPRO* SegF1 false reject escape"
    assert head.split() == shown.split()
    notes = [line for line in out if line.startswith("*")]
    # Nothing is said of columns that are not shown.
    assert [note.split(":")[0] for note in notes] == ["* P-AUROC", "* P-AP", "* P-F1max", "* AUPRO"]
    assert all("not the official metric of MVTec AD 2: " in note for note in notes)


def test_json_gives_them_under_their_names_and_says_what_is_not_official(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", "m", "mvtec", "--metric", "pro_per_image_original", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mean"]["pro_per_image_original"] == 0.15
    assert found["categories"]["bolt"]["pro_per_image_original"] == 0.15
    assert list(found["not_official"]) == ["pro_per_image_original"]


def test_an_unknown_metric_gets_the_nearest_name_before_the_model_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", str(tmp_path / "none"), "data", "--metric", "aupro0.05"]) == 2
    error = capsys.readouterr().err
    assert "unknown metric 'aupro0.05'" in error
    assert "did you mean 'aupro_0.05'?" in error

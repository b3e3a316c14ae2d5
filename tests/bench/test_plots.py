from __future__ import annotations

import builtins
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flawmap.bench.plots import plot
from flawmap.bench.results import StoredCell
from flawmap.errors import ConfigError

Make = Callable[..., StoredCell]


@pytest.fixture
def cells(stored: Make) -> list[StoredCell]:
    cost = {"fit_seconds": 10.0, "images_per_second": 5.0, "parameters": 1e6}
    return [
        stored(label, {"x": {"image_auroc": value}}, seed=seed, cost=cost)
        for label, value in (("patchcore", 0.9), ("dinomaly", 0.95))
        for seed in (0, 1)
    ]


def test_a_panel_per_cost_with_every_method_named(cells: list[StoredCell], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "plot.svg"
    plot(cells, target)
    text = target.read_text(encoding="utf-8")
    for words in (
        "images/s",
        "parameters, M",
        "fit, s",
        "patchcore",
        "dinomaly",
        "parts, separate",
    ):
        assert words in text
    again = tmp_path / "again.svg"
    plot(cells, again)
    assert again.read_text(encoding="utf-8") == text


def test_an_axis_that_is_marked_has_its_footnote(stored: Make, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    cost = {"fit_seconds": 10.0}
    figures = {"x": {"spro_0.05_by_kind": 0.5, "pixel_auroc": 0.5}}
    loco = [stored("a", figures, cost=cost, format="mvtec-loco")]
    target = tmp_path / "plot.svg"

    def drawn(metric: str) -> str:
        plot(loco, target, metric=metric, against=["fit_seconds"])
        # Letters are drawn as curves; what they say stands in comments.
        return " ".join(re.findall("<!-- (.*?) -->", target.read_text(encoding="utf-8")))

    official = drawn("spro_0.05_by_kind")
    assert "sPRO.05 by kind, %" in official
    assert "official" not in official
    marked = drawn("pixel_auroc")
    assert "P-AUROC*, %" in marked
    assert "* P-AUROC: not the official metric of MVTec LOCO" in marked


def test_a_cost_on_the_vertical_axis_has_its_own_unit(
    cells: list[StoredCell], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "plot.svg"
    plot(cells, target, metric="images_per_second", against=["fit_seconds"])
    drawn = re.findall("<!-- (.*?) -->", target.read_text(encoding="utf-8"))
    assert "images/s" in drawn
    assert not any("%" in words for words in drawn)
    assert "500" not in drawn


def test_marks_of_one_colour_may_be_joined(cells: list[StoredCell], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "plot.svg"
    apart, joined = (
        (plot(cells, target, against=["fit_seconds"], by_category=True, join=join), target)[1]
        .read_text(encoding="utf-8")
        .count('id="line2d_')
        for join in (False, True)
    )
    assert joined == apart + 1
    assert "parts/x, separate" in target.read_text(encoding="utf-8")


def test_pictures_in_other_forms(cells: list[StoredCell], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot(cells, tmp_path / "p.png", against=["fit_seconds"])
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_wrong_names(cells: list[StoredCell], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="form of the picture"):
        plot(cells, tmp_path / "p.gif")
    with pytest.raises(ConfigError, match="did you mean 'fit_seconds'"):
        plot(cells, tmp_path / "p.svg", against=["fit_secs"])
    pytest.importorskip("matplotlib")
    with pytest.raises(ConfigError, match="unknown column"):
        plot(cells, tmp_path / "p.svg", metric="auroc")


def test_without_matplotlib_it_says_what_to_install(
    cells: list[StoredCell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="flawmap\\[bench\\]"):
        plot(cells, tmp_path / "p.svg")


def test_many_lines_are_told_apart_and_what_is_partial_is_hollow(
    stored: Make, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    from flawmap.bench.plots import _colour, _marker

    names = [f"line {i}" for i in range(30)]
    assert len({_marker(names, name) for name in names}) == 30
    places = [(name, "separate") for name in names]
    assert len({_colour(places, place) for place in places}) == 30
    cost = {"fit_seconds": 10.0, "images_per_second": 5.0, "parameters": 1e6}
    whole = {"x": {"image_auroc": 0.9}, "y": {"image_auroc": 0.8}}
    cells = [stored("a", whole, cost=cost), stored("b", {"x": whole["x"]}, cost=cost)]
    target = tmp_path / "plot.svg"
    plot(cells, target, join=True)
    assert "hollow: not over all categories or seeds" in target.read_text(encoding="utf-8")
    plot(cells[:1], target)
    assert "hollow" not in target.read_text(encoding="utf-8")


def test_times_that_are_not_comparable_are_hollow_and_told(stored: Make, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from flawmap.bench.plots import _panel
    from flawmap.bench.table import make_table

    cost = {"fit_seconds": 10.0, "parameters": 1e6}
    figures = {"x": {"image_auroc": 0.9}}
    cells = [
        stored("alone", figures, cost=cost, environment={"device": "two, cores", "jobs": 1}),
        stored("beside", figures, cost=cost, environment={"device": "a card", "jobs": 2}),
        stored("resumed", figures, cost={**cost, "fit_resumed": True}),
    ]
    target = tmp_path / "plot.svg"

    def told(*against: str, of: list[StoredCell] = cells) -> str:
        plot(of, target, against=against)
        return " ".join(re.findall("<!-- (.*?) -->", target.read_text(encoding="utf-8")))

    words = told("fit_seconds")
    assert "hollow: not over all categories or seeds, or timed beside other cells" in words
    assert "beside: times were taken while other cells ran on the same machine" in words
    assert "resumed: a fit was stopped and resumed" in words
    assert "times of several devices: 2 cores; a card; two, cores" in words
    for mark in ("hollow", "times", "resumed:"):
        assert mark not in told("parameters")
        assert mark not in told("fit_seconds", of=cells[:1])
    # What is true of all lines needs no names.
    assert "beside: times" not in told("fit_seconds", of=cells[1:2])
    table = make_table(cells, columns=("image_auroc", "fit_seconds", "parameters"))
    faces = {}
    for name in ("fit_seconds", "parameters"):
        panel = Figure().subplots()
        data = [("parts", "separate")]
        _panel(panel, table.lines, table.columns[0], name, [c.label for c in cells], data, False)
        faces[name] = [bar.lines[0].get_markerfacecolor() for bar in panel.containers]
    # One that was resumed has no time.
    assert faces == {"fit_seconds": ["C0", "none"], "parameters": ["C0"] * 3}

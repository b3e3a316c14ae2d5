from __future__ import annotations

import io
import json
import sys

import pytest
from rich.console import Console
from rich.progress import Progress

from flawmap.cli import show


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_live_bar_does_not_draw_results_away_from_a_pipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe, terminal = io.StringIO(), Terminal()
    monkeypatch.setattr(sys, "stdout", pipe)
    with Progress(console=Console(file=terminal, force_terminal=True)), show.JsonArray() as array:
        array.add({"a": 1})
        array.add({"b": "ü"})
    assert json.loads(pipe.getvalue()) == [{"a": 1}, {"b": "ü"}]
    assert '"a"' not in terminal.getvalue()


def test_an_empty_array(capsys: pytest.CaptureFixture[str]) -> None:
    with show.JsonArray():
        pass
    assert capsys.readouterr().out == "[]\n"


def test_a_table_is_plain_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show.table(["name", "n"], [["[bold]", "1"], ["b", "100"]])
    assert capsys.readouterr().out == "name      n\n[bold]    1\nb       100\n"


def test_a_table_on_a_terminal_does_not_read_names_as_markup(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    show.table(["name", "n"], [["[bold]", "1"]])
    assert "[bold]" in terminal.getvalue()


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (4200, "4.2 kB"), (3.5e9, "3.5 GB")]
)
def test_sizes(value: float, text: str) -> None:
    assert show.size(value) == text


def test_undefined_figures_are_dashes() -> None:
    assert show.number(float("nan")) == show.number(None) == show.percent(float("nan")) == "-"
    assert (show.number(0.98765), show.percent(0.0123)) == ("0.9877", "1.23%")

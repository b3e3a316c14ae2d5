from __future__ import annotations

import pytest

from flawmap.errors import FlawmapWarning
from flawmap.progress import Live, Mute, Plain, Quiet, Silent, clock, duration


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.rstrip().splitlines()[-1]


def test_a_bar_shows_one_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with Live().task("Benchmark", 10) as task:
        task.update(2, seconds_left=5400, now="fit")
    line = last_line(capsys)
    assert "2/10" in line
    assert "about 1 h 30 min left" in line
    # The time that has passed, and none that is left beside it.
    assert line.count(":") == 2


def test_a_bar_without_a_caller_that_knows_better_shows_the_rate_and_its_clock(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Live().task("Fitting", 10) as task:
        task.update(2, loss=0.5)
    line = last_line(capsys)
    assert "/s" in line
    assert "left" not in line
    assert line.count(":") == 4


def test_a_bar_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with Live().task("bolt[red]", 10) as task:
        task.update(2, now="[/a/b] c")
    line = last_line(capsys)
    assert "bolt[red]" in line
    assert "now [/a/b] c" in line


def test_a_log_shows_the_callers_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flawmap.progress._PLAIN_SECONDS", 0.0)
    with Plain().task("Benchmark", 10) as task:
        task.update(2, seconds_left=90, now="fit")
    assert capsys.readouterr().err == "Benchmark: 2/10, now fit, 2 min left\n"


def test_a_warning_is_heard_where_progress_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    for shown in (Quiet(), Plain(), Live()):
        shown.warn("no threshold")
        assert capsys.readouterr().err == "warning: no threshold\n"
    with pytest.warns(FlawmapWarning, match="no threshold"):
        Silent().warn("no threshold")
    Quiet().note("all is well")
    Mute().warn("no threshold")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((1.26, "1.3 s"), (59.96, "1 min 0 s"), (71.5, "1 min 12 s"), (119.9, "2 min 0 s")),
        (7300, "2 h 1 min"),
    ],
)
def test_what_has_passed(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_is_left() -> None:
    assert [clock(s) for s in (3, 119, 150, 5400)] == ["3 s", "2 min", "2 min", "1 h 30 min"]

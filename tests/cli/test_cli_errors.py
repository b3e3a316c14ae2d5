from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flawmap import api, errors
from flawmap.cli.errors import as_text
from flawmap.cli.main import run

FIT = ["fit", "photos", "--output", "m.flawmap"]


def fails_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fit(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(api, "fit", fit)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.ConfigError, 2),
        (errors.DataError, 3),
        (errors.WeightsError, 4),
        (errors.FitError, 5),
        (errors.BundleError, 6),
        (errors.ExportError, 7),
        (errors.ServeError, 8),
    ],
)
def test_each_error_has_its_exit_code_and_its_text_on_standard_error(
    kind: type[errors.FlawmapError],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fails_with(monkeypatch, kind("it broke", where="here", hint="mend it"))
    assert run(FIT) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "error: it broke\n  where: here\n  what to do: mend it\n"


def test_with_json_an_error_is_one_object_on_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails_with(monkeypatch, errors.DataError("it broke", where="bad\udcff.png", given=3))
    assert run([*FIT, "--json"]) == 3
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {
        "error": "DataError",
        "message": "it broke",
        "where": "bad\udcff.png",
        "given": "3",
        "expected": None,
        "hint": None,
        "exit_code": 3,
    }
    assert shown.err.startswith("error: it broke")


def test_an_unexpected_error_is_one_line_and_a_way_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails_with(monkeypatch, ZeroDivisionError("division\nby zero"))
    assert run(FIT) == 1
    shown = capsys.readouterr()
    assert shown.err.splitlines()[0] == "error: unexpected ZeroDivisionError: division by zero"
    assert "--debug" in shown.err
    assert "report" in shown.err
    assert "Traceback" not in shown.err


@pytest.mark.parametrize("place", ["before", "behind"])
def test_debug_shows_the_traceback(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails_with(monkeypatch, errors.DataError("it broke"))
    assert run(["--debug", *FIT] if place == "before" else [*FIT, "--debug"]) == 3
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "it broke" in shown


def test_debug_behind_two_dashes_is_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "--", "--debug"]) == 3
    assert "where: --debug" in capsys.readouterr().err


def test_ctrl_c_tells_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails_with(monkeypatch, KeyboardInterrupt())
    assert run(FIT) == 130
    assert "--resume goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fti"], "Did you mean 'fit'?"),
        (["fit", "photos", "--outptu", "x"], "--output"),
        (["fit", "photos"], "--output"),
        (["fit"], "DATA"),
        (["fit", "photos", "-o", "x", "--seed", "one"], "--seed"),
        (["predict", "m.flawmap", "x.png", "--batch-size", "0"], "--batch-size"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
    assert "--help'" in shown.err


def test_a_wrong_command_line_with_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fit", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["error"] == "UsageError"
    assert "DATA" in found["message"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "dinomali"], "did you mean 'dinomaly'?"),
        (["--preset", "gpuu"], "did you mean 'gpu'?"),
        (["--set", "method.coreset_ration=0.1"], "did you mean 'method.coreset_ratio'?"),
        (["--set", "trainig.iterations=5"], "did you mean 'training'?"),
        (["--format", "mvtek"], "did you mean 'mvtec'?"),
        (["--time-budget", "soon"], "a number and its unit: 90s, 5m or 1.5h"),
        (["--set", "nothing"], "name=value"),
    ],
)
def test_a_wrong_name_gets_the_nearest_right_one(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(["fit", str(tmp_path), "--output", str(tmp_path / "m.flawmap"), *arguments])
    assert code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "m.flawmap").exists()


def test_a_closed_pipe_is_quiet() -> None:
    command = f"{sys.executable} -m flawmap.cli.main --help | true; echo ${{PIPESTATUS[0]}}"
    done: Any = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    # The help may be through before the reader is gone.
    assert done.stdout.strip() in ("141", "0")


def test_too_little_memory_of_a_card_is_no_fault_of_the_program() -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    text = as_text(OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert text.startswith("error: the graphics card has too little memory: CUDA out of memory.")
    assert "training.batch_size" in text
    assert "report it" not in text

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from typer.models import CommandInfo

from flawmap import __version__, api
from flawmap.cli import bench, demo, fit
from flawmap.cli.main import app, run
from flawmap.files import as_path

COMMANDS = (
    "fit",
    "evaluate",
    "predict",
    "calibrate",
    "inspect",
    "split",
    "synthesise",
    "methods",
    "encoders",
    "demo",
    "doctor",
)


def test_every_command_has_its_test() -> None:
    assert tuple(command.name for command in app.registered_commands) == COMMANDS


def test_every_path_of_a_command_is_expanded() -> None:
    unexpanded = []
    for command in [*app.registered_commands, *bench.app.registered_commands]:
        for name, hint in get_type_hints(command.callback, include_extras=True).items():
            kind, *described = get_args(hint) or (hint,)
            if Path in (kind, *get_args(kind)) and described[0].parser is not as_path:
                unexpanded.append(f"{command.name} {name}")
    assert unexpanded == []


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_the_help_names_every_command_and_the_exit_codes(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    for command in (*COMMANDS, "bench"):
        assert f"\n  {command} " in shown.out
    assert "Exit codes:" in shown.out
    assert "..." not in shown.out.split("Commands:")[1]


def test_the_help_of_bench_leads_to_the_options_of_a_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["bench", "--help"]) == 0
    text = capsys.readouterr().out
    assert "'flawmap bench run --help'" in text
    # No summary is cut off.
    assert "..." not in text.split("Commands:")[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Usage: flawmap {command}" in text
    assert "--json" in text


@pytest.mark.parametrize(
    "command",
    [*app.registered_commands, *bench.app.registered_commands],
    ids=lambda command: command.name,
)
def test_every_option_says_what_it_does(command: CommandInfo) -> None:
    assert command.callback is not None
    hints = get_type_hints(command.callback, include_extras=True)
    hints.pop("return")
    for name, hint in hints.items():
        assert hint.__metadata__[0].help, name


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            "fit",
            "--output --method --encoder --preset --format --category --separate --seed "
            "--time-budget --false-reject-rate --set --resume --skip-bad",
        ),
        ("evaluate", "--report --format --category --metric --skip-bad"),
        (
            "predict",
            "--output --maps --overlays --map-format --category --skip-bad --fail-on-defect",
        ),
        ("calibrate", "--false-reject-rate --output"),
    ],
)
def test_the_options_are_there(
    command: str, options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run([command, "--help"])
    text = capsys.readouterr().out
    for option in options.split():
        assert option in text


def test_the_help_names_every_optional_metric(capsys: pytest.CaptureFixture[str]) -> None:
    from flawmap.metrics.catalog import ALWAYS, CATALOG, names

    run(["evaluate", "--help"])
    text = capsys.readouterr().out
    listed = re.search(r"Metrics for --metric:\n(.*?)\n *With _original", text, re.DOTALL)
    assert listed is not None
    found = [line.split()[0] for line in listed[1].splitlines()]
    assert found == [name for name in CATALOG if name not in ALWAYS]
    # "The first five" are those with a form at original size.
    assert [name for name in found if f"{name}_original" in names()] == found[:5]
    assert "the first five are taken at original size" in text


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"flawmap {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"], ["predict", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, json\n"
        "from flawmap.cli.main import run\n"
        f"code = run({arguments!r})\n"
        "heavy = ['torch', 'numpy', 'rich', 'PIL', 'yaml', 'timm', 'matplotlib', 'scipy']\n"
        "print(json.dumps([code, [m for m in heavy if m in sys.modules]]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]


def test_the_defaults_are_those_of_the_python_interface() -> None:
    ours, theirs = inspect.signature(fit.run).parameters, inspect.signature(api.fit).parameters
    same = ("method", "encoder", "preset", "format", "separate", "seed", "time_budget")
    for name in (*same, "false_reject_rate", "resume", "skip_bad"):
        assert ours[name].default == theirs[name].default, name
    assert inspect.signature(demo.run).parameters["method"].default == theirs["method"].default

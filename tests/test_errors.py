"""Messages name what was wrong, and the nearest right thing."""

from __future__ import annotations

import subprocess
import sys

from flawmap.errors import ConfigError, DataError, missing_extra, nearest, unknown_name


def test_every_part_of_a_message_is_shown() -> None:
    error = DataError("it broke", where="a.png", given=3, expected="4", hint="mend it")
    assert str(error).splitlines() == [
        "it broke",
        "  where: a.png",
        "  given: 3",
        "  expected: 4",
        "  what to do: mend it",
    ]
    assert error.to_dict()["given"] == "3"
    assert (error.exit_code, error.http_status) == (3, 400)


def test_the_nearest_name() -> None:
    assert nearest("patchcor", ["dinomaly", "patchcore"]) == "patchcore"
    assert nearest("zzz", ["dinomaly"]) is None
    error = unknown_name("level", "l5", [f"l{i:03d}" for i in range(100)], where="x")
    assert "and 70 more" in str(error)


def test_a_missing_torch_says_what_to_install() -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from flawmap.cli.main import main\n"
        "sys.argv = ['flawmap', 'fit', '.', '-o', 'x.flawmap']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == ConfigError.exit_code
    assert "pip install torch torchvision" in done.stderr
    assert missing_extra(ImportError("x", name="somethingelse")) is None

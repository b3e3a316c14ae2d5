"""What is imported when, and what is public."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import flawmap

SOURCE = Path(flawmap.__file__).parent

# Lower layers first: a module may import from its own layer and from those before it.
LAYERS = [
    [
        *("errors", "types", "files", "registry", "progress", "quantities", "resources"),
        *("versions", "wording", "explain"),
    ],
    ["config", "idle"],
    ["metrics", "scoring", "data", "encoders", "bundle"],
    ["methods", "training", "pixels", "auto"],
    ["detector", "loading"],
    ["evaluation", "outputs"],
    ["report", "recalibrate"],
    ["api"],
    ["bench"],
    ["cli"],
    ["__main__"],
]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize(
    "code",
    [
        "import flawmap",
        "import flawmap.cli.main",
        "import flawmap.errors, flawmap.types, flawmap.registry, flawmap.encoders",
        "import flawmap.scoring, flawmap.metrics, flawmap.bundle",
    ],
)
def test_no_torch_is_loaded(code: str) -> None:
    found = run(f"{code}\nimport sys\nprint([m for m in ('torch', 'timm') if m in sys.modules])")
    assert found.strip() == "[]"


def test_import_flawmap_loads_nothing_heavy() -> None:
    found = run(
        "import flawmap, sys\n"
        "print([m for m in ('numpy', 'pydantic', 'rich', 'typer', 'PIL') if m in sys.modules])"
    )
    assert found.strip() == "[]"


def test_imports_flow_down_only() -> None:
    rank = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    wrong = []
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts == ("__init__",):
            continue
        here = parts[0]
        assert here in rank, f"{here} has no place in the layers"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flawmap."):
                there = str(node.module).split(".")[1]
                # fit builds a detector: the one upward step, named here so that it stays the one.
                if (here, parts[-1], there) == ("training", "fit", "detector"):
                    continue
                if rank[there] > rank[here]:
                    wrong.append(f"{path.relative_to(SOURCE)} imports {node.module}")
    assert wrong == []


def test_every_public_name_can_be_loaded() -> None:
    for name in flawmap.__all__:
        assert getattr(flawmap, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_that"):
        _ = flawmap.nothing_like_that


def test_no_file_holds_paths_of_a_machine() -> None:
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "/home/" not in text, path
        assert "/root/" not in text, path


def test_paths_of_users_are_expanded_in_one_place() -> None:
    found = [p for p in SOURCE.rglob("*.py") if "expanduser" in p.read_text(encoding="utf-8")]
    assert found == [SOURCE / "files.py"]


def test_the_package_runs_as_the_command_does() -> None:
    command = [sys.executable, "-m", "flawmap", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Usage: flawmap" in done.stdout

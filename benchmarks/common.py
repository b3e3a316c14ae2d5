"""What every benchmark writes beside its figures."""

from __future__ import annotations

import json
import subprocess
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import flawmap
from flawmap.training.device import describe_device


def meta(**more: Any) -> dict[str, Any]:
    """Device, versions, commit and date."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": done.stdout.strip() or None,
        "device": describe_device(device),
        "threads": torch.get_num_threads(),
        "versions": {
            "flawmap": flawmap.__version__,
            **{name: version(name) for name in ("torch", "timm", "numpy")},
        },
        **more,
    }


def write_results(path: Path, rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """A small JSON file: {"meta": ..., "rows": [...]}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"meta": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")

"""What every benchmark writes beside its figures."""

from __future__ import annotations

import json
import subprocess
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any


def meta(**more: Any) -> dict[str, Any]:
    """Device, versions, commit and date."""
    # Not above: a benchmark of memory must not begin with torch in it.
    import torch

    import flawmap
    from flawmap.training.device import describe_device

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": commit(),
        "device": describe_device(device),
        "threads": torch.get_num_threads(),
        "versions": {
            "flawmap": flawmap.__version__,
            **{name: version(name) for name in ("torch", "timm", "numpy")},
        },
        **more,
    }


def commit() -> str | None:
    """The commit whose code runs, "-dirty" if it was changed since; None outside a repository."""
    name = _git("rev-parse", "--short", "HEAD")
    if name is None:
        return None
    # Results written a moment ago are no change of the code.
    changed = _git("status", "--porcelain", "--", "../src", ".", ":!results")
    return f"{name}-dirty" if changed else name


def _git(*arguments: str) -> str | None:
    here = Path(__file__).parent
    done = subprocess.run(
        ["git", *arguments], cwd=here, capture_output=True, text=True, check=False
    )
    return None if done.returncode else done.stdout.strip()


def write_results(path: Path, rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """A small JSON file: {"meta": ..., "rows": [...]}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"meta": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")

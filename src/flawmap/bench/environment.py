"""On what, and with which versions, a figure was measured; and what it took of the machine."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flawmap
from flawmap.versions import version_of

if TYPE_CHECKING:
    import torch

_LIBRARIES = ("torch", "timm", "numpy", "scipy")


def code() -> dict[str, Any]:
    """Whose result a figure is: the commit, and the versions of what it is built on."""
    versions = {"flawmap": flawmap.__version__, "python": platform.python_version()}
    versions |= {name: v for name in _LIBRARIES if (v := version_of(name)) is not None}
    return {"commit": source_commit(), "versions": versions}


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """Device, threads, versions, commit and date, as plain JSON values.

    Args:
        device: What computed; by default what `training.device=auto` takes.
    """
    # Not above: what measures memory must not begin with torch in it.
    import torch

    from flawmap.training.device import describe_device, device_of

    device = device or torch.device(device_of("auto"))
    return {
        **code(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "device": describe_device(device),
        "threads": torch.get_num_threads(),
    }


def source_commit() -> str | None:
    """The commit whose code runs, "-dirty" if it was changed since; None for an installed copy."""
    source = Path(flawmap.__file__).parent
    # An installed copy may lie below somebody else's repository.
    if not (source.parent.parent / "pyproject.toml").is_file():
        return None
    name = _git(source, "rev-parse", "--short", "HEAD")
    if name is None:
        return None
    changed = _git(source, "status", "--porcelain", "--", ".")
    return f"{name}-dirty" if changed else name


def peak_memory_mib() -> float | None:
    """The most memory that this process ever held, in MiB; None where that cannot be told."""
    try:
        # Linux: of this program alone, not of the one that started it.
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except (OSError, ValueError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return None if done.returncode else done.stdout.strip()

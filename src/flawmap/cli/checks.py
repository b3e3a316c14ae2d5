"""The checks of `flawmap doctor`."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from flawmap.resources import available_memory, usable_cores
from flawmap.versions import version_of

Status = Literal["ok", "warning", "error"]

_OLDEST_PYTHON = (3, 10)
_REQUIRED = (
    *("numpy", "scipy", "pillow", "pydantic", "safetensors"),
    *("pyyaml", "threadpoolctl", "typer", "rich"),
)
_TORCH = ("torch", "torchvision", "timm", "lightning-fabric")
_MIB = 2**20
_DEFAULT_ENCODERS = ("lite0", "vit-s14")
"""Of the methods, for those who name none."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What.
        status: "error": fitting does not work. "warning": a part does not, or slowly.
        found: What was found.
        advice: What to do; "" when nothing is.
    """

    name: str
    status: Status
    found: str
    advice: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def run_checks() -> list[Check]:
    """Look at everything that fitting and scoring need."""
    found: list[Check] = []
    checks: tuple[Callable[[], Iterator[Check]], ...] = (
        _python,
        _packages,
        _torch,
        _onnx,
        _threads,
        _memory,
        _disk,
        _encoders,
    )
    for check in checks:
        found += check()
    return found


def _python() -> Iterator[Check]:
    text = sys.version.split()[0]
    good = sys.version_info[:2] >= _OLDEST_PYTHON
    yield Check(
        "python",
        "ok" if good else "error",
        text,
        "" if good else "install Python 3.10 or newer",
    )


def _packages() -> Iterator[Check]:
    for name in _REQUIRED:
        found = version_of(name)
        if found is None:
            yield Check(name, "error", "not installed", f"pip install {name}")
        else:
            yield Check(name, "ok", found)


def _torch() -> Iterator[Check]:
    versions = {name: version_of(name) for name in _TORCH}
    for name, found in versions.items():
        if found is None:
            advice = "pip install 'flawmap[torch]'"
            if name in ("torch", "torchvision"):
                advice += " (torch and torchvision from one place, in one command)"
            yield Check(name, "error", "not installed", advice)
        else:
            yield Check(name, "ok", found)
    if not all(versions.values()):
        return
    try:
        for module in ("torch", "torchvision", "timm", "lightning_fabric"):
            import_module(module)
    except Exception as error:  # Broken binaries raise whatever they like.
        yield Check(
            "torch with torchvision and timm",
            "error",
            f"they do not import together: {' '.join(str(error).split())}",
            "install torch and torchvision anew from the same place, in one command: "
            "pip install --force-reinstall torch torchvision",
        )
        return
    yield Check("torch with torchvision and timm", "ok", "they import together")
    yield from _devices()


def _devices() -> Iterator[Check]:
    import torch

    from flawmap.training.device import computes_bfloat16

    if torch.cuda.is_available():
        free, whole = torch.cuda.mem_get_info()
        found = f"cuda: {torch.cuda.get_device_name()}, {free // _MIB} of {whole // _MIB} MiB free"
        device = "cuda"
    else:
        # Named as what 'auto' picks; Apple's mps is used when asked for.
        found = "cpu"
        if torch.backends.mps.is_available():
            found += " (mps with --set training.device=mps)"
        device = "cpu"
    yield Check("device", "ok", found)
    fast = computes_bfloat16(device)
    yield Check(
        "bfloat16",
        "ok",
        f"native on {device}: used where a method's precision is auto"
        if fast
        else f"not native on {device}: float32 is used",
    )


def _onnx() -> Iterator[Check]:
    found = version_of("onnx")
    if found is None:
        yield Check(
            "onnx",
            "warning",
            "not installed; needed for the encoder vit-s14, and so for dinomaly's default",
            "pip install onnx",
        )
    else:
        yield Check("onnx", "ok", found)


def _threads() -> Iterator[Check]:
    cores = usable_cores()
    found = f"{cores} usable cores"
    torch = sys.modules.get("torch")
    if torch is not None:
        threads = torch.get_num_threads()
        found += f", torch computes with {threads}"
        if threads < cores // 2:
            yield Check(
                "threads",
                "warning",
                found,
                f"OMP_NUM_THREADS is {os.environ.get('OMP_NUM_THREADS', 'not set')}: "
                "unset it, or set it to the number of cores",
            )
            return
    yield Check("threads", "ok", found)


def _memory() -> Iterator[Check]:
    free = available_memory()
    if free is None:
        yield Check("memory", "ok", "unknown on this system")
        return
    mib = free // _MIB
    if mib < 2048:
        yield Check(
            "memory",
            "warning",
            f"{mib} MiB available",
            "close other programs, or fit with --set training.batch_size=4, and patchcore with "
            "--set method.memory_mib=256 too",
        )
    else:
        yield Check("memory", "ok", f"{mib} MiB available")


def _disk() -> Iterator[Check]:
    for name, place in (
        ("disk here", Path.cwd()),
        ("disk for temporary files", tempfile.gettempdir()),
    ):
        free = shutil.disk_usage(place).free // _MIB
        if free < 200:
            status: Status = "error"
        else:
            status = "warning" if free < 2048 else "ok"
        advice = "" if status == "ok" else "free some space: models and caches need about 2 GiB"
        yield Check(name, status, f"{free} MiB free in {place}", advice)


def _encoders() -> Iterator[Check]:
    from flawmap.encoders.table import ENCODERS
    from flawmap.encoders.weights import find, folder, missing, readable
    from flawmap.errors import WeightsError

    packaged = [spec for spec in ENCODERS.values() if spec.package is not None]
    found: dict[str, Path | None] = {}
    for spec in packaged:
        with suppress(WeightsError):
            file = find(spec)
            found[spec.name] = None if file is None else file.path
    try:
        folder()
    except WeightsError as error:
        wrong = f"{error.message}: {error.given}"
        yield Check(f"folder {error.where}", "warning", wrong, error.hint or "")
    for spec in packaged:
        if found.get(spec.name) is None:
            status: Status = "warning" if any(found.values()) else "error"
            if status == "warning" and spec.name not in _DEFAULT_ENCODERS:
                yield Check(f"encoder {spec.name}", "ok", "not installed; no method's default")
                continue
            yield Check(f"encoder {spec.name}", status, "weights missing", missing(spec).hint or "")
        elif not readable(spec):
            yield Check(
                f"encoder {spec.name}",
                "warning",
                "weights present, but reading them needs onnx",
                "pip install onnx",
            )
        else:
            yield Check(f"encoder {spec.name}", "ok", f"weights present ({found[spec.name]})")
    others = ", ".join(spec.name for spec in ENCODERS.values() if spec.package is None)
    yield Check("other encoders", "ok", f"{others} and timm's: from a file, see 'flawmap encoders'")

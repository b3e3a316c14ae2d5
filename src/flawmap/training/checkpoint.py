"""Checkpoints: one safetensors file, written atomically, from which a run goes on bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flawmap.errors import FitError
from flawmap.files import write_tensors

_METHOD = "method."
_OPTIMIZER = "optimizer."
_BEST = "best."


def save(
    path: Path,
    *,
    method: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer | None,
    info: Mapping[str, Any],
    best: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint.

    Args:
        path: The file; an older one is replaced only when the new one is complete.
        method: State of the method.
        optimizer: Its state is kept as well.
        info: Plain JSON values: the step, the plan, the identity of the run.
        best: State of the method at its lowest loss of held-out images.

    Raises:
        FitError: The disk is full or the folder cannot be written.
    """
    tensors = {_METHOD + name: _plain(value) for name, value in method.items()}
    tensors |= {_BEST + name: _plain(value) for name, value in (best or {}).items()}
    if optimizer is not None:
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                value = value if isinstance(value, Tensor) else torch.tensor(value)
                tensors[f"{_OPTIMIZER}{index}.{name}"] = _plain(value)
    metadata = {"info": json.dumps(info)}
    write_tensors(lambda p: save_file(tensors, p, metadata=metadata), path, error=FitError)


def load(path: Path) -> tuple[dict[str, Tensor], dict[int, dict[str, Tensor]], dict[str, Any]]:
    """Read a checkpoint: the method's state, the optimiser's state and the info; see `load_best`.

    Raises:
        FitError: The file cannot be read.
    """
    method: dict[str, Tensor] = {}
    optimizer: dict[int, dict[str, Tensor]] = {}
    with _opened(path) as file:
        info = json.loads(file.metadata()["info"])
        for name in file.keys():  # noqa: SIM118 - not a dictionary
            tensor = file.get_tensor(name)
            if name.startswith(_METHOD):
                method[name.removeprefix(_METHOD)] = tensor
            elif name.startswith(_OPTIMIZER):
                index, _, key = name.removeprefix(_OPTIMIZER).partition(".")
                optimizer.setdefault(int(index), {})[key] = tensor
    return method, optimizer, info


def method_of(path: Path) -> str:
    """The name of the method that a checkpoint is of.

    Raises:
        FitError: The file cannot be read.
    """
    with _opened(path) as file:
        return str(json.loads(file.metadata()["info"])["identity"]["options"]["method"]["name"])


def load_best(path: Path) -> dict[str, Tensor]:
    """The state with the lowest loss of held-out images, from a checkpoint that `load` has read."""
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(_BEST)]  # noqa: SIM118
        return {name.removeprefix(_BEST): file.get_tensor(name) for name in names}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, state: Mapping[int, Mapping[str, Tensor]]
) -> None:
    """Put a checkpoint's optimiser state back."""
    tree = optimizer.state_dict()
    tree["state"] = {index: dict(values) for index, values in state.items()}
    optimizer.load_state_dict(tree)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise FitError(
            f"the checkpoint cannot be read: {error}",
            where=str(path),
            hint="start without --resume",
        ) from error


def _plain(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous().clone()

"""Which device and precision a run uses."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import platform
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric

from flawmap.config import TrainingConfig
from flawmap.data.pool import Share
from flawmap.errors import ConfigError


def device_of(wanted: str) -> str:
    """The device that a name leads to; "auto" is a CUDA device if there is one, else the CPU."""
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def processes() -> int:
    """How many processes torchrun has started for this fit; 1 without it."""
    # Clusters set such variables too: only torchrun's own count.
    if not torch.distributed.is_torchelastic_launched():
        return 1
    return int(os.environ.get("WORLD_SIZE", "1"))


def make_fabric(config: TrainingConfig, *, together: bool = False) -> Fabric:
    """Lightning Fabric for one device, or for this process's share of several.

    Args:
        config: Device and precision.
        together: Join the processes that `torchrun` has started, if it has.

    Raises:
        ConfigError: The device asked for is not there.
    """
    device = device_of(config.device)
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present[device]:
        raise ConfigError(
            f"this machine has no usable {device} device",
            where="training.device",
            given=config.device,
            expected="one of: " + ", ".join(name for name, there in present.items() if there),
        )
    precision: Literal["bf16-mixed", "32-true"] = "32-true"
    if config.precision == "bfloat16" or (config.precision == "auto" and computes_bfloat16(device)):
        precision = "bf16-mixed"
    # Fabric announces its precision on every start; the fit reports it once, at its end.
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        n = processes() if together else 1
        if n == 1:
            return Fabric(accelerator=device, devices=1, precision=precision)
        here = int(os.environ.get("LOCAL_WORLD_SIZE", n))
        fabric = Fabric(
            accelerator=device,
            devices=here,
            num_nodes=n // here,
            strategy="ddp",
            precision=precision,
        )
        fabric.launch()
        atexit.register(_leave_the_others)
        return fabric


def share_of(fabric: Fabric) -> Share | None:
    """This process's share of work that several do together; None of one that is alone."""
    n = fabric.world_size
    if n == 1:
        return None

    def gather(mine: list[Any]) -> list[list[Any]]:
        parts: list[Any] = [None] * n
        torch.distributed.all_gather_object(parts, mine)
        return parts

    return Share(fabric.global_rank, n, gather)


def _leave_the_others() -> None:
    """Ends this process's part in the group while Python still runs.

    Gloo's threads must not outlive the interpreter: one that wakes up after its end aborts the
    process, and torchrun then ends the others, whatever they were doing.
    """
    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()


def precision_of(fabric: Fabric) -> str:
    """The precision in force, "32-true" or "bf16-mixed"."""
    return str(fabric._precision.precision)


def computes_bfloat16(device: str) -> bool:
    """Whether the device multiplies bfloat16 natively, so that it is faster than float32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "cpu":
        features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return False


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe_device(device: torch.device) -> str:
    """The device in words, for those who read its figures."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"

"""Several processes give what one gives with the same batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import flawmap
from flawmap.config import make_config
from flawmap.detector import Detector
from flawmap.errors import ConfigError
from flawmap.methods.dinomaly import Dinomaly
from flawmap.training.checks import require_options

OPTIONS = [
    *("--method", "dinomaly"),
    *("--set", "training.iterations=12", "--set", "training.batch_size=4"),
    *("--set", "training.precision=float32", "--set", "training.device=cpu"),
    *("--set", "method.depth=2", "--set", "method.dropout=0"),
    *("--set", "method.loosen_iterations=4", "--set", "method.warmup_iterations=2"),
]


def weights(detector: Detector) -> dict[str, torch.Tensor]:
    return dict(detector.models["*"].state_dict())


LITE = ["--encoder", "lite0", "--set", "data.size=64", "--set", "method.width=64"]
VIT = [
    *("--encoder", "vit-s14", "--set", "data.size=56", "--set", "training.iterations=3"),
    *("--set", "method.levels=[blocks.0,blocks.1]"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        *([*LITE, "--set", f"training.cache={place}"] for place in ("memory", "disk", "off")),
        [*LITE, "--set", "training.balance=true"],
        [*LITE, "--set", "method.constraint=one-group"],
        VIT,
    ],
    ids=["memory", "disk", "off", "balanced", "one group", "vit"],
)
def test_two_processes_learn_what_one_learns(
    two_products: Path, tmp_path: Path, more: list[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    fit = [
        "-m",
        "flawmap.cli.main",
        "fit",
        str(two_products),
        *OPTIONS,
        *more,
    ]
    together = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    for name, launcher in (("one", []), ("two", together)):
        done = subprocess.run(
            [sys.executable, *launcher, *fit, "--output", str(tmp_path / f"{name}.flawmap")],
            capture_output=True,
            text=True,
            check=False,
            env=variables,
        )
        assert done.returncode == 0, done.stderr
        if launcher:
            # One of them speaks.
            assert done.stdout.count("thresholds") == 1
    one, two = (flawmap.load(tmp_path / f"{name}.flawmap", device="cpu") for name in ("one", "two"))
    first, second = (d.fitted.curves["*"]["losses"] for d in (one, two))
    steps = [step for step, _ in first]
    assert steps == [step for step, _ in second]
    assert steps == ([3] if more == VIT else [10, 12])
    for (_, alone), (_, together_) in zip(first, second, strict=True):
        assert together_ == pytest.approx(alone, rel=1e-5)
    # Adam divides by gradients, so rounding of the smallest ones shows in the weights.
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(two)[name], value, rtol=1e-3, atol=1e-4)


def test_a_fit_alone_leaves_a_group_that_is_not_its_own_alone(
    rings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("the other processes of the group know nothing of this fit")

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 2)
    monkeypatch.setattr(torch.distributed, "all_gather", asked)
    options = {
        "encoder.name": "lite0",
        "data.size": 64,
        "method.width": 64,
        "method.depth": 2,
        "training.iterations": 2,
        "training.device": "cpu",
        "calibration.strategy": "off",
    }
    flawmap.fit(rings, method="dinomaly", options=options)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    config = make_config(method="dinomaly", overrides={"training.batch_size": 4})
    with pytest.raises(ConfigError, match="shared by 3 processes alike"):
        require_options(Dinomaly, config, 3)

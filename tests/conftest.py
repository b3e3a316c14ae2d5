"""Small data sets that many tests share."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from drawn import make_mvtec


@pytest.fixture(scope="session")
def rings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small category in MVTec's layout; do not change it."""
    return make_mvtec(tmp_path_factory.mktemp("data") / "rings")


@pytest.fixture(scope="session")
def two_products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root of two categories in MVTec's layout; do not change it."""
    root = tmp_path_factory.mktemp("data") / "products"
    make_mvtec(root / "bolt", train=8, seed=1)
    make_mvtec(root / "nut", train=8, seed=2)
    return root


def pytest_configure() -> None:
    """Tests that stop a fit work in the background of a shell too, which ignores Ctrl-C there."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tests run side by side: one thread each, and the same rounding everywhere."""
    import torch

    torch.set_num_threads(1)

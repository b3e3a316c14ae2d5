"""The plain loop that flawmap's speed is held against takes the same steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import ModuleType

import torch

from flawmap.training.optim import StableAdamW


def test_the_plain_optimiser_is_the_same_one(script: Callable[[str], ModuleType]) -> None:
    update = script("dinomaly_speed").update
    torch.manual_seed(0)
    ours = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Linear(5, 3))
    plain = copy.deepcopy(ours)
    optimizer = StableAdamW(ours.parameters(), lr=2e-3, weight_decay=1e-4, amsgrad=True)
    state: dict[torch.nn.Parameter, list[torch.Tensor]] = {}
    for step in range(1, 5):
        x = torch.randn(4, 7) * 10 ** (step - 2)
        for network in (ours, plain):
            network(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        update(plain, state, step)
        for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)

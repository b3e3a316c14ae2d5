"""StableAdamW against a plain float64 loop, and the schedule's values."""

from __future__ import annotations

import math

import pytest
import torch

from flawmap.training.optim import (
    Schedule,
    StableAdamW,
    scheduled,
    short_schedule,
    warmup_cosine,
)


@pytest.mark.parametrize("amsgrad", [True, False])
def test_stable_adamw_step_by_step(amsgrad: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, generator=generator, dtype=torch.float64)
    gradients = [torch.randn(5, generator=generator, dtype=torch.float64) * s for s in (1, 30, 0.1)]
    p = torch.nn.Parameter(start.clone())
    optimizer = StableAdamW([p], lr=0.01, weight_decay=0.1, amsgrad=amsgrad)
    for gradient in gradients:
        p.grad = gradient.clone()
        optimizer.step()
    w = start.tolist()
    m, v, top = [0.0] * 5, [0.0] * 5, [0.0] * 5
    for t, gradient in enumerate(gradients, start=1):
        g = gradient.tolist()
        dens = []
        for i in range(5):
            w[i] *= 1 - 0.01 * 0.1
            m[i] = 0.9 * m[i] + 0.1 * g[i]
            v[i] = 0.999 * v[i] + 0.001 * g[i] ** 2
            top[i] = max(top[i], v[i]) if amsgrad else v[i]
            dens.append(math.sqrt(top[i]) / math.sqrt(1 - 0.999**t) + 1e-10)
        rms = math.sqrt(sum((g[i] / dens[i]) ** 2 for i in range(5)) / 5)
        for i in range(5):
            w[i] -= 0.01 / (1 - 0.9**t) / max(1, rms) * m[i] / dens[i]
    assert p.tolist() == pytest.approx(w, rel=1e-10)


def test_the_rate_changes_at_every_iteration() -> None:
    def rate(step: int) -> float:
        return warmup_cosine(step, 10_000, warmup=100, base=2e-3, final=2e-4)

    assert rate(0) == 0
    assert rate(1) == pytest.approx(2e-5)
    assert rate(99) == pytest.approx(2e-3 * 0.99)
    assert rate(100) == pytest.approx(2e-3)
    assert rate(5050) == pytest.approx(1.1e-3)
    assert rate(9999) == pytest.approx(2e-4, rel=1e-3)


def test_many_tensors_at_once_move_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch for graphics cards, with groups and tensors that have learnt for longer."""

    def parameters() -> list[torch.nn.Parameter]:
        generator = torch.Generator().manual_seed(1)
        shapes = [(4,), (3, 2), (5,), (1,)]
        return [
            torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64))
            for s in shapes
        ]

    together, alone = parameters(), parameters()
    groups = [{"params": together[:3]}, {"params": together[3:], "lr": 0.3}]
    optimizer = StableAdamW(groups, lr=0.01, weight_decay=0.1)
    rates = (0.01, 0.01, 0.01, 0.3)
    single = [
        StableAdamW([p], lr=rate, weight_decay=0.1) for p, rate in zip(alone, rates, strict=True)
    ]
    generator = torch.Generator().manual_seed(2)
    for step in range(4):
        for i, (p, q) in enumerate(zip(together, alone, strict=True)):
            # The second tensor misses the first step.
            if (step, i) != (0, 1):
                p.grad = torch.randn(p.shape, generator=generator).double()
                q.grad = p.grad.clone()
        with monkeypatch.context() as patch:
            patch.setattr("flawmap.training.optim._on_gpu", lambda p: True)
            optimizer.step()
        for each in single:
            each.step()
    for p, q in zip(together, alone, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=0)


def test_short_schedules() -> None:
    assert short_schedule("constant", 399, 400, 5e-3) == 5e-3
    found = [short_schedule("cosine", step, 400, 5e-3) for step in (0, 10, 20, 210, 400)]
    assert found == pytest.approx([0, 2.5e-3, 5e-3, (5e-3 + 5e-5) / 2, 5e-5])
    # A training of ten steps is no warm-up alone.
    assert short_schedule("cosine", 2, 10, 5e-3) == 5e-3


def test_a_warm_up_takes_at_most_a_fifth_of_the_steps() -> None:
    def rates(kind: Schedule, total: int) -> list[float]:
        return [
            scheduled(kind, step, total, warmup=100, base=1.0, final=0.1)
            for step in (0, 10, 20, 100, total)
        ]

    assert rates("cosine", 100) == pytest.approx([0, 0.5, 1, 0.1, 0.1])
    assert rates("constant", 100) == pytest.approx([0, 0.5, 1, 1, 1])
    assert rates("cosine", 1000) == pytest.approx([0, 0.1, 0.2, 1, 0.1])

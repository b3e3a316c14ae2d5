"""StableAdamW against a plain float64 loop, and the schedule's values."""

from __future__ import annotations

import math

import pytest
import torch

from flawmap.training.optim import StableAdamW, warmup_cosine


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

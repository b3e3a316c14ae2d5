"""Dropout, and the positive map of linear attention, against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from flawmap.methods.layers.dropout import Dropout
from flawmap.methods.layers.mixers import positive


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.95])
def test_the_share_the_scale_and_the_gradient(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(3, 101, 333, requires_grad=True)
    found = Dropout(p).train()(x)
    found.sum().backward()
    kept = found.detach() != 0
    assert float(kept.float().mean()) == pytest.approx(1 - p, abs=0.01)
    assert torch.unique(found.detach()).tolist() == pytest.approx([0, 1 / (1 - p)])
    # The gradient passes where the value does.
    torch.testing.assert_close(x.grad, found.detach())


def test_the_four_values_of_one_random_number_are_independent() -> None:
    torch.manual_seed(1)
    kept = (Dropout(0.5).train()(torch.ones(400_000)) != 0).view(-1, 4).float()
    correlation = torch.corrcoef(kept.T)
    assert float((correlation - torch.eye(4)).abs().max()) < 0.01
    # So are numbers that follow each other.
    flat = kept.flatten()
    assert abs(float(torch.corrcoef(torch.stack([flat[:-4], flat[4:]]))[0, 1])) < 0.01


def test_the_seed_decides_and_evaluation_changes_nothing() -> None:
    layer, x = Dropout(0.3).train(), torch.randn(7, 5)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(layer(x))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert layer.eval()(x) is x
    assert Dropout(0.0).train()(x) is x
    assert layer.train()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_positive_map_and_its_gradient(dtype: torch.dtype) -> None:
    x = torch.linspace(-12, 4, 321).to(dtype)
    mine, plain = x.clone().requires_grad_(), x.double().requires_grad_()
    found, wanted = positive(mine), F.elu(plain) + 1
    weight = torch.arange(1, 322).to(dtype) / 321
    (found * weight).sum().backward()
    (wanted * weight.double()).sum().backward()
    # Relative: in bfloat16 the sum of ELU and 1 would be 0 from -6.5 on.
    error = 1e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.double(), wanted, rtol=error, atol=0)
    assert mine.grad is not None
    torch.testing.assert_close(mine.grad.double(), plain.grad, rtol=2 * error, atol=0)
    with torch.no_grad():
        assert torch.equal(positive(mine), found)
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(positive, (x[::20].clone().requires_grad_(),))

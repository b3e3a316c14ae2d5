"""StableAdamW: AdamW with AMSGrad whose step shrinks when a tensor's gradient is out of scale.

Source: Wortsman et al., Stable and low-precision training for large-scale vision-language models,
NeurIPS 2023, arXiv 2304.13013 (the update clipping of AdaFactor inside AdamW).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class StableAdamW(torch.optim.Optimizer):
    """Per tensor: p *= 1 - lr * wd; m, v as in Adam, v kept at its maximum (AMSGrad);
    s = max(1, rms(gradient / denominator)); p -= lr / s * m / denominator, with bias corrections.

    Args:
        params: Parameters or groups.
        lr: Learning rate.
        betas: Decay rates of the two moments.
        eps: Added to the denominator.
        weight_decay: Decoupled weight decay.
        amsgrad: Whether the second moment is kept at its maximum.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-10,
        weight_decay: float = 1e-4,
        amsgrad: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None, "closures are not used here"
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                    if group["amsgrad"]:
                        state["max_exp_avg_sq"] = torch.zeros_like(p)
                self._update(p, p.grad, state, group, beta1, beta2)

    @staticmethod
    def _update(
        p: Tensor,
        grad: Tensor,
        state: dict[str, Tensor],
        group: dict[str, Any],
        beta1: float,
        beta2: float,
    ) -> None:
        state["step"] += 1
        t = float(state["step"])
        p.mul_(1 - group["lr"] * group["weight_decay"])
        state["exp_avg"].lerp_(grad, 1 - beta1)
        second = state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        if group["amsgrad"]:
            second = torch.maximum(state["max_exp_avg_sq"], second, out=state["max_exp_avg_sq"])
        denominator = second.sqrt().div_(math.sqrt(1 - beta2**t)).add_(group["eps"])
        rms = (grad / denominator).square_().mean().sqrt()
        scale = float(rms.clamp(min=1.0))
        p.addcdiv_(state["exp_avg"], denominator, value=-group["lr"] / (1 - beta1**t) / scale)


def warmup_cosine(step: int, total: int, *, warmup: int, base: float, final: float) -> float:
    """Linear from 0 to `base` over `warmup` steps, then a cosine to `final` at the end."""
    if step < warmup:
        return base * step / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return final + (base - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

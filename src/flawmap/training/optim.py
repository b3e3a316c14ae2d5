"""StableAdamW: AdamW with AMSGrad whose step shrinks when a tensor's gradient is out of scale.

Source: Wortsman et al., Stable and low-precision training for large-scale vision-language models,
NeurIPS 2023, arXiv 2304.13013 (the update clipping of AdaFactor inside AdamW).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

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
            ready = [p for p in group["params"] if p.grad is not None]
            for p in ready:
                state = self.state[p]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                    if group["amsgrad"]:
                        state["max_exp_avg_sq"] = torch.zeros_like(p)
                state["step"] += 1
            # A GPU takes all tensors in a few launches; a CPU works on what is in its cache.
            by_step: dict[tuple[float, bool], list[Tensor]] = {}
            for p in ready:
                by_step.setdefault((float(self.state[p]["step"]), _on_gpu(p)), []).append(p)
            for (t, on_gpu), params in by_step.items():
                for some in [params] if on_gpu else [[p] for p in params]:
                    self._update(some, group, t)

    def _update(self, params: list[Tensor], group: dict[str, Any], t: float) -> None:
        """One step of tensors that have taken t - 1 before; nothing waits for the device."""
        beta1, beta2 = group["betas"]
        grads = [p.grad for p in params if p.grad is not None]
        first = [self.state[p]["exp_avg"] for p in params]
        second = [self.state[p]["exp_avg_sq"] for p in params]
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
        if group["amsgrad"]:
            highest = [self.state[p]["max_exp_avg_sq"] for p in params]
            torch._foreach_maximum_(highest, second)
            second = highest
        denominators = torch._foreach_sqrt(second)
        torch._foreach_div_(denominators, math.sqrt(1 - beta2**t))
        torch._foreach_add_(denominators, group["eps"])
        ratios = torch._foreach_div(grads, denominators)
        scales = torch._foreach_norm(ratios)
        torch._foreach_div_(scales, [math.sqrt(p.numel()) for p in params])
        torch._foreach_clamp_min_(scales, 1.0)
        steps = torch._foreach_div(first, denominators)
        torch._foreach_div_(steps, scales)
        torch._foreach_add_(params, steps, alpha=-group["lr"] / (1 - beta1**t))


def _on_gpu(p: Tensor) -> bool:
    return p.is_cuda


Schedule = Literal["constant", "cosine"]


def warmup_cosine(step: int, total: int, *, warmup: int, base: float, final: float) -> float:
    """Linear from 0 to `base` over `warmup` steps, then a cosine to `final` at the end."""
    if step < warmup:
        return base * step / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return final + (base - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def scheduled(
    kind: Schedule, step: int, total: int, *, warmup: int, base: float, final: float
) -> float:
    """A warm-up of at most a fifth of all steps, then a constant rate or a cosine.

    Args:
        kind: "constant" or "cosine".
        step: From 0 on.
        total: Steps planned.
        warmup: Steps of the warm-up, if there are enough.
        base: The highest rate.
        final: At the end of the cosine.
    """
    return warmup_cosine(
        step,
        total,
        warmup=min(warmup, max(1, total // 5)),
        base=base,
        final=base if kind == "constant" else final,
    )


def short_schedule(kind: Schedule, step: int, total: int, base: float) -> float:
    """The rate of methods whose paper keeps it constant.

    Args:
        kind: "constant", or "cosine": a short warm-up, then a cosine to a hundredth. A training of
            some hundred steps ends with quieter weights so.
        step: From 0 on.
        total: Steps planned.
        base: The highest rate.
    """
    if kind == "constant":
        return base
    return scheduled(kind, step, total, warmup=20, base=base, final=base / 100)

"""Transformer blocks whose spatial mixing is chosen: linear or softmax attention, convolution.

Sources: Katharopoulos et al., Transformers are RNNs (ICML 2020), for linear attention; You et al.,
UniAD (NeurIPS 2022), for hiding neighbours; Guo et al., Dinomaly (CVPR 2025), for the forms here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_DIM = 64


def neighbour_mask(grid: tuple[int, int], hidden: int, prefix: int = 0) -> Tensor:
    """Which keys each query may see: all but those in the square around it.

    Args:
        grid: (h, w) of the patches.
        hidden: Side of the square in patches, odd: 1 hides the query's own place alone. At a border
            the square is cut off.
        prefix: Tokens before the patches; they see all and are seen by all.

    Returns:
        (prefix + h * w, prefix + h * w) bool, True = seen.

    Example:
        >>> neighbour_mask((1, 3), 3).int().tolist()
        [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    """
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    y, x = y.flatten(), x.flatten()
    near = (y[:, None] - y).abs().maximum((x[:, None] - x).abs()) <= hidden // 2
    seen = torch.ones(prefix + len(y), prefix + len(y), dtype=torch.bool)
    seen[prefix:, prefix:] = ~near
    return seen


class Attention(nn.Module):
    """Base of both kinds: heads of 64, projections with bias.

    Args:
        width: Of a token, a multiple of 64.
        seen: (N, N) bool as from `neighbour_mask`; None lets every query see every key.
    """

    seen: Tensor | None

    def __init__(self, width: int, seen: Tensor | None = None) -> None:
        super().__init__()
        self.heads = width // HEAD_DIM
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.register_buffer("seen", seen, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, N, C) tokens."""
        batch, n, width = x.shape
        qkv = self.qkv(x).view(batch, n, 3, self.heads, HEAD_DIM)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, N, 64) each
        mixed = self.mix(q, k, v).transpose(1, 2).reshape(batch, n, width)
        out: Tensor = self.proj(mixed)
        return out

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, heads, N, 64) queries, keys and values to as many outputs."""
        raise NotImplementedError


class LinearAttention(Attention):
    """Softmax-free: phi(q) (sum phi(k) v) / (phi(q) sum phi(k)) with phi = ELU + 1.

    Args:
        width: As for `Attention`.
        seen: As for `Attention`; with it every pair is computed, at the cost of softmax attention.
        eps: Added to the denominator, against zeros under low precision.
    """

    def __init__(self, width: int, seen: Tensor | None = None, *, eps: float = 1e-6) -> None:
        super().__init__(width, seen)
        self.eps = eps

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = positive(q), positive(k)
        if self.seen is not None:
            weights = (q @ k.transpose(-2, -1)) * self.seen  # (B, heads, N, N)
            return (weights @ v) / (weights.sum(dim=-1, keepdim=True) + self.eps)
        memory = k.transpose(-2, -1) @ v  # (B, heads, 64, 64)
        weight = q @ k.sum(dim=-2).unsqueeze(-1)  # (B, heads, N, 1)
        return (q @ memory) / (weight + self.eps)


def positive(x: Tensor) -> Tensor:
    """ELU + 1, which is exp(x) below 0 and x + 1 above.

    It is computed so, since in bfloat16 the sum of ELU and 1 is 0 where exp(x) is small. Its slope
    follows from its value, which saves what autograd would compute.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        found: Tensor = _Positive.apply(x)
        return found
    return _positive(x)


def _positive(x: Tensor) -> Tensor:
    return x.clamp(max=0).exp_().add_(x.clamp(min=0))


class _Positive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        found = _positive(x)
        ctx.save_for_backward(found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (found,) = ctx.saved_tensors
        # exp(x), which is at most 1, or beside 0 the constant 1.
        slope: Tensor = gradients[0] * found.clamp(max=1)
        return slope


class SoftmaxAttention(Attention):
    """Scaled dot products; what is hidden is zeroed after the softmax and not made up for."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.seen is None:
            return F.scaled_dot_product_attention(q, k, v)
        weights = (q @ k.transpose(-2, -1) * HEAD_DIM**-0.5).softmax(dim=-1)
        visible: Tensor = weights * self.seen
        return visible @ v


class ConvMixer(nn.Module):
    """Linear to twice the width, GELU, depthwise convolution, linear back; no biases.

    Args:
        width: Of a token.
        grid: (h, w) of the patches; there are no other tokens.
        kernel: Side of the convolution, odd.
    """

    def __init__(self, width: int, grid: tuple[int, int], kernel: int) -> None:
        super().__init__()
        self.grid = grid
        self.widen = nn.Linear(width, 2 * width, bias=False)
        self.depthwise = nn.Conv2d(
            2 * width, 2 * width, kernel, padding=kernel // 2, groups=2 * width, bias=False
        )
        self.narrow = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, h * w, C) tokens."""
        wide = F.gelu(self.widen(x))
        image = wide.transpose(1, 2).reshape(len(x), -1, *self.grid)
        mixed = self.depthwise(image).flatten(2).transpose(1, 2)
        out: Tensor = self.narrow(mixed)
        return out


class Block(nn.Module):
    """Pre-norm: a mixer, then an MLP of four times the width, each with a residual.

    Args:
        width: Of a token.
        mixer: Makes the mixer.
    """

    def __init__(self, width: int, mixer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-8)
        self.attn = mixer()
        self.norm2 = nn.LayerNorm(width, eps=1e-8)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) tokens to as many."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out

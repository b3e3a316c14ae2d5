"""Transformer blocks whose queries and keys come from MLPs (MFSA), or plain ones.

Source: Pirnay and Chai, InTra, arXiv 2104.13897; written from the paper.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WindowAttention(nn.Module):
    """Attention between the patches of a window.

    Patches of one picture are so alike that dot products of their linear projections are nearly
    equal; queries and keys from MLPs tell them apart (MFSA).

    Args:
        width: D of a token.
        heads: Each has D / 2 / heads values a query and a key with MFSA, else D / heads; and
            D / heads a value.
        mfsa: Whether queries and keys come from MLPs D -> 2 D -> D / 2.
    """

    def __init__(self, width: int, heads: int, mfsa: bool) -> None:
        super().__init__()
        self.heads = heads

        def projection() -> nn.Module:
            if not mfsa:
                return nn.Linear(width, width)
            return nn.Sequential(
                nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width // 2)
            )

        self.query, self.key = projection(), projection()
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, queries: Tensor, x: Tensor) -> Tensor:
        """Attend from some tokens of windows to all.

        Args:
            queries: (W, m, D).
            x: (W, n, D).

        Returns:
            (W, m, D).
        """
        w, m, width = queries.shape
        q, k, v = (
            t.view(w, -1, self.heads, t.shape[-1] // self.heads).transpose(1, 2)
            for t in (self.query(queries), self.key(x), self.value(x))
        )  # (W, heads, m or n, values)
        mixed = attended(q, k, v, fused=x.is_cuda)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(w, m, width))
        return out


def attended(q: Tensor, k: Tensor, v: Tensor, *, fused: bool) -> Tensor:
    """Softmax attention of (..., m, D) queries to (..., n, D) keys and (..., n, E) values.

    With values wider than keys a CPU has no fused kernel: written out it takes half the time.
    """
    if fused:
        return F.scaled_dot_product_attention(q, k, v)
    mixed: Tensor = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    return mixed


class WindowBlock(nn.Module):
    """Pre-norm: attention, then an MLP of four times the width, each with a residual."""

    def __init__(self, width: int, heads: int, mfsa: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = WindowAttention(width, heads, mfsa)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, only: Tensor | None = None) -> Tensor:
        """Mix the tokens of windows.

        Args:
            x: (W, n, D).
            only: (W,) the one token of each window that is wanted, which takes less; None = all.

        Returns:
            (W, n, D), or (W, 1, D).
        """
        normed = self.norm1(x)
        queries = normed
        if only is not None:
            rows = torch.arange(len(x), device=x.device)
            x, queries = x[rows, only, None], normed[rows, only, None]
        x = x + self.attention(queries, normed)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out

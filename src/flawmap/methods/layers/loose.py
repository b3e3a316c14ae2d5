"""Dinomaly's loose loss: what is matched well already passes little gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from flawmap.methods.layers.distributed import gathered


def loose_cosine(target: Tensor, output: Tensor, hard_share: float, easy_gradient: float) -> Tensor:
    """1 - cosine of whole feature maps; points already well matched pass less gradient.

    Args:
        target: (B, N, C) float32, without gradient.
        output: (B, N, C) float32.
        hard_share: In (0, 1]: this share of the points of the batch, the farthest, passes its
            whole gradient.
        easy_gradient: Factor on the gradient of the others. The value of the loss is unchanged.
    """
    if hard_share < 1:
        with torch.no_grad():
            distance = 1 - F.cosine_similarity(target, output, dim=-1)  # (B, N)
            # Of the whole batch, also where several processes share it.
            everywhere = gathered(distance).flatten()
            n = max(1, int(everywhere.numel() * hard_share))
            limit = everywhere.topk(n).values[-1]
            easy = (distance < limit).unsqueeze(-1)
        eased = easy_gradient * output + (1 - easy_gradient) * output.detach()
        output = torch.where(easy, eased, output)
    return (1 - F.cosine_similarity(target.flatten(1), output.flatten(1), dim=-1)).mean()

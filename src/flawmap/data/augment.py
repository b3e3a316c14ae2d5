"""Random views of good images, for fits on a few of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

AREA = (0.6, 1.1)
"""Share of the image's area that a view shows; above 1 the border is mirrored outwards."""

JITTER = 0.1
"""Largest change of brightness, contrast and saturation, as a share."""


def random_views(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crop, flip and recolour every image of a batch on its own.

    Args:
        images: (B, 3, H, W) float32, RGB in [0, 1].
        generator: Draws everything; on the CPU.

    Returns:
        As many, of the same size.

    Source: the few-shot setting of Dinomaly2 (arXiv 2510.17611): random resized crops of 0.6 to 1.1
    of the area, horizontal flips, colour jitter of 0.1.
    """
    n = len(images)

    def draw(low: float, high: float) -> Tensor:
        return torch.empty(n).uniform_(low, high, generator=generator)

    side = draw(*AREA).sqrt()
    flip = torch.where(draw(0, 1) < 0.5, -1.0, 1.0)
    # A crop may lie anywhere inside; one larger than the image lies anywhere around it.
    reach = (1 - side).abs()
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = side * flip, side
    theta[:, 0, 2], theta[:, 1, 2] = draw(-1, 1) * reach, draw(-1, 1) * reach
    grid = F.affine_grid(theta, list(images.shape), align_corners=False).to(images.device)
    views = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    brightness, contrast, saturation = (
        draw(1 - JITTER, 1 + JITTER).view(n, 1, 1, 1).to(images.device) for _ in range(3)
    )
    views = views * brightness
    mean = _grey(views).mean(dim=(2, 3), keepdim=True)
    views = mean + (views - mean) * contrast
    grey = _grey(views)
    return (grey + (views - grey) * saturation).clamp(0, 1)


def random_turns(images: Tensor, *, rotations: bool, flips: bool) -> Tensor:
    """Turn and mirror every image of a batch on its own; torch's generator of the CPU draws.

    Args:
        images: (B, 3, H, W).
        rotations: Turn by quarters; by halves what is not square.
        flips: Mirror left to right.

    Returns:
        As many, of the same size.
    """
    n, square = len(images), images.shape[-2] == images.shape[-1]
    quarters = torch.randint(4, (n,)).tolist() if rotations else [0] * n
    mirrored = torch.randint(2, (n,)).tolist() if flips else [0] * n
    varied = []
    for image, q, mirror in zip(images, quarters, mirrored, strict=True):
        turned = image.rot90(q if square else q // 2 * 2, (1, 2))
        varied.append(turned.flip(2) if mirror else turned)
    return torch.stack(varied) if rotations or flips else images


def _grey(images: Tensor) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device)
    return torch.einsum("bchw,c->bhw", images, weights).unsqueeze(1)

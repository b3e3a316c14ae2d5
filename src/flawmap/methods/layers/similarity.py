"""How alike two pictures are, place by place: gradient magnitudes (GMS) and structure (SSIM).

Sources: Xue et al., Gradient Magnitude Similarity Deviation (TIP 2014), for GMS; Wang et al., Image
quality assessment (TIP 2004), for SSIM. Beyond a border the outermost px goes on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

GMS_C = 0.0026
SSIM_SIGMA = 1.5
SSIM_WINDOW = 11
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2


def gradient_magnitude(images: Tensor) -> Tensor:
    """Length of the Prewitt gradient, whose kernels are divided by 3.

    Args:
        images: (B, C, H, W) float32.

    Returns:
        (B, C, H, W) float32, at least 1e-6 so that its gradient is finite.
    """
    wide = F.pad(images, (1, 1, 1, 1), mode="replicate")
    rows = wide[..., :-2, :] + wide[..., 1:-1, :] + wide[..., 2:, :]  # (B, C, H, W + 2)
    columns = wide[..., :-2] + wide[..., 1:-1] + wide[..., 2:]  # (B, C, H + 2, W)
    gx = (rows[..., 2:] - rows[..., :-2]) / 3
    gy = (columns[..., 2:, :] - columns[..., :-2, :]) / 3
    return (gx.square() + gy.square() + 1e-12).sqrt()


def gms(a: Tensor, b: Tensor) -> Tensor:
    """Gradient magnitude similarity, 1 where the edges are as strong in both pictures.

    Args:
        a: (B, C, H, W) float32, around [0, 1].
        b: The same shape.

    Returns:
        (B, 1, H, W) in (0, 1], the mean of the channels.
    """
    ga, gb = gradient_magnitude(a), gradient_magnitude(b)
    similarity = (2 * ga * gb + GMS_C) / (ga.square() + gb.square() + GMS_C)
    return similarity.mean(dim=1, keepdim=True)


def colour_difference(a: Tensor, b: Tensor) -> Tensor:
    """The mean absolute difference of the channels.

    Args:
        a: (B, C, H, W) float32.
        b: The same shape.

    Returns:
        (B, 1, H, W), at least 0.
    """
    return (a - b).abs().mean(dim=1, keepdim=True)


def at_two_scales(compare: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """The mean of a comparison of pictures of half and of quarter size.

    Args:
        compare: Takes two pictures and gives a map of their size.
        a: (B, C, H, W) float32.
        b: The same shape.

    Returns:
        (B, 1, H, W) float32.
    """
    height, width = a.shape[-2:]
    maps = []
    for scale in (2, 4):
        # What is over at the right and the bottom counts too.
        over = (0, -width % scale, 0, -height % scale)
        whole = [F.pad(x, over, mode="replicate") for x in (a, b)]
        found = compare(*(F.avg_pool2d(x, scale) for x in whole))
        found = F.interpolate(found, whole[0].shape[-2:], mode="bilinear", align_corners=False)
        maps.append(found[..., :height, :width])
    return torch.stack(maps).mean(dim=0)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity under a Gaussian window of 11 px and sigma 1.5, for a range of 1.

    Pictures with a side below 11 px get the largest odd window that fits.

    Args:
        a: (B, C, H, W) float32, around [0, 1].
        b: The same shape.

    Returns:
        (B, C, h, w) in [-1, 1], where the whole window lies inside.
    """
    fits = min(SSIM_WINDOW, *a.shape[-2:])
    side = fits - 1 + fits % 2
    at = torch.arange(side, dtype=a.dtype, device=a.device) - side // 2
    kernel = torch.exp(-0.5 * (at / SSIM_SIGMA).square())
    kernel = kernel / kernel.sum()
    n, c, h, w = a.shape
    stack = torch.stack([a, b, a * a, b * b, a * b]).view(-1, 1, h, w)
    stack = F.conv2d(F.conv2d(stack, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    mean_a, mean_b, aa, bb, ab = stack.view(5, n, c, *stack.shape[-2:])
    covariance = ab - mean_a * mean_b
    variances = aa - mean_a.square() + bb - mean_b.square()
    means = mean_a.square() + mean_b.square()
    above = (2 * mean_a * mean_b + SSIM_C1) * (2 * covariance + SSIM_C2)
    return torch.as_tensor(above / ((means + SSIM_C1) * (variances + SSIM_C2)))

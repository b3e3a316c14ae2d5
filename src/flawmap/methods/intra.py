"""InTra: a transformer paints every patch anew from the patches around it.

Source: Pirnay and Chai, Inpainting Transformer for Anomaly Detection, arXiv 2104.13897. There is no
official code; this is written from the paper.

What differs, or is not settled by it:
* Training: a step shows several windows of each of its images; when the held-out images are looked
  at, every patch of them is painted, so that two losses differ by the weights alone; training ends
  after so many looks without a gain, or at the last iteration; the rate warms up over 100 steps;
  gradients are clipped to length 1.
* Start: places begin as waves along both axes, weights as wide as Glorot's, since queries and keys
  from narrow ones are alike for thousands of steps, and what is painted near mid-grey.
* Pixels are kept with 11 bits; mirror images are those left to right.
* Maps: similarities are means over the colour channels, whose border px go on beyond the border;
  the maps of both scales are brought to full size and averaged before they are filtered, so that
  the filters are in px of the input, and count only what lies inside the image; the mean over
  training images may be taken of some of them.

The preset for a CPU has a narrow network, a learning rate that falls, and a number of iterations
that no early stop cuts short. It learns quicker than the published form: what it paints is read off
the covered patch's token and added to the image's mean colour, places are those in the window, and
training windows are those of scoring. Of that mean the covered patch is a part, one of some
hundreds: so much of it is seen. Its map is the difference itself without a mean filter, its
score the mean of the highest hundredth.
Published figures are of one model for each category; the default here, as for every method, is one
for all, and `--separate` gives the former.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from flawmap.config import MethodConfig, Odd
from flawmap.data.augment import random_turns
from flawmap.encoders.encoder import Encoder
from flawmap.errors import ConfigError, wrong_size
from flawmap.methods.base import Features, IterativeMethod
from flawmap.methods.layers.mfsa import WindowBlock
from flawmap.methods.layers.similarity import at_two_scales, colour_difference, gms, ssim
from flawmap.methods.layers.smoothing import smoothed
from flawmap.methods.layers.windows import waves, window_starts
from flawmap.training.optim import scheduled


class InTraConfig(MethodConfig):
    """Options of InTra."""

    name: Literal["intra"] = "intra"
    position: Literal["global", "local", "auto"] = "global"
    """What a patch is told of its place: its index in the image, for objects; in the window, for
    textures. auto: train both, and keep the one with the lower loss of held-out images."""
    patch: int = Field(default=16, ge=4)
    """Side of a patch in px of the input."""
    window: int = Field(default=7, ge=2)
    """Side of a window in patches."""
    width: int = Field(default=512, ge=16)
    """Of a token; a multiple of twice the heads."""
    depth: int = Field(default=13, ge=1)
    """Blocks."""
    heads: int = Field(default=8, ge=1)
    attention: Literal["mfsa", "plain"] = "mfsa"
    """mfsa: queries and keys from MLPs, half as wide as a token; plain: from one linear layer."""
    long_residuals: bool = True
    """Add the output of each block of the first half to the input of its mirror image."""
    head: Literal["mean", "token"] = "mean"
    """Read the patch off the mean of all tokens, or off the covered patch's own."""
    l2_weight: float = Field(default=1.0, ge=0)
    """Of the mean squared error in the loss."""
    gms_weight: float = Field(default=0.01, ge=0)
    """Of 1 - GMS."""
    ssim_weight: float = Field(default=0.01, ge=0)
    """Of 1 - SSIM."""
    windows: int = Field(default=16, ge=1)
    """Random windows of each image in a step."""
    draw: Literal["uniform", "scored"] = "uniform"
    """Windows of training. uniform (published): any window, and any of its patches covered; scored:
    any patch, in the window from which it is painted in scoring."""
    start: Literal["grey", "image", "neighbours"] = "grey"
    """What the network paints before it has learnt anything, and what its output is added to:
    nothing (published, mid-grey at first), the image's mean colour, which the network then never
    sees, or that of the patches around the covered one."""
    flips: bool = False
    """Mirror images at random, where the category allows."""
    rotations: bool = False
    """Turn them by quarters at random; by halves where the input is not square."""
    learning_rate: float = Field(default=1e-4, gt=0)
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up; cosine falls to a hundredth at the last iteration."""
    warmup_iterations: int = Field(default=100, ge=1)
    compared: Literal["gms", "colour"] = "gms"
    """What differs between an image and its reconstruction: gms (published), the strength of
    gradients; colour, the colours themselves."""
    mean_filter: Odd = Field(default=21, ge=1)
    """Side of the mean filter on maps in px of the input (odd; 1 = none)."""
    sigma: float = Field(default=2.0, ge=0)
    """Standard deviation of the Gaussian after it, in px of the input; 0 = none."""
    map: Literal["squared", "standardised", "difference"] = "squared"
    """squared (published): the square of what the difference exceeds, or falls short of, its mean
    over training images; standardised: what it exceeds that mean by, over its standard deviation at
    the same px, raised by half the mean deviation; difference: as it is."""
    mean_images: int | None = Field(default=None, ge=1)
    """Training images that give mean and deviation, evenly chosen; None takes all."""
    windows_at_once: int = Field(default=256, ge=1)
    """Windows that pass through the network together in scoring: bounds its memory."""

    def idle(self, encoder: str) -> dict[str, str]:
        needs = {"mean_images": "method.map=squared or standardised"}
        return needs if self.map == "difference" else {}


class InTra(IterativeMethod):
    """What cannot be painted from its surroundings is anomalous."""

    Config = InTraConfig
    summary = "a transformer inpaints every patch; learns from pixels, without an encoder"
    source = "Pirnay and Chai, arXiv 2104.13897 (written from the paper; no official code)"
    needs_encoder = False
    one_product = True
    defaults: ClassVar[Mapping[str, Any]] = {
        "encoder.name": "none",
        "data.size": [256, 256],
        # The map is smoothed before the mean is subtracted, so by the method.
        "scoring.sigma": 0.0,
        "scoring.pooling": "max",
        "training.iterations": 100_000,
        "training.batch_size": 16,
        "training.validation_fraction": 0.1,
        "training.validation_images": 20,
        "training.validate_every": None,
        "training.patience": 50,
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cpu": {
            "training.iterations": 1500,
            "training.batch_size": 8,
            "training.validation_images": 16,
            "training.validate_every": 250,
            # The rate falls until the end: the last steps are the best ones.
            "training.patience": None,
            "method.width": 192,
            "method.depth": 6,
            "method.heads": 6,
            "method.windows": 8,
            # A patch is read off its own token, in the windows of scoring.
            "method.position": "local",
            "method.head": "token",
            "method.draw": "scored",
            "method.start": "image",
            "method.learning_rate": 1e-3,
            "method.schedule": "cosine",
            "method.warmup_iterations": 50,
            # Of few images the mean is that of the product, and hides what lies on it.
            "method.map": "difference",
            "method.mean_filter": 1,
            "scoring.pooling": "top",
            "scoring.top_fraction": 0.01,
        },
        "gpu": {},
        # Published models learn every training image but those of the validation.
        "paper": {
            # Patience ends it before, in all likelihood.
            "training.iterations": 300_000,
            "training.precision": "float32",
            "calibration.strategy": "off",
        },
    }
    clip_norm = 1.0
    free_on_start = frozenset(
        {
            *("l2_weight", "gms_weight", "ssim_weight", "windows", "flips", "rotations"),
            *("learning_rate", "schedule", "warmup_iterations", "mean_filter", "sigma"),
            *("draw", "map", "compared", "mean_images", "windows_at_once"),
        }
    )

    mean_difference: Tensor
    deviation: Tensor
    starts: Tensor
    covered: Tensor

    def __init__(self, config: InTraConfig, encoder: Encoder, size: tuple[int, int]) -> None:
        super().__init__(encoder)
        _require(config, size)
        self.config = config
        self.size = size
        self.grid = (size[0] // config.patch, size[1] // config.patch)  # (N, M)
        self.final_images = 0 if config.map == "difference" else config.mean_images
        width, pixels = config.width, 3 * config.patch**2
        n_places = config.window**2 if config.position == "local" else self.grid[0] * self.grid[1]
        self.embed = nn.Linear(pixels, width)
        self.positions = nn.Parameter(torch.zeros(n_places, width))
        self.hidden = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(
            WindowBlock(width, config.heads, config.attention == "mfsa")
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, pixels)
        self.register_buffer("mean_difference", torch.zeros(1, *size))
        self.register_buffer("deviation", torch.ones(1, *size))
        corners, places = window_starts(self.grid, config.window)
        self.register_buffer("starts", corners, False)
        self.register_buffer("covered", places, False)

    @classmethod
    def check(cls, config: InTraConfig) -> None:
        """Refuses a width that heads cannot share, and a loss of nothing."""
        if config.width % (2 * config.heads):
            width = 2 * config.heads * max(1, round(config.width / (2 * config.heads)))
            raise ConfigError(
                "each head needs an equal part of the width, and of half of it",
                where="method.width",
                given=config.width,
                expected=f"a multiple of {2 * config.heads}",
                hint=f"--set method.width={width}, or other method.heads",
            )
        if not config.l2_weight + config.gms_weight + config.ssim_weight:
            raise ConfigError(
                "a loss without any term learns nothing",
                where="method.l2_weight",
                given="all three weights are 0",
                expected="one of l2_weight, gms_weight and ssim_weight above 0",
            )

    @classmethod
    def build(
        cls,
        config: InTraConfig,
        encoder: Encoder,
        input_size: tuple[int, int],
        generator: torch.Generator,
    ) -> InTra:
        method = cls(config, encoder, input_size)
        for module in method.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(method.hidden, std=0.02, generator=generator)
        grid = (config.window,) * 2 if method.local else method.grid
        with torch.no_grad():
            method.positions.copy_(waves(grid, config.width))
        if config.start == "grey":
            nn.init.trunc_normal_(method.head.weight, std=0.02, generator=generator)
            nn.init.constant_(method.head.bias, 0.5)
        else:
            nn.init.zeros_(method.head.weight)
        return method

    @classmethod
    def candidates(cls, config: InTraConfig) -> tuple[InTraConfig, ...]:
        """With position=auto one of each kind."""
        if config.position != "auto":
            return (config,)
        kinds = ("global", "local")
        return tuple(config.model_copy(update={"position": kind}) for kind in kinds)

    @property
    def local(self) -> bool:
        """Whether positions are those in the window. In a grid of one window both are the same."""
        return len(self.positions) == self.config.window**2

    def restore(self, state: Mapping[str, Tensor]) -> None:
        # Of position=auto only what was learnt tells which kind was kept.
        kept = state["positions"]
        if self.config.position == "auto" and kept.shape != self.positions.shape:
            self.positions = nn.Parameter(torch.empty_like(kept, device=self.positions.device))
        super().restore(state)

    def extract(self, images: Tensor) -> Features:
        """The pixels, ((B, 3, H, W) float16,): finer than the 8 bits of a usual image."""
        return (images.half(),)

    def inpaint(self, images: Tensor) -> Tensor:
        """Every patch, painted from those around it.

        Args:
            images: (B, 3, H, W) float32, RGB in [0, 1].

        Returns:
            (B, N * M, 3 * K * K) float32.
        """
        start = self._start(images)
        batch, n = len(images), len(self.starts)
        table = self.table(self._seen(images))
        painted = []
        for begin in range(0, batch * n, self.config.windows_at_once):
            end = min(begin + self.config.windows_at_once, batch * n)
            part = torch.arange(begin, end, device=images.device)
            at = part % n
            index = self.in_window(self.starts[at])
            sequence = self.sequences(table, part // n, index, self.covered[at])
            painted.append(self.paint(sequence, self.covered[at]))
        return (torch.cat(painted).view(batch, n, 3, -1) + start[..., None]).flatten(2)

    def _seen(self, images: Tensor) -> Tensor:
        """What the network sees of images, (B, N * M, 3 * K * K)."""
        if self.config.start != "grey":
            images = images - images.mean(dim=(2, 3), keepdim=True)
        return self.to_patches(images)

    def _start(self, images: Tensor) -> Tensor:
        """What the network's output is added to, a colour for each patch: (B, N * M, 3)."""
        n, m = self.grid
        if self.config.start == "grey":
            return images.new_zeros(1, 1, 3).expand(len(images), n * m, 3)
        if self.config.start == "image":
            return images.mean(dim=(2, 3))[:, None].expand(-1, n * m, -1)
        colours = F.avg_pool2d(images, self.config.patch)
        around = F.avg_pool2d(colours, 3, stride=1, padding=1, divisor_override=1) - colours
        ones = torch.ones_like(colours[:1, :1])
        near = F.avg_pool2d(ones, 3, stride=1, padding=1, divisor_override=1) - ones
        return (around / near).flatten(2).transpose(1, 2)

    def to_patches(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, N * M, 3 * K * K), row by row."""
        k = self.config.patch
        cut = images.view(len(images), 3, self.grid[0], k, self.grid[1], k)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(len(images), -1, 3 * k * k)

    def to_images(self, patches: Tensor) -> Tensor:
        """(B, N * M, 3 * K * K) back to (B, 3, H, W)."""
        k = self.config.patch
        cut = patches.view(len(patches), *self.grid, 3, k, k)
        return cut.permute(0, 3, 1, 4, 2, 5).reshape(len(patches), 3, *self.size)

    def tokens(self, patches: Tensor) -> Tensor:
        """Every patch embedded once, with its place in the image: (B, N * M, D) float32."""
        tokens: Tensor = self.embed(patches).float()
        return tokens if self.local else tokens + self.positions

    def in_window(self, corners: Tensor) -> Tensor:
        """Patches of windows: (W,) indices of the upper left ones to (W, L * L)."""
        side = torch.arange(self.config.window, device=corners.device)
        inside = (side[:, None] * self.grid[1] + side).flatten()
        return corners[:, None] + inside

    def table(self, patches: Tensor) -> Tensor:
        """All that windows of images are put together from.

        Args:
            patches: (B, N * M, 3 * K * K).

        Returns:
            (B * N * M + R, D) float32: the tokens of all patches, and behind them the R that stand
            for a covered one, by its place in the image; a single one of local places.
        """
        covered = self.hidden[None] if self.local else self.hidden + self.positions
        return torch.cat([self.tokens(patches).flatten(0, 1), covered])

    def sequences(self, table: Tensor, image: Tensor, index: Tensor, place: Tensor) -> Tensor:
        """What the network sees of windows, one patch of each covered.

        Args:
            table: What `table` gives of the images.
            image: (W,) the image of each window.
            index: (W, L * L) its patches in the image.
            place: (W,) the covered one's place in the window.

        Returns:
            (W, L * L, D) float32.
        """
        n = len(self.starts)
        rows = torch.arange(len(index), device=index.device)
        # Covered patches are rows behind the visible ones, so that one look-up gathers all. Its
        # gradient is summed in one order: the same step gives the same weights.
        covered = len(table) - (1 if self.local else n)
        at = index + image[:, None] * n
        at[rows, place] = covered + (0 if self.local else index[rows, place])
        x = F.embedding(at, table)
        return x + self.positions if self.local else x

    def paint(self, x: Tensor, place: Tensor) -> Tensor:
        """The covered patch of each sequence.

        Args:
            x: (W, L * L, D) float32.
            place: (W,) of the covered patch.

        Returns:
            (W, 3 * K * K).
        """
        depth = len(self.blocks)
        pairs = (depth - 1) // 2 if self.config.long_residuals else 0
        kept: list[Tensor] = []
        for number, block in enumerate(self.blocks, start=1):
            if number > depth - pairs:
                # The mirror image of block i is block depth + 1 - i.
                x = x + kept[depth - number]
            # Read off its own token, the covered patch is all that the last block is asked for.
            x = block(x, place if number == depth and self.config.head == "token" else None)
            if number <= pairs:
                kept.append(x)
        # In float32: steps of bfloat16 near 1 are as large as a grey level.
        with torch.autocast(x.device.type, enabled=False):
            painted: Tensor = self.head(self.norm(x.float()).mean(dim=1))
        return painted

    def loss(self, features: Features, step: int) -> Tensor:
        images = features[0].float()
        if self.training:
            images = random_turns(images, rotations=self.config.rotations, flips=self.config.flips)
        each = self.config.windows
        corners, place = self._drawn(len(images) * each)
        image = torch.arange(len(images), device=images.device).repeat_interleave(each)
        index = self.in_window(corners)
        at = index.gather(1, place[:, None])[:, 0]
        x = self.sequences(self.table(self._seen(images)), image, index, place)
        start = self._start(images)[image, at].repeat_interleave(self.config.patch**2, dim=1)
        return self._patch_loss(self.paint(x, place) + start, self.to_patches(images)[image, at])

    def _drawn(self, total: int) -> tuple[Tensor, Tensor]:
        """Random windows: the index of each one's upper left patch, and the covered patch's place
        in it; (total,) each. Drawn on the CPU, so that every device sees the same."""
        device = self.starts.device
        (n, m), side = self.grid, self.config.window
        if self.config.draw == "scored":
            at = torch.randint(n * m, (total,)).to(device)
            return self.starts[at], self.covered[at]
        top = torch.randint(n - side + 1, (total,))
        left = torch.randint(m - side + 1, (total,))
        place = torch.randint(side * side, (total,))
        return (top * m + left).to(device), place.to(device)

    def validation_loss(self, features: Features) -> Tensor:
        """Over every patch of the images, as in scoring: nothing is drawn."""
        images = features[0].float()
        return self._patch_loss(
            self.inpaint(images).flatten(0, 1), self.to_patches(images).flatten(0, 1)
        )

    def _patch_loss(self, painted: Tensor, wanted: Tensor) -> Tensor:
        """Of (W, 3 * K * K) patches; in float32, since similarities are quotients of small sums."""
        config, k = self.config, self.config.patch
        with torch.autocast(painted.device.type, enabled=False):
            a, b = painted.float().view(-1, 3, k, k), wanted.float().view(-1, 3, k, k)
            loss = config.l2_weight * F.mse_loss(a, b)
            if config.gms_weight:
                loss = loss + config.gms_weight * (1 - gms(a, b).mean())
            if config.ssim_weight:
                loss = loss + config.ssim_weight * (1 - ssim(a, b).mean())
        return loss

    def reconstruction(self, features: Features) -> Tensor:
        """The images painted anew, (B, 3, H, W) float32."""
        return self.to_images(self.inpaint(features[0].float()))

    def anomaly_map(self, features: Features) -> Tensor:
        """(B, 1, H, W)."""
        found = self.difference(features)
        if self.config.map == "difference":
            return found
        found = found - self.mean_difference
        return found.square() if self.config.map == "squared" else found / self.deviation

    def difference(self, features: Features) -> Tensor:
        """What differs between images and their reconstructions, smoothed, (B, 1, H, W) float32."""
        images = features[0].float()
        painted = self.reconstruction(features)
        with torch.autocast(images.device.type, enabled=False):
            found = at_two_scales(_DIFFERENCES[self.config.compared], images, painted)
            return smoothed(found, self.config.mean_filter, self.config.sigma)

    def finalise(self, batches: Iterator[Features]) -> None:
        """Takes the mean and the deviation of the training images' differences."""
        total, squares = torch.zeros(2, 1, *self.size, dtype=torch.float64)
        n, device = 0, self.mean_difference.device
        for features in batches:
            found = self.difference(tuple(t.to(device) for t in features)).cpu().double()
            total += found.sum(dim=0)
            squares += found.square().sum(dim=0)
            n += len(found)
        mean = total / max(1, n)
        deviation = (squares / max(1, n) - mean.square()).clamp(min=0).sqrt()
        self.mean_difference = mean.float().to(device)
        # Of few images a px may have hardly any deviation by chance.
        floor = 0.5 * deviation.mean().clamp(min=1e-6)
        self.deviation = (deviation + floor).float().to(device)

    def epoch(self, images: int, batch_size: int) -> int:
        """As published: 600 windows of each image."""
        return max(1, round(600 * images / (self.config.windows * batch_size)))

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.config.learning_rate)

    def learning_rate(self, step: int, total: int) -> float:
        config = self.config
        return scheduled(
            config.schedule,
            step,
            total,
            warmup=config.warmup_iterations,
            base=config.learning_rate,
            final=config.learning_rate * 0.01,
        )


_DIFFERENCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gms": lambda a, b: 1 - gms(a, b),
    "colour": colour_difference,
}


def _require(config: InTraConfig, size: tuple[int, int]) -> None:
    k, least = config.patch, config.patch * config.window
    if size[0] % k or size[1] % k or min(size) < least:
        height, width = (max(least, round(n / k) * k) for n in size)
        raise wrong_size(
            f"the input must be cut into patches of {k} px, at least {config.window} each way",
            size,
            (height, width),
        )

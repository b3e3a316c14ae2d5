"""Held-out good images say which weights are best, and when more training helps no more."""

from __future__ import annotations

import base64
import io
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor

from flawmap.config import TrainingConfig
from flawmap.errors import FitError
from flawmap.methods.base import Features, IterativeMethod
from flawmap.training.seeded import seeded
from flawmap.types import Sample, by_part, categories_of

_LEAST = 5
"""Of fewer images none is held out."""
_PICTURE = 160
"""Longest side of a kept picture in px."""


@dataclass(slots=True)
class History:
    """What the validation saw, in plain JSON values.

    Attributes:
        losses: (iteration, loss of the held-out images).
        original: A held-out image as a JPEG in base64; empty without reconstructions.
        reconstructions: (iteration, its reconstruction), where the iteration has doubled, and of
            the best weights.
        stopped: Whether the patience ended the training.
    """

    losses: list[tuple[int, float]] = field(default_factory=list)
    original: str = ""
    reconstructions: list[tuple[int, str]] = field(default_factory=list)
    stopped: bool = False

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> History:
        """From what JSON made of it."""
        return cls(
            [(int(i), float(v)) for i, v in tree["losses"]],
            str(tree["original"]),
            [(int(i), str(v)) for i, v in tree["reconstructions"]],
        )

    @property
    def best(self) -> tuple[int, float] | None:
        """The iteration of the lowest loss, the first of several, and that loss."""
        return min(self.losses, key=lambda entry: entry[1], default=None)

    def exhausted(self, patience: int | None) -> bool:
        """Whether the last `patience` losses were no better than the best before them."""
        if patience is None or not self.losses:
            return False
        values = [loss for _, loss in self.losses]
        return len(values) - 1 - values.index(min(values)) >= patience


class Validation:
    """Keeps the weights with the lowest loss of held-out images.

    Args:
        batches: Features of the held-out images.
        image: The first of them, (3, H, W) float32, RGB in [0, 1].
        config: The patience.
        every: Iterations between two looks.
        seed: Of what a loss draws; every look draws the same.
    """

    def __init__(
        self,
        batches: Sequence[Features],
        image: Tensor,
        config: TrainingConfig,
        *,
        every: int,
        seed: int,
    ) -> None:
        self._batches = tuple(batches)
        self._image = image
        self._seed = seed
        self.every = every
        self.patience = config.patience
        self.best: Mapping[str, Tensor] = {}

    def look(self, method: IterativeMethod, history: History, step: int, fabric: Fabric) -> None:
        """Take the loss after `step` iterations, and keep the weights if it is the lowest.

        Raises:
            FitError: The loss is not finite.
        """
        loss = self._loss(method, fabric)
        if not math.isfinite(loss):
            raise FitError(
                f"the loss of held-out images is not a number at iteration {step}",
                where="training",
                given=f"loss {loss}",
                expected="a finite loss",
                hint="try --set training.precision=float32",
            )
        if history.best is None or loss < history.best[1]:
            self.best = {k: v.detach().cpu().clone() for k, v in method.state_dict().items()}
        history.losses.append((step, loss))
        shown = history.reconstructions
        if not shown or step >= 2 * shown[-1][0]:
            self._show(method, history, step, fabric)

    def seconds(self, method: IterativeMethod, fabric: Fabric) -> float:
        """How long a look takes, for those who plan."""
        began = time.perf_counter()
        self._loss(method, fabric)
        return time.perf_counter() - began

    def _loss(self, method: IterativeMethod, fabric: Fabric) -> float:
        method.eval()
        total, n = 0.0, 0
        with torch.no_grad(), seeded(self._seed, fabric.device), fabric.autocast():
            for batch in self._batches:
                features = tuple(t.to(fabric.device) for t in batch)
                total += float(method.validation_loss(features)) * len(features[0])
                n += len(features[0])
        method.train()
        # Every process has the same weights and images, yet all must decide alike.
        return float(fabric.broadcast(total / n))

    def finish(self, method: IterativeMethod, history: History, fabric: Fabric) -> None:
        """Give the method its best weights."""
        assert history.best is not None
        method.restore(self.best)
        method.to(fabric.device)
        best = history.best[0]
        if history.reconstructions:
            history.reconstructions = [r for r in history.reconstructions if r[0] < best]
            self._show(method, history, best, fabric)

    def _show(self, method: IterativeMethod, history: History, step: int, fabric: Fabric) -> None:
        was = method.training
        method.eval()
        with torch.no_grad(), fabric.autocast():
            found = method.reconstruction(tuple(t[:1].to(fabric.device) for t in self._batches[0]))
        method.train(was)
        if found is None:
            return
        history.original = history.original or _jpeg(self._image)
        history.reconstructions.append((step, _jpeg(found[0])))


def held_back(
    samples: Sequence[Sample], config: TrainingConfig, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Images that teach, and images that choose the weights.

    Of several categories the same share of each is held back, and never its last image; of parts in
    several views, whole parts.

    Args:
        samples: All images that a model may learn from.
        config: `validation_fraction` and `validation_images`.
        seed: Decides which.

    Returns:
        Both, in the order of `samples`; the second is empty when nothing is asked for, or where
        there are too few images.
    """
    if not config.validation_fraction or len(samples) < _LEAST:
        return list(samples), []
    n = max(1, round(len(samples) * config.validation_fraction))
    n = min(n, config.validation_images, len(samples) - 1)
    # Views of one part teach or choose together.
    ordered = sorted(samples, key=lambda s: s.path)
    parts = {
        name: by_part(s for s in ordered if s.category == name) for name in categories_of(samples)
    }
    sizes = {name: sum(map(len, mine)) for name, mine in parts.items()}
    back: set[str] = set()
    for name, share in shares(n, sizes).items():
        views = parts[name]
        order = np.random.default_rng([seed, len(views)]).permutation(len(views))
        taken: list[str] = []
        for i in order[:-1]:
            if len(taken) >= share:
                break
            taken += views[int(i)]
        back.update(taken)
    return [s for s in samples if s.path not in back], [s for s in samples if s.path in back]


def shares(n: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """How many of `n` each category gives: in proportion to its size, but never all it has.

    Fewer than `n` in all where the categories have no more to give.

    Args:
        n: How many.
        sizes: Images of each category.

    Example:
        >>> shares(5, {"bolt": 30, "nut": 18, "pin": 1})
        {'bolt': 3, 'nut': 2, 'pin': 0}
    """
    total = sum(sizes.values())
    found = {name: min(size - 1, n * size // total) for name, size in sizes.items()}
    # The largest remainders first; of equal ones the first name.
    by_rest = sorted(sizes, key=lambda name: (-(n * sizes[name] % total), name))
    while sum(found.values()) < n and any(found[name] < sizes[name] - 1 for name in sizes):
        for name in by_rest:
            if sum(found.values()) < n and found[name] < sizes[name] - 1:
                found[name] += 1
    return found


def _jpeg(image: Tensor) -> str:
    """A small JPEG of (3, H, W) in [0, 1], in base64."""
    array = (image.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(np.ascontiguousarray(array))
    picture.thumbnail((_PICTURE, _PICTURE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode("ascii")

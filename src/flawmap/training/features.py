"""Images of a fit as the features that a method learns from."""

from __future__ import annotations

import math
import os
import secrets
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from flawmap.data.augment import random_views
from flawmap.data.loader import load_batches
from flawmap.data.transform import Transform
from flawmap.methods.base import Features, IterativeMethod, Method
from flawmap.training.batches import Batches, streamed
from flawmap.training.cache import PLACES, FeatureCache, Place, choose_place
from flawmap.training.device import precision_of
from flawmap.training.run import MEASURABLE, Run
from flawmap.types import Batch, Sample

_SLOW_SCORE = 0.1
"""Seconds for an image above which no whole batch is scored just to know how long it takes."""

_LEAST_BATCHES = 16
"""Of an epoch in which images are seen in views."""

_SCORING = 1.2
"""Times what the network takes, is what scoring takes with reading and smoothing."""


class FeatureReader:
    """Reads images, and takes them through the frozen part of a method.

    Args:
        run: The fit.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.score_seconds = 0.0
        """How long the scoring of an image takes; known after `timed`."""
        self._transform = Transform.of(run.config.data)

    def batches(
        self, samples: Sequence[Sample], batch_size: int | None = None
    ) -> Generator[Batch, None, None]:
        """Decoded images, in their order; close it when done."""
        config = self.run.config
        return load_batches(
            samples,
            self._transform,
            batch_size or config.training.batch_size,
            threads=self.run.threads,
            white_level=config.data.white_level,
            kept=self.run.pictures,
        )

    def extract(self, method: Method, batch: Batch) -> Features:
        """What the frozen part gives for a batch, on the device."""
        # Not inference mode: what it gives could not be learnt from.
        with torch.no_grad(), self.run.fabric.autocast():
            return method.extract(batch.images.to(self.run.fabric.device))

    def stored(self, method: Method, batch: Batch) -> Features:
        """The same as it is kept: bfloat16 when the loop computes in it anyway. What a method gives
        in a type of its own choice stays in it."""
        wanted = torch.bfloat16 if precision_of(self.run.fabric) == "bf16-mixed" else torch.float32
        wide = (torch.float32, torch.bfloat16)
        features = self.extract(method, batch)
        return tuple(t.to(wanted) if t.dtype in wide else t for t in features)

    def steps(
        self, method: IterativeMethod, samples: Sequence[Sample], label: str
    ) -> Callable[[int], Features]:
        """Features of any step's batch: from a cache if it fits, else through the encoder."""
        run, training = self.run, self.run.config.training
        size = training.batch_size
        if training.augment != "off":
            # Every look at an image is another view of it: a few fill whole batches, and an epoch
            # is long enough to be read ahead.
            samples = list(samples) * math.ceil(_LEAST_BATCHES * size / len(samples))
        n = len(samples)
        shares = Batches(
            n,
            size,
            run.config.seed,
            groups=[s.category for s in samples] if training.balance else None,
            rank=run.fabric.global_rank,
            world_size=run.fabric.world_size,
        )
        cache = self._cached(method, samples, label)
        run.mark("features")
        if cache is not None:
            kept = cache
            return lambda step: kept.get(shares.rows(step))

        def read(rows: Sequence[int], step: int) -> Iterator[Features]:
            chosen = [samples[row] for row in rows]
            for offset, batch in enumerate(self.batches(chosen, len(shares.rows(step)))):
                yield self.stored(method, self._seen(batch, step + offset))

        return streamed(shares, read)

    def _cached(
        self, method: IterativeMethod, samples: Sequence[Sample], label: str
    ) -> FeatureCache | None:
        """The features of all images, if they fit; None if every step must compute its own.

        The processes of one machine share the cache, and each computes its part of it.
        """
        run, n = self.run, len(samples)
        if run.config.training.augment != "off" or run.config.training.cache == "off":
            return None
        rank, peers = _place_on_this_machine(run)
        mine = range(n * rank // peers, n * (rank + 1) // peers)
        chosen = [samples[row] for row in mine] or list(samples[:1])
        with closing(self.batches(chosen)) as batches:
            first = next(batches)
            probe = self.stored(method, first)
            cache = self._room(probe, n)
            if cache is None:
                return None
            if mine:
                cache.put(mine.start, probe)
                done = len(first.samples)
                with run.progress.task(f"{label}: features", len(mine)) as task:
                    for batch in batches:
                        cache.put(mine.start + done, self.stored(method, batch))
                        done += len(batch.samples)
                        task.update(done)
                        run.stop_if_asked("computing features")
        run.fabric.barrier()
        return cache

    def _room(self, like: Features, images: int) -> FeatureCache | None:
        run = self.run
        note = run.progress.note
        place = choose_place(like, images, run.config.training, run.folder, note=note)
        rank, peers = _place_on_this_machine(run)
        if run.fabric.world_size == 1:
            return None if place is None else FeatureCache(like, images, place, run.folder)
        # All must decide alike; the one with the least room decides.
        order: tuple[Place | None, ...] = (None, *PLACES)
        codes = run.fabric.all_gather(torch.tensor(order.index(place), device=run.fabric.device))
        least = order[int(torch.as_tensor(codes).min())]
        if least is None:
            if place is not None:
                note("features are not kept: another process has no room for them")
            return None
        place = least
        if peers == 1:
            return FeatureCache(like, images, place, run.folder)
        name = run.fabric.broadcast(f"flawmap-{secrets.token_hex(6)}")
        # Machines may have the folder in common.
        name = f"{name}-{run.fabric.node_rank}"
        cache: FeatureCache | None = None
        if rank == 0:
            cache = FeatureCache(like, images, place, run.folder, shared=name, create=True)
        run.fabric.barrier()
        if cache is None:
            cache = FeatureCache(like, images, place, run.folder, shared=name)
        run.fabric.barrier()
        if rank == 0:
            cache.unname()
        return cache

    def timed(self, method: Method, samples: Sequence[Sample]) -> float:
        """Seconds that an image takes to become features; those of its score are kept."""
        size = self.run.config.training.batch_size
        with closing(self.batches(samples[: 2 * size])) as batches:
            first = next(batches)
            # The first call takes longer than those that follow.
            self.stored(method, first)
            began = time.perf_counter()
            second = next(batches, first)
            for tensor in self.stored(method, second):
                tensor.cpu()
            seconds = (time.perf_counter() - began) / len(second.samples)
        self.score_seconds = _SCORING * self._timed_score(method, first)
        return max(seconds, MEASURABLE)

    def _timed_score(self, method: Method, batch: Batch) -> float:
        """Seconds that an image takes from its pixels to its map."""
        device = self.run.fabric.device
        method.eval()

        def timed(images: Tensor) -> float:
            began = time.perf_counter()
            with torch.inference_mode(), self.run.fabric.autocast():
                method.scored_maps(images)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return (time.perf_counter() - began) / len(images)

        images = batch.images.to(device)
        if device.type == "cuda":
            # The first call starts what the card needs, and takes no image's time.
            timed(images[:1])
        one = timed(images[:1])
        return one if one > _SLOW_SCORE or len(images) == 1 else timed(images)

    def _seen(self, batch: Batch, step: int) -> Batch:
        """The batch as it is learnt in a step."""
        run = self.run
        if run.config.training.augment == "off":
            return batch
        number = np.random.SeedSequence([run.config.seed, step, run.fabric.global_rank, 1])
        generator = torch.Generator().manual_seed(int(number.generate_state(1)[0]))
        return replace(batch, images=random_views(batch.images, generator))


def _place_on_this_machine(run: Run) -> tuple[int, int]:
    """Which of this machine's processes this is, and how many there are."""
    if run.fabric.world_size == 1:
        return 0, 1
    return run.fabric.local_rank, max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

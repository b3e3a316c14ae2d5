"""From a table of images to a calibrated detector."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import flawmap
from flawmap.config import Config, MethodConfig
from flawmap.data.augment import random_views
from flawmap.data.loader import load_batches
from flawmap.data.samples import Problem, SampleTable
from flawmap.data.transform import Transform
from flawmap.data.verify import ImageFacts, verify
from flawmap.detector import Detector, Fitted
from flawmap.encoders.encoder import Encoder
from flawmap.encoders.encoder import build as build_encoder
from flawmap.encoders.encoder import resolve as resolve_encoder
from flawmap.encoders.table import NO_ENCODER
from flawmap.errors import ConfigError, DataError
from flawmap.methods.base import Features, IterativeMethod, Method, OnePassMethod
from flawmap.progress import Progress, Silent
from flawmap.registry import METHODS
from flawmap.resources import default_threads
from flawmap.scoring.calibration import EVERY, Calibration
from flawmap.scoring.good_scores import GoodScores
from flawmap.training.batches import Batches, streamed
from flawmap.training.cache import FeatureCache, choose_place
from flawmap.training.device import describe_device, make_fabric, precision_of
from flawmap.training.interrupt import Interrupted, PoliteStop
from flawmap.training.loop import Curve, train
from flawmap.training.plan import Plan, few, make_plan
from flawmap.training.start import require_start, weights_of
from flawmap.training.validation import Validation, held_back
from flawmap.types import Batch, Sample, categories_of

_SCORE_COST = 3
"""Scoring an image takes about this many times as long as its features alone."""


@dataclass(slots=True)
class _Timing:
    """Seconds per stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.monotonic)

    def mark(self, stage: str) -> None:
        now = time.monotonic()
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + now - self.last, 3)
        self.last = now


def fit_table(
    table: SampleTable,
    config: Config,
    *,
    run_folder: Path,
    resume: bool = False,
    start: Detector | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Detector:
    """Fit and calibrate a detector on the good training images of a table.

    Args:
        table: The data; only its train and validation splits are read.
        config: Everything that decides what the fit does.
        run_folder: Where checkpoints lie; the caller removes it once the result is safe.
        resume: Go on from the checkpoint in that folder.
        start: Begin with what this detector has learnt; see `start`.
        skip_bad: Leave unreadable images out instead of refusing.
        progress: Where progress is shown; nowhere by default.

    Raises:
        DataError: Unreadable images or no good ones.
        WeightsError: The encoder's weights are missing.
        FitError: The loss is not finite, the disk is full, or the checkpoint does not fit.
        Interrupted: The user stopped it; `resume` goes on.
    """
    shown: Progress = progress or Silent()
    # Building networks draws random numbers; the caller's own sequence is not disturbed.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return _Fit(table, config, run_folder, resume, start, skip_bad, shown).run()


class _Fit:
    def __init__(
        self,
        table: SampleTable,
        config: Config,
        run_folder: Path,
        resume: bool,
        start: Detector | None,
        skip_bad: bool,
        progress: Progress,
    ) -> None:
        self.table = table
        self.config = config
        self.run_folder = run_folder
        self.resume = resume
        self.start = start
        self.skip_bad = skip_bad
        self.progress = progress
        self.timing = _Timing()
        budget = config.training.time_budget_seconds
        self.deadline = None if budget is None else time.monotonic() + budget
        self.threads = config.training.threads or default_threads()
        self._numbers: dict[str, int] = {}
        self._pictures: dict[str, str] = {}
        self._score_seconds = 0.0
        self._validated = 0
        self.transform = Transform(config.data.size, config.data.resize, config.data.crop_from)

    def run(self) -> Detector:
        config = self.config
        self.table.require_apart(config.separate)
        cls = METHODS.load(config.method.name)
        _require_encoder(cls, config)
        spec = resolve_encoder(config.encoder.name)
        levels = getattr(config.method, "levels", None) or cls.default_levels(spec)
        encoder = build_encoder(config.encoder, levels)
        encoder.grid(config.data.size)
        self.fabric = make_fabric(config.training, together=True)
        if not self.fabric.is_global_zero:
            # One of several processes speaks for all.
            self.progress = Silent()
        self._require_fitting_options(cls)
        encoder.to(self.fabric.device)
        if self.start is not None:
            require_start(self.start, cls, config, encoder)
            self._say_what_is_forgotten()
        good, problems, content = self._verified()
        self.timing.mark("read images")
        can_leave_out = issubclass(cls, OnePassMethod) and cls.can_leave_out
        plan = make_plan(good, config, can_leave_out, note=self.progress.note)
        if self.fabric.is_global_zero:
            self._prepare_folder()
        self.fabric.barrier()
        models: dict[str, Method] = {}
        curves: dict[str, Curve] = {}
        parts = categories_of(plan.learn) if config.separate else (EVERY,)
        identity = self._identity(encoder, content)
        with PoliteStop() as self.stop:
            for index, name in enumerate(parts):
                learn = [s for s in plan.learn if name in (EVERY, s.category)]
                share = 1 / (len(parts) - index)
                method, curve = self._best_of(
                    cls, encoder, learn, index, share, len(plan.held_out), name, identity
                )
                models[name] = method
                if curve is not None:
                    curves[name] = curve
            self.timing.mark("learn")
            detector = Detector(config=config, encoder=encoder, models=models, fabric=self.fabric)
            if not self.fabric.is_global_zero:
                # The first process calibrates and writes; the others have done their share.
                return detector
            calibration = self._calibrate(detector, plan)
            self.timing.mark("calibrate")
        detector = detector.with_calibration(calibration)
        detector.fitted = Fitted(
            data={
                "root": self.table.root,
                "format": self.table.format,
                "fingerprint": self.table.fingerprint(),
                "content_fingerprint": content,
                "categories": list(categories_of(good)),
                "learnt_images": len(plan.learn),
                "validation_images": self._validated,
                "held_out_images": len(plan.held_out),
                "test_images": sum(
                    1 for s in self.table.samples if s.split == "test" and s.label is not None
                ),
                "learnt_pictures": sorted({self._pictures[s.path] for s in plan.learn}),
                "skipped": [[p.path, p.reason] for p in problems],
            },
            seconds=dict(self.timing.seconds),
            curves={
                name: {
                    "steps": c.steps,
                    "planned": c.planned,
                    "losses": c.losses,
                    "validation": asdict(c.validation),
                }
                for name, c in curves.items()
            },
            versions=_versions(),
            device=describe_device(self.fabric.device),
            precision=precision_of(self.fabric),
        )
        return detector

    def _verified(self) -> tuple[tuple[Sample, ...], tuple[Problem, ...], str]:
        """The good training images, every one of them decoded once."""
        wanted = tuple(s for s in self.table.samples if s.split != "test" and s.label in (0, None))
        table = replace(self.table, samples=wanted)
        with self.progress.task("Reading images", len(wanted)) as task:
            result = verify(
                table,
                threads=self.threads,
                white_level=self.config.data.white_level,
                on_progress=lambda done, total: task.update(done),
            )
        result.require(skip_bad=self.skip_bad)
        if result.problems:
            self.progress.note(f"{len(result.problems)} unreadable images are left out")
        good = few(
            self._distinct(result.facts), self.config.training.images_per_category, self.config.seed
        )
        taught = {s.category for s in good if s.split == "train"}
        if lost := sorted({s.category for s in wanted} - taught):
            raise DataError(
                f"no readable good training image is left of {', '.join(lost)}",
                where=self.table.root,
                hint="repair or add images, or name the other products with --category",
            )
        return good, result.problems, result.content_fingerprint

    def _distinct(self, facts: Sequence[ImageFacts]) -> tuple[Sample, ...]:
        """The images without exact copies within a category, and a number for each picture."""
        pictures: dict[bytes, int] = {}
        kept: dict[tuple[str, bytes], Sample] = {}
        # A copy in both splits belongs to training: a threshold from it would promise too much.
        for fact in sorted(facts, key=lambda f: f.sample.split != "train"):
            kept.setdefault((fact.sample.category, fact.pixels), fact.sample)
            self._numbers[fact.sample.path] = pictures.setdefault(fact.pixels, len(pictures))
            self._pictures[fact.sample.path] = fact.pixels.hex()
        if copies := len(facts) - len(kept):
            self.progress.note(
                f"{copies} exact copies of other good images are left out: they teach nothing, and "
                "a threshold set on them would be too low"
            )
        chosen = {id(sample) for sample in kept.values()}
        return tuple(f.sample for f in facts if id(f.sample) in chosen)

    def _prepare_folder(self) -> None:
        if self.run_folder.exists() and not self.resume:
            kept = self.run_folder.with_name(self.run_folder.name + ".old")
            shutil.rmtree(kept, ignore_errors=True)
            self.run_folder.rename(kept)
            self.progress.note(
                f"an unfinished run was there; it is kept in {kept} (--resume would have gone on)"
            )
        elif self.resume and not self.run_folder.exists():
            self.progress.note("there is no unfinished run to resume; starting anew")

    def _identity(self, encoder: Encoder, content: str) -> dict[str, Any]:
        tree = self.config.model_dump(mode="json")
        # What may differ between the parts of one run without changing its weights.
        for free in ("checkpoint_seconds", "time_budget_seconds", "threads"):
            tree["training"].pop(free)
        identity: dict[str, Any] = {
            "options": tree,
            "data": content,
            "encoder": encoder.fingerprint,
        }
        if self.start is not None:
            identity["start"] = weights_of(self.start)
        if self.fabric.world_size > 1:
            identity["processes"] = self.fabric.world_size
        return identity

    def _say_what_is_forgotten(self) -> None:
        assert self.start is not None
        here = set(self.table.categories)
        if forgotten := [name for name in self.start.categories if name not in here]:
            self.progress.note(
                "not in this data, so they get no threshold and may be forgotten: "
                f"{', '.join(forgotten)}. Give their images too, to keep them"
            )

    def _require_fitting_options(self, cls: type[Method]) -> None:
        """Options that would do nothing, or that cannot be met."""
        training = self.config.training
        n, size = self.fabric.world_size, training.batch_size
        if self.config.scoring.pooling == "method" and not cls.scores_images:
            raise ConfigError(
                f"{self.config.method.name} gives maps only: an image's score is taken from them",
                where="scoring.pooling",
                given="method",
                expected="max or top",
            )
        if issubclass(cls, OnePassMethod):
            options = (("augment", "off"), ("balance", False), ("validation_fraction", 0.0))
            for name, idle in options:
                if getattr(training, name) != idle:
                    raise ConfigError(
                        f"{self.config.method.name} sees every image once: this option would do "
                        "nothing",
                        where=f"training.{name}",
                        given=getattr(training, name),
                        hint="leave it out, or use an iterative method",
                    )
        elif size % n:
            raise ConfigError(
                f"a batch must be shared by {n} processes alike",
                where="training.batch_size",
                given=size,
                expected=f"a multiple of {n}",
            )

    def _new_method(
        self, cls: type[Method], encoder: Encoder, index: int, config: MethodConfig
    ) -> Method:
        generator = torch.Generator().manual_seed(self.config.seed * 1009 + index)
        method = cls.build(config, encoder, self.config.data.size, generator)
        return method.to(self.fabric.device)

    def _best_of(
        self,
        cls: type[Method],
        encoder: Encoder,
        samples: Sequence[Sample],
        index: int,
        share: float,
        held_out: int,
        name: str,
        identity: dict[str, Any],
    ) -> tuple[Method, Curve | None]:
        """A model that has learnt: the best one where the method names several candidates."""
        learn: list[Sample] = list(samples)
        back: list[Sample] = []
        configs: tuple[Any, ...] = (self.config.method,)
        if issubclass(cls, IterativeMethod):
            training = self.config.training
            learn, back = held_back(samples, training, self.config.seed * 1009 + index)
            if training.validation_fraction and not back:
                self.progress.note(
                    f"{len(samples)} images are too few to hold any out: all are learnt"
                )
            if self.start is None:
                configs = cls.candidates(self.config.method)
                if len(configs) > 1 and not back:
                    self.progress.note("without held-out images nothing can be chosen by them")
                    configs = configs[:1]
            self._validated += len(back)
        found: tuple[Method, Curve | None, float] | None = None
        for number, config in enumerate(configs):
            method = self._new_method(cls, encoder, index, config)
            if self.start is not None:
                method.restore(self.start.models[name].state_dict())
            # Each training still to come gets an equal share of the time that is left.
            part = share / (len(configs) - number * share)
            file = f"model-{index}" + (f"-{number}" if number else "")
            who = {**identity, "model": name, "candidate": number}
            curve = self._learn(method, learn, back, index, part, held_out, name, file, who)
            loss = curve.validation.best[1] if curve and curve.validation.best else 0.0
            if found is None or loss < found[2]:
                found = method, curve, loss
        assert found is not None
        method, curve, _ = found
        if isinstance(method, IterativeMethod) and method.final_images != 0:
            self._finalise_trained(method, learn, name)
        return method, curve

    def _finalise_trained(
        self, method: IterativeMethod, samples: Sequence[Sample], name: str
    ) -> None:
        if not self.fabric.is_global_zero:
            return
        n = min(len(samples), method.final_images or len(samples))
        chosen = [samples[i * len(samples) // n] for i in range(n)]
        label = "Finalising" if name == EVERY else f"Finalising {name}"
        with (
            self.progress.task(label, n) as task,
            closing(self._batches(chosen, self.config.training.batch_size)) as batches,
        ):

            def features() -> Iterator[Features]:
                done = 0
                for batch in batches:
                    self._stop_if_asked("finalising")
                    yield self._stored(self._extract(method, batch))
                    done += len(batch.samples)
                    task.update(done)

            with torch.no_grad(), self.fabric.autocast():
                method.finalise(features())

    def _learn(
        self,
        method: Method,
        samples: Sequence[Sample],
        back: Sequence[Sample],
        index: int,
        share: float,
        held_out: int,
        name: str,
        file: str,
        identity: dict[str, Any],
    ) -> Curve | None:
        label = "Learning" if name == EVERY else f"Learning {name}"
        if isinstance(method, OnePassMethod):
            if not self.fabric.is_global_zero:
                return None
            if self.deadline is not None:
                self.progress.note(
                    f"{self.config.method.name} passes over the images once; the time budget does "
                    "not apply"
                )
            generator = torch.Generator().manual_seed(self.config.seed * 1009 + index)
            self._observe(method, samples, label)
            self._finalise(method, generator, label)
            return None
        assert isinstance(method, IterativeMethod)
        validation = self._validation(method, back) if back else None
        fetch = self._feature_source(method, samples, label)
        deadline = self.deadline
        if deadline is not None:
            now = time.monotonic()
            left = deadline - now
            # Calibration comes out of the budget too; a decoder costs about as much as its encoder.
            every = method.final_images
            scored = held_out + (len(samples) if every is None else min(every, len(samples)))
            left -= min(0.3 * left, self._score_seconds * scored)
            deadline = now + left * share
        return train(
            method,
            fetch,
            fabric=self.fabric,
            config=self.config.training,
            seed=self.config.seed,
            checkpoint_path=self.run_folder / f"{file}.safetensors",
            identity=identity,
            resume=self.resume,
            deadline=deadline,
            progress=self.progress,
            stop=self.stop,
            name=label,
            validation=validation,
        )

    def _validation(self, method: Method, samples: Sequence[Sample]) -> Validation:
        batches, image = [], None
        with closing(self._batches(samples, self.config.training.batch_size)) as read:
            for batch in read:
                image = batch.images[0] if image is None else image
                batches.append(tuple(t.cpu() for t in self._stored(self._extract(method, batch))))
        assert image is not None
        return Validation(batches, image, self.config.training, self.config.seed)

    def _batches(self, samples: Sequence[Sample], batch_size: int) -> Generator[Batch, None, None]:
        return load_batches(
            samples,
            self.transform,
            batch_size,
            threads=self.threads,
            white_level=self.config.data.white_level,
        )

    def _extract(self, method: Method, batch: Batch) -> Features:
        # Not inference mode: what it gives could not be learnt from.
        with torch.no_grad(), self.fabric.autocast():
            return method.extract(batch.images.to(self.fabric.device))

    def _observe(self, method: OnePassMethod, samples: Sequence[Sample], label: str) -> None:
        size = self.config.training.batch_size
        with (
            self.progress.task(label, len(samples)) as task,
            closing(self._batches(samples, size)) as batches,
        ):
            done = 0
            for batch in batches:
                numbers = [self._numbers[sample.path] for sample in batch.samples]

                def show(thinned: int, total: int, done: int = done) -> None:
                    task.update(done, thinning=f"{100 * thinned // max(1, total)}%")
                    self._stop_if_asked("learning")

                method.observe(self._extract(method, batch), numbers, show)
                done += len(batch.samples)
                task.update(done)
                self._stop_if_asked("learning")

    def _finalise(self, method: OnePassMethod, generator: torch.Generator, label: str) -> None:
        with self.progress.task(f"{label}: choosing what to keep", 100) as task:

            def show(done: int, total: int) -> None:
                task.update(100 * done // max(1, total))
                self._stop_if_asked("learning")

            method.finalise(generator, show)
            task.update(100)

    def _stop_if_asked(self, stage: str) -> None:
        if self.stop.requested:
            raise Interrupted(
                f"stopped while {stage}",
                where=str(self.run_folder),
                hint="give the same command with --resume to go on from the last checkpoint, "
                "if one was written, else from the start",
            )

    def _feature_source(
        self, method: IterativeMethod, samples: Sequence[Sample], label: str
    ) -> Callable[[int], Features]:
        """Features of a step's batch: from a cache if it fits, else through the encoder."""
        training = self.config.training
        n, size = len(samples), training.batch_size
        probe: Features | None = None
        cache: FeatureCache | None = None
        with closing(self._batches(samples, size)) as batches:
            first = next(batches)
            began = time.monotonic()
            probe = self._stored(self._extract(method, first))
            self._score_seconds = _SCORE_COST * (time.monotonic() - began) / len(first.samples)
            if self.deadline is not None and not method.needs_encoder:
                self._score_seconds = self._timed_score(method, probe)
            place = None
            if training.augment == "off":
                # Every process of a machine keeps the features of all images.
                here = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
                shared = training.model_copy(
                    update={
                        "cache_memory_mib": training.cache_memory_mib // here,
                        "cache_disk_mib": training.cache_disk_mib // here,
                    }
                )
                place = choose_place(probe, n, shared, self.run_folder)
            if place is not None:
                cache = FeatureCache(probe, n, place, self.run_folder)
                cache.put(0, probe)
                done = len(first.samples)
                with self.progress.task(f"{label}: features", n) as task:
                    for batch in batches:
                        cache.put(done, self._stored(self._extract(method, batch)))
                        done += len(batch.samples)
                        task.update(done)
                        self._stop_if_asked("computing features")
        self.timing.mark("features")
        shares = Batches(
            n,
            size,
            self.config.seed,
            groups=[s.category for s in samples] if training.balance else None,
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
        )
        if cache is not None:
            kept = cache
            return lambda step: kept.get(shares.rows(step))

        def read(rows: Sequence[int], step: int) -> Iterator[Features]:
            chosen = [samples[row] for row in rows]
            for offset, batch in enumerate(self._batches(chosen, len(shares.rows(step)))):
                yield self._stored(self._extract(method, self._seen(batch, step + offset)))

        return streamed(shares, read)

    def _timed_score(self, method: Method, features: Features) -> float:
        """Seconds to score an image where no encoder tells by its own time."""
        method.eval()
        began = time.monotonic()
        with torch.no_grad(), self.fabric.autocast():
            method.anomaly_map(tuple(t[:1] for t in features))
        return time.monotonic() - began

    def _seen(self, batch: Batch, step: int) -> Batch:
        """The batch as it is learnt in a step."""
        if self.config.training.augment == "off":
            return batch
        number = np.random.SeedSequence([self.config.seed, step, self.fabric.global_rank, 1])
        generator = torch.Generator().manual_seed(int(number.generate_state(1)[0]))
        return replace(batch, images=random_views(batch.images, generator))

    def _stored(self, features: Features) -> Features:
        """Features as they are kept: bfloat16 when the loop computes in it anyway. What a method
        gives in a type of its own choice stays in it."""
        wanted = torch.bfloat16 if precision_of(self.fabric) == "bf16-mixed" else torch.float32
        wide = (torch.float32, torch.bfloat16)
        return tuple(t.to(wanted) if t.dtype in wide else t for t in features)

    def _calibrate(self, detector: Detector, plan: Plan) -> Calibration:
        found = GoodScores()
        jobs: list[tuple[Sequence[Sample], bool]] = [(plan.held_out, True)]
        for name in detector.models:
            mine = [s for s in plan.learn if name in (EVERY, s.category)]
            jobs.append((mine, False))
        for samples, exact in jobs:
            wanted = samples if exact else [s for s in samples if s.category in plan.leave_out]
            if not wanted:
                continue
            numbers = None if exact else self._numbers
            with self.progress.task("Calibrating", len(wanted)) as task:
                for done, (sample, geometry, raw) in enumerate(
                    detector.raw_maps(wanted, numbers=numbers), start=1
                ):
                    found.add(sample, *detector.scorer.score(raw, geometry), exact=exact)
                    task.update(done)
                    self._stop_if_asked("calibrating")
        calibration = Calibration(
            rate=self.config.calibration.false_reject_rate,
            categories=found.categories(),
        )
        for name in calibration.categories:
            threshold = calibration.threshold(name)
            assert threshold is not None
            self.progress.note(
                f"threshold of '{name}': {threshold.value:.4g}; {threshold.explain()}"
            )
        for text in found.notes(calibration):
            self.progress.note(text)
        return calibration


def run_folder_of(output: Path) -> Path:
    """Where the checkpoints of a fit lie that will write `output`."""
    return output.with_name(output.name + ".run")


def _require_encoder(cls: type[Method], config: Config) -> None:
    """An encoder for a method that needs one, and none for one that does not."""
    name, given = config.method.name, config.encoder.name
    if cls.needs_encoder == (given != NO_ENCODER.name):
        return
    raise ConfigError(
        f"{name} looks at images through an encoder"
        if cls.needs_encoder
        else f"{name} learns from pixels: an encoder would do nothing",
        where="encoder.name",
        given=given,
        expected="a name that 'flawmap encoders' lists" if cls.needs_encoder else NO_ENCODER.name,
        hint="leave it out: the method has a default",
    )


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0], "flawmap": flawmap.__version__}
    for name in ("torch", "timm", "numpy", "lightning-fabric", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

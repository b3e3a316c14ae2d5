"""From a table of images to a calibrated detector."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import flawmap
from flawmap.config import Config
from flawmap.data.check import training_findings
from flawmap.data.lister import Problem
from flawmap.data.odd import odd_findings
from flawmap.data.pictures import Pictures
from flawmap.data.samples import SampleTable
from flawmap.data.transform import Transform
from flawmap.data.verify import ImageFacts, range_findings, verify
from flawmap.detector import Detector, Fitted
from flawmap.encoders.encoder import Encoder
from flawmap.encoders.encoder import build as build_encoder
from flawmap.encoders.encoder import resolve as resolve_encoder
from flawmap.errors import ConfigError, DataError
from flawmap.methods.base import Method, OnePassMethod
from flawmap.progress import Mute, Progress, Silent
from flawmap.registry import METHODS
from flawmap.resources import available_memory
from flawmap.scoring.calibration import Calibration
from flawmap.scoring.good_scores import GoodScores
from flawmap.training import checkpoint
from flawmap.training.checks import require_encoder, require_options
from flawmap.training.device import describe_device, make_fabric, precision_of, share_of
from flawmap.training.interrupt import PoliteStop
from flawmap.training.learner import Learner
from flawmap.training.loop import Curve
from flawmap.training.plan import Plan, at_most, make_plan, thinned
from flawmap.training.run import Run
from flawmap.training.start import require_start, weights_of
from flawmap.types import EVERY, Sample, categories_of
from flawmap.versions import version_of
from flawmap.wording import counted

_LIBRARIES = ("torch", "timm", "numpy", "lightning-fabric", "pillow")
"""They decide what is learnt."""

_LEAST_CALIBRATION = 20
"""Held-out images of a category that set its threshold even where the time budget is over."""


_MOST_PICTURES = 2**30
"""Bytes of images that are kept from the first look at them: 5,400 of 256 px."""


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
        ConfigError: Options contradict each other, the method, the encoder or `start`.
        DataError: Unreadable images or no good ones.
        WeightsError: The encoder's weights are missing.
        FitError: The loss is not finite, the disk is full, or the checkpoint does not fit.
        Interrupted: The user stopped it; `resume` goes on.
    """
    shown: Progress = progress or Silent()
    # Building networks draws random numbers; the caller's own sequence on the CPU is not disturbed.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return _Fit(table, config, run_folder, resume, start, skip_bad, shown).detector()


@dataclass(frozen=True, slots=True)
class _Checked:
    """The images of a fit.

    Attributes:
        good: Distinct good images of the train and validation splits.
        problems: Files that cannot be read.
        content: A digest of what was read.
    """

    good: tuple[Sample, ...]
    problems: tuple[Problem, ...]
    content: str


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
        self.start = start
        self.skip_bad = skip_bad
        budget = config.training.time_budget_seconds
        began = time.monotonic()
        fabric = make_fabric(config.training, together=True)
        self.run = Run(
            config=config,
            folder=run_folder,
            resume=resume,
            # One of several processes speaks for all.
            progress=progress if fabric.is_global_zero else Mute(),
            fabric=fabric,
            deadline=None if budget is None else began + budget,
            stop=PoliteStop(),
            last=began,
        )
        self.progress = self.run.progress
        self._numbers: dict[str, int] = {}
        self._pictures: dict[str, str] = {}

    def detector(self) -> Detector:
        """Everything from the images to the thresholds."""
        config, run = self.config, self.run
        for reason in config.chosen:
            self.progress.note(reason)
        self.table.require_apart(config.separate)
        if run.resume:
            self._require_same_method()
        cls = METHODS.load(config.method.name)
        encoder = self._encoder(cls)
        checked = self._verified()
        run.mark("read images")
        can_leave_out = issubclass(cls, OnePassMethod) and cls.can_leave_out
        taught = self._taught_before()
        plan = make_plan(
            checked.good,
            config,
            can_leave_out,
            warn=self.progress.warn,
            taught={path for path, picture in self._pictures.items() if picture in taught},
        )
        plan = self._without_learnt_pictures(plan)
        if run.fabric.is_global_zero:
            self._prepare_folder()
        run.fabric.barrier()
        learner = Learner(
            run,
            cls,
            encoder,
            start=self.start,
            numbers=self._numbers,
            identity=self._identity(encoder, checked.content),
        )
        with run.stop:
            models, curves = self._learnt(learner, plan)
            run.mark("learn")
            detector = Detector(config=config, encoder=encoder, models=models, fabric=run.fabric)
            if not run.fabric.is_global_zero:
                # The first process calibrates and writes; the others have done their share.
                return detector
            plan = self._within_the_budget(plan, learner)
            calibration = self._calibrated(detector, plan)
            run.mark("calibrate")
        detector = detector.with_calibration(calibration)
        detector.fitted = self._fitted(checked, learner, plan, curves)
        return detector

    def _encoder(self, cls: type[Method]) -> Encoder:
        """The frozen network, on its device; what does not fit the method is refused."""
        config, fabric = self.config, self.run.fabric
        require_encoder(cls, config)
        spec = resolve_encoder(config.encoder.name)
        levels = getattr(config.method, "levels", None) or cls.default_levels(spec)
        encoder = build_encoder(config.encoder, levels)
        encoder.grid(config.data.size)
        require_options(cls, config, fabric.world_size)
        with torch.random.fork_rng(devices=[]):
            # What the method cannot be built of is refused before any image is read.
            cls.build(config.method, encoder, config.data.size, torch.Generator())
        encoder.to(fabric.device)
        if self.start is not None:
            require_start(self.start, cls, config, encoder)
            self._say_what_is_forgotten()
        return encoder

    def _fitted(
        self, checked: _Checked, learner: Learner, plan: Plan, curves: Mapping[str, Curve]
    ) -> Fitted:
        """Where the detector comes from."""
        run = self.run
        learnt = self._taught_before() | {self._pictures[s.path] for s in plan.learn}
        return Fitted(
            data={
                "root": self.table.root,
                "format": self.table.format,
                "fingerprint": self.table.fingerprint(),
                "content_fingerprint": checked.content,
                "categories": list(self._known(checked.good)),
                "learnt_images": len(plan.learn) - sum(learner.left_out.values()),
                "validation_images": learner.validated,
                "held_out_images": len(plan.held_out),
                "test_images": len(self.table.tested),
                "learnt_pictures": sorted(learnt),
                "skipped": [[p.path, p.reason] for p in checked.problems],
            },
            seconds=dict(run.seconds),
            curves={
                name: {
                    "steps": c.steps,
                    "planned": c.planned,
                    "losses": c.losses,
                    "validation": asdict(c.validation),
                    **({"kept": c.kept} if c.kept else {}),
                }
                for name, c in curves.items()
            },
            versions=_versions(),
            device=describe_device(run.fabric.device),
            precision=precision_of(run.fabric),
            finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    def _known(self, samples: Sequence[Sample]) -> tuple[str, ...]:
        """The products of images, and those that the shared model had learnt before."""
        before = () if self.start is None or self.config.separate else self.start.categories
        return tuple(sorted({*before, *categories_of(samples)}))

    def _taught_before(self) -> set[str]:
        """The pictures that the detector to begin with has learnt."""
        if self.start is None:
            return set()
        return set(self.start.fitted.data.get("learnt_pictures", ()))

    def _without_learnt_pictures(self, plan: Plan) -> Plan:
        """Pictures that one product teaches set no threshold of another, if they share a model."""
        if self.config.separate:
            return plan
        learnt = {self._pictures[s.path] for s in plan.learn}
        kept = tuple(s for s in plan.held_out if self._pictures[s.path] not in learnt)
        if copies := len(plan.held_out) - len(kept):
            self.progress.note(
                f"{counted(copies, 'held-out image is', 'held-out images are')} learnt as another "
                "product's: no threshold is set on such"
            )
        return replace(plan, held_out=kept)

    def _learnt(self, learner: Learner, plan: Plan) -> tuple[dict[str, Method], dict[str, Curve]]:
        """One model for all products, or one for each, and how it went."""
        models: dict[str, Method] = {}
        curves: dict[str, Curve] = {}
        categories = categories_of(plan.learn)
        parts = categories if self.config.separate else (EVERY,)
        if learner.cls.one_product and len(categories) > len(parts):
            self.progress.note(
                f"{self.config.method.name} is made for one product, and learns "
                f"{len(categories)} together here: --separate makes a model for each"
            )
        for index, name in enumerate(parts):
            models[name], curve = learner.model(
                name,
                [s for s in plan.learn if name in (EVERY, s.category)],
                index=index,
                share=1 / (len(parts) - index),
                held_out=len(plan.held_out),
            )
            if curve is not None:
                curves[name] = curve
        return models, curves

    def _within_the_budget(self, plan: Plan, learner: Learner) -> Plan:
        """With as many held-out images as the time that is left allows."""
        if self.run.deadline is None or not learner.reader.score_seconds:
            return plan
        left = max(0.0, self.run.deadline - time.monotonic())
        most = int(left / learner.reader.score_seconds)
        held_out = thinned(plan.held_out, most, self.config.seed, least=_LEAST_CALIBRATION)
        if len(held_out) < len(plan.held_out):
            self.progress.note(
                f"the time budget allows {len(held_out)} of the {len(plan.held_out)} held-out "
                "images to set the threshold"
            )
        return replace(plan, held_out=tuple(held_out))

    def _calibrated(self, detector: Detector, plan: Plan) -> Calibration:
        """Thresholds from held-out good images, and from others as if each had not been learnt."""
        run, numbers = self.run, self._numbers
        found = GoodScores()
        jobs: list[tuple[Sequence[Sample], bool]] = [(plan.held_out, True)]
        for name in detector.models:
            mine = [s for s in plan.learn if name in (EVERY, s.category)]
            jobs.append(([s for s in mine if s.category in plan.leave_out], False))
        for samples, exact in jobs:
            if not samples:
                continue
            with run.progress.task("Calibrating", len(samples)) as task:
                for done, (sample, geometry, raw) in enumerate(
                    detector.raw_maps(
                        samples, numbers=None if exact else numbers, kept=run.pictures
                    ),
                    start=1,
                ):
                    found.add(sample, *detector.scorer.score(raw, geometry), exact=exact)
                    task.update(done)
                    run.stop_if_asked("calibrating")
        calibration = Calibration(
            rate=run.config.calibration.false_reject_rate,
            categories=found.categories(),
            fitted=self._known(plan.learn),
        )
        for name, threshold in calibration.thresholds().items():
            run.progress.note(
                f"threshold of '{name}': {threshold.value:.4g}; {threshold.explain()}"
            )
        for text in calibration.cautions():
            run.progress.warn(text)
        return calibration

    def _verified(self) -> _Checked:
        """The good training images, every one of them decoded once."""
        wanted = tuple(s for s in self.table.samples if s.split != "test" and s.label in (0, None))
        table = replace(self.table, samples=wanted)
        white_level = self.config.data.white_level
        share = share_of(self.run.fabric)
        mine = wanted if share is None else share.of(wanted)
        # Of several processes each learns from images that others have looked at.
        kept = None if share is not None else self._room_for_pictures()
        self.run.pictures = kept
        with self.progress.task("Reading images", len(mine)) as task:
            result = verify(
                table,
                threads=self.run.threads,
                white_level=white_level,
                on_progress=lambda done, total: task.update(done),
                share=share,
                watch=None if kept is None else kept.add,
            )
        result.require(skip_bad=self.skip_bad)
        for found in (
            *training_findings(table),
            *range_findings(result.facts, white_level),
            *odd_findings(result.facts, table),
        ):
            say = self.progress.warn if found.severity == "warning" else self.progress.note
            say(f"{found.message} -> {found.hint}" if found.hint else found.message)
        if result.problems:
            self.progress.warn(f"{len(result.problems)} unreadable images are left out")
        good = at_most(
            self._distinct(result.facts), self.config.training.images_per_category, self.config.seed
        )
        taught = {s.category for s in good if s.split == "train"}
        if lost := sorted({s.category for s in wanted} - taught):
            raise DataError(
                f"no readable good training image is left of {', '.join(lost)}",
                where=self.table.root,
                hint="repair or add images, or name the other products with --category",
            )
        return _Checked(good, result.problems, result.content_fingerprint)

    def _room_for_pictures(self) -> Pictures:
        room = min(_MOST_PICTURES, (available_memory() or 0) // 8)
        return Pictures(Transform.of(self.config.data), room)

    def _distinct(self, facts: Sequence[ImageFacts]) -> tuple[Sample, ...]:
        """The images without exact copies within a category; numbers each picture, or part."""
        parts: dict[bytes | tuple[str, str], int] = {}
        kept: dict[tuple[str, bytes], Sample] = {}
        # A copy in both splits belongs to training: a threshold from it would promise too much.
        for fact in sorted(facts, key=lambda f: f.sample.split != "train"):
            kept.setdefault((fact.sample.category, fact.pixels), fact.sample)
            # Views of one part are left out together, as copies are.
            part = (fact.sample.category, fact.sample.group) if fact.sample.group else fact.pixels
            self._numbers[fact.sample.path] = parts.setdefault(part, len(parts))
            self._pictures[fact.sample.path] = fact.pixels.hex()
        if copies := len(facts) - len(kept):
            self.progress.note(
                f"{copies} exact copies of other good images are left out: they teach nothing, and "
                "a threshold set on them would be too low"
            )
        chosen = {id(sample) for sample in kept.values()}
        return tuple(f.sample for f in facts if id(f.sample) in chosen)

    def _prepare_folder(self) -> None:
        if self.run.folder.exists() and not self.run.resume:
            kept = self.run.folder.with_name(self.run.folder.name + ".old")
            number = 2
            while any(kept.glob("*.safetensors")):
                # What somebody may have learnt for hours is never removed.
                kept = kept.with_name(f"{self.run.folder.name}.old{number}")
                number += 1
            shutil.rmtree(kept, ignore_errors=True)
            self.run.folder.rename(kept)
            self.progress.note(
                f"an unfinished run was there; it is kept in {kept} (--resume would have gone on)"
            )
        elif self.run.resume and not self.run.folder.exists():
            self.progress.note("there is no unfinished run to resume; starting anew")

    def _require_same_method(self) -> None:
        """Of another method no checkpoint would be read, and its run be gone in the end."""
        for file in sorted(self.run.folder.glob("*.safetensors")):
            before = checkpoint.method_of(file)
            if before != self.config.method.name:
                raise ConfigError(
                    f"the unfinished run is one of {before}",
                    where="--resume",
                    given=f"{self.config.method.name} for {self.run.folder}",
                    expected=f"--method {before}, and the other options as they were",
                    hint="give the same command as before with --resume, or start anew without it",
                )

    def _identity(self, encoder: Encoder, content: str) -> dict[str, Any]:
        # What may differ between the parts of one run without changing its weights.
        free = {
            *("checkpoint_seconds", "time_budget_seconds", "threads"),
            *("cache", "cache_memory_mib", "cache_disk_mib"),
        }
        tree = self.config.model_dump(
            mode="json", exclude={"chosen": True, "bundle": True, "training": free}
        )
        identity: dict[str, Any] = {
            "options": tree,
            "data": content,
            "encoder": encoder.fingerprint,
        }
        if self.start is not None:
            identity["start"] = weights_of(self.start)
        if self.run.fabric.world_size > 1:
            identity["processes"] = self.run.fabric.world_size
        return identity

    def _say_what_is_forgotten(self) -> None:
        assert self.start is not None
        here = set(self.table.categories)
        if forgotten := [name for name in self.start.categories if name not in here]:
            self.progress.warn(
                "not in this data, so they get no threshold and may be forgotten: "
                f"{', '.join(forgotten)}. Give their images too, to keep them"
            )


def run_folder_of(output: Path) -> Path:
    """Where the checkpoints of a fit lie that will write `output`."""
    return output.with_name(output.name + ".run")


def _versions() -> dict[str, str]:
    own = {"python": sys.version.split()[0], "flawmap": flawmap.__version__}
    return own | {name: v for name in _LIBRARIES if (v := version_of(name)) is not None}

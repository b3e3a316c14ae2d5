"""From the images of one model to what it has learnt."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import torch

from flawmap.config import MethodConfig
from flawmap.encoders.encoder import Encoder
from flawmap.errors import FitError
from flawmap.files import write_text
from flawmap.methods.base import Features, IterativeMethod, Method, OnePassMethod
from flawmap.resources import one_blas_thread
from flawmap.training.features import FeatureReader
from flawmap.training.loop import Curve, Training
from flawmap.training.plan import thinned
from flawmap.training.run import Run
from flawmap.training.start import Learnt
from flawmap.training.validation import Validation, held_back
from flawmap.types import EVERY, Sample

_CALIBRATION_SHARE = 0.3
"""Of a time budget, at most."""
_FEATURE_SHARE = 1 / 3
"""Of the time for learning, which features may take."""


class Learner:
    """Makes the models of a fit, one after the other.

    Args:
        run: The fit.
        cls: The method.
        encoder: Frozen, on the device.
        start: Each model begins with what this detector's has learnt; None for new ones.
        numbers: The number of each image's picture, by path.
        identity: What a checkpoint must agree on, so that it is this fit's.
    """

    def __init__(
        self,
        run: Run,
        cls: type[Method],
        encoder: Encoder,
        *,
        start: Learnt | None,
        numbers: Mapping[str, int],
        identity: Mapping[str, Any],
    ) -> None:
        self.run = run
        self.cls = cls
        self.encoder = encoder
        self.start = start
        self.numbers = numbers
        self.identity = identity
        self.reader = FeatureReader(run)
        self.validated = 0
        """Images that chose weights instead of being learnt."""
        self.left_out: dict[str, int] = {}
        """Images of each model that its time, or its iterations, are too few for."""

    def model(
        self, name: str, samples: Sequence[Sample], *, index: int, share: float, held_out: int
    ) -> tuple[Method, Curve | None]:
        """A model that has learnt: the best one where the method names several candidates.

        Args:
            name: The product, or `EVERY`.
            samples: Its good images.
            index: The how manieth model of the fit it is.
            share: Of the time that is left, for this model.
            held_out: Images that will be scored for the thresholds.
        """
        learn: list[Sample] = list(samples)
        back: list[Sample] = []
        configs: tuple[Any, ...] = (self.run.config.method,)
        if issubclass(self.cls, IterativeMethod):
            learn, back = self._held_back(samples, index)
            if self.start is None:
                configs = self.cls.candidates(self.run.config.method)
                if len(configs) > 1 and not back:
                    self.run.progress.note("without held-out images nothing can be chosen by them")
                    configs = configs[:1]
        found: tuple[Method, Curve | None, float] | None = None
        losses: dict[str, float] = {}
        for number, config in enumerate(configs):
            method = self._new(index, config)
            if self.start is not None:
                method.restore(self.start.models[name].state_dict())
            if isinstance(method, OnePassMethod):
                self._pass_over(method, learn, index, name)
                return method, None
            assert isinstance(method, IterativeMethod)
            # Each training still to come gets an equal share of the time that is left.
            part = share / (len(configs) - number * share)
            file = f"model-{index}" + (f"-{number}" if number else "")
            who = {**self.identity, "model": name, "candidate": number}
            what = _apart(config, configs)
            curve = self._train(
                method,
                learn,
                back,
                share=part,
                held_out=held_out,
                name=name,
                file=file,
                identity=who,
                what=what,
            )
            loss = curve.validation.best[1] if curve.validation.best else 0.0
            losses[what] = loss
            if found is None or loss < found[2]:
                found = method, curve, loss
        assert found is not None
        if len(losses) > 1:
            lowest = min(losses, key=losses.__getitem__)
            told = ", ".join(f"{what} {loss:.4g}" for what, loss in losses.items())
            self.run.progress.note(f"loss of held-out images: {told}; {lowest} is kept")
            assert found[1] is not None
            found[1].kept = lowest
        best, curve_of_best, _ = found
        assert isinstance(best, IterativeMethod)
        if best.final_images != 0:
            self._finalise_trained(best, learn, name)
        best.release()
        return best, curve_of_best

    def _held_back(
        self, samples: Sequence[Sample], index: int
    ) -> tuple[list[Sample], list[Sample]]:
        config = self.run.config
        learn, back = held_back(samples, config.training, config.seed * 1009 + index)
        if config.training.validation_fraction and not back:
            self.run.progress.note(
                f"{len(samples)} images are too few to hold any out: all are learnt"
            )
        self.validated += len(back)
        return learn, back

    def _new(self, index: int, config: MethodConfig) -> Method:
        generator = self._generator(index)
        size = self.run.config.data.size
        method = self.cls.build(config, self.encoder, size, generator)
        if isinstance(method, IterativeMethod):
            method.threads = self.run.threads
        return method.to(self.run.fabric.device)

    def _generator(self, index: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.run.config.seed * 1009 + index)

    def _train(
        self,
        method: IterativeMethod,
        samples: Sequence[Sample],
        back: Sequence[Sample],
        *,
        share: float,
        held_out: int,
        name: str,
        file: str,
        identity: dict[str, Any],
        what: str,
    ) -> Curve:
        """Train one model.

        Args:
            method: It has learnt nothing yet, or what the fit begins with.
            samples: Images to learn.
            back: Images that choose the weights; without any the last ones stay.
            share: Of the time that is left, for this training.
            held_out: Images that will be scored for the thresholds.
            name: The product, or `EVERY`.
            file: How the names of its files in the run's folder begin.
            identity: What a checkpoint must agree on.
            what: What tells it from the other candidates; "" for a single one.
        """
        run, label = self.run, _label("Learning", name) + (f", {what}" if what else "")
        deadline, given = None, len(samples)
        if run.deadline is not None:
            samples, deadline = self._within_the_budget(
                method, samples, share=share, held_out=held_out, name=name, file=file
            )
        samples = self._within_the_iterations(samples)
        self.left_out[name] = given - len(samples)
        validation = self._validation(method, back, len(samples)) if back else None
        at_most = self._within_the_epochs(len(samples), name)
        return Training(
            method=method,
            prepare=lambda: self.reader.steps(method, samples, label),
            fabric=run.fabric,
            config=run.config.training,
            seed=run.config.seed,
            checkpoint_path=run.folder / f"{file}.safetensors",
            identity=identity,
            resume=run.resume,
            deadline=deadline,
            progress=run.progress,
            stop=run.stop,
            name=label,
            at_most=at_most,
            validation=validation,
            naming=self._naming,
        ).run()

    def _within_the_budget(
        self,
        method: IterativeMethod,
        samples: Sequence[Sample],
        *,
        share: float,
        held_out: int,
        name: str,
        file: str,
    ) -> tuple[Sequence[Sample], float]:
        """The images whose features leave most of the time for learning, and when that ends."""
        run = self.run
        assert run.deadline is not None
        feature_seconds = self.reader.timed(method, samples)
        now = time.monotonic()
        left = max(0.0, run.deadline - now)
        # Calibration comes out of the budget too.
        every = method.final_images
        scored = held_out + (len(samples) if every is None else min(every, len(samples)))
        left -= min(_CALIBRATION_SHARE * left, self.reader.score_seconds * scored)
        left *= share
        if run.config.training.augment != "off":
            # Every step computes its own features.
            return samples, now + left
        chosen = run.folder / f"{file}.images"
        size = run.config.training.batch_size
        most = int(_FEATURE_SHARE * left / feature_seconds) * run.fabric.world_size
        if run.resume and chosen.is_file():
            most = int(chosen.read_text(encoding="ascii"))
        most = int(run.fabric.broadcast(max(size, most)))
        kept = thinned(samples, most, run.config.seed, least=1)
        if len(kept) < len(samples):
            run.progress.note(
                f"the time budget allows {len(kept)} of the {len(samples)} images to be learnt"
            )
        if run.fabric.is_global_zero:
            write_text(chosen, f"{most}\n", error=FitError)
        return kept, now + left

    @property
    def _naming(self) -> str:
        """What a hint to an option begins with: beside it `auto` might choose another method."""
        config = self.run.config
        return f"--method {config.method.name} " if config.chosen else ""

    def _within_the_iterations(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """No more images than the steps can look at: features of others would be for nothing."""
        training = self.run.config.training
        most = training.iterations * training.batch_size
        # Balanced, small categories are looked at more often than others.
        if training.balance or len(samples) <= most:
            return samples
        kept = thinned(samples, most, self.run.config.seed, least=1)
        self.run.progress.note(
            f"{training.iterations} iterations of {training.batch_size} images learn {len(kept)} "
            f"of the {len(samples)}: {self._naming}--set training.iterations=N learns more of them"
        )
        return kept

    def _within_the_epochs(self, images: int, name: str) -> int | None:
        """The iterations in which an image is learnt as often as it may, on average over all of
        them; None if that is no limit.

        Args:
            images: How many are learnt.
            name: The product, or `EVERY`.
        """
        training = self.run.config.training
        if training.max_epochs is None:
            return None
        size = self._batch_size(images)
        at_most = max(1, training.max_epochs * images // size)
        if at_most >= training.iterations:
            return None
        self.run.progress.note(
            f"{at_most} of the {training.iterations} iterations learn the {images} images"
            + ("" if name == EVERY else f" of {name}")
            + f" as often as training.max_epochs={training.max_epochs} allows: {self._naming}"
            "--set training.max_epochs=N learns longer"
        )
        return at_most

    def _batch_size(self, images: int) -> int:
        """Images of a step."""
        training = self.run.config.training
        # A batch larger than the data is the whole data; views of a few images fill it.
        few = training.augment == "off"
        return min(training.batch_size, images) if few else training.batch_size

    def _validation(
        self, method: IterativeMethod, samples: Sequence[Sample], taught: int
    ) -> Validation:
        batches, image = [], None
        with closing(self.reader.batches(samples)) as read:
            for batch in read:
                image = batch.images[0] if image is None else image
                batches.append(tuple(t.cpu() for t in self.reader.stored(method, batch)))
        assert image is not None
        training, seed = self.run.config.training, self.run.config.seed
        every = training.validate_every or method.epoch(taught, self._batch_size(taught))
        return Validation(batches, image, training, every=every, seed=seed)

    def _finalise_trained(
        self, method: IterativeMethod, samples: Sequence[Sample], name: str
    ) -> None:
        run = self.run
        if not run.fabric.is_global_zero:
            return
        n = min(len(samples), method.final_images or len(samples))
        chosen = [samples[i * len(samples) // n] for i in range(n)]
        with (
            run.progress.task(_label("Finalising", name), n) as task,
            closing(self.reader.batches(chosen)) as batches,
        ):

            def features() -> Iterator[Features]:
                done = 0
                for batch in batches:
                    run.stop_if_asked("finalising")
                    yield self.reader.stored(method, batch)
                    done += len(batch.samples)
                    task.update(done)

            with one_blas_thread(), torch.no_grad(), run.fabric.autocast():
                method.finalise(features())

    def _pass_over(
        self, method: OnePassMethod, samples: Sequence[Sample], index: int, name: str
    ) -> None:
        run, label = self.run, _label("Learning", name)
        if not run.fabric.is_global_zero:
            return
        if run.deadline is not None and not run.config.chosen:
            run.progress.note(
                f"{run.config.method.name} passes over the images once, however long it takes; "
                "--method auto chooses what it keeps by the time budget"
            )
        with (
            run.progress.task(label, len(samples)) as task,
            closing(self.reader.batches(samples)) as batches,
        ):
            done = 0
            for batch in batches:
                numbers = [self.numbers[sample.path] for sample in batch.samples]

                def thinning(thinned: int, total: int, done: int = done) -> None:
                    task.update(done, thinning=f"{100 * thinned // max(1, total)}%")
                    run.stop_if_asked("learning")

                method.observe(self.reader.extract(method, batch), numbers, thinning)
                done += len(batch.samples)
                task.update(done)
                run.stop_if_asked("learning")
        with run.progress.task(f"{label}: choosing what to keep", 100) as task:

            def choosing(chosen: int, total: int) -> None:
                task.update(100 * chosen // max(1, total))
                run.stop_if_asked("learning")

            method.finalise(self._generator(index), choosing)
            task.update(100)


def _apart(config: MethodConfig, configs: Sequence[MethodConfig]) -> str:
    """What tells one of several configurations from the others, such as "position=local"."""
    trees = [other.model_dump() for other in configs]
    mine = config.model_dump()
    return ", ".join(
        f"{name}={value}" for name, value in mine.items() if any(t[name] != value for t in trees)
    )


def _label(doing: str, name: str) -> str:
    return doing if name == EVERY else f"{doing} {name}"

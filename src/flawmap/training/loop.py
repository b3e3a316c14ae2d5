"""The training loop of iterative methods.

Everything random in a step follows from (seed, step) alone: which images it sees (see `batches`),
dropout and other noise. So a run that was killed goes on to the same weights.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from flawmap.config import TrainingConfig
from flawmap.errors import FitError
from flawmap.methods.base import AsTheyAre, Features, IterativeMethod
from flawmap.methods.layers.distributed import together
from flawmap.progress import Progress, Task
from flawmap.resources import one_blas_thread
from flawmap.training import checkpoint
from flawmap.training.interrupt import Interrupted, PoliteStop
from flawmap.training.run import MEASURABLE
from flawmap.training.seeded import seeded
from flawmap.training.validation import History, Validation
from flawmap.wording import counted

_PLAN_AFTER = 8
_PLAN_MARGIN = 0.95
_MUCH_MORE = 1.25
"""Times the iterations planned, from which on a time budget is worth more of them."""
_CHECK_EVERY = 10


@dataclass(slots=True)
class Curve:
    """What the loop saw.

    Attributes:
        steps: Iterations done.
        planned: Iterations planned; more than `steps` when the time budget or the validation
            ended the run.
        seconds: Time spent in the loop, over all its parts.
        fixed: Whether a time budget has set the plan already.
        losses: (iteration, mean loss since the entry before).
        validation: What was seen on held-out images.
        kept: Of several candidates, the option of the one that was kept, such as "position=local".
    """

    steps: int = 0
    planned: int = 0
    seconds: float = 0.0
    fixed: bool = False
    losses: list[tuple[int, float]] = field(default_factory=list)
    validation: History = field(default_factory=History)
    kept: str | None = None


class _Pace:
    """How many steps a time budget still allows, once the first ones have shown their pace.

    Args:
        deadline: `time.monotonic()` at which they must end.
        extra: Seconds a step beyond its own, for looks at held-out images.
    """

    def __init__(self, deadline: float, extra: float) -> None:
        self.deadline = deadline
        self.extra = extra
        self.ticks = [time.perf_counter()]

    def after_a_step(self, now: float) -> int | None:
        """The number of further steps, or None as long as that is not known."""
        # Finer than the monotonic clock, which on Windows may tick every 16 ms.
        self.ticks.append(time.perf_counter())
        if len(self.ticks) <= _PLAN_AFTER:
            return None
        # The first steps are slower than those that follow.
        each = statistics.median(b - a for a, b in pairwise(self.ticks[2:])) + self.extra
        return int((self.deadline - now) * _PLAN_MARGIN / max(each, MEASURABLE))


@dataclass(kw_only=True, slots=True)
class Training:
    """Trains until the planned iterations are done, the deadline has come, or no held-out image
    gains any more.

    Attributes:
        method: Learns in place.
        prepare: Makes what gives the features of a step's batch; called only if there is a step to
            take.
        fabric: Device and precision.
        config: The loop's options.
        seed: Of the run.
        checkpoint_path: Written every `config.checkpoint_seconds` and at a stop.
        identity: What a checkpoint must agree with to be resumed.
        resume: Go on from the checkpoint if there is one.
        deadline: `time.monotonic()` at which fitting must end, or None.
        progress: Shown to the user.
        stop: Asked after every step.
        name: Shown beside the progress.
        at_most: Never train for more iterations than this, however many are planned.
        validation: Chooses the weights that the method has in the end, and may end the training;
            without it the last ones stay.
        naming: What a hint to an option begins with.

    Raises:
        FitError: The checkpoint is another run's.
    """

    method: IterativeMethod
    prepare: Callable[[], Callable[[int], Features]]
    fabric: Fabric
    config: TrainingConfig
    seed: int
    checkpoint_path: Path
    identity: Mapping[str, Any]
    resume: bool
    deadline: float | None
    progress: Progress
    stop: PoliteStop
    name: str
    at_most: int | None = None
    validation: Validation | None = None
    naming: str = ""
    _curve: Curve = field(init=False)
    _fetch: Callable[[int], Features] = field(init=False)
    _optimizer: torch.optim.Optimizer = field(init=False)
    _module: Any = field(init=False)
    _wrapped: Any = field(init=False)
    _pace: _Pace | None = field(init=False, default=None)
    _window: list[Tensor] = field(init=False, default_factory=list)
    _began: float = field(init=False)
    _base: float = field(init=False)
    _saved_at: float = field(init=False)
    # Of the step that was just taken: whether a checkpoint is due, whether the processes ask each
    # other, and whether the user wants an end.
    _due: bool = field(init=False, default=False)
    _asks: bool = field(init=False, default=False)
    _stopping: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._curve = Curve(planned=self._wanted)
        self._optimizer = self.method.optimizer()
        if self.resume:
            self._go_on()
        if self._more():
            self._fetch = self.prepare()
        self._module, self._wrapped = self.fabric.setup(self.method, self._optimizer)
        self._module.mark_forward_method("loss_of")
        self.method.train()
        if self.deadline is not None and not self._curve.fixed:
            looking = 0.0
            if self.validation is not None:
                looking = self.validation.seconds(self.method, self.fabric) / self.validation.every
            self._pace = _Pace(self.deadline, looking)
        self._began, self._base = time.monotonic(), self._curve.seconds
        self._saved_at = self._began

    @property
    def _wanted(self) -> int:
        """Iterations, if there is time for them."""
        wanted = self.config.iterations
        return wanted if self.at_most is None else min(wanted, self.at_most)

    def run(self) -> Curve:
        """What the loop saw, in the end.

        Raises:
            FitError: A loss, a gradient or a weight is not finite, or the disk is full.
            Interrupted: The user stopped the run; the checkpoint is written.
        """
        curve, validation = self._curve, self.validation
        task = self.progress.task(self.name, curve.planned, start=curve.steps)
        # Defects are drawn with numpy before torch learns.
        with task as shown, one_blas_thread():
            over = False
            while self._more() and not over:
                rate = self._step()
                self._tell(shown, rate)
                if validation is not None and curve.steps % validation.every == 0:
                    self._look()
                if self._due or self._stopping:
                    self._save()
                    self._saved_at = time.monotonic()
                if self._stopping:
                    self._leave()
                over = self._out_of_time(shown)
            if self._window:
                _finite(self._window, curve.steps - 1, self.checkpoint_path)
            seen = curve.validation.losses
            if validation is not None and not (seen and seen[-1][0] == curve.steps):
                self._look()
            # Whatever fails from here on, --resume finds these weights.
            self._save()
        if validation is not None:
            best = curve.validation.best
            assert best is not None
            curve.validation.stopped = self._exhausted()
            if curve.validation.stopped:
                self.progress.note(f"held-out images have gained nothing since iteration {best[0]}")
            validation.finish(self.method, curve.validation, self.fabric)
        self.method.eval()
        return curve

    def _go_on(self) -> None:
        """Take up a run that was stopped, if there is one."""
        if self.checkpoint_path.exists():
            self._restore()
        steps = self._curve.steps
        # Every process takes part in this, also one that finds no checkpoint.
        if _anywhere(self.fabric, int(self.fabric.broadcast(steps)) != steps):
            raise FitError(
                "the processes do not see the same checkpoint",
                where=str(self.checkpoint_path),
                hint="put the output into a folder that all machines share",
            )
        if steps:
            self.progress.note(f"going on at iteration {steps} of {self._curve.planned}")

    def _restore(self) -> None:
        state, optimizer_state, info = checkpoint.load(self.checkpoint_path)
        _same_run(self.identity, info["identity"], self.checkpoint_path)
        self.method.restore(state)
        checkpoint.restore_optimizer(self._optimizer, optimizer_state)
        self._curve = Curve(
            steps=info["steps"],
            planned=info["planned"],
            seconds=info["seconds"],
            fixed=info["fixed"],
            losses=[(int(i), float(v)) for i, v in info["losses"]],
            validation=History.of(info["validation"]),
        )
        if self.fabric.world_size == 1:
            window = torch.tensor(info.get("window", []), device=self.fabric.device)
            self._window = list(window.unbind())
        curve, budget = self._curve, self.config.time_budget_seconds
        if curve.steps < curve.planned and info.get("budget", budget) != budget:
            curve.planned, curve.fixed = self._wanted, False
            self.progress.note("the time budget is another one than before: planned anew")
        if self.validation is not None:
            self.validation.best = checkpoint.load_best(self.checkpoint_path)

    def _step(self) -> float:
        """One iteration; its learning rate."""
        curve, fabric, method = self._curve, self.fabric, self.method
        step = curve.steps
        features = tuple(t.to(fabric.device) for t in self._fetch(step))
        rate = method.learning_rate(step, curve.planned)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        seed = _seed_of(self.seed, step, fabric.global_rank)
        with seeded(seed, fabric.device), together(fabric.world_size), fabric.autocast():
            loss = self._module.loss_of(AsTheyAre(features), step)
        fabric.backward(loss)
        self._window.append(loss.detach().float())
        self._due = time.monotonic() - self._saved_at >= self.config.checkpoint_seconds
        self._asks = fabric.world_size == 1 or step % _CHECK_EVERY == 0
        self._stopping = self._asks and _anywhere(fabric, self.stop.requested)
        # Looking at the loss of a GPU waits for it, so there it is looked at now and then, but
        # always before a checkpoint: what is saved is good.
        last = step + 1 == curve.planned
        check = step % _CHECK_EVERY == 0 or self._due or last or self._stopping
        check = check or fabric.device.type == "cpu"
        norm: Any = 0.0
        if method.clip_norm is not None:
            norm = fabric.clip_gradients(
                self._module, self._wrapped, max_norm=method.clip_norm, error_if_nonfinite=False
            )
        elif check:
            norm = _gradient_norm(method)
        # A finite loss with a gradient that is not, which may come from another process, would
        # spoil the weights all the same.
        self._window[-1] = self._window[-1] + 0 * torch.as_tensor(norm).detach().float()
        if check:
            _finite(self._window, step, self.checkpoint_path)
        self._wrapped.step()
        self._optimizer.zero_grad(set_to_none=True)
        curve.steps += 1
        curve.seconds = self._base + time.monotonic() - self._began
        return rate

    def _tell(self, shown: Task, rate: float) -> None:
        curve = self._curve
        if curve.steps % _CHECK_EVERY == 0 or curve.steps == curve.planned:
            mean = float(_mean(self.fabric, torch.stack(self._window).float().mean()))
            curve.losses.append((curve.steps, mean))
            self._window.clear()
            shown.update(curve.steps, loss=mean, lr=rate)

    def _look(self) -> None:
        assert self.validation is not None
        self.validation.look(self.method, self._curve.validation, self._curve.steps, self.fabric)

    def _more(self) -> bool:
        return self._curve.steps < self._curve.planned and not self._exhausted()

    def _exhausted(self) -> bool:
        validation = self.validation
        return validation is not None and self._curve.validation.exhausted(validation.patience)

    def _out_of_time(self, shown: Task) -> bool:
        """Whether the time budget is over; sets the plan once the pace is known."""
        if self.deadline is None:
            return False
        curve, now = self._curve, time.monotonic()
        if self._pace is not None:
            possible = self._pace.after_a_step(now)
            if possible is None:
                return self._late(now)
            self._pace = None
            curve.fixed = True
            wanted, possible = self._wanted, possible + curve.steps
            curve.planned = int(self.fabric.broadcast(max(curve.steps, min(wanted, possible))))
            shown.update(curve.steps, total=curve.planned)
            if curve.planned < wanted:
                self.progress.note(
                    f"the time budget allows {curve.planned} of the {wanted} iterations planned"
                )
            elif self.at_most is None and possible > _MUCH_MORE * wanted:
                self.progress.note(
                    f"the {wanted} iterations planned need less than the time budget: "
                    f"{self.naming}--set training.iterations={possible} would use it"
                )
            return False
        return self._late(now)

    def _late(self, now: float) -> bool:
        assert self.deadline is not None
        if not (self._asks and _anywhere(self.fabric, now >= self.deadline)):
            return False
        curve = self._curve
        say = self.progress.warn if 2 * curve.steps < curve.planned else self.progress.note
        say(
            "the time budget ended the fit after "
            f"{counted(curve.steps, 'iteration')} of {curve.planned}"
        )
        return True

    def _leave(self) -> None:
        curve = self._curve
        # Nobody leaves before the state is written.
        self.fabric.barrier()
        raise Interrupted(
            f"stopped at iteration {curve.steps} of {curve.planned}; the state is saved",
            where=str(self.checkpoint_path),
            hint="give the same command with --resume to go on",
        )

    def _save(self) -> None:
        values = self.method.state_dict().values()
        if not all(bool(torch.isfinite(v).all()) for v in values if v.is_floating_point()):
            raise _spoilt("a weight", "nan or inf", self._curve.steps - 1, self.checkpoint_path)
        if not self.fabric.is_global_zero:
            return
        curve = self._curve
        checkpoint.save(
            self.checkpoint_path,
            method=self.method.state_dict(),
            optimizer=self._optimizer,
            info={
                "identity": dict(self.identity),
                "steps": curve.steps,
                "planned": curve.planned,
                "seconds": curve.seconds,
                "fixed": curve.fixed,
                "budget": self.config.time_budget_seconds,
                "losses": curve.losses,
                # Those since the last entry of the curve.
                "window": [float(v) for v in self._window],
                "validation": asdict(curve.validation),
            },
            best=None if self.validation is None else self.validation.best,
        )


def _anywhere(fabric: Fabric, here: bool) -> bool:
    """Whether something is so in any of the processes; all get the same answer."""
    if fabric.world_size == 1:
        return here
    found = fabric.all_reduce(torch.tensor(float(here), device=fabric.device), reduce_op="sum")
    return bool(torch.as_tensor(found) > 0)


def _mean(fabric: Fabric, value: Tensor) -> Tensor:
    """The mean over all processes, whose shares of a batch are equal."""
    if fabric.world_size == 1:
        return value
    return torch.as_tensor(fabric.all_reduce(value, reduce_op="mean"))


def _seed_of(seed: int, step: int, rank: int) -> int:
    # Each process has other images, so other noise; the first one draws as a process alone does.
    return int(np.random.SeedSequence([seed, step, *([rank] if rank else [])]).generate_state(1)[0])


def _finite(window: list[Tensor], step: int, checkpoint_path: Path) -> None:
    values = torch.stack(window).float()
    if bool(torch.isfinite(values).all()):
        return
    raise _spoilt("the loss or its gradient", float(values[-1]), step, checkpoint_path)


def _spoilt(what: str, given: float | str, step: int, checkpoint_path: Path) -> FitError:
    kept = checkpoint_path.exists()
    return FitError(
        f"{what} is not a number at iteration {step}",
        where="training",
        given=given,
        expected="finite numbers",
        hint=(f"the last good state is kept in {checkpoint_path}; " if kept else "")
        + "try --set training.precision=float32 or a smaller --set method.learning_rate",
    )


def _gradient_norm(method: IterativeMethod) -> Tensor:
    norms = [torch.linalg.vector_norm(p.grad) for p in method.parameters() if p.grad is not None]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return norm


def _same_run(wanted: Mapping[str, Any], found: Mapping[str, Any], path: Path) -> None:
    # Through JSON, so that tuples and lists compare equal.
    wanted = json.loads(json.dumps(wanted))
    both = {**wanted, **found}
    differing = [key for key in both if wanted.get(key) != found.get(key)]
    if differing:
        key, given, before = _first_difference(differing[0], wanted, found)
        raise FitError(
            f"the checkpoint belongs to another run: {key} differs",
            where=str(path),
            given=given,
            expected=str(before),
            hint="give the same data and options as before, or start anew without --resume",
        )


def _first_difference(
    key: str, wanted: Mapping[str, Any], found: Mapping[str, Any]
) -> tuple[str, Any, Any]:
    """The first leaf in which two trees differ below a key: its dotted name and both values."""
    given, before = wanted.get(key), found.get(key)
    if isinstance(given, dict) and isinstance(before, dict):
        for child in sorted({*given, *before}):
            if given.get(child) != before.get(child):
                if child not in given or child not in before:
                    return f"{key}.{child}", given.get(child), before.get(child)
                name, a, b = _first_difference(child, given, before)
                return f"{key}.{name}", a, b
    return key, given, before

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
from flawmap.methods.base import Features, IterativeMethod
from flawmap.progress import Progress
from flawmap.resources import one_blas_thread
from flawmap.training import checkpoint
from flawmap.training.interrupt import Interrupted, PoliteStop
from flawmap.training.validation import History, Validation

_PLAN_AFTER = 8
_PLAN_MARGIN = 0.95
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
    """

    steps: int = 0
    planned: int = 0
    seconds: float = 0.0
    fixed: bool = False
    losses: list[tuple[int, float]] = field(default_factory=list)
    validation: History = field(default_factory=History)


def train(
    method: IterativeMethod,
    fetch: Callable[[int], Features],
    *,
    fabric: Fabric,
    config: TrainingConfig,
    seed: int,
    checkpoint_path: Path,
    identity: Mapping[str, Any],
    resume: bool,
    deadline: float | None,
    progress: Progress,
    stop: PoliteStop,
    name: str,
    validation: Validation | None = None,
) -> Curve:
    """Train until the planned iterations are done, the deadline has come, or no held-out image
    gains any more.

    Args:
        method: Learns in place.
        fetch: Gives the features of a step's batch.
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
        validation: Chooses the weights that the method has in the end, and may end the training;
            without it the last ones stay.

    Raises:
        FitError: A loss is not finite, the disk is full, or the checkpoint is another run's.
        Interrupted: The user stopped the run; the checkpoint is written.
    """
    curve = Curve(planned=config.iterations)
    optimizer = method.optimizer()
    if resume and checkpoint_path.exists():
        state, optimizer_state, info = checkpoint.load(checkpoint_path)
        _same_run(identity, info["identity"], checkpoint_path)
        method.restore(state)
        checkpoint.restore_optimizer(optimizer, optimizer_state)
        curve = Curve(
            steps=info["steps"],
            planned=info["planned"],
            seconds=info["seconds"],
            fixed=info["fixed"],
            losses=[(int(i), float(v)) for i, v in info["losses"]],
            validation=History.of(info["validation"]),
        )
        if validation is not None:
            validation.best = checkpoint.load_best(checkpoint_path)
        if int(fabric.broadcast(curve.steps)) != curve.steps:
            raise FitError(
                "the processes do not see the same checkpoint",
                where=str(checkpoint_path),
                hint="put the output into a folder that all machines share",
            )
        progress.note(f"going on at iteration {curve.steps} of {curve.planned}")
    module, wrapped = fabric.setup(method, optimizer)
    module.mark_forward_method("loss")
    method.train()
    plan = deadline is not None and not curve.fixed
    look_seconds = validation.seconds(method, fabric) if plan and validation is not None else 0.0
    began, base = time.monotonic(), curve.seconds
    saved_at, first = began, curve.steps
    ticks = [began]
    window: list[Tensor] = []

    def save() -> None:
        if not fabric.is_global_zero:
            return
        checkpoint.save(
            checkpoint_path,
            method=method.state_dict(),
            optimizer=optimizer,
            info={
                "identity": dict(identity),
                "steps": curve.steps,
                "planned": curve.planned,
                "seconds": curve.seconds,
                "fixed": curve.fixed,
                "losses": curve.losses,
                "validation": asdict(curve.validation),
            },
            best=None if validation is None else validation.best,
        )

    def exhausted() -> bool:
        return validation is not None and curve.validation.exhausted(validation.patience)

    def look() -> None:
        assert validation is not None
        validation.look(method, curve.validation, curve.steps, fabric)

    # Defects are drawn with numpy while torch learns.
    with progress.task(name, curve.planned, start=curve.steps) as task, one_blas_thread():
        while curve.steps < curve.planned and not exhausted():
            step = curve.steps
            features = tuple(t.to(fabric.device) for t in fetch(step))
            rate = method.learning_rate(step, curve.planned)
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("lr_scale", 1.0)
            with _seeded(seed, step, fabric), fabric.autocast():
                loss = module.loss(features, step)
            fabric.backward(loss)
            window.append(loss.detach().float())
            if method.clip_norm is not None:
                norm = fabric.clip_gradients(
                    module, wrapped, max_norm=method.clip_norm, error_if_nonfinite=False
                )
                # A finite loss with a gradient that is not would spoil the weights all the same.
                window[-1] = window[-1] + 0 * torch.as_tensor(norm).detach().float()
            # Looking at the loss of a GPU waits for it, so there it is looked at now and then, but
            # always before a checkpoint: what is saved is good.
            now = time.monotonic()
            due = now - saved_at >= config.checkpoint_seconds
            last = step + 1 == curve.planned
            ask = fabric.world_size == 1 or step % _CHECK_EVERY == 0
            stopping = ask and _anywhere(fabric, stop.requested)
            check = step % _CHECK_EVERY == 0 or due or last or stopping
            if fabric.device.type == "cpu" or check:
                _finite(window, step, checkpoint_path)
            wrapped.step()
            optimizer.zero_grad(set_to_none=True)
            curve.steps += 1
            curve.seconds = base + time.monotonic() - began
            if curve.steps % _CHECK_EVERY == 0 or curve.steps == curve.planned:
                mean = float(_mean(fabric, torch.stack(window).float().mean()))
                curve.losses.append((curve.steps, mean))
                window.clear()
                task.update(curve.steps, loss=mean, lr=rate)
            if validation is not None and curve.steps % validation.every == 0:
                look()
            if due or stopping:
                save()
                saved_at = time.monotonic()
            if stopping:
                # Nobody leaves before the state is written.
                fabric.barrier()
                raise Interrupted(
                    f"stopped at iteration {curve.steps} of {curve.planned}; the state is saved",
                    where=str(checkpoint_path),
                    hint="give the same command with --resume to go on",
                )
            if deadline is not None:
                now = time.monotonic()
                if plan and len(ticks) <= _PLAN_AFTER:
                    ticks.append(now)
                if plan and curve.steps - first == _PLAN_AFTER:
                    curve.fixed = True
                    # The first steps are slower than those that follow.
                    per_step = statistics.median(b - a for a, b in pairwise(ticks[2:]))
                    if validation is not None:
                        per_step += look_seconds / validation.every
                    possible = int((deadline - now) * _PLAN_MARGIN / per_step) + curve.steps
                    planned = max(curve.steps, min(config.iterations, possible))
                    curve.planned = int(fabric.broadcast(planned))
                    task.update(curve.steps, total=curve.planned)
                    if curve.planned < config.iterations:
                        progress.note(
                            f"the time budget allows {curve.planned} of the "
                            f"{config.iterations} iterations planned"
                        )
                elif ask and _anywhere(fabric, now >= deadline):
                    progress.note(f"the time budget ended the fit at iteration {curve.steps}")
                    break
        if window:
            _finite(window, curve.steps - 1, checkpoint_path)
        seen = curve.validation.losses
        if validation is not None and not (seen and seen[-1][0] == curve.steps):
            look()
        # Whatever fails from here on, --resume finds these weights.
        save()
    if validation is not None:
        best = curve.validation.best
        assert best is not None
        curve.validation.stopped = exhausted()
        if curve.validation.stopped:
            progress.note(f"held-out images have gained nothing since iteration {best[0]}")
        validation.finish(method, curve.validation, fabric)
    method.eval()
    return curve


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


class _seeded:
    """torch's random numbers inside the block follow from (seed, step) and the process's number;
    outside nothing changes."""

    def __init__(self, seed: int, step: int, fabric: Fabric) -> None:
        devices = [fabric.device] if fabric.device.type == "cuda" else []
        self._fork = torch.random.fork_rng(devices=devices)
        # Each process has other images, so other noise; one process alone is as it always was.
        rank = [fabric.global_rank] if fabric.global_rank else []
        self._seed = int(np.random.SeedSequence([seed, step, *rank]).generate_state(1)[0])

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(self._seed)

    def __exit__(self, *details: Any) -> None:
        self._fork.__exit__(*details)


def _finite(window: list[Tensor], step: int, checkpoint_path: Path) -> None:
    values = torch.stack(window).float()
    if bool(torch.isfinite(values).all()):
        return
    kept = checkpoint_path.exists()
    raise FitError(
        f"the loss is not a number at iteration {step}",
        where="training",
        given=f"loss {float(values[-1])}",
        expected="a finite loss",
        hint=(f"the last good state is kept in {checkpoint_path}; " if kept else "")
        + "try --set training.precision=float32 or a smaller --set method.learning_rate",
    )


def _same_run(wanted: Mapping[str, Any], found: Mapping[str, Any], path: Path) -> None:
    # Through JSON, so that tuples and lists compare equal.
    wanted = json.loads(json.dumps(wanted))
    differing = [key for key in wanted if wanted[key] != found.get(key)]
    if differing:
        key, given, before = _first_difference(differing[0], wanted, found)
        raise FitError(
            f"the checkpoint belongs to another run: {key} differs",
            where=str(path),
            given=given,
            expected=str(before),
            hint="give the same data and options as before, or start anew without --resume",
        )


def _first_difference(key: str, wanted: Any, found: Any) -> tuple[str, Any, Any]:
    """The first leaf in which two trees differ below a key: its dotted name and both values."""
    given, before = wanted[key], found.get(key)
    if isinstance(given, dict) and isinstance(before, dict):
        for child in sorted({*given, *before}):
            if given.get(child) != before.get(child):
                if child not in given or child not in before:
                    return f"{key}.{child}", given.get(child), before.get(child)
                name, a, b = _first_difference(child, given, before)
                return f"{key}.{name}", a, b
    return key, given, before

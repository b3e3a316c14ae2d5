"""Stopping, resuming, budgets, caches and bad losses."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision

import flawmap
from flawmap.config import TrainingConfig
from flawmap.errors import BundleError, ConfigError, FitError
from flawmap.methods.base import AsTheyAre
from flawmap.methods.dinomaly import Dinomaly
from flawmap.training.cache import choose_place
from flawmap.training.device import make_fabric
from flawmap.training.fit import run_folder_of
from flawmap.training.interrupt import Interrupted
from flawmap.training.optim import StableAdamW, warmup_cosine
from flawmap.types import Sample
from watching import Notes, StopAt

OPTIONS: dict[str, Any] = {
    "encoder.name": "lite0",
    "data.size": 64,
    "method.width": 64,
    "method.depth": 2,
    "training.iterations": 40,
    "training.batch_size": 4,
    "training.precision": "float32",
    "training.device": "cpu",
    "training.threads": 1,
}


def weights(detector: flawmap.Detector) -> dict[str, torch.Tensor]:
    return dict(next(iter(detector.models.values())).state_dict())


def same(a: flawmap.Detector, b: flawmap.Detector) -> bool:
    first, second = weights(a), weights(b)
    return all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture(scope="module")
def whole(rings: Path) -> flawmap.Detector:
    torch.set_num_threads(1)
    return flawmap.fit(rings, method="dinomaly", options=OPTIONS)


def test_ctrl_c_saves_and_resume_reaches_the_same_weights(
    whole: flawmap.Detector, rings: Path, tmp_path: Path
) -> None:
    output = tmp_path / "x.flawmap"
    with pytest.raises(Interrupted) as caught:
        flawmap.fit(rings, output=output, method="dinomaly", options=OPTIONS, progress=StopAt(20))
    assert "--resume" in str(caught.value)
    assert caught.value.exit_code == 130
    assert not output.exists()
    assert (tmp_path / "x.flawmap.run" / "model-0.safetensors").exists()
    resumed = flawmap.fit(rings, output=output, method="dinomaly", options=OPTIONS, resume=True)
    assert same(resumed, whole)
    assert resumed.fitted.curves["*"]["losses"] == whole.fitted.curves["*"]["losses"]
    assert not (tmp_path / "x.flawmap.run").exists()


@pytest.mark.slow
def test_after_kill_minus_nine_resume_reaches_the_same_weights(
    whole: flawmap.Detector, rings: Path, tmp_path: Path
) -> None:
    output = tmp_path / "x.flawmap"
    options = {**OPTIONS, "training.checkpoint_seconds": 1e-6}
    script = textwrap.dedent(
        f"""
        import time, torch, flawmap
        from flawmap.methods.dinomaly import Dinomaly
        torch.set_num_threads(1)
        loss = Dinomaly.loss
        def slow(self, features, step):
            time.sleep(0.1)
            return loss(self, features, step)
        Dinomaly.loss = slow
        flawmap.fit({str(rings)!r}, output={str(output)!r}, method="dinomaly", options={options!r})
        """
    )
    checkpoint = tmp_path / "x.flawmap.run" / "model-0.safetensors"
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        deadline = time.monotonic() + 120
        while not checkpoint.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        process.kill()
    assert checkpoint.exists()
    assert not output.exists()
    resumed = flawmap.fit(rings, output=output, method="dinomaly", options=options, resume=True)
    assert same(resumed, whole)


def test_a_checkpoint_of_another_run_is_refused(rings: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.flawmap"
    with pytest.raises(Interrupted):
        flawmap.fit(rings, output=output, method="dinomaly", options=OPTIONS, progress=StopAt(10))
    other = {**OPTIONS, "method.dropout": 0.4}
    with pytest.raises(FitError, match=r"another run: options\.method\.dropout differs"):
        flawmap.fit(rings, output=output, method="dinomaly", options=other, resume=True)


def test_a_process_that_finds_no_checkpoint_is_told(
    rings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process is at iteration 20; this one's folder is empty."""
    monkeypatch.setattr(Fabric, "broadcast", lambda self, value, src=0: 20)
    with pytest.raises(FitError, match="do not see the same checkpoint"):
        flawmap.fit(
            rings, output=tmp_path / "x.flawmap", method="dinomaly", options=OPTIONS, resume=True
        )


def test_a_run_goes_on_without_a_cache_and_into_another_bundle(
    whole: flawmap.Detector, rings: Path, tmp_path: Path
) -> None:
    """What the tool itself advises when the disk is full."""
    output = tmp_path / "x.flawmap"
    with pytest.raises(Interrupted):
        flawmap.fit(rings, output=output, method="dinomaly", options=OPTIONS, progress=StopAt(20))
    other = {**OPTIONS, "training.cache": "off", "bundle.embed_encoder": False}
    resumed = flawmap.fit(rings, output=output, method="dinomaly", options=other, resume=True)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value, rtol=1e-3, atol=1e-4)


def test_features_that_fit_nowhere_are_not_kept_and_that_is_said(rings: Path) -> None:
    options = {**OPTIONS, "training.iterations": 2, "training.cache_memory_mib": 0}
    for cache, where in (("auto", "on disk"), ("memory", "in memory")):
        notes = Notes()
        limits = {"training.cache": cache, "training.cache_disk_mib": 0}
        flawmap.fit(rings, method="dinomaly", options={**options, **limits}, progress=notes)
        (said,) = [text for text in notes.texts if "not kept" in text]
        assert f"room for 0 MiB ({where})" in said


def test_how_much_room_features_need_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    config = TrainingConfig(cache_memory_mib=8, cache_disk_mib=5)
    features = (torch.zeros(1, 2**20, dtype=torch.bfloat16),)
    places = [choose_place(features, n, config, tmp_path, note=said.append) for n in (4, 5)]
    assert places == ["memory", None]
    assert "need 10 MiB, and there is room for 5 MiB (on disk)" in said[0]


def test_without_a_cache_no_image_is_read_to_measure_it(
    rings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract = Dinomaly.extract
    seen: list[int] = []

    def spy(self: Dinomaly, images: torch.Tensor) -> Any:
        seen.append(len(images))
        return extract(self, images)

    monkeypatch.setattr(Dinomaly, "extract", spy)
    options = {**OPTIONS, "training.iterations": 2, "training.cache": "off"}
    flawmap.fit(rings, method="dinomaly", options={**options, "calibration.strategy": "off"})
    assert seen == [4, 4]


def test_an_unfinished_run_is_kept_when_a_new_one_starts(rings: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.flawmap"
    with pytest.raises(Interrupted):
        flawmap.fit(rings, output=output, method="dinomaly", options=OPTIONS, progress=StopAt(10))
    flawmap.fit(rings, output=output, method="dinomaly", options=OPTIONS)
    assert (tmp_path / "x.flawmap.run.old" / "model-0.safetensors").exists()


@pytest.mark.parametrize("cache", ["off", "disk"])
def test_features_kept_or_computed_anew_teach_the_same(
    cache: str, whole: flawmap.Detector, rings: Path
) -> None:
    options = {**OPTIONS, "training.cache": cache, "training.batch_size": 10}
    kept = flawmap.fit(rings, method="dinomaly", options={**options, "training.cache": "memory"})
    other = flawmap.fit(rings, method="dinomaly", options=options)
    for name, value in weights(kept).items():
        torch.testing.assert_close(weights(other)[name], value, rtol=1e-3, atol=1e-4)


def test_a_loss_that_is_no_number_keeps_the_last_good_state(
    rings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Dinomaly.loss

    def bad(self: Dinomaly, features: Any, step: int) -> torch.Tensor:
        return good(self, features, step) * (float("nan") if step == 15 else 1)

    monkeypatch.setattr(Dinomaly, "loss", bad)
    output = tmp_path / "x.flawmap"
    options = {**OPTIONS, "training.checkpoint_seconds": 1e-6}
    with pytest.raises(FitError, match="not a number at iteration 15") as caught:
        flawmap.fit(rings, output=output, method="dinomaly", options=options)
    assert "last good state is kept" in str(caught.value)
    from flawmap.training.checkpoint import load

    state, _, info = load(tmp_path / "x.flawmap.run" / "model-0.safetensors")
    assert info["steps"] == 15
    assert all(torch.isfinite(t).all() for t in state.values())


@pytest.mark.parametrize("clip_norm", [0.1, None])
def test_a_gradient_that_is_no_number_keeps_the_last_good_state(
    clip_norm: float | None, rings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is finite, its gradient is not: the step must not be taken."""
    good = Dinomaly.loss
    monkeypatch.setattr(Dinomaly, "clip_norm", clip_norm)

    def bad(self: Dinomaly, features: Any, step: int) -> torch.Tensor:
        loss = good(self, features, step)
        if step == 15:
            loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    monkeypatch.setattr(Dinomaly, "loss", bad)
    options = {**OPTIONS, "training.checkpoint_seconds": 1e-6}
    with pytest.raises(FitError, match="at iteration 15"):
        flawmap.fit(rings, output=tmp_path / "x.flawmap", method="dinomaly", options=options)
    from flawmap.training.checkpoint import load

    state, _, info = load(tmp_path / "x.flawmap.run" / "model-0.safetensors")
    assert info["steps"] == 15
    assert all(torch.isfinite(t).all() for t in state.values())


def test_a_step_that_spoils_the_weights_is_not_saved(
    rings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The very last one: no further loss would show it."""
    step = StableAdamW.step
    taken = []

    def spoiling(self: StableAdamW, *args: Any, **kwargs: Any) -> Any:
        taken.append(step(self, *args, **kwargs))
        if len(taken) == 40:
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(float("nan"))

    monkeypatch.setattr(StableAdamW, "step", spoiling)
    output = tmp_path / "x.flawmap"
    options = {**OPTIONS, "training.checkpoint_seconds": 1e-6}
    with pytest.raises(FitError, match="a weight is not a number at iteration 39") as caught:
        flawmap.fit(rings, output=output, method="dinomaly", options=options)
    assert "last good state is kept" in str(caught.value)
    from flawmap.training.checkpoint import load

    state, _, info = load(tmp_path / "x.flawmap.run" / "model-0.safetensors")
    assert info["steps"] == 39
    assert all(torch.isfinite(t).all() for t in state.values())
    assert not output.exists()


def test_a_bundle_that_cannot_be_written_costs_no_training(
    whole: flawmap.Detector, rings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "x.flawmap"

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("flawmap.bundle.save_file", full)
        with pytest.raises(BundleError, match="the disk is full"):
            flawmap.fit(rings, output=output, method="dinomaly", options=OPTIONS)

    def untouched(*args: Any) -> torch.Tensor:
        raise AssertionError("nothing is left to learn")

    monkeypatch.setattr(Dinomaly, "loss", untouched)
    resumed = flawmap.fit(rings, output=output, method="dinomaly", options=OPTIONS, resume=True)
    assert same(resumed, whole)
    assert output.exists()


def test_features_of_a_finished_model_are_not_computed_again(
    rings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "x.flawmap"
    options = {**OPTIONS, "training.iterations": 3, "calibration.strategy": "off"}

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("flawmap.bundle.save_file", full)
        with pytest.raises(BundleError, match="the disk is full"):
            flawmap.fit(rings, output=output, method="dinomaly", options=options)

    def untouched(*args: Any) -> Any:
        raise AssertionError("nothing is left to learn from")

    monkeypatch.setattr(Dinomaly, "extract", untouched)
    flawmap.fit(rings, output=output, method="dinomaly", options=options, resume=True)
    assert output.exists()


def test_a_full_disk_is_said_and_nothing_is_lost(
    rings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "x.flawmap"
    flawmap.fit(rings, output=output, method="patchcore", options={"data.size": 64})
    before = output.read_bytes()

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flawmap.training.checkpoint.save_file", full)
    options = {**OPTIONS, "training.checkpoint_seconds": 1e-6}
    with pytest.raises(FitError, match="the disk is full"):
        flawmap.fit(rings, output=output, method="dinomaly", options=options)
    assert output.read_bytes() == before


@pytest.mark.slow
def test_the_time_budget_plans_the_iterations(rings: Path) -> None:
    options = {**OPTIONS, "training.iterations": 1_000_000}
    detector = flawmap.fit(rings, method="dinomaly", time_budget="4s", options=options)
    curve = detector.fitted.curves["*"]
    assert 8 < curve["planned"] < 1_000_000
    assert curve["steps"] <= curve["planned"]


def test_every_iteration_has_its_own_rate_and_clipped_gradients(
    rings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By iteration, not by epoch: an epoch of these images is a few iterations long."""
    rates: list[list[float]] = []
    norms: list[float] = []
    step = StableAdamW.step

    def spy(self: StableAdamW, *args: Any, **kwargs: Any) -> Any:
        rates.append([group["lr"] for group in self.param_groups])
        grads = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        norms.append(float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in grads]))))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(StableAdamW, "step", spy)
    options = {**OPTIONS, "method.bottleneck": "three-layer", "method.warmup_iterations": 5}
    flawmap.fit(rings, method="dinomaly", options=options)
    wanted = [warmup_cosine(i, 40, warmup=5, base=2e-3, final=2e-4) for i in range(40)]
    assert [rate[0] for rate in rates] == pytest.approx(wanted)
    # The first layer of this bottleneck learns ten times more slowly.
    assert [rate[1] for rate in rates] == pytest.approx([w / 10 for w in wanted])
    assert max(norms) == pytest.approx(0.1, rel=1e-3)


def test_a_time_budget_on_a_clock_that_sees_no_step(
    rings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    monkeypatch.setattr(time, "perf_counter", lambda: 1000.0)
    detector = flawmap.fit(rings, method="dinomaly", time_budget="60s", options=OPTIONS)
    assert detector.fitted.curves["*"]["steps"] == 40


@pytest.mark.slow
def test_a_short_time_budget_learns_from_fewer_images(
    rings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder that takes longer for all images than there is time: most of it is for learning,
    and the thresholds come from fewer images too."""
    extract = Dinomaly.extract
    seen = []

    def slow(self: Dinomaly, images: torch.Tensor) -> Any:
        seen.append(len(images))
        time.sleep(0.25 * len(images))
        return extract(self, images)

    monkeypatch.setattr(Dinomaly, "extract", slow)
    notes = Notes()
    options = {**OPTIONS, "training.iterations": 100_000, "training.batch_size": 2}
    began = time.monotonic()
    detector = flawmap.fit(
        rings, method="dinomaly", time_budget="6s", options=options, progress=notes
    )
    assert time.monotonic() - began < 15
    curve = detector.fitted.curves["*"]
    assert curve["steps"] >= 20
    learnt = detector.fitted.data["learnt_images"]
    assert 2 <= learnt < 12
    assert any(f"allows {learnt} of the" in text and "to be learnt" in text for text in notes.texts)


def test_a_stopped_run_goes_on_with_the_images_that_its_budget_allowed(
    rings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flawmap.training.learner._FEATURE_SHARE", 1e-9)
    output = tmp_path / "x.flawmap"
    with pytest.raises(Interrupted):
        flawmap.fit(
            rings,
            output=output,
            method="dinomaly",
            time_budget="60s",
            options=OPTIONS,
            progress=StopAt(20),
        )
    monkeypatch.setattr("flawmap.training.learner._FEATURE_SHARE", 1.0)
    notes = Notes()
    detector = flawmap.fit(
        rings,
        output=output,
        method="dinomaly",
        time_budget="60s",
        options=OPTIONS,
        resume=True,
        progress=notes,
    )
    # One batch.
    assert detector.fitted.data["learnt_images"] == 4
    assert any("going on at iteration 2" in text for text in notes.texts), notes.texts


def test_another_method_does_not_end_a_stopped_run(rings: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.flawmap"
    with pytest.raises(Interrupted):
        flawmap.fit(rings, output=output, method="dinomaly", options=OPTIONS, progress=StopAt(10))
    before = {p: p.read_bytes() for p in run_folder_of(output).iterdir() if p.is_file()}
    # Somebody forgot the method, and auto takes another one.
    with pytest.raises(ConfigError, match="the unfinished run is one of dinomaly") as caught:
        flawmap.fit(rings, output=output, resume=True, options={"data.size": 64})
    assert "--method dinomaly" in str(caught.value.expected)
    assert {p: p.read_bytes() for p in run_folder_of(output).iterdir() if p.is_file()} == before
    assert before


@pytest.mark.parametrize("budget", ["600s", None], ids=["longer", "none"])
def test_a_stopped_run_follows_another_budget(
    rings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: str | None
) -> None:
    def after_a_step(pace: Any, now: float) -> int:
        return 30 if pace.deadline - now < 100 else 1000

    monkeypatch.setattr("flawmap.training.loop._Pace.after_a_step", after_a_step)
    output, notes = tmp_path / "x.flawmap", Notes()
    fit = partial(flawmap.fit, rings, output=output, method="dinomaly", options=OPTIONS)
    with pytest.raises(Interrupted, match="at iteration 21 of 31"):
        fit(time_budget="60s", progress=StopAt(20))
    detector = fit(time_budget=budget, resume=True, progress=notes)
    assert detector.fitted.curves["*"]["planned"] == 40
    assert any("planned anew" in text for text in notes.texts)


@pytest.mark.slow
def test_bfloat16_learns_and_scores_nearly_as_float32(rings: Path) -> None:
    """Trained in it, and then scored in both, as a bundle may be."""
    options = {**OPTIONS, "encoder.name": "vit-s14", "data.size": 56}
    del options["method.width"]
    detector = flawmap.fit(
        rings,
        method="dinomaly",
        options={**options, "method.depth": 4, "training.precision": "bfloat16"},
    )
    losses = [loss for _, loss in detector.fitted.curves["*"]["losses"]]
    assert losses[-1] < 0.7 * losses[0]
    training = detector.config.training.model_copy(update={"precision": "float32"})
    exact = flawmap.Detector(
        config=detector.config,
        encoder=detector.encoder,
        models=detector.models,
        fabric=make_fabric(training),
    )
    samples = [
        Sample(str(p), "rings", "test", None) for p in sorted((rings / "test").rglob("*.png"))
    ]
    pairs = zip(detector.raw_maps(samples), exact.raw_maps(samples), strict=True)
    apart = [float(np.abs(a.values - b.values).max()) for (_, _, a), (_, _, b) in pairs]
    assert 0 < max(apart) < 0.01


def test_products_are_shown_equally_often_if_asked(two_products: Path) -> None:
    """A fit of every kind: as the images come, and balanced."""
    options = {**OPTIONS, "training.iterations": 6}
    plain, even = (
        flawmap.fit(two_products, method="dinomaly", options={**options, "training.balance": b})
        for b in (False, True)
    )
    assert not same(plain, even)
    assert even.fitted.curves["*"]["steps"] == 6


def test_the_global_random_state_is_left_alone(rings: Path) -> None:
    torch.manual_seed(123)
    np.random.seed(5)  # noqa: NPY002 - the legacy state is what must not change
    before = torch.random.get_rng_state().clone(), np.random.get_state()[1].copy()  # noqa: NPY002
    flawmap.fit(rings, method="dinomaly", options={**OPTIONS, "training.iterations": 3})
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_pixels_pass_several_processes_as_they_are(
    rings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several processes Fabric hands arguments on in its own precision."""
    seen = []
    loss_of = Dinomaly.loss_of

    def look(method: Dinomaly, held: Any, step: int) -> torch.Tensor:
        seen.append(type(held))
        return loss_of(method, held, step)

    monkeypatch.setattr(Dinomaly, "loss_of", look)
    flawmap.fit(rings, method="dinomaly", options={**OPTIONS, "training.iterations": 2})
    assert seen == [AsTheyAre] * 2
    precision = MixedPrecision("bf16-mixed", "cpu")
    pixels = torch.rand(2, 3, 4, 4).half()
    assert precision.convert_input((pixels,))[0].dtype == torch.bfloat16
    (held,) = precision.convert_input((AsTheyAre((pixels,)),))
    assert held.features[0] is pixels

"""Held-out images choose the weights and end the training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_loop import OPTIONS, same

import flawmap
from flawmap.config import TrainingConfig
from flawmap.errors import ConfigError, FitError
from flawmap.methods.dinomaly import Dinomaly
from flawmap.training.interrupt import Interrupted
from flawmap.training.validation import History, held_back
from flawmap.types import Sample
from watching import StopAt

LOOKS = {
    **OPTIONS,
    "training.validation_fraction": 0.2,
    "training.validate_every": 10,
    "calibration.strategy": "off",
}


def losses(detector: flawmap.Detector) -> list[list[float]]:
    return [list(entry) for entry in detector.fitted.curves["*"]["validation"]["losses"]]


def samples(n: int, category: str = "part") -> list[Sample]:
    return [Sample(f"{category}/{i:03d}.png", category, "train", 0) for i in range(n)]


def script(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """The losses of held-out images, one a look."""
    left = iter(values)
    monkeypatch.setattr(
        Dinomaly, "validation_loss", lambda self, features: torch.tensor(next(left))
    )


def test_a_tenth_is_held_back_and_never_more_than_asked() -> None:
    def sizes(n: int) -> tuple[int, int]:
        learn, back = held_back(samples(n), TrainingConfig(validation_fraction=0.1), 3)
        assert not {s.path for s in learn} & {s.path for s in back}
        return len(learn), len(back)

    assert [sizes(n) for n in (4, 5, 30, 500)] == [(4, 0), (4, 1), (27, 3), (480, 20)]
    assert held_back(samples(30), TrainingConfig(), 3)[1] == []
    # The seed decides which, the order of the files does not.
    config = TrainingConfig(validation_fraction=0.2)
    chosen = {s.path for s in held_back(samples(30), config, 1)[1]}
    assert chosen == {s.path for s in held_back(samples(30)[::-1], config, 1)[1]}
    assert chosen != {s.path for s in held_back(samples(30), config, 2)[1]}


def test_every_category_gives_its_share_and_keeps_an_image_to_learn() -> None:
    mixed = [*samples(100, "bolt"), *samples(60, "nut"), *samples(2, "pin"), *samples(1, "cap")]
    config = TrainingConfig(validation_fraction=0.5, validation_images=100)
    for seed in range(5):
        learn, back = held_back(mixed, config, seed)
        assert len(back) == 82
        taught = {c: sum(s.category == c for s in learn) for c in ("bolt", "nut", "pin", "cap")}
        assert taught == {"bolt": 49, "nut": 30, "pin": 1, "cap": 1}
    # The whole limit is used, spread over the categories.
    few = TrainingConfig(validation_fraction=0.5, validation_images=20)
    back = held_back(mixed, few, 0)[1]
    given = [sum(s.category == c for s in back) for c in ("bolt", "nut", "pin", "cap")]
    assert given == [12, 8, 0, 0]
    ones = [sample for name in "abcdefg" for sample in samples(1, name)]
    assert held_back(ones, config, 0) == (ones, [])


def test_views_of_one_part_teach_or_choose_together() -> None:
    views = [replace(s, group=f"part {i // 3}") for i, s in enumerate(samples(30))]
    config = TrainingConfig(validation_fraction=0.2)
    for seed in range(5):
        learn, back = held_back(views, config, seed)
        assert len(back) == 6
        assert {s.group for s in learn}.isdisjoint({s.group for s in back})
    # One part alone cannot be divided.
    alone = [replace(s, group="part") for s in samples(30)]
    assert held_back(alone, config, 0) == (alone, [])


def test_the_draw_of_one_category_stays_what_it_was() -> None:
    back = held_back(samples(30), TrainingConfig(validation_fraction=0.1), 3)[1]
    order = np.random.default_rng([3, 30]).permutation(30)
    assert [s.path for s in back] == [f"part/{i:03d}.png" for i in sorted(order[:3])]


def test_patience_counts_looks_after_the_first_of_the_lowest() -> None:
    history = History([(10, 3.0), (20, 1.0), (30, 2.0), (40, 1.0)])
    assert history.best == (20, 1.0)
    assert [history.exhausted(p) for p in (1, 2, 3, None)] == [True, True, False, False]
    assert not History().exhausted(1)


def test_the_best_weights_are_kept_not_the_last(
    rings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter([0.5, 0.2, 0.2, 0.9])
    seen: list[dict[str, torch.Tensor]] = []

    def spy(self: Dinomaly, features: Any) -> torch.Tensor:
        assert not self.training
        seen.append({k: v.clone() for k, v in self.state_dict().items()})
        return torch.tensor(next(left))

    monkeypatch.setattr(Dinomaly, "validation_loss", spy)
    detector = flawmap.fit(rings, method="dinomaly", options=LOOKS)
    kept = detector.models["*"].state_dict()
    equal = [all(torch.equal(kept[k], state[k]) for k in kept) for state in seen]
    assert equal == [False, True, False, False]
    assert [step for step, _ in losses(detector)] == [10, 20, 30, 40]


def test_it_stops_when_nothing_is_gained(rings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, [0.5, 0.4, 0.6, 0.45])
    options = {**LOOKS, "training.patience": 2, "training.iterations": 1000}
    detector = flawmap.fit(rings, method="dinomaly", options=options)
    curve = detector.fitted.curves["*"]
    assert (curve["steps"], curve["planned"]) == (40, 1000)


def test_looking_changes_nothing_that_is_learnt(rings: Path) -> None:
    """The losses of the training are the same however often one looks."""
    often = flawmap.fit(rings, method="dinomaly", options=LOOKS)
    once = flawmap.fit(rings, method="dinomaly", options={**LOOKS, "training.validate_every": 40})
    assert often.fitted.curves["*"]["losses"] == once.fitted.curves["*"]["losses"]
    assert losses(often)[-1] == losses(once)[-1]


def test_a_resumed_run_keeps_the_best_weights_and_the_patience(
    rings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**LOOKS, "training.patience": 3, "training.iterations": 200}
    values = [0.5, 0.4, 0.6, 0.45, 0.7]
    script(monkeypatch, values)
    whole = flawmap.fit(rings, method="dinomaly", options=options)
    output = tmp_path / "x.flawmap"
    script(monkeypatch, values)
    with pytest.raises(Interrupted):
        flawmap.fit(rings, output=output, method="dinomaly", options=options, progress=StopAt(30))
    # The stop comes after the look at iteration 30: only two are left.
    script(monkeypatch, values[4 - 1 :])
    resumed = flawmap.fit(rings, output=output, method="dinomaly", options=options, resume=True)
    assert losses(resumed) == losses(whole)
    assert same(resumed, whole)


def test_a_run_that_had_ended_early_does_not_go_on(
    rings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**LOOKS, "training.patience": 1, "training.iterations": 200}
    output = tmp_path / "x.flawmap"
    script(monkeypatch, [0.4, 0.6])
    with monkeypatch.context() as patch:
        patch.setattr("flawmap.bundle.save_file", _full)
        with pytest.raises(flawmap.errors.BundleError):
            flawmap.fit(rings, output=output, method="dinomaly", options=options)
    # No loss is left to be looked at: another look would fail.
    resumed = flawmap.fit(rings, output=output, method="dinomaly", options=options, resume=True)
    assert resumed.fitted.curves["*"]["steps"] == 20


def _full(*args: Any, **kwargs: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_loss_of_held_out_images_must_be_a_number(
    rings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, [float("nan")])
    with pytest.raises(FitError, match="held-out images is not a number at iteration 10"):
        flawmap.fit(rings, method="dinomaly", options=LOOKS)


def test_one_pass_methods_have_nothing_to_validate(rings: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.validation_fraction"):
        flawmap.fit(rings, method="patchcore", options={"training.validation_fraction": 0.1})

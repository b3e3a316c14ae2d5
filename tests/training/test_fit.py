"""Which images teach and which set the threshold; copies; stopping a one-pass fit."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

import flawmap
from flawmap.config import make_config
from flawmap.data import loader, read_data
from flawmap.errors import ConfigError, DataError, FitError, FlawmapWarning
from flawmap.files import FolderLock
from flawmap.progress import Silent
from flawmap.training.interrupt import Interrupted
from flawmap.training.plan import make_plan
from flawmap.types import Sample
from watching import Notes

OPTIONS: dict[str, Any] = {
    "encoder.name": "lite0",
    "data.size": 64,
    "method.levels": ["blocks.1", "blocks.2"],
    "training.device": "cpu",
    "training.threads": 1,
}


def good(n: int, split: str = "train", category: str = "nut") -> list[Sample]:
    return [Sample(f"{category}/{split}/{i}.png", category, split, 0) for i in range(n)]  # type: ignore[arg-type]


def plan(
    samples: list[Sample],
    *,
    can_leave_out: bool = True,
    taught: Collection[str] = (),
    **options: Any,
) -> Any:
    notes: list[str] = []
    config = make_config(overrides={f"calibration.{k}": v for k, v in options.items()})
    made = make_plan(samples, config, can_leave_out, warn=notes.append, taught=taught)
    return made, notes


def test_enough_images_are_held_out() -> None:
    made, _ = plan(good(600), fraction=0.2)
    assert (len(made.learn), len(made.held_out), made.leave_out) == (480, 120, ())
    assert not {s.path for s in made.learn} & {s.path for s in made.held_out}


def test_few_images_are_left_out_in_turn() -> None:
    made, _ = plan(good(30))
    assert (len(made.learn), len(made.held_out), made.leave_out) == (30, 0, ("nut",))


def test_few_images_are_held_out_where_none_can_be_left_out() -> None:
    made, notes = plan(good(30), can_leave_out=False)
    assert len(made.learn) + len(made.held_out) == 30
    assert len(made.held_out) >= 5
    assert notes == []


def test_too_few_images_get_no_threshold() -> None:
    made, notes = plan(good(9), can_leave_out=False)
    assert (len(made.learn), made.held_out) == (9, ())
    assert "gets no threshold" in notes[0]


def test_a_validation_split_sets_the_threshold() -> None:
    made, _ = plan([*good(30), *good(7, "validation")])
    assert [s.split for s in made.held_out] == ["validation"] * 7
    assert len(made.learn) == 30


def test_categories_are_planned_apart_and_the_same_alone() -> None:
    both, _ = plan([*good(600), *good(20, category="bolt")])
    alone, _ = plan(good(600))
    assert both.leave_out == ("bolt",)
    assert both.held_out == alone.held_out


def test_views_of_one_part_are_held_out_together() -> None:
    views = [replace(s, group=f"part {i // 5}") for i, s in enumerate(good(600))]
    made, _ = plan(views, fraction=0.2)
    assert len(made.held_out) == 120
    assert not {s.group for s in made.learn} & {s.group for s in made.held_out}


@pytest.mark.parametrize("can_leave_out", [True, False])
def test_views_of_a_single_part_set_no_threshold(can_leave_out: bool) -> None:
    made, notes = plan([replace(s, group="the one") for s in good(30)], can_leave_out=can_leave_out)
    assert (len(made.learn), made.held_out, made.leave_out) == (30, (), ())
    assert "30 good training images of a single part" in notes[0]
    assert "gets no threshold; add parts" in notes[0]


def test_validation_images_of_parts_that_teach_set_no_threshold() -> None:
    train = [replace(s, group=f"part {i % 10}") for i, s in enumerate(good(30))]
    seen = [replace(s, group=f"part {i + 5}") for i, s in enumerate(good(10, "validation"))]
    made, notes = plan([*train, *seen])
    assert [s.group for s in made.held_out] == [f"part {i}" for i in range(10, 15)]
    assert len(made.learn) == 35
    assert notes[0].startswith("5 validation images of 'nut' show parts that training images show")
    made, _ = plan([*train, *seen[:5]])
    assert (len(made.learn), made.held_out, made.leave_out) == (35, (), ("nut",))
    made, notes = plan([*train, *seen], strategy="off")
    assert (len(made.learn), made.held_out, notes) == (30, (), [])


def test_a_strategy_that_a_validation_split_takes_the_place_of_is_told() -> None:
    made, notes = plan([*good(30), *good(7, "validation")], strategy="leave-one-out")
    assert (len(made.held_out), made.leave_out) == (7, ())
    assert notes == [
        "'nut' has a validation split, which sets its threshold: "
        "calibration.strategy=leave-one-out does nothing"
    ]


def test_what_was_learnt_before_sets_no_threshold() -> None:
    old = good(40)
    taught = {s.path for s in old[:30]}
    made, _ = plan([*old, *good(3, "validation")], can_leave_out=False)
    assert len(made.held_out) == 3
    made, _ = plan(old, can_leave_out=False, taught=taught)
    assert {s.path for s in made.held_out} <= {s.path for s in old[30:]}
    assert len(made.held_out) == 8
    made, notes = plan(old, can_leave_out=False, taught={s.path for s in old[:37]})
    assert made.held_out == ()
    assert "only 3 good training images that were not learnt before" in notes[0]
    seen = good(3, "validation")
    made, _ = plan([*old, *seen], can_leave_out=False, taught={seen[0].path})
    assert (seen[0] in made.learn, made.held_out) == (True, tuple(seen[1:]))


def test_leaving_out_is_refused_where_it_cannot_be_done() -> None:
    with pytest.raises(ConfigError, match="cannot leave images out"):
        plan(good(30), can_leave_out=False, strategy="leave-one-out")


def test_exact_copies_neither_teach_nor_lower_the_threshold(rings: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(rings / "train" / "good", folder)
    once = flawmap.fit(folder, method="patchcore", options=OPTIONS)
    for path in sorted(folder.iterdir()):
        # The same pixels in another format are a copy, too.
        Image.open(path).save(folder / f"copy of {path.stem}.bmp")
    shown = Notes()
    twice = flawmap.fit(folder, method="patchcore", options=OPTIONS, progress=shown)
    assert twice.fitted.data["learnt_images"] == once.fitted.data["learnt_images"] == 12
    assert any("12 exact copies" in note for note in shown.texts)
    name = once.categories[0]
    first, second = once.calibration.threshold(name), twice.calibration.threshold(name)
    assert first is not None
    assert second is not None
    assert second.n == first.n == 12
    assert second.value == pytest.approx(first.value, rel=0.2)


def test_a_product_whose_images_are_all_unreadable_is_named(
    two_products: Path, tmp_path: Path
) -> None:
    data = tmp_path / "products"
    shutil.copytree(two_products, data)
    for path in (data / "nut" / "train" / "good").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="no readable good training image is left of nut"):
        flawmap.fit(data, method="patchcore", options=OPTIONS, skip_bad=True, progress=Notes())


def test_a_fit_says_what_is_wrong_with_its_images(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(6):
        values = generator.integers(0, 4096, (64, 64), dtype=np.uint16)
        Image.fromarray(values).save(folder / f"{i}.png")
    shown = Notes()
    flawmap.fit(folder, method="patchcore", options=OPTIONS, progress=shown)
    assert any("has only 6 good training images" in note for note in shown.warnings)
    assert any("--set data.white_level=4095" in note for note in shown.warnings)


def test_views_of_one_part_are_left_out_together(rings: Path) -> None:
    table = read_data(rings)
    samples = [s for s in table.samples if s.split == "train"]
    alone = flawmap.fit(table, method="patchcore", options=OPTIONS).calibration
    grouped = replace(
        table,
        samples=tuple(
            replace(s, group=f"part {samples.index(s) // 4}") if s in samples else s
            for s in table.samples
        ),
    )
    parts = flawmap.fit(grouped, method="patchcore", options=OPTIONS).calibration
    one, other = (c.categories[table.categories[0]].scores for c in (alone, parts))
    assert len(one) == len(other) == 12
    # Each is farther from what is left when its own part is gone.
    assert (other >= one - 1e-4).all()
    assert other.mean() > one.mean()


def test_one_picture_many_times_gets_no_threshold(rings: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    source = rings / "train" / "good" / "000.png"
    for i in range(6):
        shutil.copy(source, folder / f"{i}.png")
    shown = Notes()
    detector = flawmap.fit(folder, method="patchcore", options=OPTIONS, progress=shown)
    assert detector.predict(source).verdict is None  # type: ignore[union-attr]
    assert any("it gets no threshold" in text for text in shown.warnings)


def test_what_a_user_must_know_is_said_where_no_progress_is_shown(
    rings: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(rings / "train" / "good" / "000.png", folder)
    (folder / "bad.png").write_bytes(b"no image")
    with pytest.warns(FlawmapWarning) as said:
        flawmap.fit(folder, method="patchcore", options=OPTIONS, skip_bad=True)
    texts = [str(warning.message) for warning in said]
    assert "1 unreadable images are left out" in texts
    assert any("it gets no threshold" in text for text in texts)


@pytest.mark.parametrize("method", ["auto", "patchcore"])
def test_a_method_that_no_time_budget_shortens_says_so(rings: Path, method: str) -> None:
    notes = Notes()
    flawmap.fit(rings, method=method, time_budget="1m", options={"data.size": 64}, progress=notes)
    # What auto chose was chosen for that time.
    assert any("however long" in note for note in notes.texts) == (method == "patchcore")


def test_the_choice_of_a_bank_can_be_stopped(rings: Path, tmp_path: Path) -> None:
    class StopWhileChoosing(Silent):
        def task(self, name: str, total: int, **options: Any) -> Any:
            return nullcontext(self if "choosing" in name else Silent())

        def update(self, done: int, **values: float | str) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="stopped while learning"):
        flawmap.fit(
            rings,
            output=tmp_path / "x.flawmap",
            method="patchcore",
            # So many picks that progress is reported several times.
            options={**OPTIONS, "method.coreset_ratio": 0.9, "method.min_bank": 1},
            progress=StopWhileChoosing(),
        )
    assert not (tmp_path / "x.flawmap").exists()


def test_a_method_that_needs_an_encoder_is_not_fitted_without(rings: Path) -> None:
    with pytest.raises(ConfigError, match="patchcore looks at images through an encoder"):
        flawmap.fit(rings, method="patchcore", encoder="none")


def test_options_that_contradict_each_other_are_refused_before_images_are_read(
    rings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("an image was read")

    monkeypatch.setattr("flawmap.training.fit.verify", read)
    for option in ({"data.crop_from": 80}, {"data.resize": "crop"}):
        with pytest.raises(ConfigError, match="crop_from belongs to"):
            flawmap.fit(rings, method="patchcore", options={**OPTIONS, **option})
    # What only the method and its encoder together tell.
    with pytest.raises(ConfigError, match="more layers are to be compared"):
        flawmap.fit(rings, method="mkd", options={"data.size": 64, "method.critical_layers": 9})


def test_a_bundle_that_another_fit_writes_is_left_alone(rings: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    options = {"method.coreset_ratio": 1.0, "data.size": 64}
    other = FolderLock(tmp_path, ".model.flawmap.lock")
    assert other.acquire()
    with pytest.raises(FitError, match="another process is writing this model"):
        flawmap.fit(rings, output=tmp_path / "model.flawmap", method="patchcore", options=options)
    assert not (tmp_path / "model.flawmap").exists()
    other.close()
    flawmap.fit(rings, output=tmp_path / "model.flawmap", method="patchcore", options=options)
    assert [p.name for p in tmp_path.iterdir()] == ["model.flawmap"]


def test_a_model_that_is_replaced_is_kept(rings: Path, tmp_path: Path) -> None:
    options = {"method.coreset_ratio": 1.0, "data.size": 64}
    model, old = tmp_path / "part.flawmap", tmp_path / "part.flawmap.old"
    # A file of nothing may be written over, and is nothing to keep.
    model.touch()
    shown = Notes()
    flawmap.fit(rings, output=model, method="patchcore", options=options, progress=shown)
    assert not old.exists()
    first = model.read_bytes()
    flawmap.fit(rings, output=model, method="patchcore", options=options, progress=shown)
    assert old.read_bytes() == first
    assert [n for n in shown.texts if "is kept" in n] == [
        f"the model that was there is kept: {old}"
    ]
    old.unlink()
    old.write_text("a list of mine")
    with pytest.raises(ConfigError) as error:
        flawmap.fit(rings, output=model, method="patchcore", options=options)
    assert str(old) in str(error.value)
    assert old.read_text() == "a list of mine"


def test_a_model_says_when_it_was_fitted_and_what_file_it_is(rings: Path, tmp_path: Path) -> None:
    options = {"method.coreset_ratio": 1.0, "data.size": 64}
    before = datetime.now(timezone.utc).replace(microsecond=0)
    fitted = flawmap.fit(
        rings, output=tmp_path / "part.flawmap", method="patchcore", options=options
    )
    assert fitted.source is None
    found = flawmap.load(tmp_path / "part.flawmap")
    when = datetime.fromisoformat(found.fitted.finished)
    assert before <= when <= datetime.now(timezone.utc)
    assert found.source is not None
    assert found.source.path == str(tmp_path / "part.flawmap")
    with safe_open(tmp_path / "part.flawmap", framework="np") as file:
        assert found.source.digest == file.metadata()["digest"]
    data = flawmap.evaluate(found, rings).data
    assert data["model"] == {"path": found.source.path, "digest": found.source.digest}


def test_each_image_of_a_fit_is_decoded_once(rings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(loader, "read_image", lambda path, **_: read.append(path))
    options = {"method.coreset_ratio": 1.0, "data.size": 64}
    # Learnt, and scored as if not learnt, from what was decoded when all were looked at.
    found = flawmap.fit(rings, method="patchcore", options=options)
    assert found.calibration.categories
    assert read == []


def test_a_picture_that_one_product_teaches_sets_no_threshold_of_another(
    rings: Path, tmp_path: Path
) -> None:
    pictures = sorted((rings / "train" / "good").iterdir())
    for product in ("bolt", "nut"):
        (tmp_path / product).mkdir()
        for picture in pictures:
            shutil.copy(picture, tmp_path / product)
    options = {"data.size": 64, "calibration.strategy": "holdout", "calibration.fraction": 0.5}
    notes = Notes()
    detector = flawmap.fit(tmp_path, method="patchcore", options=options, progress=notes)
    held = detector.calibration.categories.values()
    assert sum(len(c.scores) for c in held) < 12
    assert any("learnt as another product's" in text for text in notes.texts)
    apart = flawmap.fit(tmp_path, method="patchcore", options=options, separate=True)
    assert [len(c.scores) for c in apart.calibration.categories.values()] == [6, 6]


def test_what_was_learnt_for_hours_is_not_removed(rings: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.flawmap"
    for folder in ("m.flawmap.run", "m.flawmap.run.old"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.safetensors").write_text(folder)
    flawmap.fit(rings, method="patchcore", output=output, options={"data.size": 64})
    assert (tmp_path / "m.flawmap.run.old" / "a.safetensors").read_text() == "m.flawmap.run.old"
    assert (tmp_path / "m.flawmap.run.old2" / "a.safetensors").read_text() == "m.flawmap.run"


def test_another_user_s_lock_is_explained(
    rings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, name: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("flawmap.bundle.FolderLock", refuse)
    with pytest.raises(FitError, match="Permission denied") as caught:
        flawmap.fit(rings, output=tmp_path / "m.flawmap")
    assert str(caught.value.where).endswith(".m.flawmap.lock")

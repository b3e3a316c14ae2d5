"""Benchmarks of single methods, run on next to nothing, so that they keep up with the code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import flawmap
from flawmap.data import read_data, read_image

Load = Callable[[str], ModuleType]
Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def rows(script: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The rows that a script writes, called with options."""

    def run(name: str, *options: object) -> list[dict[str, Any]]:
        words = [name, *map(str, options), f"--out={tmp_path}"]
        monkeypatch.setattr(sys, "argv", words)
        script(name).main()
        (written,) = tmp_path.glob("*.json")
        found: list[dict[str, Any]] = json.loads(written.read_text(encoding="utf-8"))["rows"]
        return found

    return run


def test_only_methods_with_iterations_are_told_how_many(script: Load) -> None:
    digits = script("digits")
    found = digits.options_of("rd4ad", 64, 300)
    assert found == {"data.size": 64, "training.iterations": 300}
    # The nine other digits differ as wholes.
    assert digits.options_of("mkd", 64, 300) == {**found, "method.score": "whole"}
    assert digits.options_of("patchcore", 32, 300) == {"data.size": 32}


def test_digits_are_written_as_a_data_set_of_ten_classes(script: Load, tmp_path: Path) -> None:
    script("digits").write_digits(tmp_path / "digits")
    table = read_data(tmp_path / "digits")
    assert (table.format, table.categories) == ("idx", tuple("0123456789"))
    seven = table.only(["7"])
    train, test = seven.select(split="train"), seven.select(split="test")
    # Two thirds of the 1,797 digits are learnt, the others are the test of every task.
    assert len(table.select(split="train")) == 1198
    assert len(test) == 599
    assert {s.label for s in train} == {0}
    assert read_image(train[0].path).max() == 255


@pytest.mark.slow
def test_a_digit_against_the_others(
    rows: Run, script: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = script("digits")
    every = digits.load_digits()
    few = SimpleNamespace(images=every.images[:150], target=every.target[:150])
    monkeypatch.setattr(digits, "load_digits", lambda: few)
    found = rows("digits", "--digit", 0, "--size", 32, "--iterations", 2)
    assert [(row["digit"], row["seed"]) for row in found] == [("0", 0), ("mean", "all")]
    assert 0 <= found[0]["image_auroc"] == found[1]["image_auroc"] <= 1


@pytest.mark.slow
def test_all_ways_of_localising_are_measured_and_give_the_same_maps(rows: Run) -> None:
    found = rows("mkd_speed", "--encoder", "lite0", "--size", 64, "--batch-size", 3, "--repeats", 1)
    whats = [row["what"].rpartition(", ")[2] for row in found]
    # By gradients, then by distances.
    assert whats == ["together", "one by one", "plain", "together", "one by one"]
    assert found[0]["together is faster by"] == found[3]["together is faster by"] == 1
    for row in found:
        assert row["images_per_second"] > 0
        assert row["the same in float64"] < 1e-8


@pytest.mark.slow
def test_windows_together_and_alone_paint_the_same(rows: Run) -> None:
    found = rows("intra_speed", "--preset", "cpu", "--size", 112, "--repeats", 1, "--no-training")
    assert found[0]["precision"] == "float32"
    assert found[0]["largest_difference"] < 1e-3
    assert found[0]["maps_per_second"] > 0


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """Pictures of noise, of InTra's input size, in the layout mvtec."""
    generator = np.random.default_rng(0)
    for split, n in (("train", 8), ("test", 1)):
        folder = tmp_path / "noise" / split / "good"
        folder.mkdir(parents=True)
        for i in range(n):
            pixels = generator.integers(0, 256, (112, 112, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "noise"


@pytest.mark.slow
def test_what_is_learnt_of_a_texture_is_painted(rows: Run, noise: Path) -> None:
    (row,) = rows(
        *("intra_inpainting", noise, "--iterations", 2, "--size", 112),
        *("--images", 8, "--test-images", 1),
    )
    assert (row["learnt_images"], row["painted_images"], row["iterations"]) == (8, 1, 2)
    assert np.isfinite([row["psnr_inpainted"], row["gain_db"]]).all()
    # Neighbours know nothing of noise: the best guess is the mean, whose error is its variance.
    assert row["psnr_mean_colour"] == pytest.approx(-10 * np.log10(1 / 12), abs=0.5)


@pytest.mark.slow
def test_every_map_of_what_is_painted_is_judged(rows: Run, rings: Path, tmp_path: Path) -> None:
    options = {
        **{"data.size": 64, "method.patch": 8, "method.window": 3, "method.width": 48},
        **{"method.depth": 2, "training.iterations": 2, "training.validation_fraction": 0},
        "training.precision": "float32",
    }
    model = tmp_path / "rings.flawmap"
    fitted = flawmap.fit(rings, output=model, method="intra", options=options)
    found = rows("intra_maps", f"rings={model}={rings}", "--images", 3)
    ways = {(row["compared"], row["map"], row["mean_filter"]) for row in found}
    assert len(ways) == len(found) == 12
    assert all(0 <= row["AUPRO"] <= 1 for row in found)
    # The mean of the images that were learnt is found anew, as the fit would have.
    assert fitted.fitted.data["held_out_images"] >= 3
    assert len({row["AUPRO"] for row in found}) > 6


def test_a_folder_without_images_to_paint_is_refused(rows: Run, noise: Path) -> None:
    with pytest.raises(SystemExit, match="no good test images to paint"):
        rows("intra_inpainting", noise / "train" / "good", "--images", 1)


@pytest.mark.slow
def test_every_kind_of_synthetic_defect_is_drawn(rows: Run, rings: Path, script: Load) -> None:
    found = rows(
        *("synthesis_speed", "--data", rings, "--size", 64, "--pictures", 4),
        *("--defects", 4, "--repeats", 1, "--workers", 1),
    )
    assert [row["defects"] for row in found] == list(script("synthesis_speed").KINDS)
    assert all(row["slowest"] > 0 for row in found)

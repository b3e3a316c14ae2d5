"""From images to figures in real processes; everything else in this folder stubs the heavy part."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawmap.outputs import read_map_png

pytestmark = pytest.mark.slow


def flawmap(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flawmap.cli.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def write(path: Path, generator: np.random.Generator, *, spot: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:60, :72]
    grey = 128 + 30 * np.sin(x / 5) + 20 * np.cos(y / 4) + generator.normal(0, 3, (60, 72))
    pixels = np.repeat(grey[..., None], 3, axis=2).clip(0, 255).astype(np.uint8)
    if spot:
        pixels[20:34, 30:44] = (255, 20, 20)
        mask = np.zeros((60, 72), dtype=np.uint8)
        mask[20:34, 30:44] = 255
        place = path.parents[2] / "ground_truth" / "spot" / f"{path.stem}_mask.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(place)
    Image.fromarray(pixels).save(path)


def test_fit_evaluate_predict_calibrate(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    data, model, out = tmp_path / "disc", tmp_path / "m.flawmap", tmp_path / "out"
    for i in range(12):
        write(data / "train" / "good" / f"{i}.png", generator)
    for i in range(4):
        write(data / "test" / "good" / f"{i}.png", generator)
        write(data / "test" / "spot" / f"{i}.png", generator, spot=True)

    settings = ("--set", "training.precision=float32", "--set", "data.size=128")
    done = flawmap("fit", str(data), "--output", str(model), "--json", *settings)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"]["learnt"] == 12

    done = flawmap("evaluate", str(model), str(data), "--json", "--metric", "segf1")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["mean"]["image_auroc"] == 1.0
    assert figures["categories"]["disc"]["pixel_auroc"] > 0.9
    assert 0 < figures["categories"]["disc"]["segf1"] <= 1
    assert list(figures["not_official"]) == ["segf1"]

    done = flawmap(
        "predict", str(model), str(data), "--output", str(out), "--maps", "--overlays", "--json"
    )
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout)
    assert [r["verdict"] for r in records if "spot" in r["path"]] == ["defect"] * 4
    spot = next(r for r in records if "spot" in r["path"])
    found = read_map_png(out / spot["map"], spot["map_min"], spot["map_max"])
    assert found.shape == (60, 72)
    row, column = np.unravel_index(int(found.argmax()), found.shape)
    assert 10 <= row <= 44
    assert 20 <= column <= 54
    assert (out / spot["overlay"]).is_file()

    done = flawmap("calibrate", str(model), "--false-reject-rate", "0.2", "--json")
    assert done.returncode == 0, done.stderr
    change = json.loads(done.stdout)["categories"]["disc"]
    assert change["new"]["value"] <= change["old"]["value"]

    done = flawmap("calibrate", str(model), str(data / "test" / "good"))
    assert done.returncode == 0, done.stderr
    assert "from 4 held-out good images" in done.stdout

    spots = str(data / "test" / "spot")
    assert flawmap("predict", str(model), spots, "--fail-on-defect").returncode == 10

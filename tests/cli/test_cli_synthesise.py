"""`flawmap synthesise`: the sheet that it draws, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawmap.cli.main import run


def test_the_sheet(rings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "sheet.png"
    command = ["synthesise", str(rings), "-o", str(target), "--images", "6", "--size", "64"]
    assert run([*command, "--json", "-q"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["images"], answer["without_defect"]) == (6, 0)
    assert (
        0 < answer["area"]["smallest"] <= answer["area"]["median"] <= answer["area"]["largest"] < 1
    )
    sheet = np.asarray(Image.open(target))
    # Two images side by side, three pictures each.
    assert sheet.shape == (3 * 70 + 6, 2 * (3 * 64 + 6) + 6, 3)
    plain, defect = sheet[6:70, 6:70], sheet[6:70, 70:134]
    assert (plain != defect).any()
    first = target.read_bytes()
    assert run([*command, "-q", "--set", "method.synthesis.opacity=[0.1,0.2]"]) == 0
    assert target.read_bytes() != first
    assert run([*command, "-q"]) == 0
    assert "6 of 6 images have a defect" in capsys.readouterr().out
    assert target.read_bytes() == first


def test_a_sheet_that_cannot_be_written_is_no_fault_of_the_data(
    rings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    command = ["synthesise", str(rings), "-o", str(tmp_path / "file" / "sheet.png")]
    assert run([*command, "--images", "1", "--size", "32", "-q"]) == 7
    assert "cannot be written" in capsys.readouterr().err


def test_the_sheet_needs_a_picture_s_ending(
    rings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["synthesise", str(rings), "-o", str(tmp_path / "sheet.docx"), "-q"]) == 2
    assert ".png, .jpg" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--kind", "perlim"], ("--kind", "did you mean 'perlin'?")),
        (["--texture", "image"], ("--texture", "did you mean 'images'?")),
        (["--foreground", "on"], ("--foreground", "auto, off")),
        (["--texture", "folder"], ("--texture-folder", "--texture-folder DIR")),
        (["--texture", "images", "--texture-folder", "x"], ("--texture-folder", "not be used")),
        (["--none-share", "1"], ("--none-share", "0.99")),
        (["--set", "opacity=2"], ("opacity",)),
        (["--set", "method.synthesis.opacity=[0.9,0.1]"], ("'opacity'", "within 0 and 1")),
        (["--set", "scales=[3,9]"], ("where: scales", "within 0 and 8")),
        (["--set", "method.synthesis.thresold=0.5"], ("thresold", "threshold")),
        (["--seed", "-1"], ("--seed", "than or equal to 0")),
        (["--kind", "scar", "--texture", "images"], ("--texture", "with --kind scar")),
        (["--kind", "patch", "--texture-folder", "x"], ("--texture-folder", "have no texture")),
        (["--kind", "scar", "--set", "kinds=[patch]"], ("--set kinds", "--kind too")),
        (["--texture", "images", "--set", "textures=images"], ("--texture too",)),
        (["--foreground", "auto", "--set", "foreground=off"], ("--foreground too",)),
        (["--images", "500", "--size", "2048"], ("500 images of 2048", "at most 7 images")),
    ],
)
def test_the_sheet_s_wrong_options_are_named_as_they_were_given(
    rings: Path, options: list[str], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["synthesise", str(rings), "-o", "s.png", "-q", *options]) == 2
    err = capsys.readouterr().err
    for word in words:
        assert word in err


def drawn(rings: Path, target: Path, *options: object) -> bytes:
    size = ("--images", "4", "--size", "64", "-q")
    assert run(["synthesise", str(rings), "-o", str(target), *size, *map(str, options)]) == 0
    return target.read_bytes()


def test_each_option_changes_what_is_drawn(rings: Path, tmp_path: Path) -> None:
    textures = tmp_path / "textures"
    textures.mkdir()
    Image.new("RGB", (40, 40), (200, 30, 30)).save(textures / "red.png")
    found = {
        drawn(rings, tmp_path / "sheet.png", *options)
        for options in (
            (),
            ("--kind", "scar"),
            ("--kind", "patch"),
            ("--texture", "procedural"),
            ("--texture-folder", textures),
            ("--none-share", 0.99),
            ("--seed", 1),
        )
    }
    assert len(found) == 7


def test_on_an_object_alone(tmp_path: Path) -> None:
    """A bright square on a dark ground."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed in range(4):
        picture = np.zeros((64, 64, 3), dtype=np.uint8)
        square = np.random.default_rng(seed).integers(170, 220, (24, 24, 3), dtype=np.uint8)
        picture[20:44, 20:44] = square
        Image.fromarray(picture).save(photos / f"{seed}.png")
    drawn(photos, tmp_path / "sheet.png", "--foreground", "auto")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)
    changed = (sheet[6:70, 70:134] != sheet[6:70, 6:70]).any(axis=-1)
    assert changed.any()
    ground = np.ones((64, 64), dtype=bool)
    # Otsu's threshold lies on the smoothed image.
    ground[17:47, 17:47] = False
    assert not changed[ground].any()


def test_no_image_can_be_left_out_and_none_is_offered_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.png").write_bytes(b"no image")
    command = ["synthesise", str(tmp_path / "photos"), "-o", str(tmp_path / "sheet.png"), "-q"]
    assert run(command) == 3
    shown = capsys.readouterr().err
    assert "repair or replace the file" in shown
    assert "--skip-bad" not in shown


def test_an_image_of_the_data_is_never_drawn_over(
    rings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = sorted((rings / "train" / "good").iterdir())[0]
    before = image.read_bytes()
    command = ["synthesise", str(rings), "-o", str(image), "--images", "1", "--size", "32", "-q"]
    assert run(command) == 2
    assert "would replace an image of the data" in capsys.readouterr().err
    assert image.read_bytes() == before

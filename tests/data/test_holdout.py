"""`flawmap split`: a table in which some good images are kept for a test."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flawmap.cli.main import run
from flawmap.data import inspect, read_data
from flawmap.data.holdout import hold_out, write_table
from flawmap.errors import DataError
from flawmap.types import Sample

WriteImage = Callable[..., Path]


@pytest.fixture
def parts(tmp_path: Path, write_image: WriteImage) -> Path:
    for i in range(10):
        write_image(tmp_path / "bolt" / "good" / f"{i}, ü.png", i)
    for i in range(3):
        write_image(tmp_path / "bolt" / "dent" / f"{i}.png", 100 + i)
    return tmp_path / "bolt"


def test_some_good_images_are_kept_and_nothing_else_changes(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "lists" / "bolt.csv"
    output.parent.mkdir()
    assert run(["split", str(parts), "-o", str(output), "--test", "30%"]) == 0
    shown = capsys.readouterr()
    assert "bolt             7             3                3" in shown.out
    assert f"flawmap fit {output}" in shown.err
    before, after = read_data(parts), read_data(output)
    assert {s.path for s in after.samples} == {s.path for s in before.samples}
    assert len(after.select(split="train", label=0)) == 7
    assert len(after.select(split="test", label=0)) == 3
    assert {(s.split, s.defect) for s in after.select(label=1)} == {("test", "dent")}
    # The same seed keeps the same images, another one others.
    text = output.read_text(encoding="utf-8")
    for seed, same in ((0, True), (1, False)):
        again = tmp_path / "lists" / f"{seed}.csv"
        command = ["split", str(parts), "-o", str(again), "--test=0.3", f"--seed={seed}", "-q"]
        assert run(command) == 0
        assert (again.read_text(encoding="utf-8") == text) == same
    # Nobody's table is written over, not even one that it wrote.
    assert run(["split", str(parts), "-o", str(output), "-q"]) == 2
    assert output.read_text(encoding="utf-8") == text


def test_counts_as_json(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["split", str(parts), "-o", str(tmp_path / "a.csv"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["categories"] == {"bolt": {"train": 8, "test_good": 2, "test_defect": 3}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "a.txt"], "a CSV file"),
        (["-o", "a.csv", "--test", "1"], "share of good images to test with must lie between"),
        (["-o", "mine.csv"], "mine.csv"),
    ],
)
def test_what_is_refused(
    parts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.csv").write_text("a list of mine\n")
    assert run(["split", str(parts), *options]) == 2
    assert message in capsys.readouterr().err
    assert Path("mine.csv").read_text() == "a list of mine\n"


def test_the_last_good_image_is_not_taken_away(tmp_path: Path, write_image: WriteImage) -> None:
    write_image(tmp_path / "nut" / "1.png", 1)
    with pytest.raises(DataError, match="none can be spared"):
        hold_out(read_data(tmp_path / "nut"), 0.2, 0)
    write_image(tmp_path / "nut" / "2.png", 2)
    table = hold_out(read_data(tmp_path / "nut"), 0.9, 0)
    assert [len(table.select(split=split)) for split in ("train", "test")] == [1, 1]


def test_masks_are_named_and_must_be_clear(tmp_path: Path, write_image: WriteImage) -> None:
    image = str(write_image(tmp_path / "a" / "1.png"))
    masks = tuple(str(write_image(tmp_path / "b" / name)) for name in ("1.png", "2.png"))
    sample = Sample(image, "nut", "test", 1, "dent", masks)
    write_table([sample], tmp_path / "c.csv")
    (found,) = read_data(tmp_path / "c.csv", check=False).samples
    assert found == sample
    with pytest.raises(DataError, match="holds ';'"):
        write_table([Sample(image, "nut", "test", 1, "", ("a;b.png",))], tmp_path / "c.csv")


def test_copies_lie_on_one_side(tmp_path: Path, write_image: WriteImage) -> None:
    for i in range(10):
        write_image(tmp_path / "bolt" / "good" / f"{i}.png", 10 * i)
        write_image(tmp_path / "bolt" / "good" / f"{i} copy.png", 10 * i)
    write_image(tmp_path / "bolt" / "dent" / "a.png", 200)
    for seed in range(5):
        table = hold_out(read_data(tmp_path / "bolt"), 0.3, seed)
        sides = {
            split: {Path(s.path).name[0] for s in table.select(split=split, label=0)}
            for split in ("train", "test")
        }
        assert not sides["train"] & sides["test"]
        assert len(sides["test"]) == 3


def test_what_a_table_cannot_say_is_refused(parts: Path) -> None:
    table = replace(read_data(parts), one_vs_rest=True)
    with pytest.raises(DataError, match="each class is a task of its own"):
        hold_out(table, 0.2, 0)


def test_images_of_one_part_lie_on_one_side_and_the_table_says_so(
    parts: Path, tmp_path: Path
) -> None:
    table = read_data(parts)
    numbers = {s.path: f"part {i // 2}" for i, s in enumerate(table.select(label=0))}
    table = replace(
        table, samples=tuple(replace(s, group=numbers.get(s.path, "")) for s in table.samples)
    )
    written = tmp_path / "list.csv"
    write_table(hold_out(table, 0.4, 0).samples, written)
    after = read_data(written)
    sides = [{s.group for s in after.select(split=split, label=0)} for split in ("train", "test")]
    assert [len(side) for side in sides] == [3, 2]
    assert not sides[0] & sides[1]
    assert {s.path: s.group for s in after.select(label=0)} == numbers


def test_parts_on_both_sides_are_told(parts: Path, tmp_path: Path) -> None:
    good = [s.path for s in read_data(parts).select(label=0)]
    rows = ["path,split,serial", f'"{good[0]}",train,7', f'"{good[1]}",test,7']
    (tmp_path / "t.csv").write_text("\n".join([*rows, f'"{good[2]}",test,8', ""]))
    found = [
        f for f in inspect(tmp_path / "t.csv").problems if "that other images teach" in f.message
    ]
    assert [f.severity for f in found] == ["warning"]
    assert found[0].message.startswith("1 image outside the training split shows a part")


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/St\xfcck"))
    image = Sample(str(folder / "1.png"), "bolt", "train", 0)
    with pytest.raises(DataError, match="is not plain text"):
        write_table([image], tmp_path / "a.csv")
    assert not (tmp_path / "a.csv").exists()
    # Within the folder its name is not written.
    folder.mkdir()
    write_table([image], folder / "a.csv")
    assert (folder / "a.csv").read_text().splitlines()[1].startswith("1.png,bolt,train")


def test_a_broken_link_can_be_left_out(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (parts / "good" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    command = ["split", str(parts), "-o", str(tmp_path / "a.csv"), "-q"]
    assert run(command) == 3
    assert "--skip-bad" in capsys.readouterr().err
    assert run([*command, "--skip-bad"]) == 0
    assert len(read_data(tmp_path / "a.csv").select(label=0)) == 10

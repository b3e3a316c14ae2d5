"""Real-IAD as downloaded, with its flavours of JSON files."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flawmap.data import inspect, read_data, verify_data
from flawmap.data.samples import SampleTable
from flawmap.errors import DataError

WriteImage = Callable[..., Path]

CATEGORIES = ("audiojack", "zipper")


def summary(table: SampleTable) -> dict[tuple[str, str, int | None, str], int]:
    return dict(Counter((s.category, s.split, s.label, s.defect) for s in table.samples))


def views(category: str, part: str, number: int = 5) -> list[dict[str, Any]]:
    """The items of one part: S0001 of OK or of a kind of defect."""
    kind = part.split("/")[-2]
    names = [f"{part}/{category}_{part[-4:]}_{kind}_C{view}_2023" for view in range(1, number + 1)]
    return [
        {
            "category": category,
            "anomaly_class": kind,
            "image_path": f"{name}.jpg",
            "mask_path": None if kind == "OK" else f"{name}.png",
        }
        for name in names
    ]


def write_jsons(folder: Path, train: list[str], test: list[str], number: int = 5) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for category in CATEGORIES:
        content = {
            "meta": {"normal_class": "OK", "prefix": f"{category}/", "pre_transform": None},
            "train": [item for part in train for item in views(category, part, number)],
            "test": [item for part in test for item in views(category, part, number)],
        }
        (folder / f"{category}.json").write_text(json.dumps(content))


GOOD = ["OK/S0001", "OK/S0002"]
TEST = ["OK/S0003", "NG/AK/S0001", "NG/HS/S0002"]


@pytest.fixture
def root(tmp_path: Path, write_image: WriteImage, write_mask: WriteImage) -> Path:
    """Two categories with 2 good parts to train, 1 good one and 2 defects to test, 5 views each."""
    root = tmp_path / "Real-IAD"
    value = iter(range(10, 250))
    for category in CATEGORIES:
        for part in GOOD + TEST:
            for item in views(category, part):
                write_image(root / "realiad_1024" / category / item["image_path"], next(value))
                if item["mask_path"]:
                    write_mask(root / "realiad_1024" / category / item["mask_path"])
    write_jsons(root / "realiad_jsons", GOOD, TEST)
    return root


def counts(category: str, views: int = 5) -> dict[tuple[str, str, int | None, str], int]:
    return {
        (category, "train", 0, "good"): 2 * views,
        (category, "test", 0, "good"): views,
        (category, "test", 1, "AK"): views,
        (category, "test", 1, "HS"): views,
    }


ALL = {**counts("audiojack"), **counts("zipper")}


class TestLayout:
    def test_labels_masks_and_parts(self, root: Path) -> None:
        table = read_data(root)
        assert table.format == "real-iad"
        assert summary(table) == ALL
        defect = table.select(category="zipper", label=1)[0]
        base = root / "realiad_1024" / "zipper" / "NG" / "AK" / "S0001"
        assert defect.path == str(base / "zipper_0001_AK_C1_2023.jpg")
        assert defect.masks == (str(base / "zipper_0001_AK_C1_2023.png"),)
        assert defect.group == "zipper/NG/AK/S0001"
        groups = Counter(s.group for s in table.samples)
        assert set(groups) == {f"{c}/{part}" for c in CATEGORIES for part in GOOD + TEST}
        assert set(groups.values()) == {5}
        assert all(not s.masks for s in table.select(label=0))
        assert table.notes == ("labels and split from 'realiad_jsons', images from 'realiad_1024'",)
        assert verify_data(table).problems == ()
        assert inspect(root).ok

    @pytest.mark.parametrize(
        "place",
        [
            "realiad_1024",
            "realiad_jsons",
            "..",
        ],
    )
    def test_other_paths_to_it(self, root: Path, place: str) -> None:
        table = read_data((root / place).resolve())
        assert (table.format, table.samples) == ("real-iad", read_data(root).samples)

    def test_one_category(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = root / "realiad_1024" / "zipper"
        assert summary(read_data(folder)) == counts("zipper")
        monkeypatch.chdir(folder)
        assert summary(read_data(".")) == counts("zipper")

    def test_nested_folders(self, root: Path) -> None:
        plain = read_data(root)
        for name in ("realiad_1024", "realiad_jsons"):
            (root / name).rename(root / "inner")
            (root / name).mkdir()
            (root / "inner").rename(root / name / name)
        inner = root / "realiad_1024" / "realiad_1024"
        (inner / "zipper").rename(inner / "x")
        (inner / "zipper").mkdir()
        (inner / "x").rename(inner / "zipper" / "zipper")
        paths = (
            root,
            root / "realiad_1024",
            inner,
            root / "realiad_jsons",
            root / "realiad_jsons" / "realiad_jsons",
        )
        for path in paths:
            table = read_data(path)
            assert (table.format, summary(table)) == ("real-iad", ALL)
            assert {s.group for s in table.samples} == {s.group for s in plain.samples}
        assert summary(read_data(inner / "audiojack")) == counts("audiojack")
        assert summary(read_data(inner / "zipper" / "zipper")) == counts("zipper")

    def test_several_resolutions_want_a_choice(self, root: Path, write_image: WriteImage) -> None:
        shutil.copytree(root / "realiad_1024", root / "realiad_256")
        with pytest.raises(DataError, match="several folders of images") as caught:
            read_data(root)
        assert "realiad_1024, realiad_256" in str(caught.value)
        assert "give the path of the one that is meant" in str(caught.value)
        for name in ("realiad_1024", "realiad_256"):
            table = read_data(root / name)
            assert all(f"/{name}/" in s.path for s in table.samples)
            assert summary(table) == ALL

    def test_droppings_are_passed_over(self, root: Path) -> None:
        (root / "realiad_jsons" / "._zipper.json").write_bytes(b"\x00\x05")
        (root / "realiad_1024" / "papers").mkdir()
        (root / "realiad_1024.zip").touch()
        (root / "realiad_1024" / "zipper.zip").touch()
        table = read_data(root)
        assert summary(table) == ALL
        assert len(table.notes) == 1

    def test_categories_not_downloaded_are_noted(self, root: Path) -> None:
        shutil.rmtree(root / "realiad_1024" / "audiojack")
        table = read_data(root)
        assert table.categories == ("zipper",)
        assert table.notes[1] == "left out, with a JSON file but no images:\n  audiojack"


class TestFlavours:
    @pytest.fixture
    def flavours(self, root: Path) -> Path:
        """All flavours in one folder, as their archive unpacks."""
        (root / "realiad_jsons").rename(root / "x")
        (root / "x").rename(root / "plain")
        (root / "realiad_jsons").mkdir()
        (root / "plain").rename(root / "realiad_jsons" / "realiad_jsons")
        write_jsons(root / "realiad_jsons" / "realiad_jsons_sv", GOOD, TEST, 1)
        for share in ("0.0", "0.1"):
            noise = ["NG/AK/S0001"] if share == "0.1" else []
            write_jsons(
                root / "realiad_jsons" / f"realiad_jsons_fuiad_{share}",
                GOOD + noise,
                [part for part in TEST if part not in noise],
            )
        return root

    def test_the_plain_one_by_default(self, flavours: Path) -> None:
        for path in (flavours, flavours / "realiad_jsons", flavours / "realiad_1024"):
            table = read_data(path)
            assert (table.format, summary(table)) == ("real-iad", ALL)

    def test_single_view_by_path_and_by_name(self, flavours: Path) -> None:
        expected = {**counts("audiojack", 1), **counts("zipper", 1)}
        by_path = read_data(flavours / "realiad_jsons" / "realiad_jsons_sv")
        by_name = read_data(flavours / "realiad_1024", format="real-iad-single-view")
        for table in (by_path, by_name):
            assert table.format == "real-iad-single-view"
            assert summary(table) == expected

    def test_defects_in_the_training_split_lose_their_label(self, flavours: Path) -> None:
        table = read_data(flavours / "realiad_jsons" / "realiad_jsons_fuiad_0.1")
        assert table.format == "real-iad-noisy"
        assert table.unsorted_training
        assert summary(table) == {
            (category, split, label, kind): n
            for category in CATEGORIES
            for split, label, kind, n in (
                ("train", None, "", 15),
                ("test", 0, "good", 5),
                ("test", 1, "HS", 5),
            )
        }
        assert all(not s.masks for s in table.select(split="train"))
        assert "10 of 30 training images show defects" in table.notes[-1]

    def test_a_noisy_split_can_be_fitted_and_is_warned_of(self, flavours: Path) -> None:
        path = flavours / "realiad_jsons" / "realiad_jsons_fuiad_0.1"
        table = read_data(path)
        assert len(verify_data(table).require().select(split="train")) == 30
        result = inspect(path)
        assert result.ok
        warnings = [p.message for p in result.problems if p.severity == "warning"]
        assert any("the training images were not sorted" in w for w in warnings)
        assert any("'zipper' has only 15 good training images" in w for w in warnings)

    def test_several_noisy_ones_want_a_choice(self, flavours: Path) -> None:
        with pytest.raises(DataError, match="several folders of JSON files") as caught:
            read_data(flavours, format="real-iad-noisy")
        assert "realiad_jsons_fuiad_0.0, realiad_jsons_fuiad_0.1" in str(caught.value)

    def test_images_and_json_files_both_chosen_through_links(
        self, flavours: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(flavours / "realiad_1024", flavours / "realiad_256")
        noisy = "realiad_jsons_fuiad_0.0"
        with pytest.raises(DataError, match="several folders of images"):
            read_data(flavours / "realiad_jsons" / noisy)
        choice = tmp_path / "choice"
        choice.mkdir()
        (choice / noisy).symlink_to(flavours / "realiad_jsons" / noisy)
        (choice / "realiad_256").symlink_to(flavours / "realiad_256")
        table = read_data(choice)
        assert (table.format, len(table)) == ("real-iad-noisy", 50)

    def test_defects_in_the_plain_training_split_are_refused(self, root: Path) -> None:
        write_jsons(root / "realiad_jsons", [*GOOD, "NG/AK/S0001"], TEST[:1])
        with pytest.raises(DataError, match="10 defect images in the training or validation"):
            read_data(root)

    def test_another_flavour_is_named(self, flavours: Path) -> None:
        path = flavours / "realiad_jsons" / "realiad_jsons_fuiad_0.1"
        with pytest.raises(DataError, match="no folder realiad_jsons:") as caught:
            read_data(path, format="real-iad")
        assert "--format real-iad-noisy reads realiad_jsons_fuiad_0.1" in str(caught.value)


class TestHalfUnpacked:
    def test_images_without_json_files(self, root: Path) -> None:
        shutil.rmtree(root / "realiad_jsons")
        with pytest.raises(DataError, match="images, but no folder realiad_jsons") as caught:
            read_data(root)
        assert "download realiad_jsons.zip" in str(caught.value)

    def test_json_files_without_images(self, root: Path) -> None:
        shutil.rmtree(root / "realiad_1024")
        with pytest.raises(DataError, match="there are no images beside them"):
            read_data(root)

    def test_no_category_has_images(self, root: Path) -> None:
        for category in CATEGORIES:
            shutil.rmtree(root / "realiad_1024" / category)
        with pytest.raises(DataError, match="no category has images"):
            read_data(root)

    def test_a_category_without_its_json_file(self, root: Path) -> None:
        (root / "realiad_jsons" / "zipper.json").unlink()
        message = r"category 'zipper' has images but no zipper\.json"
        for path in (root, root / "realiad_1024" / "zipper"):
            with pytest.raises(DataError, match=message):
                read_data(path)
        assert len(read_data(root / "realiad_1024" / "audiojack")) == 25

    def test_a_category_that_is_still_packed(self, root: Path) -> None:
        shutil.rmtree(root / "realiad_1024" / "zipper")
        (root / "realiad_1024" / "zipper.zip").touch()
        with pytest.raises(DataError, match=r"category 'zipper' is still packed: zipper\.zip"):
            read_data(root)

    def test_files_that_are_not_there(self, root: Path) -> None:
        base = root / "realiad_1024"
        shutil.rmtree(base / "zipper" / "OK" / "S0002")
        (base / "audiojack" / "NG" / "AK" / "S0001" / "audiojack_0001_AK_C3_2023.png").unlink()
        with pytest.raises(DataError, match="Real-IAD is not complete") as caught:
            read_data(root)
        text = str(caught.value)
        assert (
            "category 'zipper': zipper.json names 5 images that are not there, the first "
            "OK/S0002/zipper_0002_OK_C1_2023.jpg" in text
        )
        assert (
            "category 'audiojack': audiojack.json names 1 mask that is not there, the first "
            "NG/AK/S0001/audiojack_0001_AK_C3_2023.png" in text
        )

    def test_what_cannot_be_read_can_be_skipped(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scandir = os.scandir

        def refuse(path: str | Path) -> object:
            if str(path).endswith("S0002"):
                raise PermissionError(13, "Permission denied")
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(DataError, match="S0002: no permission to read this folder"):
            read_data(root)
        assert len(read_data(root, skip_bad=True)) == 30

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"meta": {', "Expecting property name"),
            ("[]", "list indices must be integers"),
            ('{"meta": {"normal_class": "OK"}}', "'prefix' is missing"),
            (
                '{"meta": {"normal_class": "OK", "prefix": "zipper/"}, "train": []}',
                "'test' is missing",
            ),
            ('{"meta": {"normal_class": "OK", "prefix": "toy/"}}', "its prefix is 'toy'"),
            (
                '{"meta": {"normal_class": "OK", "prefix": "zipper/"}, "train": [{"anomaly_class": '
                '3, "image_path": "a", "mask_path": null}], "test": []}',
                "an image is ",
            ),
        ],
    )
    def test_wrong_json_files(self, root: Path, text: str, message: str) -> None:
        file = root / "realiad_jsons" / "zipper.json"
        file.write_text(text)
        with pytest.raises(DataError, match="this is no JSON file of Real-IAD") as caught:
            read_data(root)
        assert message in str(caught.value)
        assert str(file) in str(caught.value)

    def test_another_tree(self, tmp_path: Path, write_image: WriteImage) -> None:
        write_image(tmp_path / "OK" / "S0001" / "0.png")
        assert read_data(tmp_path).format == "folder"
        with pytest.raises(DataError, match="this is not Real-IAD"):
            read_data(tmp_path, format="real-iad")


def test_many_files_are_looked_up_without_a_question_for_each(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    stat = Path.stat

    def count(self: Path, **options: Any) -> os.stat_result:
        asked.append(str(self))
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", count)
    assert len(read_data(root)) == 50
    assert not [path for path in asked if path.endswith((".jpg", ".png"))]

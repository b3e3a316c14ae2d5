"""VisA, as downloaded and as prepared by its authors' script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawmap.data import inspect, read_data, read_mask
from flawmap.data.samples import SampleTable
from flawmap.errors import DataError

WriteImage = Callable[..., Path]

HEADER = "object,split,label,image,mask\n"


def summary(table: SampleTable) -> dict[tuple[str, str, int | None, str], int]:
    return dict(Counter((s.category, s.split, s.label, s.defect) for s in table.samples))


def write_split(root: Path, objects: tuple[str, ...] = ("candle", "pcb1")) -> None:
    lines = []
    for name in objects:
        for i in range(4):
            split = "train" if i < 3 else "test"
            lines.append(f"{name},{split},normal,{name}/Data/Images/Normal/{i:04}.JPG,\n")
        for i in range(2):
            lines.append(
                f"{name},test,anomaly,{name}/Data/Images/Anomaly/{i:03}.JPG,"
                f"{name}/Data/Masks/Anomaly/{i:03}.png\n"
            )
    (root / "split_csv").mkdir(exist_ok=True)
    (root / "split_csv" / "1cls.csv").write_text(HEADER + "".join(lines))


@pytest.fixture
def raw(tmp_path: Path, write_image: WriteImage) -> Path:
    """Two objects with 3 good images to train, 1 good one and 2 defects to test."""
    root = tmp_path / "VisA_20220922"
    for n, name in enumerate(("candle", "pcb1")):
        data = root / name / "Data"
        for i in range(4):
            write_image(data / "Images" / "Normal" / f"{i:04}.JPG", 10 + 50 * n + 5 * i)
        for i in range(2):
            write_image(data / "Images" / "Anomaly" / f"{i:03}.JPG", 150 + 50 * n + 5 * i)
            mask = np.zeros((8, 10), dtype=np.uint8)
            mask[1, 2], mask[3, 4:6] = 1, 4
            (data / "Masks" / "Anomaly").mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(data / "Masks" / "Anomaly" / f"{i:03}.png")
        (root / name / "image_anno.csv").write_text("image,label,mask\n")
    write_split(root)
    for name in ("2cls_fewshot", "2cls_highshot"):
        (root / "split_csv" / f"{name}.csv").write_text(HEADER)
    (root / "LICENSE-DATASET").touch()
    return root


@pytest.fixture
def prepared(tmp_path: Path, write_image: WriteImage, write_mask: WriteImage) -> Path:
    """What the authors' script writes, for the three kinds of splits."""
    root = tmp_path / "VisA_pytorch"
    for kind in ("1cls", "2cls_fewshot"):
        for name in ("candle", "pcb1"):
            base = root / kind / name
            for i in range(3):
                write_image(base / "train" / "good" / f"{i:04}.JPG")
            write_image(base / "test" / "good" / "0003.JPG")
            for i in range(2):
                write_image(base / "test" / "bad" / f"{i:03}.JPG")
                write_mask(base / "ground_truth" / "bad" / f"{i:03}.png")
    for name in ("candle", "pcb1"):
        write_image(root / "2cls_fewshot" / name / "train" / "bad" / "009.JPG")
    return root


class TestRaw:
    def test_the_split_of_one_class(self, raw: Path) -> None:
        table = read_data(raw)
        assert table.format == "visa"
        assert table.notes == ()
        assert summary(table) == {
            (name, split, label, kind): n
            for name in ("candle", "pcb1")
            for split, label, kind, n in (
                ("train", 0, "good", 3),
                ("test", 0, "good", 1),
                ("test", 1, "anomaly", 2),
            )
        }
        defect = table.select(category="pcb1", label=1)[1]
        assert defect.path == str(raw / "pcb1/Data/Images/Anomaly/001.JPG")
        assert defect.masks == (str(raw / "pcb1/Data/Masks/Anomaly/001.png"),)
        assert all(not s.masks for s in table.select(label=0))

    def test_class_numbers_in_masks_are_defects(self, raw: Path) -> None:
        defect = read_data(raw).select(label=1)[0]
        assert read_mask(defect.masks, (8, 10)).sum() == 3
        result = inspect(raw)
        assert result.broken == ()
        assert result.ok
        assert {(c.defect, c.with_masks) for c in result.counts if c.split == "test"} == {
            ("good", 0),
            ("anomaly", 2),
        }

    def test_one_object_and_the_folder_above(self, raw: Path) -> None:
        one = read_data(raw / "candle")
        assert (one.format, one.categories, len(one)) == ("visa", ("candle",), 6)
        assert one.notes == ()
        above = read_data(raw.parent)
        assert above.samples == read_data(raw).samples
        assert above.notes == ("the data set begins in the folder 'VisA_20220922'",)

    def test_objects_that_are_not_there_are_noted(self, raw: Path) -> None:
        (raw / "pcb1").rename(raw.parent / "gone")
        table = read_data(raw)
        assert table.categories == ("candle",)
        assert table.notes == ("left out, in split_csv/1cls.csv but without a folder:\n  pcb1",)

    def test_without_the_split(self, raw: Path) -> None:
        (raw / "split_csv" / "1cls.csv").unlink()
        with pytest.raises(DataError, match="the table of its split is missing") as caught:
            read_data(raw)
        text = str(caught.value)
        assert "split_csv/1cls.csv" in text
        assert "amazon-science/spot-diff" in text
        assert "image_anno.csv" in text

    def test_folders_that_are_not_there(self, raw: Path) -> None:
        (raw / "candle" / "Data" / "Masks").rename(raw.parent / "gone")
        (raw / "pcb1" / "Data" / "Images" / "Normal").rename(raw.parent / "gone too")
        with pytest.raises(DataError, match="VisA is not complete") as caught:
            read_data(raw)
        text = str(caught.value)
        assert "category 'candle' has no Data/Masks" in text
        assert "category 'pcb1' has no Data/Images/Normal" in text
        assert "names" not in text

    def test_a_folder_without_data(self, raw: Path) -> None:
        (raw / "pcb1" / "Data").rename(raw.parent / "gone")
        with pytest.raises(DataError, match="category 'pcb1' has a folder but no Data/Images"):
            read_data(raw)

    def test_files_that_are_not_there(self, raw: Path) -> None:
        for i in (1, 2):
            (raw / "candle" / "Data" / "Images" / "Normal" / f"{i:04}.JPG").unlink()
        (raw / "pcb1" / "Data" / "Masks" / "Anomaly" / "000.png").unlink()
        with pytest.raises(DataError, match="VisA is not complete") as caught:
            read_data(raw)
        text = str(caught.value)
        assert (
            "category 'candle': split_csv/1cls.csv names 2 images that are not there, the first "
            "candle/Data/Images/Normal/0001.JPG" in text
        )
        assert (
            "category 'pcb1': split_csv/1cls.csv names 1 mask that is not there, the first "
            "pcb1/Data/Masks/Anomaly/000.png" in text
        )

    def test_a_dangling_link_can_be_skipped(self, raw: Path) -> None:
        path = raw / "candle" / "Data" / "Images" / "Normal" / "0001.JPG"
        path.unlink()
        path.symlink_to("gone.JPG")
        with pytest.raises(DataError, match=r"0001\.JPG: a link to gone\.JPG"):
            read_data(raw)
        assert len(read_data(raw, skip_bad=True)) == 11

    def test_an_object_without_lines(self, raw: Path) -> None:
        write_split(raw, ("candle",))
        with pytest.raises(DataError, match="category 'pcb1' has images but no line in split_csv"):
            read_data(raw)

    def test_wrong_lines_are_named(self, raw: Path) -> None:
        file = raw / "split_csv" / "1cls.csv"
        with file.open("a") as text:
            text.write(
                "candle,learn,normal,candle/a.JPG,\n"
                "candle,train,fine,candle/a.JPG,\n"
                "candle,train,normal,pcb1/a.JPG,\n"
                "candle,test,anomaly,candle/a.JPG,\n"
            )
        with pytest.raises(DataError, match="the table of VisA's split cannot be used") as caught:
            read_data(raw)
        message = str(caught.value)
        assert "line 14: split is 'learn'" in message
        assert "line 15: label is 'fine'" in message
        assert "line 16: image is 'pcb1/a.JPG', which does not lie in 'candle'" in message
        assert "line 17: mask is '', which does not lie in 'candle'" in message
        file.write_text("object,image\n")
        with pytest.raises(DataError, match="the columns label, mask, split are missing"):
            read_data(raw)
        file.write_bytes(HEADER.encode() + b"\xff\xfe")
        with pytest.raises(DataError, match="it is no table"):
            read_data(raw)

    def test_another_tree(self, tmp_path: Path, write_image: WriteImage) -> None:
        write_image(tmp_path / "0.png")
        with pytest.raises(DataError, match="no images in the layout of VisA"):
            read_data(tmp_path, format="visa")


class TestPrepared:
    def test_from_the_folder_above_and_from_it(self, prepared: Path) -> None:
        table = read_data(prepared)
        assert table.format == "visa"
        assert summary(table) == {
            (name, split, label, kind): n
            for name in ("candle", "pcb1")
            for split, label, kind, n in (
                ("train", 0, "good", 3),
                ("test", 0, "good", 1),
                ("test", 1, "bad", 2),
            )
        }
        assert table.select(category="candle", label=1)[0].masks == (
            str(prepared / "1cls/candle/ground_truth/bad/000.png"),
        )
        assert table.notes == ("the data set begins in the folder '1cls'",)
        inner = read_data(prepared / "1cls")
        assert (inner.format, inner.samples, inner.notes) == ("visa", table.samples, ())
        assert read_data(prepared / "1cls" / "pcb1").format == "visa"
        assert len(read_data(prepared.parent)) == 12

    def test_the_few_shot_split_trains_on_defects(self, prepared: Path) -> None:
        with pytest.raises(DataError, match="2 defect images in the training or validation split"):
            read_data(prepared / "2cls_fewshot")

    def test_half_prepared(self, prepared: Path) -> None:
        (prepared / "1cls" / "pcb1" / "test").rename(prepared.parent / "gone")
        (prepared / "1cls" / "candle" / "ground_truth").rename(prepared.parent / "gone too")
        with pytest.raises(DataError, match="VisA is not complete") as caught:
            read_data(prepared)
        text = str(caught.value)
        assert "category 'pcb1' has no folder 'test'" in text
        assert "category 'candle': no mask in ground_truth/bad, for 2 defect images" in text

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import flawmap
from flawmap.cli.main import run
from flawmap.data import Problem, read_data
from flawmap.data.detect import recognise
from flawmap.data.inputs import find_images
from flawmap.data.magnetic_tile import MagneticTile, tiles_of
from flawmap.data.samples import SampleTable
from flawmap.errors import ConfigError, DataError
from flawmap.registry import FORMATS

WriteImage = Callable[..., Path]


def summary(table: SampleTable) -> dict[tuple[str, str, int | None, str], int]:
    return dict(Counter((s.category, s.split, s.label, s.defect) for s in table.samples))


class TestFolder:
    def test_all_images_are_good_and_train(self, tmp_path: Path, write_image: WriteImage) -> None:
        for i in range(3):
            write_image(tmp_path / "gear" / f"{i}.png")
        table = read_data(tmp_path / "gear")
        assert table.format == "folder"
        assert summary(table) == {("gear", "train", 0, "good"): 3}

    def test_good_beside_defect_folders(self, tmp_path: Path, write_image: WriteImage) -> None:
        for name in ("OK/1.png", "OK/sub/2.png", "NG/3.png", "scratch/4.png"):
            write_image(tmp_path / "gear" / name)
        table = read_data(tmp_path / "gear")
        assert table.format == "folder"
        assert summary(table) == {
            ("gear", "train", 0, "good"): 2,
            ("gear", "test", 1, "NG"): 1,
            ("gear", "test", 1, "scratch"): 1,
        }

    def test_images_with_a_defect_folder(self, tmp_path: Path, write_image: WriteImage) -> None:
        write_image(tmp_path / "gear" / "1.png")
        write_image(tmp_path / "gear" / "defect" / "2.png")
        assert summary(read_data(tmp_path / "gear")) == {
            ("gear", "train", 0, "good"): 1,
            ("gear", "test", 1, "defect"): 1,
        }

    def test_unclear_sub_folders_are_explained(
        self, tmp_path: Path, write_image: WriteImage
    ) -> None:
        for name in ("1.png", "monday/2.png", "tuesday/3.png"):
            write_image(tmp_path / "gear" / name)
        with pytest.raises(DataError, match="unknown or ambiguous") as caught:
            read_data(tmp_path / "gear")
        text = str(caught.value)
        assert "found 1 image; sub-folder 'monday' with 1 image" in text
        assert "--format" in text
        assert "mvtec: train/good" in text

    def test_the_format_overrides(self, tmp_path: Path, write_image: WriteImage) -> None:
        for name in ("1.png", "monday/2.png", "monday/late/3.png"):
            write_image(tmp_path / "gear" / name)
        table = read_data(tmp_path / "gear", format="folder")
        assert summary(table) == {("gear", "train", 0, "good"): 3}
        assert "monday" in table.notes[0]

    def test_days_that_say_what_is_good_are_one_product(
        self, tmp_path: Path, write_image: WriteImage
    ) -> None:
        for day in ("monday", "tuesday"):
            for name in ("good/1.png", "bad/2.png", "scratch/3.png"):
                write_image(tmp_path / "gear" / day / name)
        table = read_data(tmp_path / "gear", format="folder")
        assert summary(table) == {
            ("gear", "train", 0, "good"): 2,
            ("gear", "test", 1, "bad"): 2,
            ("gear", "test", 1, "scratch"): 2,
        }

    @pytest.mark.parametrize("inner", ["NG", "test", "masks"])
    @pytest.mark.parametrize("good", ["good", "monday"])
    def test_what_lies_deeper_is_never_taken_as_good_either(
        self, tmp_path: Path, write_image: WriteImage, good: str, inner: str
    ) -> None:
        for name in ("1.png", "late/2.png", f"late/{inner}/3.png"):
            write_image(tmp_path / "gear" / good / name)
        with pytest.raises(DataError, match=f"'{inner}', which means defects") as caught:
            read_data(tmp_path / "gear", format="folder")
        assert str(caught.value.where).endswith(f"late/{inner}")

    def test_a_parent_folder_gives_the_product_its_name(
        self, tmp_path: Path, write_image: WriteImage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_image(tmp_path / "gear" / "1.png")
        (tmp_path / "gear" / "notes").mkdir()
        monkeypatch.chdir(tmp_path / "gear" / "notes")
        assert read_data("..").categories == ("gear",)

    def test_splits_are_never_taken_as_good(self, mvtec: Path) -> None:
        with pytest.raises(DataError, match="would train on defects") as caught:
            read_data(mvtec, format="folder")
        assert "--format mvtec" in str(caught.value)

    def test_other_files_are_noted(self, tmp_path: Path, write_image: WriteImage) -> None:
        write_image(tmp_path / "1.png")
        for name in ("2.heic", "3.HEIC", "read.me", "notes"):
            (tmp_path / name).touch()
        assert read_data(tmp_path).notes == (
            "2 pictures in a format that is not read, left out: .heic (2); convert to JPEG or PNG",
            "2 files beside the images that are no images: no extension (1), .me (1)",
        )

    @pytest.mark.parametrize(("good", "bad"), [("i.O.", "n.i.O."), ("GUT", "SCHLECHT")])
    def test_names_of_the_shop_floor(
        self, tmp_path: Path, write_image: WriteImage, good: str, bad: str
    ) -> None:
        write_image(tmp_path / "gear" / good / "1.png")
        write_image(tmp_path / "gear" / bad / "2.png")
        assert summary(read_data(tmp_path / "gear")) == {
            ("gear", "train", 0, "good"): 1,
            ("gear", "test", 1, bad): 1,
        }

    def test_a_folder_of_defects_is_no_product(
        self, tmp_path: Path, write_image: WriteImage
    ) -> None:
        write_image(tmp_path / "NIO" / "1.png")
        write_image(tmp_path / "Monday" / "2.png")
        with pytest.raises(DataError, match="unknown or ambiguous"):
            read_data(tmp_path)

    @pytest.mark.parametrize("masks", ["Bad_mask", "good_masks", "ground truth", "bad-gt"])
    def test_masks_are_never_defect_images(
        self, tmp_path: Path, write_image: WriteImage, masks: str
    ) -> None:
        for name in ("good/1.png", "Bad/2.png", f"{masks}/2.png"):
            write_image(tmp_path / "gear" / name)
        with pytest.raises(DataError, match="unknown or ambiguous"):
            read_data(tmp_path / "gear")
        with pytest.raises(DataError, match=f"'{masks}', which means a split or masks"):
            read_data(tmp_path / "gear", format="folder")


class TestFolders:
    def test_products_with_and_without_inner_folders(
        self, tmp_path: Path, write_image: WriteImage
    ) -> None:
        for name in ("gear v1.2/1.png", "bolt/good/1.png", "bolt/bad/2.png", "nüt/ok/3.png"):
            write_image(tmp_path / name)
        (tmp_path / "empty").mkdir()
        table = read_data(tmp_path)
        assert table.format == "folders"
        assert summary(table) == {
            ("bolt", "train", 0, "good"): 1,
            ("bolt", "test", 1, "bad"): 1,
            ("gear v1.2", "train", 0, "good"): 1,
            ("nüt", "train", 0, "good"): 1,
        }
        assert read_data(tmp_path, categories=["bolt"]).categories == ("bolt",)

    def test_plain_folders_may_show_one_product(
        self, tmp_path: Path, write_image: WriteImage
    ) -> None:
        for name in ("2024-01/1.png", "2024-02/2.png"):
            write_image(tmp_path / name)
        (note,) = read_data(tmp_path).notes
        assert "each of 2 folders is read as a product: 2024-01, 2024-02" in note
        assert "--format folder" in note
        assert read_data(tmp_path, format="folder").categories == (tmp_path.name,)
        write_image(tmp_path / "2024-02" / "good" / "3.png")
        write_image(tmp_path / "2024-02" / "ng" / "4.png")
        (tmp_path / "2024-02" / "2.png").unlink()
        assert read_data(tmp_path).notes == ()

    def test_deeper_nesting_is_explained(self, tmp_path: Path, write_image: WriteImage) -> None:
        write_image(tmp_path / "bolt" / "line1" / "1.png")
        with pytest.raises(DataError, match="unknown or ambiguous"):
            read_data(tmp_path)
        with pytest.raises(DataError, match="not clear product folders") as caught:
            read_data(tmp_path, format="folders")
        assert "bolt: its sub-folders ('line1') do not say" in str(caught.value)

    def test_images_beside_products_are_refused(
        self, tmp_path: Path, write_image: WriteImage
    ) -> None:
        write_image(tmp_path / "bolt" / "1.png")
        write_image(tmp_path / "2.png")
        with pytest.raises(DataError, match="1 images lie beside the product folders"):
            read_data(tmp_path, format="folders")


class TestMVTec:
    def test_one_category(self, mvtec: Path) -> None:
        table = read_data(mvtec)
        assert table.format == "mvtec"
        assert summary(table) == {
            ("bottle", "train", 0, "good"): 3,
            ("bottle", "test", 0, "good"): 1,
            ("bottle", "test", 1, "hole"): 2,
        }
        assert [s.masks for s in table.select(label=1)] == [
            (str(mvtec / "ground_truth" / "hole" / f"{i:03}_mask.png"),) for i in range(2)
        ]

    def test_a_root_of_categories(self, mvtec: Path, write_image: WriteImage) -> None:
        write_image(mvtec.parent / "cable" / "train" / "good" / "0.png")
        write_image(mvtec.parent / "cable" / "validation" / "good" / "1.png")
        write_image(mvtec.parent / "readme pictures" / "0.png")
        table = read_data(mvtec.parent)
        assert table.categories == ("bottle", "cable")
        assert len(table.select(category="cable", split="validation", label=0)) == 1
        assert "readme pictures" in table.notes[0]

    def test_masks_match_by_stem_with_any_extension_and_folder(
        self, tmp_path: Path, write_image: WriteImage, write_mask: WriteImage
    ) -> None:
        root = tmp_path / "01"
        write_image(root / "train" / "ok" / "0.bmp")
        write_image(root / "test" / "ko" / "1.2.bmp")
        write_image(root / "test" / "ko" / "two.bmp")
        write_image(root / "test" / "ko" / unicodedata.normalize("NFC", "größe.bmp"))
        gt = root / "ground_truth" / "ko"
        write_mask(gt / "1.2.png")
        write_mask(gt / "two" / "000.png")
        write_mask(gt / "two" / "001.png")
        write_mask(gt / unicodedata.normalize("NFD", "größe_mask.png"))
        masks = [len(s.masks) for s in read_data(root).select(label=1)]
        assert masks == [1, 1, 2]
        assert read_data(root).orphan_masks == ()

    def test_the_folder_of_a_defect_in_another_unicode_form(
        self, mvtec: Path, write_image: WriteImage, write_mask: WriteImage
    ) -> None:
        write_image(mvtec / "test" / unicodedata.normalize("NFC", "Kratzer-groß-ä") / "0.png")
        masks = mvtec / "ground_truth"
        write_mask(masks / unicodedata.normalize("NFD", "kratzer-groß-ä") / "0_mask.png")
        table = read_data(mvtec)
        assert [len(s.masks) for s in table.select(label=1)] == [1, 1, 1]

    def test_the_folder_of_masks_in_another_spelling(self, mvtec: Path) -> None:
        (mvtec / "ground_truth").rename(mvtec / "Ground Truth")
        (mvtec / "test" / "good").rename(mvtec / "test" / "i.O.")
        table = read_data(mvtec)
        assert [len(s.masks) for s in table.select(label=1)] == [1, 1]
        assert len(table.select(split="test", label=0)) == 1

    def test_a_mask_without_an_image_is_refused(self, mvtec: Path, write_mask: WriteImage) -> None:
        write_mask(mvtec / "ground_truth" / "hole" / "999_mask.png")
        write_mask(mvtec / "ground_truth" / "dent" / "000_mask.png")
        with pytest.raises(DataError, match="2 masks have no image") as caught:
            read_data(mvtec)
        assert "ground_truth/dent/000_mask.png" in str(caught.value)

    def test_a_defect_in_the_training_split_is_refused(
        self, mvtec: Path, write_image: WriteImage
    ) -> None:
        for i in range(7):
            write_image(mvtec / "train" / "hole" / f"{i}.png")
        with pytest.raises(DataError, match="7 defect images in the training or val") as caught:
            read_data(mvtec)
        assert "train/hole/4.png and 2 more" in str(caught.value)
        assert "move these to the test split" in str(caught.value)

    def test_a_defect_to_calibrate_with_is_refused(
        self, mvtec: Path, write_image: WriteImage
    ) -> None:
        write_image(mvtec / "validation" / "hole" / "0.png")
        with pytest.raises(DataError, match="1 defect image in the training or validation split"):
            read_data(mvtec)

    def test_a_category_without_good_images_is_refused(
        self, mvtec: Path, write_image: WriteImage
    ) -> None:
        write_image(mvtec.parent / "cable" / "test" / "good" / "0.png")
        with pytest.raises(DataError, match="no good training images in category 'cable'"):
            read_data(mvtec.parent)
        assert len(read_data(mvtec.parent, categories=["bottle"])) == 6

    def test_masks_of_good_images_are_left_out(self, mvtec: Path, write_mask: WriteImage) -> None:
        write_mask(mvtec / "ground_truth" / "good" / "000_mask.png", None)
        table = read_data(mvtec)
        assert table.notes == ("1 masks of good images are not used",)

    def test_unlabelled_test_images(self, mvtec: Path, write_image: WriteImage) -> None:
        write_image(mvtec / "test" / "new.png")
        assert summary(read_data(mvtec))["bottle", "test", None, ""] == 1

    def test_another_layout_is_refused(self, tmp_path: Path, write_image: WriteImage) -> None:
        write_image(tmp_path / "1.png")
        with pytest.raises(DataError, match="no images in the layout of MVTec AD"):
            read_data(tmp_path, format="mvtec")


def tile_names(n: int) -> list[str]:
    """Tiles of six exposures each, taken one after the other."""
    return [f"exp{e}_num_{1000 * tile + 20 * e}" for tile in range(n) for e in range(1, 7)]


class TestMagneticTile:
    def test_the_exposures_of_one_tile_lie_on_one_side(
        self, tiles: Path, write_image: WriteImage
    ) -> None:
        shutil.rmtree(tiles / "MT_Free")
        for name in tile_names(10):
            write_image(tiles / "MT_Free" / "Imgs" / f"{name}.jpg")
        table = MagneticTile().read(tiles, 0)
        sides = [
            {s.group for s in table.select(split=split, label=0)} for split in ("train", "test")
        ]
        assert [len(side) for side in sides] == [8, 2]
        assert not sides[0] & sides[1]
        assert {len(table.select(split=split, label=0)) for split in ("train", "test")} == {48, 12}

    def test_which_images_show_one_tile(self) -> None:
        first, second = tile_names(2)[:6], tile_names(2)[6:]
        found = tiles_of([*second[::-1], *first, "new"])
        assert {found[name] for name in first} == {first[0]}
        assert {found[name] for name in second} == {second[0]}
        assert found["new"] == "new"
        # Two tiles in turn, as at the beginning of the set, are not torn apart.
        turns = ["exp1_num_824", "exp2_num_834", "exp1_num_855", "exp2_num_887", "exp1_num_2038"]
        assert list(tiles_of(turns).values()) == ["exp1_num_824"] * 4 + ["exp1_num_2038"]
        # A tile may lack some of its exposures.
        assert len(set(tiles_of(["exp2_num_10", "exp6_num_500", "exp5_num_600"]).values())) == 2

    @pytest.fixture
    def tiles(self, tmp_path: Path, write_image: WriteImage, write_mask: WriteImage) -> Path:
        for i in range(10):
            write_image(tmp_path / "MT_Free" / "Imgs" / f"exp1_num_{1000 * i}.jpg")
            write_mask(tmp_path / "MT_Free" / "Imgs" / f"exp1_num_{1000 * i}.png", None)
        for kind in ("Blowhole", "Break", "Crack", "Fray", "Uneven"):
            write_image(tmp_path / f"MT_{kind}" / "Imgs" / "a.jpg")
            write_mask(tmp_path / f"MT_{kind}" / "Imgs" / "a.png")
        return tmp_path

    def test_kinds_and_split(self, tiles: Path) -> None:
        table = read_data(tiles)
        assert table.format == "magnetic-tile"
        assert summary(table) == {
            ("magnetic_tile", "train", 0, "good"): 8,
            ("magnetic_tile", "test", 0, "good"): 2,
            **{
                ("magnetic_tile", "test", 1, kind): 1
                for kind in ("blowhole", "break", "crack", "fray", "uneven")
            },
        }
        assert all(not s.masks for s in table.select(label=0))
        assert table.select(label=1)[0].masks == (str(tiles / "MT_Blowhole" / "Imgs" / "a.png"),)

    def test_the_seed_chooses_the_training_tiles(self, tiles: Path) -> None:
        training = [
            {s.path for s in read_data(tiles, seed=seed).select(split="train")}
            for seed in (0, 0, 1)
        ]
        assert training[0] == training[1]
        assert training[0] != training[2]

    def test_half_unpacked(self, tiles: Path, write_image: WriteImage) -> None:
        (tiles / "MT_Crack").rename(tiles / "gone")
        (tiles / "MT_Fray" / "Imgs" / "a.jpg").unlink()
        (tiles / "MT_Uneven" / "Imgs" / "a.png").unlink()
        write_image(tiles / "MT_Break" / "Imgs" / "b.jpg")
        with pytest.raises(DataError, match="the magnetic-tile data set is not complete") as caught:
            read_data(tiles)
        text = str(caught.value)
        assert "no image in MT_Crack/Imgs" in text
        assert "no image in MT_Fray/Imgs" in text
        assert "no mask in MT_Uneven/Imgs, for 1 defect images" in text
        assert "1 of 2 defect images have no mask in MT_Break/Imgs, the first is that of b" in text
        assert "Blowhole" not in text

    def test_a_lone_mask_is_refused(self, tiles: Path, write_mask: WriteImage) -> None:
        write_mask(tiles / "MT_Crack" / "Imgs" / "b.png")
        with pytest.raises(DataError, match=r"1 mask has no image: MT_Crack/Imgs/b\.png"):
            read_data(tiles)


class TestElpv:
    @pytest.fixture
    def cells(self, tmp_path: Path, write_image: WriteImage) -> Path:
        lines = []
        for i in range(10):
            write_image(tmp_path / "images" / f"good{i}.png")
            lines.append(f"images/good{i}.png  0.0   {'mono' if i < 5 else 'poly'}\n")
        for i, value in enumerate((0.3333333333333333, 0.6666666666666666, 1.0)):
            write_image(tmp_path / "images" / f"bad{i}.png")
            lines.append(f"images/bad{i}.png  {value}   poly\n")
        (tmp_path / "labels.csv").write_text("".join(lines))
        return tmp_path

    def test_uncertain_cells_are_left_out(self, cells: Path) -> None:
        table = read_data(cells)
        assert table.format == "elpv"
        assert summary(table) == {
            ("mono", "train", 0, "good"): 4,
            ("mono", "test", 0, "good"): 1,
            ("poly", "train", 0, "good"): 4,
            ("poly", "test", 0, "good"): 1,
            ("poly", "test", 1, "defect"): 1,
        }
        assert table.notes == ("2 cells on which the experts were not sure are left out",)

    def test_uncertain_cells_as_defects(self, cells: Path) -> None:
        table = read_data(cells, format="elpv-uncertain")
        assert table.format == "elpv-uncertain"
        assert summary(table)["poly", "test", 1, "uncertain"] == 2
        assert not table.notes

    def test_wrong_lines_are_named(self, cells: Path) -> None:
        with (cells / "labels.csv").open("a") as file:
            file.write("\nimages/x.png 0.5\nimages/y.png two mono\nimages/z.png 2 mono\n")
        with pytest.raises(DataError, match="3 wrong lines") as caught:
            read_data(cells)
        text = str(caught.value)
        assert "line 15: 2 columns instead of 3" in text
        assert "line 16: could not convert" in text
        assert "line 17: probability 2 is not from 0 to 1" in text

    def test_a_missing_image_is_named(self, cells: Path) -> None:
        (cells / "images" / "good3.png").unlink()
        with pytest.raises(DataError, match=r"images/good3\.png: named in labels\.csv but missing"):
            read_data(cells)
        assert len(read_data(cells, skip_bad=True)) == 10

    def test_the_installed_package(self) -> None:
        package = pytest.importorskip("elpv_dataset")
        root = Path(package.__file__).parent
        table = read_data(root)
        assert summary(table) == {
            ("mono", "train", 0, "good"): 470,
            ("mono", "test", 0, "good"): 118,
            ("mono", "test", 1, "defect"): 313,
            ("poly", "train", 0, "good"): 736,
            ("poly", "test", 0, "good"): 184,
            ("poly", "test", 1, "defect"): 402,
        }
        assert table.fingerprint() == read_data(root / "data").fingerprint()
        assert len(read_data(root, format="elpv-uncertain")) == 2624


class TestTable:
    @pytest.fixture
    def images(self, tmp_path: Path, write_image: WriteImage, write_mask: WriteImage) -> Path:
        for name in ("a", "b", "c", "d e.f"):
            write_image(tmp_path / "images" / f"{name}.png")
        write_mask(tmp_path / "m1.png")
        write_mask(tmp_path / "m2.png")
        return tmp_path

    ROWS = (
        "images/a.png,gear,train,good,,\n"
        "images/b.png,gear,val,ok,,\n"
        "images/c.png,gear,test,NG,m1.png;m2.png,dent\n"
        "images/d e.f.png,,,0,,\n"
    )
    HEADER = "path,category,split,label,mask,defect\n"

    @pytest.mark.parametrize("delimiter", [",", "\t", ";"])
    @pytest.mark.parametrize("mark", ["", "\ufeff"])
    @pytest.mark.parametrize("ending", ["\n", "\r\n"])
    def test_csv_dialects(self, images: Path, delimiter: str, mark: str, ending: str) -> None:
        text = self.HEADER + self.ROWS
        if delimiter == ";":
            text = text.replace("m1.png;m2.png", '"m1.png;m2.png"')
        text = mark + text.replace(",", delimiter).replace("\n", ending)
        (images / "t.csv").write_bytes(text.encode())
        self.check(read_data(images / "t.csv"), images)

    def test_utf16(self, images: Path) -> None:
        (images / "t.csv").write_text(self.HEADER + self.ROWS, encoding="utf-16")
        self.check(read_data(images / "t.csv"), images)

    def test_json_lines(self, images: Path) -> None:
        rows = [
            {"path": "images/a.png", "category": "gear", "split": "train", "label": 0},
            {"image": "images/b.png", "product": "gear", "split": "validation", "label": "good"},
            {
                "path": "images/c.png",
                "category": "gear",
                "label": 1,
                "mask": ["m1.png", "m2.png"],
                "defect": "dent",
            },
            {"path": "images/d e.f.png", "label": "0", "mask": None},
        ]
        text = "\n\n".join(json.dumps(r) for r in rows)
        (images / "t.jsonl").write_text(text)
        self.check(read_data(images / "t.jsonl"), images)

    def check(self, table: SampleTable, images: Path) -> None:
        assert table.format == "table"
        assert summary(table) == {
            ("gear", "train", 0, "good"): 1,
            ("gear", "validation", 0, "good"): 1,
            ("gear", "test", 1, "dent"): 1,
            ("default", "train", 0, "good"): 1,
        }
        assert table.select(label=1)[0].masks == (str(images / "m1.png"), str(images / "m2.png"))
        assert table.select(category="default")[0].path == str(images / "images" / "d e.f.png")

    def read(self, images: Path, text: str, name: str = "t.csv") -> SampleTable:
        (images / name).write_text(text)
        return read_data(images / name)

    def test_paths_alone_are_good(self, images: Path) -> None:
        table = self.read(images, "path\nimages/a.png\nimages/b.png\n")
        assert summary(table) == {("default", "train", 0, "good"): 2}
        assert "no image has a label" in table.notes[0]

    def test_an_empty_label_is_an_unjudged_test_image(self, images: Path) -> None:
        table = self.read(images, "path,label\nimages/a.png,good\nimages/b.png,\n")
        assert summary(table) == {
            ("default", "train", 0, "good"): 1,
            ("default", "test", None, ""): 1,
        }

    def test_a_kind_of_defect_is_a_label(self, images: Path) -> None:
        table = self.read(images, "path,defect\nimages/a.png,good\nimages/b.png,dent\n")
        assert summary(table) == {
            ("default", "train", 0, "good"): 1,
            ("default", "test", 1, "dent"): 1,
        }

    def test_paths_of_another_system(self, images: Path, write_image: WriteImage) -> None:
        name = unicodedata.normalize("NFD", "größe")
        write_image(images / "images" / f"{name}.png")
        nfc = unicodedata.normalize("NFC", name)
        table = self.read(images, f"path\nimages\\a.png\nimages/{nfc}.png\n")
        assert {Path(s.path).name for s in table.samples} == {"a.png", f"{name}.png"}

    def test_every_wrong_line_is_named_with_its_number(self, images: Path) -> None:
        text = self.HEADER + (
            "images/a.png,,train,scratch,,\n"
            "\n"
            "images/b.png,,learn,good,,\n"
            ",,,good,,\n"
            "images/c.png,,,good,,dent\n"
            "images/a.png,,,,,\n"
            "./images/../images/a.png,,,,,\n"
            "images/b.png,a,b,c,d,e,f\n"
            "images/b.png,,,,m1.png,\n"
        )
        with pytest.raises(DataError, match="7 wrong lines in the table") as caught:
            self.read(images, text)
        message = str(caught.value)
        assert "line 2: label is 'scratch', expected good or 0, defect or 1" in message
        assert "line 4: split is 'learn', expected train, validation or test" in message
        assert "line 5: path is empty" in message
        assert "line 6: label is 'good' but defect is 'dent'" in message
        assert "line 8: './images/../images/a.png' is named on line 7 too" in message
        assert "line 9: 7 cells for 6 columns" in message
        assert "line 10: it has a mask but no label" in message

    def test_wrong_json_lines_are_named(self, images: Path) -> None:
        text = '{"path": "images/a.png"\n[1]\n{"path": true}\n{"path": "images/a.png", "mask": 3}\n'
        with pytest.raises(DataError, match="4 wrong lines") as caught:
            self.read(images, text, "t.jsonl")
        message = str(caught.value)
        assert "line 1: no valid JSON" in message
        assert "line 2: expected an object in braces" in message
        assert "line 3: path is true, expected text" in message
        assert "line 4: mask is 3, expected a path or a list of paths" in message

    @pytest.mark.parametrize(
        ("column", "values"),
        [
            ("class", ("OK", "NG")),
            ("verdict", ("", "n.i.O.")),
            ("state", ("?", "NG")),
            ("kind", ("good", "scratch")),
            ("ok", ("1", "0")),
            ("is_ng", ("true", "true")),
            ("target", ("0", "1")),
        ],
    )
    def test_verdicts_under_another_name_are_refused(
        self, images: Path, column: str, values: tuple[str, str]
    ) -> None:
        rows = list(zip(("images/a.png", "images/b.png"), values, strict=True))
        lines = "".join(f"{path},{value}\n" for path, value in rows)
        text = f"path,{column}\n{lines}"
        with pytest.raises(DataError, match="seems to tell good from defective") as error:
            self.read(images, text)
        assert "rename the column to 'label'" in str(error.value)
        objects = [json.dumps({"path": path, column: value}) for path, value in rows]
        (images / "t.jsonl").write_text("\n".join(objects))
        with pytest.raises(DataError, match="seems to tell good from defective"):
            read_data(images / "t.jsonl")
        # Nothing of it is learnt by who scores these images, or measures with them.
        assert len(find_images([images / "t.jsonl"]).samples) == 2
        tested = "".join(f"{path},{value},test\n" for path, value in rows)
        (images / "t.csv").write_text(f"path,{column},split\n{tested}")
        found = find_images([images / "t.csv"])
        assert len(found.samples) == 2

    @pytest.mark.parametrize(
        "text",
        [
            "path,class\nimages/a.png,bolt\nimages/b.png,nut\n",
            "path,shift\nimages/a.png,good\nimages/b.png,good\n",
            "path,camera\nimages/a.png,0\nimages/b.png,1\n",
            "path,label,class\nimages/a.png,good,NG\nimages/b.png,good,OK\n",
        ],
    )
    def test_other_columns_are_ignored(self, images: Path, text: str) -> None:
        assert [s.label for s in self.read(images, text).samples] == [0, 0]

    def test_a_misspelt_key_is_named(self, images: Path) -> None:
        (images / "t.jsonl").write_text('{"path": "images/a.png", "lable": 1}')
        with pytest.raises(DataError, match="line 1: unknown key 'lable'; did you mean 'label'"):
            read_data(images / "t.jsonl")

    def test_an_open_quote_is_named(self, images: Path) -> None:
        with pytest.raises(DataError, match="line 2: no valid CSV"):
            self.read(images, 'path,label\n"images/a.png,good\n')

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            ("name,label\n", "no column 'path'"),
            ("", "no column 'path'"),
            ("path,lable\n", "unknown column 'lable'"),
            ("path,image\n", "two columns of the table mean 'path'"),
        ],
    )
    def test_wrong_headers(self, images: Path, header: str, message: str) -> None:
        with pytest.raises(DataError, match=message):
            self.read(images, header)

    def test_missing_files_are_all_named(self, images: Path) -> None:
        text = "path,label,mask\nimages/a.png,0,\nimages/x.png,0,\nimages/b.png,1,no.png\n"
        with pytest.raises(DataError, match="2 files or folders cannot be used") as caught:
            self.read(images, text)
        assert f"{images}/images/x.png: named on line 3 but not there" in str(caught.value)
        assert f"{images}/no.png: named on line 4 but not there" in str(caught.value)
        table = read_data(images / "t.csv", skip_bad=True)
        assert len(table) == 1
        assert Problem(str(images / "no.png"), "named on line 4 but not there") in table.problems

    def test_what_is_missing_of_other_categories_is_no_matter(self, images: Path) -> None:
        text = "path,category\nimages/a.png,bolt\nimages/x.png,nut\nimages/b.png,nut\n"
        (images / "t.csv").write_text(text)
        assert len(read_data(images / "t.csv", categories=["bolt"])) == 1
        with pytest.raises(DataError, match=r"x\.png: named on line 3 but not there"):
            read_data(images / "t.csv", categories=["nut"])

    def test_another_encoding_is_refused(self, images: Path) -> None:
        (images / "t.csv").write_bytes("path\nimages/größe.png\n".encode("latin-1"))
        with pytest.raises(DataError, match="not UTF-8") as caught:
            read_data(images / "t.csv")
        assert "CSV UTF-8" in str(caught.value)

    def test_words_for_labels(self, images: Path) -> None:
        table = self.read(images, "path,label\nimages/a.png,i.O.\nimages/b.png,n.i.O.\n")
        assert [s.label for s in table.samples] == [1, 0]

    @pytest.mark.parametrize("word", ["none", "No", "FALSE", "-", "n/a", "NA", "null"])
    def test_words_for_no_kind_of_defect(self, images: Path, word: str) -> None:
        rows = f"images/a.png,good,{word}\nimages/b.png,NG,{word}\nimages/c.png,,{word}\n"
        assert summary(self.read(images, f"path,label,defect\n{rows}")) == {
            ("default", "train", 0, "good"): 2,
            ("default", "test", 1, "defect"): 1,
        }
        table = self.read(images, f"path,defect\nimages/a.png,{word}\nimages/b.png,dent\n")
        assert summary(table) == {
            ("default", "train", 0, "good"): 1,
            ("default", "test", 1, "dent"): 1,
        }

    def test_words_for_a_defect_of_no_named_kind(self, images: Path) -> None:
        rows = "images/a.png,,False\nimages/b.png,NG,true\nimages/c.png,,Yes\n"
        assert summary(self.read(images, f"path,label,defect\n{rows}")) == {
            ("default", "train", 0, "good"): 1,
            ("default", "test", 1, "defect"): 2,
        }
        with pytest.raises(DataError, match="label is 'good' but defect is 'true'"):
            self.read(images, "path,label,defect\nimages/a.png,good,true\n")

    @pytest.mark.parametrize("sign", ["?", "+", "✗", "N.O.", "N/O"])
    def test_a_sign_in_the_column_of_defects_is_a_defect(self, images: Path, sign: str) -> None:
        table = self.read(images, f"path,defect\nimages/a.png,none\nimages/b.png,{sign}\n")
        assert summary(table) == {
            ("default", "train", 0, "good"): 1,
            ("default", "test", 1, sign): 1,
        }
        with pytest.raises(DataError, match="label is 'good' but defect is"):
            self.read(images, f"path,label,defect\nimages/a.png,good,{sign}\n")

    def test_flags_of_programs_in_the_column_of_defects(self, images: Path) -> None:
        lines = (
            '{"path": "images/a.png", "defect": false}\n{"path": "images/b.png", "defect": true}\n'
        )
        assert summary(self.read(images, lines, "t.jsonl")) == {
            ("default", "train", 0, "good"): 1,
            ("default", "test", 1, "defect"): 1,
        }

    @pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
    def test_a_table_in_another_encoding_is_recognised(self, images: Path, name: str) -> None:
        text = {
            "t.csv": "path;label;Prüfer\nimages/a.png;good;Jörg\nimages/b.png;defect;Jörg\n",
            "t.jsonl": '{"path": "images/a.png", "label": 1, "Prüfer": "Jörg"}\n',
        }[name]
        (images / "images" / name).write_bytes(text.replace("images/", "").encode("cp1252"))
        with pytest.raises(DataError, match="ambiguous, 2 formats fit"):
            read_data(images / "images")
        with pytest.raises(DataError, match="not UTF-8"):
            read_data(images / "images", format="table")

    def test_a_table_beside_images_is_ambiguous(self, images: Path) -> None:
        folder = images / "images"
        (folder / "labels.csv").write_text("path,label\na.png,good\nb.png,defect\n")
        with pytest.raises(DataError, match="ambiguous, 2 formats fit") as caught:
            read_data(folder)
        assert "--format table: it holds the table 'labels.csv'" in str(caught.value)
        assert len(read_data(folder, format="table")) == 2
        assert len(read_data(folder, format="folder")) == 4

    def test_scores_beside_images_are_no_table(self, images: Path) -> None:
        (images / "images" / "scores.csv").write_text("path,score\na.png,1\n")
        assert read_data(images / "images").format == "folder"

    def test_a_defect_in_training_is_refused(self, images: Path) -> None:
        text = "path,split,label\nimages/a.png,train,good\nimages/b.png,train,defect\n"
        with pytest.raises(DataError, match="1 defect image in the training or validation split"):
            self.read(images, text)

    def test_another_file_is_refused(self, images: Path) -> None:
        (images / "t.xlsx").touch()
        with pytest.raises(DataError, match="not a table"):
            read_data(images / "t.xlsx", format="table")


class TestDetection:
    @pytest.mark.parametrize("ask", [recognise, lambda path: find_images([path])])
    def test_a_folder_is_listed_few_times(
        self,
        tmp_path: Path,
        write_image: WriteImage,
        monkeypatch: pytest.MonkeyPatch,
        ask: Callable[[Path], object],
    ) -> None:
        for name in ("good/1.png", "bad/2.png"):
            write_image(tmp_path / name)
        asked: Counter[str] = Counter()
        scandir = os.scandir

        def counted(path: str) -> object:
            asked[os.fspath(path)] += 1
            return scandir(path)

        monkeypatch.setattr(os, "scandir", counted)
        ask(tmp_path)
        # Once more for what the user gave: whether it may be entered.
        assert max(asked.values()) <= 3

    def test_what_is_new_is_seen_by_the_next_recognition(
        self, mvtec: Path, write_image: WriteImage
    ) -> None:
        assert len(read_data(mvtec)) == 6
        write_image(mvtec / "train" / "good" / "new.png")
        assert len(read_data(mvtec)) == 7

    def test_what_does_not_exist(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="does not exist"):
            read_data(tmp_path / "no")
        (tmp_path / "link").symlink_to(tmp_path / "gone")
        with pytest.raises(DataError, match="a link to a place that does not exist") as caught:
            read_data(tmp_path / "link")
        assert str(tmp_path / "gone") in str(caught.value)

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        (tmp_path / "a.heic").touch()
        with pytest.raises(DataError, match="there is no image here") as caught:
            read_data(tmp_path)
        assert ".heic (1)" in str(caught.value)

    def test_an_image_is_no_data_set(self, tmp_path: Path, write_image: WriteImage) -> None:
        with pytest.raises(DataError, match=r"a file ending with '\.png'; give a folder"):
            read_data(write_image(tmp_path / "a.png"))

    def test_an_unknown_format(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="unknown data format 'mvtek'") as caught:
            read_data(tmp_path, format="mvtek")
        assert "did you mean 'mvtec'?" in str(caught.value)

    def test_a_negative_seed(self, mvtec: Path) -> None:
        with pytest.raises(ConfigError, match="seed must not be negative") as caught:
            read_data(mvtec, seed=-1)
        assert (caught.value.where, caught.value.given) == ("seed", -1)

    def test_no_permission(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: object) -> object:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(DataError, match="no permission to read the path") as caught:
            read_data(tmp_path)
        assert "give this user the right" in str(caught.value)

    def test_no_permission_inside(self, mvtec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        scandir = os.scandir

        def refuse(path: str | Path) -> object:
            if str(path).endswith("hole"):
                raise PermissionError(13, "Permission denied")
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(DataError, match="hole: no permission to read this folder"):
            read_data(mvtec)
        assert len(read_data(mvtec, skip_bad=True)) == 4

    def test_several_errors_come_at_once(
        self, mvtec: Path, write_image: WriteImage, write_mask: WriteImage
    ) -> None:
        write_image(mvtec / "train" / "dent" / "0.png")
        write_mask(mvtec / "ground_truth" / "hole" / "9_mask.png")
        with pytest.raises(DataError, match="2 things are wrong with the data"):
            read_data(mvtec)

    def test_the_current_folder(self, mvtec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = read_data(mvtec)
        monkeypatch.chdir(mvtec)
        here = read_data(".")
        assert here.categories == ("bottle",)
        assert here.fingerprint() == whole.fingerprint()
        assert [len(s.masks) for s in here.samples] == [len(s.masks) for s in whole.samples]


class TestFormats:
    PAGES = ("your-own-data.md", "public-data-sets.md")

    def test_each_is_documented(self) -> None:
        docs = Path(__file__).parents[2] / "docs"
        pages = [(docs / page).read_text(encoding="utf-8") for page in self.PAGES]
        for name in FORMATS.own:
            assert any(f"### {name}" in page or f"`{name}`" in page for page in pages), name

    def test_each_is_registered_by_its_name(self) -> None:
        assert [FORMATS.load(name).name for name in FORMATS.own] == list(FORMATS.own)

    def test_the_help_names_each(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["fit", "--help"]) == 0
        # Long names break at a hyphen where the line ends.
        text = "".join(capsys.readouterr().out.split())
        assert ",".join(FORMATS.own) in text


def test_a_table_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "parts.csv"
    table.write_text("path\n", encoding="utf-8")

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied") as caught:
        read_data(table)
    assert caught.value.where == str(table)


def test_masks_among_good_training_images_are_not_learnt(
    tmp_path: Path, write_image: WriteImage
) -> None:
    for name in ("train/good/images/1.png", "train/good/masks/1.png", "test/good/2.png"):
        write_image(tmp_path / "gear" / name)
    with pytest.raises(DataError, match="'masks', which means defects"):
        read_data(tmp_path / "gear", format="mvtec")


def test_a_folder_that_may_not_be_entered_is_no_product(
    tmp_path: Path, write_image: WriteImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as lost+found, for whoever is not root; Python before 3.14 asks with an error."""
    for product in ("bolt", "nut"):
        for name in ("train/good/1.png", "test/good/2.png"):
            write_image(tmp_path / product / name)
    (tmp_path / "lost+found").mkdir()
    real, listed = os.stat, os.scandir

    def refuse(path: object, *arguments: object, **options: object) -> object:
        if "lost+found/" in str(path):
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **options)  # type: ignore[call-overload]

    def closed(path: object) -> object:
        if "lost+found" in str(path):
            raise PermissionError(13, "Permission denied")
        return listed(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "stat", refuse)
    monkeypatch.setattr(os, "scandir", closed)
    table = read_data(tmp_path, check=False)
    assert table.format == "mvtec"
    assert table.categories == ("bolt", "nut")


def test_a_fit_names_what_is_missing_before_what_follows_from_it(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("path,category\na.png,nut\nb.png,nut\n")
    for categories in (None, ["nut"]):
        with pytest.raises(DataError, match=r"a\.png"):
            flawmap.fit(table, categories=categories)
    with pytest.raises(DataError, match="there are no images"):
        flawmap.fit(table, skip_bad=True)
    with pytest.raises(ConfigError, match="unknown category 'bolt'"):
        flawmap.fit(table, categories=["bolt"])


def test_the_number_of_a_kind_is_no_verdict_beside_a_label(
    tmp_path: Path, write_image: WriteImage
) -> None:
    for name in "abc":
        write_image(tmp_path / f"{name}.png")
    (tmp_path / "t.csv").write_text(
        "path,label,defect\na.png,good,\nb.png,defect,0\nc.png,defect,1\n"
    )
    table = read_data(tmp_path / "t.csv")
    assert summary(table) == {
        ("default", "train", 0, "good"): 1,
        ("default", "test", 1, "0"): 1,
        ("default", "test", 1, "1"): 1,
    }


def test_what_an_earlier_run_drew_is_neither_learnt_nor_a_defect(
    tmp_path: Path, write_image: WriteImage, earlier_run: Callable[[Path], None]
) -> None:
    root = tmp_path / "gear"
    for name in ("good/1.png", "scratch/2.png"):
        write_image(root / name)
    for folder in (root, root / "good", root / "result"):
        earlier_run(folder)
    table = read_data(root)
    assert summary(table) == {("gear", "train", 0, "good"): 1, ("gear", "test", 1, "scratch"): 1}
    (note,) = (note for note in table.notes if "earlier run" in note)
    assert note == (
        "left out, maps and overlays of an earlier run: good/maps, good/overlays, maps, overlays, "
        "result/maps and 1 more"
    )


@pytest.mark.parametrize("place", ["train/good", "test/result", "result", "."])
def test_what_an_earlier_run_drew_is_no_part_of_a_data_set(
    mvtec: Path, earlier_run: Callable[[Path], None], place: str
) -> None:
    expected = read_data(mvtec).samples
    earlier_run(mvtec / place)
    assert read_data(mvtec).samples == expected


def test_folders_that_happen_to_be_called_maps_are_read(
    tmp_path: Path, write_image: WriteImage
) -> None:
    for name in ("good/1.png", "maps/2.png"):
        write_image(tmp_path / "gear" / name)
    (tmp_path / "gear" / "predictions.jsonl").write_text('{"path": "1.png"}\n')
    assert ("gear", "test", 1, "maps") in summary(read_data(tmp_path / "gear"))

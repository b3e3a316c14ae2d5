"""MVTec AD, its relatives and the data sets in its layout, as they are when downloaded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawmap.data import inspect, read_data, read_mask, verify_data
from flawmap.data.detect import read_joined
from flawmap.data.samples import SampleTable
from flawmap.errors import DataError
from flawmap.types import Saturation

WriteImage = Callable[..., Path]
Draw = Callable[..., None]


def summary(table: SampleTable) -> dict[tuple[str, str, int | None, str], int]:
    return dict(Counter((s.category, s.split, s.label, s.defect) for s in table.samples))


def masks(table: SampleTable) -> dict[str, list[str]]:
    """The masks of each defect, relative to the root."""
    return {
        table.relative(s.path): [table.relative(m) for m in s.masks] for s in table.select(label=1)
    }


@pytest.fixture
def draw(write_image: WriteImage) -> Draw:
    """Writes `n` images called 000, 001 and so on, each of another colour."""
    values = iter(range(10_000))

    def many(folder: Path, n: int, ending: str = ".png") -> None:
        for i in range(n):
            write_image(folder / f"{i:03}{ending}", 5 + next(values) % 250)

    return many


class TestMVTecAD:
    @pytest.fixture
    def root(self, tmp_path: Path, draw: Draw, write_mask: WriteImage) -> Path:
        root = tmp_path / "mvtec_anomaly_detection"
        for category in ("bottle", "cable"):
            draw(root / category / "train" / "good", 3)
            draw(root / category / "test" / "good", 1)
            draw(root / category / "test" / "hole", 2)
            for i in range(2):
                write_mask(root / category / "ground_truth" / "hole" / f"{i:03}_mask.png")
        for name in ("license.txt", "readme.txt", "bottle/license.txt"):
            (root / name).touch()
        return root

    def test_licences_beside_the_categories(self, root: Path) -> None:
        table = read_data(root)
        assert table.format == "mvtec"
        assert len(table) == 12
        assert table.categories == ("bottle", "cable")
        assert table.notes == ()
        assert masks(table)["cable/test/hole/001.png"] == ["cable/ground_truth/hole/001_mask.png"]

    def test_the_folder_above(self, root: Path) -> None:
        table = read_data(root.parent)
        assert table.format == "mvtec"
        assert table.samples == read_data(root).samples
        assert table.root == str(root)
        assert table.notes == ("the data set begins in the folder 'mvtec_anomaly_detection'",)
        assert table.fingerprint() == read_data(root).fingerprint()

    def test_a_category_in_a_folder_of_its_own_name(self, root: Path) -> None:
        (root / "cable").rename(root / "inner")
        (root / "cable").mkdir()
        (root / "inner").rename(root / "cable" / "cable")
        assert read_data(root).categories == ("bottle", "cable")
        assert len(read_data(root / "cable").select(category="cable")) == 6

    def test_two_data_sets_side_by_side_are_not_one(self, root: Path, draw: Draw) -> None:
        draw(root.parent / "other" / "gear" / "train" / "good", 1)
        with pytest.raises(DataError, match="the layout is unknown"):
            read_data(root.parent)

    def test_a_category_without_tests_is_noted(self, root: Path, draw: Draw) -> None:
        draw(root / "gear" / "train" / "good", 1)
        notes = [p.message for p in inspect(root).problems if p.severity == "note"]
        assert "category 'gear' has no test images: it cannot be measured" in notes

    def test_mpdd(self, tmp_path: Path, draw: Draw, write_mask: WriteImage) -> None:
        kinds = {
            "bracket_black": "hole",
            "bracket_brown": "bend_and_parts_mismatch",
            "bracket_white": "defective_painting",
            "connector": "parts_mismatch",
            "metal_plate": "major_rust",
            "tubes": "anomalous",
        }
        for category, kind in kinds.items():
            root = tmp_path / "MPDD" / category
            draw(root / "train" / "good", 2)
            draw(root / "test" / "good", 1)
            draw(root / "test" / kind, 1)
            write_mask(root / "ground_truth" / kind / "000_mask.png")
        table = read_data(tmp_path / "MPDD")
        assert table.format == "mvtec"
        assert table.categories == tuple(kinds)
        assert summary(table)["tubes", "test", 1, "anomalous"] == 1
        assert all(len(m) == 1 for m in masks(table).values())
        assert verify_data(table).problems == ()


class TestBTAD:
    @pytest.fixture
    def root(self, tmp_path: Path, draw: Draw, write_mask: WriteImage) -> Path:
        root = tmp_path / "BTech_Dataset_transformed"
        for category, image, mask in (
            ("01", ".bmp", ".png"),
            ("02", ".png", ".png"),
            ("03", ".bmp", ".bmp"),
        ):
            draw(root / category / "train" / "ok", 3, image)
            draw(root / category / "test" / "ok", 2, image)
            draw(root / category / "test" / "ko", 2, image)
            for i in range(2):
                write_mask(root / category / "ground_truth" / "ko" / f"{i:03}{mask}")
        (root / "01" / "test" / "ok" / "Thumbs.db").touch()
        return root

    def test_endings_are_mixed(self, root: Path) -> None:
        table = read_data(root)
        assert table.format == "btad"
        assert summary(table) == {
            (category, split, label, kind): n
            for category in ("01", "02", "03")
            for split, label, kind, n in (
                ("train", 0, "good", 3),
                ("test", 0, "good", 2),
                ("test", 1, "ko", 2),
            )
        }
        assert masks(table)["01/test/ko/001.bmp"] == ["01/ground_truth/ko/001.png"]
        assert masks(table)["03/test/ko/000.bmp"] == ["03/ground_truth/ko/000.bmp"]
        assert verify_data(table).problems == ()

    def test_the_folder_above_and_one_category(self, root: Path, draw: Draw) -> None:
        draw(root.parent / "papers", 1)
        above = read_data(root.parent)
        assert (above.format, len(above)) == ("btad", 21)
        assert above.notes == ("the data set begins in the folder 'BTech_Dataset_transformed'",)
        one = read_data(root / "02")
        assert (one.format, one.categories, len(one)) == ("btad", ("02",), 7)

    def test_the_current_folder(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(root / "02")
        table = read_data(".")
        assert (table.format, table.categories) == ("btad", ("02",))

    def test_without_tests(self, root: Path) -> None:
        (root / "02" / "test").rename(root.parent / "gone")
        with pytest.raises(DataError, match="BTAD is not complete") as caught:
            read_data(root)
        assert "category '02' has no folder 'test'" in str(caught.value)

    def test_a_category_without_masks_is_not_whole(self, root: Path) -> None:
        (root / "02" / "ground_truth").rename(root.parent / "gone")
        with pytest.raises(DataError, match="BTAD is not complete") as caught:
            read_data(root)
        text = str(caught.value)
        assert "category '02': no mask in ground_truth/ko, for 2 defect images" in text
        assert "'01'" not in text
        for file in (root / "02" / "test" / "ko").iterdir():
            file.unlink()
        assert len(read_data(root, categories=["02"])) == 5

    def test_single_defects_may_lack_their_mask(self, root: Path) -> None:
        (root / "03" / "ground_truth" / "ko" / "001.bmp").unlink()
        table = read_data(root)
        bare = [s for s in table.select(split="test", label=1) if not s.masks]
        assert [table.relative(s.path) for s in bare] == ["03/test/ko/001.bmp"]
        (warning,) = [p for p in inspect(root).problems if "no mask" in p.message]
        assert "category '03': 1 of 2 defect images have no mask" in warning.message
        assert warning.hint == "add the masks, or pixel metrics leave these images out"

    def test_a_mask_without_an_image(self, root: Path) -> None:
        (root / "01" / "test" / "ko" / "000.bmp").unlink()
        with pytest.raises(DataError, match=r"1 mask has no image: 01/ground_truth/ko/000\.png"):
            read_data(root)

    def test_another_tree(self, tmp_path: Path, draw: Draw) -> None:
        draw(tmp_path, 1)
        with pytest.raises(DataError, match="no images in the layout of BTAD"):
            read_data(tmp_path, format="btad")


DEFECTS = [
    {
        "defect_name": "missing_almonds",
        "pixel_value": 255,
        "saturation_threshold": 6200,
        "relative_saturation": False,
    },
    {
        "defect_name": "contamination",
        "pixel_value": 251,
        "saturation_threshold": 1.0,
        "relative_saturation": True,
    },
]


class TestHalfUnpackedMVTecAD:
    @pytest.fixture
    def root(self, tmp_path: Path, draw: Draw, write_mask: WriteImage) -> Path:
        root = tmp_path / "mvtec_anomaly_detection"
        for category in ("bottle", "cable", "screw"):
            draw(root / category / "train" / "good", 2)
            draw(root / category / "test" / "good", 1)
            draw(root / category / "test" / "hole", 2)
            for i in range(2):
                write_mask(root / category / "ground_truth" / "hole" / f"{i:03}_mask.png")
        return root

    def test_a_category_without_tests_or_masks_is_named(self, root: Path) -> None:
        assert len(read_data(root)) == 15
        (root / "cable" / "test").rename(root.parent / "gone")
        (root / "screw" / "ground_truth" / "hole" / "001_mask.png").unlink()
        with pytest.raises(DataError, match="MVTec AD is not complete") as caught:
            read_data(root)
        text = str(caught.value)
        assert "category 'cable' has no folder 'test'" in text
        assert "category 'screw': 1 of 2 defect images have no mask" in text

    def test_parts_of_ones_own_may_lack_masks(self, root: Path) -> None:
        (root / "screw").rename(root / "my screw")
        (root / "my screw" / "ground_truth").rename(root.parent / "gone")
        assert len(read_data(root)) == 15


class TestMVTecLOCO:
    @pytest.fixture
    def root(self, tmp_path: Path, draw: Draw) -> Path:
        root = tmp_path / "mvtec_loco_anomaly_detection"
        for category in ("breakfast_box", "juice_bottle"):
            base = root / category
            draw(base / "train" / "good", 3)
            draw(base / "validation" / "good", 2)
            draw(base / "test" / "good", 1)
            for kind, value, regions in (
                ("logical_anomalies", 255, 2),
                ("structural_anomalies", 251, 1),
            ):
                draw(base / "test" / kind, 2)
                for i in range(2):
                    folder = base / "ground_truth" / kind / f"{i:03}"
                    folder.mkdir(parents=True)
                    for region in range(regions):
                        mask = np.zeros((8, 10), dtype=np.uint8)
                        mask[region] = value
                        Image.fromarray(mask).save(folder / f"{region:03}.png")
            (base / "defects_config.json").write_text(json.dumps(DEFECTS))
        (root / "license.txt").touch()
        return root

    def test_several_masks_an_image(self, root: Path) -> None:
        table = read_data(root)
        assert table.format == "mvtec-loco"
        assert table.notes == ()
        assert summary(table) == {
            (category, split, label, kind): n
            for category in ("breakfast_box", "juice_bottle")
            for split, label, kind, n in (
                ("train", 0, "good", 3),
                ("validation", 0, "good", 2),
                ("test", 0, "good", 1),
                ("test", 1, "logical_anomalies", 2),
                ("test", 1, "structural_anomalies", 2),
            )
        }
        found = masks(table)
        assert found["breakfast_box/test/logical_anomalies/001.png"] == [
            f"breakfast_box/ground_truth/logical_anomalies/001/{i:03}.png" for i in range(2)
        ]
        image = next(s for s in table.samples if s.defect == "logical_anomalies")
        assert read_mask(image.masks, (8, 10)).sum() == 20
        assert verify_data(table).problems == ()

    def test_the_saturation(self, root: Path) -> None:
        expected = {
            255: Saturation(amount=6200.0, relative=False),
            251: Saturation(amount=1.0, relative=True),
        }
        assert read_data(root).saturation == {
            "breakfast_box": expected,
            "juice_bottle": expected,
        }
        for table in (
            read_data(root / "juice_bottle"),
            read_data(root, categories=["juice_bottle"]),
        ):
            assert table.saturation == {"juice_bottle": expected}

    def test_the_kinds_that_are_judged_apart(self, root: Path) -> None:
        kinds = {"logical": "logical_anomalies", "structural": "structural_anomalies"}
        table = read_data(root)
        assert table.judged_apart == {"breakfast_box": kinds, "juice_bottle": kinds}
        assert set(kinds.values()) == {s.defect for s in table.select(label=1)}
        assert table.only(["juice_bottle"]).judged_apart == {"juice_bottle": kinds}

    def test_joined_with_a_data_set_of_another_layout(self, root: Path, mvtec: Path) -> None:
        loco = read_data(root)
        joined = read_joined([mvtec, root])
        assert joined.format == "mvtec+mvtec-loco"
        assert joined.judged_apart == loco.judged_apart
        assert joined.saturation == loco.saturation

    def test_of_joined_data_sets_only_the_wanted_categories_must_be_whole(
        self, root: Path, mvtec: Path
    ) -> None:
        (root / "breakfast_box" / "train" / "good" / "x.png").symlink_to("gone")
        for name in ("bottle", "juice_bottle"):
            assert read_joined([mvtec, root], categories=[name]).categories == (name,)
        with pytest.raises(DataError, match=r"x\.png: a link to gone"):
            read_joined([mvtec, root], categories=["breakfast_box"])

    def test_a_folder_called_like_a_category_hides_nothing(self, root: Path, mvtec: Path) -> None:
        outer = root.parent / "joined"
        outer.mkdir()
        # The data set's own folder is called like a category of the other one.
        moved = root.rename(outer / "bottle")
        (outer / "x").mkdir()
        other = mvtec.rename(outer / "x" / "bottle")
        (moved / "juice_bottle" / "train" / "good" / "x.png").symlink_to("gone")
        with pytest.raises(DataError, match=r"x\.png: a link to gone"):
            read_joined([other, moved], categories=["juice_bottle"])

    def test_without_one_of_the_kinds(self, root: Path) -> None:
        (root / "juice_bottle" / "test" / "logical_anomalies").rename(root.parent / "gone")
        with pytest.raises(DataError, match="MVTec LOCO is not complete") as caught:
            read_data(root)
        assert "category 'juice_bottle' has no folder 'test/logical_anomalies'" in str(caught.value)

    def test_without_the_configuration(self, root: Path) -> None:
        (root / "juice_bottle" / "defects_config.json").unlink()
        table = read_data(root)
        assert set(table.saturation) == {"breakfast_box"}
        assert len(table.notes) == 1
        assert "category 'juice_bottle' has no defects_config.json" in table.notes[0]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"pixel_value": 0}, "defect 2: pixel_value is 0"),
            ({"pixel_value": True}, "defect 2: pixel_value is true"),
            ({"pixel_value": 255}, "defect 2: pixel_value 255 is that of another defect"),
            ({"relative_saturation": 1}, "defect 2: relative_saturation is 1"),
            ({"saturation_threshold": "all"}, 'defect 2: saturation_threshold is "all"'),
            ({"saturation_threshold": 2}, "defect 2: saturation_threshold is 2"),
            ({"saturation_threshold": 0}, "defect 2: saturation_threshold is 0"),
        ],
    )
    def test_a_wrong_configuration(
        self, root: Path, change: dict[str, object], message: str
    ) -> None:
        file = root / "juice_bottle" / "defects_config.json"
        file.write_text(json.dumps([DEFECTS[0], {**DEFECTS[1], **change}]))
        with pytest.raises(DataError, match="the configuration of the defects") as caught:
            read_data(root)
        assert message in str(caught.value)
        assert str(file) in str(caught.value)

    @pytest.mark.parametrize("text", ["", "[", "{}", "[]", "[3]"])
    def test_a_configuration_cut_off(self, root: Path, text: str) -> None:
        (root / "juice_bottle" / "defects_config.json").write_text(text)
        with pytest.raises(DataError, match="the configuration of the defects cannot be read"):
            read_data(root)

    def test_half_unpacked(self, root: Path) -> None:
        (root / "juice_bottle" / "validation").rename(root.parent / "gone")
        (root / "juice_bottle" / "ground_truth").rename(root.parent / "gone too")
        with pytest.raises(DataError, match="MVTec LOCO is not complete") as caught:
            read_data(root)
        text = str(caught.value)
        assert "category 'juice_bottle' has no folder 'validation'" in text
        assert "no mask in ground_truth/logical_anomalies, for 2 defect images" in text

    def test_an_unreadable_folder_goes_first(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import os

        scandir = os.scandir

        def refuse(path: str | Path) -> object:
            if str(path).endswith("ground_truth"):
                raise PermissionError(13, "Permission denied")
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(DataError, match="ground_truth: no permission to read this folder"):
            read_data(root)
        notes = read_data(root, skip_bad=True).notes
        assert any(note.startswith("missing:\n") for note in notes)


class TestMVTecAD2:
    @pytest.fixture
    def root(self, tmp_path: Path, draw: Draw, write_image: WriteImage) -> Path:
        root = tmp_path / "mvtec_ad_2"
        for category in ("can/can", "vial"):
            base = root / category
            draw(base / "train" / "good", 3, "_regular.png")
            draw(base / "validation" / "good", 2, "_regular.png")
            draw(base / "test_public" / "good", 1, "_regular.png")
            draw(base / "test_public" / "bad", 2, "_overexposed.png")
            for i in range(2):
                mask = (
                    base / "test_public" / "ground_truth" / "bad" / f"{i:03}_overexposed_mask.png"
                )
                write_image(mask, 255)
            draw(base / "test_private", 4, "_regular.png")
            draw(base / "test_private_mixed", 4, "_mixed.png")
        return root

    def test_the_public_split(self, root: Path) -> None:
        table = read_data(root)
        assert table.format == "mvtec-ad-2"
        assert summary(table) == {
            (category, split, label, kind): n
            for category in ("can", "vial")
            for split, label, kind, n in (
                ("train", 0, "good", 3),
                ("validation", 0, "good", 2),
                ("test", 0, "good", 1),
                ("test", 1, "bad", 2),
            )
        }
        assert masks(table)["vial/test_public/bad/001_overexposed.png"] == [
            "vial/test_public/ground_truth/bad/001_overexposed_mask.png"
        ]
        assert masks(table)["can/can/test_public/bad/000_overexposed.png"] == [
            "can/can/test_public/ground_truth/bad/000_overexposed_mask.png"
        ]
        assert table.notes == (
            "left out, because their ground truth is not public: test_private and "
            "test_private_mixed",
        )
        assert verify_data(table).problems == ()

    def test_one_category(self, root: Path) -> None:
        for path in (root / "can", root / "can" / "can"):
            table = read_data(path)
            assert (table.format, table.categories, len(table)) == ("mvtec-ad-2", ("can",), 8)

    def test_only_the_private_tests(self, root: Path) -> None:
        (root / "vial" / "test_public").rename(root.parent / "gone")
        with pytest.raises(DataError, match="MVTec AD 2 is not complete") as caught:
            read_data(root / "vial")
        assert "category 'vial' has no folder 'test_public'" in str(caught.value)

    def test_without_masks(self, root: Path) -> None:
        (root / "vial" / "test_public" / "ground_truth").rename(root.parent / "gone")
        with pytest.raises(DataError, match="MVTec AD 2 is not complete") as caught:
            read_data(root)
        assert (
            "category 'vial': no mask in test_public/ground_truth/bad, for 2 defect images"
            in str(caught.value)
        )


class TestMVTec3D:
    @pytest.fixture
    def root(self, tmp_path: Path, draw: Draw, write_mask: WriteImage) -> Path:
        root = tmp_path / "mvtec_3d_anomaly_detection"
        for category in ("bagel", "cable_gland"):
            for part, n in (
                ("train/good", 3),
                ("validation/good", 2),
                ("test/good", 1),
                ("test/hole", 2),
            ):
                draw(root / category / part / "rgb", n)
                draw(root / category / part / "xyz", n, ".tiff")
                for i in range(n):
                    at = (1, 2) if part == "test/hole" else None
                    write_mask(root / category / part / "gt" / f"{i:03}.png", at)
            (root / category / "calibration").mkdir()
            (root / category / "calibration" / "camera_parameters.json").touch()
        return root

    def test_colour_images_only(self, root: Path) -> None:
        table = read_data(root)
        assert table.format == "mvtec-3d"
        assert table.notes == ()
        assert summary(table) == {
            (category, split, label, kind): n
            for category in ("bagel", "cable_gland")
            for split, label, kind, n in (
                ("train", 0, "good", 3),
                ("validation", 0, "good", 2),
                ("test", 0, "good", 1),
                ("test", 1, "hole", 2),
            )
        }
        assert masks(table)["bagel/test/hole/rgb/001.png"] == ["bagel/test/hole/gt/001.png"]
        assert all(not s.masks for s in table.select(label=0))
        assert verify_data(table).problems == ()

    def test_without_the_point_clouds(self, root: Path) -> None:
        for folder in root.rglob("xyz"):
            folder.rename(root.parent / folder.relative_to(root).as_posix().replace("/", "_"))
        assert (read_data(root).format, len(read_data(root))) == ("mvtec-3d", 16)

    def test_half_unpacked(self, root: Path) -> None:
        (root / "bagel" / "test" / "hole" / "gt" / "001.png").unlink()
        (root / "cable_gland" / "test" / "good" / "rgb").rename(root.parent / "gone")
        (root / "cable_gland" / "test" / "hole" / "gt").rename(root.parent / "gone too")
        with pytest.raises(DataError, match="MVTec 3D-AD is not complete") as caught:
            read_data(root)
        text = str(caught.value)
        assert (
            "category 'bagel': 1 of 2 defect images have no mask in test/hole/gt, the first is "
            "that of 001.png" in text
        )
        assert "category 'cable_gland': test/good has no folder 'rgb'" in text
        assert "category 'cable_gland': no mask in test/hole/gt, for 2 defect images" in text

    def test_without_tests(self, root: Path) -> None:
        (root / "bagel" / "test").rename(root.parent / "gone")
        with pytest.raises(DataError, match="category 'bagel' has no folder 'test'"):
            read_data(root)

    def test_a_mask_without_an_image(self, root: Path, write_mask: WriteImage) -> None:
        write_mask(root / "bagel" / "test" / "hole" / "gt" / "009.png")
        with pytest.raises(DataError, match="1 mask has no image: bagel/test/hole/gt/009"):
            read_data(root)

"""What `predict` is given, and which product an image shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawmap.data import read_data
from flawmap.data.inputs import find_images, product_of, with_categories
from flawmap.errors import ConfigError, DataError
from flawmap.types import Sample


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), 90, dtype=np.uint8)).save(path)
    return path


def test_a_folder_stands_for_all_images_below_it(tmp_path: Path) -> None:
    image(tmp_path / "b" / "1.png")
    image(tmp_path / "a.jpg")
    (tmp_path / "notes.txt").write_text("no image")
    found = find_images([tmp_path])
    assert [Path(s.path).name for s in found.samples] == ["a.jpg", "1.png"]
    assert found.notes == ()


def test_names_that_begin_with_a_tilde_are_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("~photos.d")
    folder.mkdir()
    image(folder / "a.png")
    image(Path("~part.png"))
    found = find_images(["~photos.d", "~part.png"])
    assert [s.path for s in found.samples] == ["~photos.d/a.png", "~part.png"]
    assert len(read_data("~photos.d", format="folder").samples) == 1


def test_an_image_named_twice_counts_once(tmp_path: Path) -> None:
    path = image(tmp_path / "a.png")
    assert len(find_images([path, tmp_path]).samples) == 1


def test_a_data_set_gives_its_test_split_without_masks(tmp_path: Path) -> None:
    root = tmp_path / "bottle"
    image(root / "train" / "good" / "0.png")
    image(root / "test" / "hole" / "0.png")
    image(root / "ground_truth" / "hole" / "0_mask.png")
    found = find_images([root])
    assert [s.path for s in found.samples] == [str(root / "test" / "hole" / "0.png")]
    assert "its test split, 1 images" in found.notes[0]


def test_a_table_gives_its_rows(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("path,category\na.png,screw\n")
    (sample,) = find_images([tmp_path / "t.csv"]).samples
    assert Path(sample.path).name == "a.png"
    assert sample.category == "screw"


def test_the_outputs_of_an_earlier_run_are_no_inputs(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    drawn = image(tmp_path / "out" / "overlays" / "a.png")
    found = find_images([tmp_path], leave_out=[drawn])
    assert [Path(s.path).name for s in found.samples] == ["a.png"]
    assert found.notes == ("left out: 1 map or overlay of an earlier run",)
    with pytest.raises(DataError, match="no image is left"):
        find_images([tmp_path / "out"], leave_out=[drawn])


@pytest.fixture
def half_a_data_set(tmp_path: Path, earlier_run: Callable[[Path], None]) -> Path:
    """No reader knows it: there is no train/good."""
    root = tmp_path / "bolt"
    image(root / "test" / "hole" / "0.png")
    image(root / "ground_truth" / "hole" / "0_mask.png")
    earlier_run(root / "result")
    return root


def test_masks_maps_and_overlays_are_no_pictures_of_parts(half_a_data_set: Path) -> None:
    root = half_a_data_set
    found = find_images([root])
    assert [s.path for s in found.samples] == [str(root / "test" / "hole" / "0.png")]
    assert found.notes == (
        f"{root}: left out, masks: ground_truth",
        f"{root}: left out, maps and overlays of an earlier run: result/maps, result/overlays",
    )


def test_a_product_that_is_called_like_masks_is_scored(tmp_path: Path) -> None:
    for name in ("face_mask/0.png", "bottle/0.png", "scratch_mask/0.png"):
        image(tmp_path / name)
    found = find_images([tmp_path], known=("face_mask", "bottle"))
    assert [Path(s.path).parent.name for s in found.samples] == ["bottle", "face_mask"]


def test_masks_beside_a_folder_of_good_images(tmp_path: Path) -> None:
    image(tmp_path / "parts" / "good" / "0.png")
    image(tmp_path / "parts" / "masks" / "0.png")
    found = find_images([tmp_path / "parts"])
    assert [s.path for s in found.samples] == [str(tmp_path / "parts" / "good" / "0.png")]


def test_the_folder_that_was_named_is_never_left_out(half_a_data_set: Path) -> None:
    root = half_a_data_set
    found = find_images([root / "ground_truth", root / "result" / "overlays"])
    assert [Path(s.path).name for s in found.samples] == ["0_mask.png", "a.png"]
    assert found.notes == ()
    with pytest.raises(DataError, match="no image here") as caught:
        find_images([root / "result"])
    assert "left out, maps and overlays" in str(caught.value.given)


def test_missing_and_empty_paths_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist") as missing:
        find_images([tmp_path / "nope"])
    assert missing.value.where == str(tmp_path / "nope")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image here"):
        find_images([tmp_path / "empty"])
    # Whatever was wrong with a path before it.
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "b.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match="no image here"):
        find_images([tmp_path / "odd", tmp_path / "empty"], skip_bad=True)


def test_what_may_not_be_entered_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object, **options: bool) -> object:
        raise PermissionError(13, "Permission denied")

    # Python before 3.14 asks so, and passes this error on.
    monkeypatch.setattr(Path, "stat", refuse)
    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(DataError, match="no permission to read") as caught:
        find_images([tmp_path / "closed" / "a.png"])
    assert caught.value.where == str(tmp_path / "closed" / "a.png")


def test_a_dangling_link_is_named_or_skipped(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"b\.png"):
        find_images([tmp_path])
    found = find_images([tmp_path], skip_bad=True)
    assert len(found.samples) == 1
    assert found.problems[0].path.endswith("b.png")


def named(path: str, own: str = "", **options: object) -> str:
    known = ("cable", "screw")
    samples = [Sample(path, own, "test", None)]
    return with_categories(samples, known, **options)[0].category  # type: ignore[arg-type]


def test_which_product_an_image_shows() -> None:
    assert named("/x/cable/test/1.png") == "cable"
    assert named("/x/cable/screw/1.png") == "screw"
    assert named("/x/cable/1.png", "screw") == "screw"
    assert named("/x/cable/1.png", category="screw") == "screw"
    assert named("/x/other/1.png") == "*"
    assert named("/x/other/cable.png") == "*"


def test_the_only_product_is_shown_by_every_image() -> None:
    (sample,) = with_categories([Sample("/x/1.png", "y", "test", None)], ["screw"])
    assert sample.category == "screw"


def test_a_separate_detector_must_know_the_product() -> None:
    assert named("/x/cable/1.png", unified=False) == "cable"
    with pytest.raises(ConfigError, match="which product") as caught:
        named("/x/1.png", unified=False)
    assert caught.value.hint is not None
    assert "--category" in caught.value.hint


def test_an_unknown_product_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="unknown category") as caught:
        named("/x/1.png", category="cabel")
    assert caught.value.hint == "did you mean 'cable'?"


def test_the_folder_above_names_the_product() -> None:
    known = ("bolt", "nut")
    assert product_of("shop/nut/bolt/7.png", known) == "bolt"
    assert product_of("shop/nut/scratch/7.png", known) == "nut"
    assert product_of("shop/7.png", known) is None

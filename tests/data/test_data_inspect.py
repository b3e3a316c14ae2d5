from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawmap.data import Inspection, inspect, read_data
from flawmap.errors import DataError

WriteImage = Callable[..., Path]


def found(inspection: Inspection, severity: str, text: str) -> str:
    """The one problem of this severity with this text."""
    hits = [p.message for p in inspection.problems if p.severity == severity and text in p.message]
    assert len(hits) == 1, inspection.to_text()
    return hits[0]


def test_counts_sizes_and_modes(mvtec: Path, write_image: WriteImage) -> None:
    write_image(mvtec / "train" / "good" / "large.png", 90, size=(20, 30))
    colour = np.zeros((4, 4, 3), dtype=np.uint8)
    colour[0, 0] = (255, 0, 0)
    Image.fromarray(colour).save(mvtec / "train" / "good" / "colour.png")
    Image.new("L", (10, 8), 7).save(mvtec / "train" / "good" / "grey.png")
    result = inspect(mvtec)
    assert [(c.category, c.split, c.defect, c.images, c.with_masks) for c in result.counts] == [
        ("bottle", "train", "good", 6, 0),
        ("bottle", "test", "good", 1, 0),
        ("bottle", "test", "hole", 2, 2),
    ]
    assert result.sizes is not None
    assert (result.sizes.smallest, result.sizes.median, result.sizes.largest) == (
        (4, 4),
        (8, 10),
        (20, 30),
    )
    assert result.sizes.distinct == 3
    assert result.modes == {"L": 1, "RGB": 8}
    assert (result.grey, result.colour) == (8, 1)
    assert result.ok
    assert result.fingerprint == read_data(mvtec).fingerprint()


def test_text_and_json(mvtec: Path) -> None:
    (mvtec / "train" / "good" / "000.png").write_bytes(b"no")
    result = inspect(mvtec)
    text = result.to_text()
    assert "bottle    test   hole         2      2" in text
    assert "error: 1 file cannot be used:" in text
    assert "what to do: repair or remove them, or leave them out with --skip-bad" in text
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["ok"] is False
    assert plain["broken"][0]["path"].endswith("000.png")
    assert plain["counts"][0] == {
        "category": "bottle",
        "split": "train",
        "defect": "good",
        "images": 3,
        "with_masks": 0,
    }


def test_broken_files_are_listed(mvtec: Path, write_mask: WriteImage) -> None:
    (mvtec / "train" / "good" / "000.png").write_bytes(b"no")
    (mvtec / "train" / "good" / "link.png").symlink_to("gone")
    write_mask(mvtec / "ground_truth" / "hole" / "000_mask.png", size=(4, 4))
    result = inspect(mvtec)
    assert not result.ok
    message = found(result, "error", "3 files cannot be used")
    assert "train/good/000.png: it is no PNG" in message
    assert "train/good/link.png: a link to gone, which does not exist" in message
    assert "ground_truth/hole/000_mask.png: the mask and its image differ in size" in message
    assert len(result.broken) == 3


def test_masks(mvtec: Path, write_image: WriteImage, write_mask: WriteImage) -> None:
    gt = mvtec / "ground_truth" / "hole"
    write_mask(gt / "000_mask.png", None)
    write_image(mvtec / "test" / "hole" / "002.png", 70)
    write_image(mvtec / "test" / "hole" / "003.png", 71)
    Image.new("L", (10, 8), 255).save(gt / "003_mask.jpg")
    write_mask(gt / "999_mask.png")
    result = inspect(mvtec)
    assert "test/hole/000.png" in found(result, "warning", "1 defect images have an empty mask")
    assert "test/hole/002.png" in found(result, "warning", "1 of 4 defect images have no mask")
    assert "test/hole/003.png" in found(result, "warning", "1 masks cover the whole image")
    assert "003_mask.jpg" in found(result, "warning", "1 masks are JPEG files")
    assert "999_mask.png" in found(result, "error", "1 mask has no image")


def test_a_good_image_with_defect_pixels(
    tmp_path: Path, write_image: WriteImage, write_mask: WriteImage
) -> None:
    write_image(tmp_path / "a.png", 1)
    write_image(tmp_path / "b.png", 2)
    write_mask(tmp_path / "m.png")
    (tmp_path / "t.csv").write_text("path,split,label,mask\na.png,train,0,\nb.png,test,0,m.png\n")
    result = inspect(tmp_path / "t.csv")
    message = found(result, "error", "1 file cannot be used")
    assert "b.png: labelled good, but its mask has defect pixels" in message


def test_duplicates(mvtec: Path) -> None:
    train = mvtec / "train" / "good"
    (mvtec / "test" / "good" / "copy.png").write_bytes((train / "000.png").read_bytes())
    Image.open(train / "001.png").save(train / "again.bmp")
    result = inspect(mvtec)
    message = found(result, "warning", "1 image is in training and in test")
    assert "train/good/000.png = test/good/copy.png" in message
    assert result.leaks[0].test == (str(mvtec / "test" / "good" / "copy.png"),)
    assert result.repeats == 1
    found(result, "note", "1 training image repeats another one")


@pytest.mark.parametrize(
    ("peak", "white"), [(4000, 4095), (1000, 1023), (200, 255), (60_000, None)]
)
def test_dark_16_bit_images(tmp_path: Path, peak: int, white: int | None) -> None:
    Image.fromarray(np.full((4, 4), peak, dtype=np.uint16)).save(tmp_path / "a.png")
    result = inspect(tmp_path)
    hints = [p.hint for p in result.problems if "16-bit" in p.message]
    assert hints == ([f"fit with --set data.white_level={white}"] if white else [])
    assert not [p for p in inspect(tmp_path, white_level=9).problems if "16-bit" in p.message]


def test_few_good_images(tmp_path: Path, write_image: WriteImage) -> None:
    for i in range(19):
        write_image(tmp_path / "few" / f"{i}.png", i)
    for i in range(20):
        write_image(tmp_path / "some" / f"{i}.png", i + 100)
    result = inspect(tmp_path)
    found(result, "warning", "category 'few' has only 19 good training images")
    note = found(result, "note", "category 'some' has 20 good images")
    assert "a false-reject rate of 1% needs at least 99" in note
    found(result, "note", "there are no test images")


def test_unbalanced_categories(tmp_path: Path, write_image: WriteImage) -> None:
    for i in range(22):
        write_image(tmp_path / "many" / f"{i}.png", i)
    for i in range(2):
        write_image(tmp_path / "two" / f"{i}.png", i + 50)
    message = found(inspect(tmp_path), "warning", "good training images and")
    assert message == "category 'many' has 22 good training images and 'two' has 2"


def test_what_metrics_need(mvtec: Path) -> None:
    (mvtec / "test" / "good" / "000.png").unlink()
    for path in (mvtec / "ground_truth" / "hole").iterdir():
        path.unlink()
    result = inspect(mvtec)
    found(result, "note", "has no good test images: AUROC")
    found(result, "note", "has no masks: only image metrics")


def test_errors_of_the_table(mvtec: Path, write_image: WriteImage) -> None:
    write_image(mvtec / "train" / "hole" / "0.png", 99)
    write_image(mvtec.parent / "cable" / "test" / "good" / "0.png", 98)
    result = inspect(mvtec.parent)
    assert [p.severity for p in result.problems[:2]] == ["error", "error"]
    found(result, "error", "no good training images in category 'cable'")
    found(result, "error", "1 defect image in the training or validation split")


def test_nothing_but_broken_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no")
    result = inspect(tmp_path)
    assert result.sizes is None
    assert "cannot be used" in result.to_text()


def test_an_unknown_layout_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no image here"):
        inspect(tmp_path)


class TestOddOnes:
    def test_each_way_is_named_once(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        for i in range(20):
            pixels = rng.integers(0, 255, (12, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{i:02}.png")
        Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
        Image.fromarray(pixels).convert("RGBA").save(tmp_path / "clear.png")
        Image.fromarray(pixels.transpose(1, 0, 2).copy()).save(tmp_path / "turned.png")
        deep = np.full((12, 8), 40_000, dtype=np.uint16)
        deep[0, 0] = 0
        Image.fromarray(deep).save(tmp_path / "deep.png")
        result = inspect(tmp_path)
        name = tmp_path.name
        for words in (
            f"2 of 24 images of '{name}' are grey, most are in colour: deep.png, grey.png",
            f"1 of 24 images of '{name}' is stored with 16 bits a channel, most are stored with 8",
            f"1 of 24 images of '{name}' is transparent, most are opaque: clear.png",
            f"1 of 24 images of '{name}' is of another shape; 8 x 12 px is usual: turned.png",
        ):
            found(result, "warning", words)
        assert sum("of 24 images" in p.message for p in result.problems) == 4

    def test_images_of_the_test_are_left_aside(self, mvtec: Path) -> None:
        """They are not learnt, and set no threshold."""
        path = next((mvtec / "test").rglob("*.png"))
        with Image.open(path) as image:
            grey = image.convert("L")
        grey.save(path)
        assert not [p for p in inspect(mvtec).problems if "most are" in p.message]

    def test_two_usual_forms_are_not_odd(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        for i in range(20):
            pixels = rng.integers(0, 255, (8 + i % 8, 8, 3), dtype=np.uint8)
            image = Image.fromarray(pixels if i % 3 else pixels[..., 0])
            image.save(tmp_path / f"{i:02}.png")
        assert not [p for p in inspect(tmp_path).problems if "most are" in p.message]


def test_looked_at_without_the_broken_ones(mvtec: Path) -> None:
    before = inspect(mvtec)
    (mvtec / "train" / "good" / "empty.png").touch()
    assert not inspect(mvtec).ok
    result = inspect(mvtec, skip_bad=True)
    assert result.ok
    assert result.counts == before.counts
    found(result, "warning", "1 file cannot be used")

"""Which images are shown, in which order, and what is drawn over them."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flawmap.outputs.heat import HeatScale, colour, heat_picture
from flawmap.report.gallery import choose, gallery
from flawmap.report.pictures import outline, shrink_mask, shrink_picture, small_size


def show(detector: Any, result: Any, root: Path, *, each: int = 4) -> str:
    return gallery(detector, result, root=str(root), each=each, longest=480)


def scores(group: Any) -> list[float]:
    return [image.score for image in group.images]


def test_groups_are_in_order_and_no_image_is_shown_twice(make: Any, promise: Any) -> None:
    defects = [make.image(s, 1) for s in (0.9, 0.3, 0.7, 0.45, 0.95, 0.6)]
    goods = [make.image(s, 0) for s in (0.2, 0.55, 0.1)]
    misses, alarms, finds = choose(make.result(defects + goods, promise), 2)
    assert (misses.title, scores(misses)) == ("Worst misses", [0.3, 0.45])
    assert (alarms.title, scores(alarms)) == ("False alarms", [0.55, 0.2])
    assert (finds.title, scores(finds)) == ("Best finds", [0.95, 0.9])
    assert misses.words.startswith("2 of 6 defects missed")
    assert alarms.words.startswith("1 of 3 good images rejected")


def test_a_missed_defect_is_never_a_best_find(make: Any, promise: Any) -> None:
    defects = [make.image(s, 1) for s in (0.1, 0.2, 0.3, 0.4)]
    groups = choose(make.result(defects, promise), 2)
    assert [scores(g) for g in groups] == [[0.1, 0.2]]


def test_without_mistakes_the_closest_calls_are_shown(make: Any, promise: Any) -> None:
    images = [make.image(0.9, 1), make.image(0.1, 0)]
    misses, alarms = choose(make.result(images, promise), 4)
    assert misses.title == "No defect missed"
    assert alarms.title == "No false alarm"


def test_without_a_threshold_nothing_is_called_a_miss(
    make: Any, detector: Any, tmp_path: Path
) -> None:
    images = [make.image(0.9, 1, threshold=None), make.image(0.1, 0, threshold=None)]
    detector.pixel_threshold = None
    result = make.result(images, None)
    assert [g.title for g in choose(result, 4)] == [
        "Hardest defects",
        "Most suspicious good images",
    ]
    html = show(detector, result, tmp_path)
    for word in ("missed", "found", "false alarm", "region found"):
        assert word not in html
    assert 'score <data value="0.9">0.9</data></span>' in html


def test_only_the_shown_images_are_scored_again(
    make: Any, detector: Any, promise: Any, tmp_path: Path
) -> None:
    images = [make.image(0.9, 1), make.image(0.8, 1), make.image(0.7, 1)]
    # These have no file: were they scored, it would fail.
    images += [make.image(0.001 * i, 0, written=False) for i in range(1, 400)]
    images.append(make.image(0.45, 0))
    show(detector, make.result(images, promise), tmp_path, each=1)
    assert [Path(p).stem for p in detector.asked] == [
        "part-1-0.7000",
        "part-0-0.4500",
        "part-1-0.9000",
    ]


def test_a_file_that_has_gone_costs_its_own_card_only(
    make: Any, detector: Any, promise: Any, tmp_path: Path
) -> None:
    images = [make.image(0.9, 1, written=False), make.image(0.3, 1)]
    html = show(detector, make.result(images, promise), tmp_path)
    assert html.count("can no longer be shown") == 1
    assert html.count("<img") == 2
    assert html.count("<figure") == 2


def test_cards_say_the_score_the_verdict_and_the_file(
    make: Any, detector: Any, promise: Any, tmp_path: Path
) -> None:
    image = make.image(0.500001, 1, file="a&b <i>.png", defect="<dent>")
    html = show(detector, make.result([image], promise), tmp_path)
    # Four digits would read "0.5 > 0.5".
    assert 'score <data value="0.500001">0.500001</data> &gt; 0.5 ' in html
    assert "✓ found" in html
    assert "<bdi>a&amp;b &lt;i&gt;.png</bdi>" in html
    assert "<bdi>&lt;dent&gt;</bdi>" in html
    assert "<i>" not in html


def test_the_true_mask_and_the_regions_are_drawn_where_they_are(
    make: Any, detector: Any, promise: Any, tmp_path: Path
) -> None:
    image = make.image(0.9, 1, mask=True)
    html = show(detector, make.result([image], promise), tmp_path)
    factor = small_size((40, 60), 480)[1] / 60
    assert factor == 3
    (box,) = set(re.findall(r'<rect class="box" ([^>]*)/>', html))
    assert box == 'x="30.0" y="12.0" width="24.0" height="18.0"'
    (path,) = set(re.findall(r'class="mask" d="([^"]*)"', html))
    assert set(re.findall(r"M[^M]*", path)) == {"M30 12h24", "M30 30h24", "M30 12v18", "M54 12v18"}
    assert "its true mask outlined" in html
    assert "strongest response" not in html


def test_an_alarm_for_the_wrong_reason_is_told(
    make: Any, detector: Any, promise: Any, tmp_path: Path
) -> None:
    image = make.image(0.9, 1, mask=True, size=(200, 300))
    elsewhere = np.zeros((200, 300), dtype=np.uint8)
    elsewhere[150:180, 250:280] = 255
    Image.fromarray(elsewhere).save(image.sample.masks[0])
    html = show(detector, make.result([image], promise), tmp_path)
    assert html.count("strongest response lies outside the true mask") == 1


def test_good_images_have_no_mask_outline(
    make: Any, detector: Any, promise: Any, tmp_path: Path
) -> None:
    html = show(detector, make.result([make.image(0.2, 0)], promise), tmp_path)
    assert "true mask" not in html
    assert 'class="mask"' not in html


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (900, 20), (600, 600)])
def test_pictures_of_any_size_are_small_jpegs(
    make: Any, detector: Any, promise: Any, tmp_path: Path, size: tuple[int, int]
) -> None:
    image = make.image(0.9, 1, size=size)
    html = show(detector, make.result([image], promise), tmp_path)
    uris = re.findall(r'src="data:image/jpeg;base64,([^"]+)" width="(\d+)" height="(\d+)"', html)
    assert len(uris) == 2
    for data, width, height in uris:
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert picture.size == (int(width), int(height))
        assert 160 <= max(picture.size) <= 480


def test_the_heat_scale_is_anchored_at_the_threshold() -> None:
    calm = np.full((40, 40), 1.0, dtype=np.float32)
    hot = calm.copy()
    hot[0, 0] = 9.0
    scale = HeatScale.of([calm, calm, hot], 3.0)
    assert scale(np.array([1.0, 3.0, 9.0, 99.0], dtype=np.float32)).tolist() == [0, 0.5, 1, 1]
    # Were the hottest image below the threshold the end of the scale, it would look alarming.
    assert HeatScale.of([calm], 3.0)(np.float32([1.0, 2.0, 5.0])).tolist() == [0, 0.25, 1]
    assert HeatScale.of([hot], None)(np.float32([1.0, 5.0, 9.0])).tolist() == [0, 0.5, 1]


def test_a_calm_map_leaves_the_picture_grey_and_a_hot_one_does_not() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    scale = HeatScale(0.0, 1.0, 2.0, anchored=True)
    calm = heat_picture(picture, np.zeros((4, 4), dtype=np.float32), scale)
    assert np.ptp(calm, axis=-1).max() == 0
    hot = heat_picture(picture, np.full((4, 4), 1.0, dtype=np.float32), scale)
    assert np.ptp(hot, axis=-1).min() > 40


def test_the_colour_map_grows_brighter_all_the_way() -> None:
    luminance = colour(np.linspace(0, 1, 50)) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance) > 0).all()


def test_thin_cracks_survive_shrinking() -> None:
    mask = np.zeros((3000, 3000), dtype=bool)
    mask[1500] = True
    assert shrink_mask(mask, (300, 300)).any(axis=0).all()


def test_a_ragged_mask_is_coarsened_until_its_outline_is_light() -> None:
    ragged = np.random.default_rng(0).random((480, 360)) < 0.5
    assert len(outline(ragged)) < 60_000
    assert outline(np.zeros((5, 5), dtype=bool)) == ""


def test_deep_pictures_become_eight_bit() -> None:
    deep = np.linspace(0, 1, 12, dtype=np.float32).reshape(2, 2, 3)
    shown = shrink_picture(deep, (2, 2))
    assert shown.dtype == np.uint8
    assert (shown.min(), shown.max()) == (0, 255)


def test_a_reconstruction_stands_between_picture_and_map(
    make: Any, detector: Any, promise: Any, tmp_path: Path
) -> None:
    result = make.result([make.image(0.9, 1, mask=True), make.image(0.1, 0)], promise)
    assert "Reconstruction" not in show(detector, result, tmp_path)
    detector.rebuilds = True
    page = show(detector, result, tmp_path)
    assert page.count('class="pair three"') == 2
    alts = re.findall(r'alt="(\w+)', page)
    assert alts == ["Picture", "Reconstruction", "Heat"] * 2
    below = re.findall(r'class="what">([^<]+)<', page)
    assert below == ["image", "reconstruction", "heat map"] * 2
    second = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)[1]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(second))))
    np.testing.assert_allclose(picture.mean(axis=(0, 1)), (0, 255, 0), atol=8)
    assert "in the middle what a good part would look like" in page

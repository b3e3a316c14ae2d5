"""Optional metrics in an evaluation: what is collected, under which name, and what is said."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score, roc_auc_score

import flawmap
from flawmap.config import ScoringConfig
from flawmap.data.images import read_values
from flawmap.data.samples import SampleTable
from flawmap.errors import ConfigError, DataError
from flawmap.evaluation import Evaluation, evaluate_table
from flawmap.metrics import (
    MemoryBudget,
    aupro,
    auroc,
    published_crop,
    resize_mask_nearest,
    sample_auroc,
    spro,
)
from flawmap.metrics.catalog import ALWAYS, names
from flawmap.scoring.calibration import Calibration, CategoryCalibration
from flawmap.scoring.scorer import Scorer
from flawmap.types import Geometry, RawMap, Sample, Saturation

SIZE = (40, 48)
SATURATION = {255: Saturation(0.5, relative=True), 254: Saturation(10, relative=False)}
KINDS = {"logical": "gap", "structural": "dent"}


class MapDetector:
    """Its raw map of an image is the image itself, in grey."""

    scores_alone = False

    def __init__(self, pixel_threshold: float | None = 100.0, crop: bool = False) -> None:
        good = np.array([pixel_threshold or 0.0])
        parts = {} if pixel_threshold is None else {"box": CategoryCalibration(good, good, True)}
        config = ScoringConfig(sigma=0, pooling="max")
        self.scorer = Scorer(config, Calibration(0.5, parts))
        self.calibration = self.scorer.calibration
        self.fabric = SimpleNamespace(device=torch.device("cpu"))
        self.fitted = SimpleNamespace(data={})
        self.source = None
        self.crop = crop
        self.config = SimpleNamespace(data=SimpleNamespace(resize="crop" if crop else "stretch"))

    def raw_maps(
        self, samples: Sequence[Sample], **_: Any
    ) -> Iterator[tuple[Sample, Geometry, RawMap]]:
        for sample in samples:
            raw = np.asarray(Image.open(sample.path)).astype(np.float32)
            if self.crop:
                high, wide = raw.shape
                seen = (high - 8, wide - 12)
                yield sample, Geometry(raw.shape, raw.shape, (4, 6), seen), RawMap(raw[4:-4, 6:-6])
            else:
                yield sample, Geometry(raw.shape, raw.shape, (0, 0), raw.shape), RawMap(raw)


def save(path: Path, values: np.ndarray) -> str:
    Image.fromarray(values.astype(np.uint8)).save(path)
    return str(path)


@pytest.fixture
def table(tmp_path: Path) -> SampleTable:
    """Six parts of two views; every third view is a defect with two masks that overlap."""
    rng = np.random.default_rng(0)
    samples = []
    for i in range(12):
        pixels = rng.integers(0, 120, SIZE)
        pixels[0, 0] += 30 * (i % 5)
        masks: tuple[str, ...] = ()
        if i % 3 == 0:
            first, second = np.zeros(SIZE), np.zeros(SIZE)
            first[5:15, 5 + i : 20 + i] = 255
            second[10:22, 10 + i : 14 + i] = 254
            pixels += np.where(first + second > 0, rng.integers(-30, 90, SIZE), 0).astype(int)
            masks = tuple(save(tmp_path / f"{i}_{n}.png", m) for n, m in enumerate((first, second)))
        path = save(tmp_path / f"{i}.png", pixels.clip(0, 255))
        kind = ("gap", "dent")[i % 2] if masks else "good"
        samples.append(Sample(path, "box", "test", int(bool(masks)), kind, masks, f"S{i // 2}"))
    return SampleTable(
        str(tmp_path),
        "mvtec-loco",
        tuple(samples),
        saturation={"box": SATURATION},
        judged_apart={"box": KINDS},
    )


def evaluate(table: SampleTable, *metrics: str, **options: Any) -> Evaluation:
    detector: Any = MapDetector(**options)
    return evaluate_table(detector, table, metrics=metrics)


def arrays(table: SampleTable) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    maps = [np.asarray(Image.open(s.path)).astype(np.float32) for s in table.samples]
    return maps, [[np.asarray(Image.open(m)) for m in s.masks] for s in table.samples]


def crop_of(mask: np.ndarray) -> np.ndarray:
    window = (mask.shape[0] - 8, mask.shape[1] - 12)
    return published_crop(mask, (256, 256), mask.shape, (4, 6), window)


def test_metrics_of_the_crop_judge_what_the_network_sees(table: SampleTable) -> None:
    asked = ["aupro_crop", "pixel_ap_crop", "aupro_0.05_crop"]
    found = evaluate(table, *asked, crop=True).categories["box"].metrics
    assert [name for name in found if name.endswith("_crop")] == asked
    maps, masks = arrays(table)
    seen = [m[4:-4, 6:-6] for m in maps]
    unions = [np.any([m > 0 for m in each], axis=0) if each else None for each in masks]
    shape = seen[0].shape
    alone = Geometry(shape, shape, (0, 0), shape)
    standard = [MapDetector().scorer.map(RawMap(m), alone, (256, 256)) for m in seen]
    shrunk = [None if u is None else crop_of(u) for u in unions]
    assert found["aupro_crop"] == aupro(standard, shrunk)
    assert found["aupro_0.05_crop"] == aupro(standard, shrunk, 0.05)
    assert found["aupro_crop"] != found["aupro"]
    # The usual ones are over the whole image all the same.
    usual = evaluate(table, crop=True).categories["box"].metrics
    assert {name: found[name] for name in usual} == usual


def test_pixel_auroc_over_the_defective_images_alone(table: SampleTable) -> None:
    """At each size against scikit-learn's; neither good images nor defects without masks count."""
    name = "pixel_auroc_defects"
    asked = [name, f"{name}_original", f"{name}_crop"]
    bare = replace(table.samples[0], masks=())
    more = evaluate(replace(table, samples=(*table.samples, bare)), *asked, crop=True)
    seen = more.categories["box"].metrics
    whole = evaluate(table, *asked).categories["box"].metrics
    maps, masks = arrays(table)
    pairs = [
        (m, np.any([x > 0 for x in each], axis=0))
        for m, each in zip(maps, masks, strict=True)
        if each
    ]
    assert len(pairs) == 4

    def standard(m: np.ndarray) -> np.ndarray:
        alone = Geometry(m.shape, m.shape, (0, 0), m.shape)
        return MapDetector().scorer.map(RawMap(m), alone, (256, 256))

    def wanted(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
        scores, truth = (
            np.concatenate([x.ravel() for x in part]) for part in zip(*pairs, strict=True)
        )
        return float(roc_auc_score(truth, scores))

    at_256 = wanted([(standard(m), resize_mask_nearest(t, (256, 256))) for m, t in pairs])
    in_crop = wanted([(standard(m[4:-4, 6:-6]), crop_of(t)) for m, t in pairs])
    assert whole[f"{name}_original"] == pytest.approx(wanted(pairs), abs=1e-12)
    assert whole[name] == pytest.approx(at_256, abs=1e-12)
    assert seen[f"{name}_crop"] == pytest.approx(in_crop, abs=1e-12)
    assert whole[name] != pytest.approx(whole["pixel_auroc"], abs=1e-3)


def test_a_metric_of_the_crop_is_undefined_without_a_crop(table: SampleTable) -> None:
    result = evaluate(table, "aupro_crop")
    assert math.isnan(result.mean["aupro_crop"])
    assert any(
        "aupro_crop is undefined: the network sees the whole image" in n for n in result.notes
    )
    assert "over the centre crop alone" in result.not_official["aupro_crop"]


def test_each_mask_is_decoded_once(table: SampleTable, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    monkeypatch.setattr(
        "flawmap.data.masks.read_values", lambda path: decoded.append(path) or read_values(path)
    )
    evaluate(table, "spro_0.05", "spro_0.05_by_kind")
    assert sorted(decoded) == sorted(mask for s in table.samples for mask in s.masks)


def test_every_optional_metric_is_the_function_s_value(table: SampleTable) -> None:
    optional = [name for name in names() if name not in ALWAYS and not name.endswith("_crop")]
    result = evaluate(table, *optional)
    found = result.categories["box"].metrics
    assert tuple(found) == (*evaluate(table).categories["box"].metrics, *optional)
    maps, masks = arrays(table)
    unions = [np.any([m > 0 for m in each], axis=0) if each else None for each in masks]
    assert found["aupro_0.05_original"] == aupro(maps, unions, 0.05)
    shrunk = [None if u is None else resize_mask_nearest(u, (256, 256)) for u in unions]
    scorer = MapDetector().scorer
    whole = Geometry(SIZE, SIZE, (0, 0), SIZE)
    standard = [scorer.map(RawMap(m), whole, (256, 256)) for m in maps]
    assert found["aupro_0.05"] == aupro(standard, shrunk, 0.05)
    # Each image with a defect has one region here: regions and images count alike.
    assert found["pro_per_image_original"] == pytest.approx(found["aupro_original"], abs=1e-12)
    assert found["pro_per_image"] == pytest.approx(found["aupro"], abs=1e-12)
    regions = [[(m > 0, 75.0 if m.max() == 255 else 10.0) for m in each] for each in masks]
    assert found["spro_0.05"] == spro(maps, regions, 0.05)
    labels = [s.label for s in table.samples]
    scores = [float(m.max()) for m in maps]
    for kind, defect in KINDS.items():
        judged = [i for i, s in enumerate(table.samples) if s.defect in ("good", defect)]
        overlap = spro([maps[i] for i in judged], [regions[i] for i in judged], 0.05)
        assert found[f"spro_0.05_{kind}"] == overlap
        ranking = auroc([labels[i] for i in judged], [scores[i] for i in judged])
        assert found[f"image_auroc_{kind}"] == ranking
        assert result.categories["box"].by_defect[defect] == ranking
    for base in ("spro_0.05", "image_auroc"):
        both = [found[f"{base}_{kind}"] for kind in KINDS]
        assert found[f"{base}_by_kind"] == pytest.approx(sum(both) / 2, abs=1e-12)
    groups = [s.group for s in table.samples]
    assert found["sample_auroc"] == sample_auroc(labels, scores, groups)
    truth = np.concatenate([np.zeros(SIZE) if u is None else u for u in unions]).ravel()
    said = np.concatenate([m.ravel() for m in maps]) > 100
    assert found["segf1"] == pytest.approx(f1_score(truth, said), abs=1e-12)
    assert all(0 < found[name] < 1 for name in optional)
    assert result.mean["segf1"] == found["segf1"]
    assert result.notes == ()


def test_kinds_judged_apart_by_hand(tmp_path: Path) -> None:
    """One good image, one with a logical defect, three with a structural one; 50 px each."""

    def image(name: str, kind: str, *bright: int) -> Sample:
        pixels = np.zeros((5, 10))
        pixels.flat[: len(bright)] = bright
        masks: tuple[str, ...] = ()
        if kind != "good":
            mask = np.zeros((5, 10))
            mask.flat[0] = 255
            masks = (save(tmp_path / f"{name}_mask.png", mask),)
        path = save(tmp_path / f"{name}.png", pixels)
        return Sample(path, "box", "test", int(kind != "good"), kind, masks)

    samples = (
        image("good", "good", 100),
        # The flaw has 90 and the px beside it, a normal one, 95: it is found below a false alarm.
        image("logical", "gap", 90, 95),
        *(image(f"structural{i}", "dent", 200) for i in range(3)),
    )
    table = SampleTable(
        str(tmp_path),
        "mvtec-loco",
        samples,
        saturation={"box": {255: Saturation(1.0, relative=True)}},
        judged_apart={"box": KINDS},
    )
    bases = ("image_auroc", "spro_0.05")
    endings = ("", "_by_kind", "_logical", "_structural")
    asked = [f"{name}{ending}" for name in bases for ending in endings]
    found = evaluate(table, *asked).mean
    # Image scores: good 100, logical 95, structural 200.
    assert found["image_auroc_logical"] == 0.0
    assert found["image_auroc_structural"] == 1.0
    assert found["image_auroc_by_kind"] == 0.5
    assert found["image_auroc"] == 0.75
    # The good and the logical image have 50 + 49 normal px, and two of them lie above the flaw: it
    # is found at an FPR of 2/99. Above the structural flaws lies none of theirs.
    assert found["spro_0.05_logical"] == pytest.approx(1 - (2 / 99) / 0.05)
    assert found["spro_0.05_structural"] == 1.0
    assert found["spro_0.05_by_kind"] == pytest.approx(1 - (2 / 99) / 0.05 / 2)
    # Together one region of four is found at an FPR of 2 in 50 + 4 * 49.
    assert found["spro_0.05"] == pytest.approx(1 - 0.25 * (2 / 246) / 0.05)


def test_all_scores_of_a_category_share_a_part_of_the_free_memory(
    table: SampleTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[MemoryBudget] = []

    def budget(max_bytes: int) -> MemoryBudget:
        made.append(MemoryBudget(max_bytes))
        return made[-1]

    wanted = [name for name in names() if name not in ALWAYS]
    expected = evaluate(table, *wanted)
    monkeypatch.setattr("flawmap.pixels.MemoryBudget", budget)
    monkeypatch.setattr("flawmap.pixels.available_memory", lambda: 40_000)
    found = evaluate(table, *wanted)
    assert found.mean == pytest.approx(expected.mean, abs=1e-12, nan_ok=True)
    assert [b.max_bytes for b in made] == [10_000] * len(found.categories)
    assert all(b.spilled_bytes for b in made)


def test_the_seven_are_the_same_with_and_without_them(table: SampleTable) -> None:
    alone, more = evaluate(table), evaluate(table, "aupro_0.05", "spro_0.05", "aupro")
    assert set(alone.mean) == set(ALWAYS)
    for name in ALWAYS:
        assert more.mean[name] == alone.mean[name]
    assert more.optional == ("aupro_0.05", "spro_0.05")
    assert alone.optional == ()


def test_the_result_says_what_is_not_official(table: SampleTable) -> None:
    result = evaluate(table, "aupro_0.05", "spro_0.05", "spro_0.05_by_kind")
    said = result.to_dict()["not_official"]
    # The reader's name is that of LOCO: saturation is its definition, and kinds are judged apart.
    pixel = [name for name in ALWAYS if name.startswith(("pixel_", "aupro"))]
    assert list(said) == ["image_auroc", *pixel, "aupro_0.05", "spro_0.05"]
    assert said["image_auroc"].startswith("not the official metric of MVTec LOCO: chance")
    assert said["aupro_0.05"].startswith("not the official metric: AUPRO up to an FPR of 0.05")
    assert evaluate(replace(table, format="mvtec")).not_official == {}


def test_what_the_data_cannot_define_is_nan_and_said(table: SampleTable) -> None:
    bare = [Sample(s.path, s.category, s.split, s.label, s.defect, s.masks) for s in table.samples]
    plain = SampleTable(table.root, "mvtec", tuple(bare))
    result = evaluate(plain, "spro_0.05", "sample_auroc", "segf1", pixel_threshold=None)
    for name in ("spro_0.05", "sample_auroc", "segf1"):
        assert math.isnan(result.mean[name])
        assert result.to_dict()["categories"]["box"][name] is None
    assert result.notes == (
        "'box': spro_0.05 is undefined: the data set defines no saturation",
        "'box': sample_auroc is undefined: the data set does not say which images show one part",
        "'box': segf1 is undefined: no threshold is set",
    )
    assert evaluate(plain, pixel_threshold=None).notes == ()


def test_why_kinds_are_not_judged_apart(table: SampleTable) -> None:
    asked = ("spro_0.05_by_kind", "image_auroc_logical")
    together = evaluate(replace(table, judged_apart={}), *asked)
    assert all(math.isnan(together.mean[name]) for name in asked)
    assert together.notes == (
        "'box': spro_0.05_by_kind is undefined: the data set judges no kinds of defects apart",
        "'box': image_auroc_logical is undefined: the data set judges no kinds of defects apart",
    )
    bare = evaluate(replace(table, saturation={}), *asked)
    assert bare.notes == (
        "'box': spro_0.05_by_kind is undefined: the data set defines no saturation",
    )
    # The mean is not that of the kinds which happen to be there.
    one = replace(table, samples=tuple(s for s in table.samples if s.defect != "dent"))
    figures = evaluate(one, "image_auroc_by_kind", "spro_0.05_by_kind", "image_auroc_logical").mean
    assert math.isnan(figures["image_auroc_by_kind"])
    assert math.isnan(figures["spro_0.05_by_kind"])
    assert figures["image_auroc_logical"] == figures["image_auroc"]


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone(table: SampleTable, label: int) -> None:
    chosen = tuple(s for s in table.samples if s.label == label)
    some = SampleTable(table.root, table.format, chosen, saturation=table.saturation)
    found = evaluate(some, *names()).mean
    assert math.isnan(found["sample_auroc"])
    # Pixels outside the masks are normal ones, in images of defects too.
    for name in ("aupro_0.05", "pro_per_image_original", "spro_0.05", "segf1"):
        assert math.isnan(found[name]) == (label == 0)
    assert math.isnan(found["pixel_auroc_defects"]) == (label == 0)


def test_a_mask_whose_value_has_no_saturation_is_named(table: SampleTable) -> None:
    known = {"box": {255: SATURATION[255]}}
    with pytest.raises(DataError, match="no saturation for the value of this mask") as caught:
        evaluate(replace(table, saturation=known), "spro_0.05")
    assert (caught.value.given, caught.value.expected) == (254, "one of: 255")
    assert caught.value.where is not None
    assert caught.value.where.endswith("_1.png")


def test_without_masks_no_map_is_made(table: SampleTable, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = replace(table, samples=tuple(replace(s, masks=()) for s in table.samples))
    wanted = evaluate(table)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a map")

    monkeypatch.setattr(Scorer, "map", refuse)
    found = evaluate(bare)
    assert found.mean["image_auroc"] == wanted.mean["image_auroc"]
    assert math.isnan(found.mean["pixel_auroc"])
    with pytest.raises(AssertionError, match="a map"):
        evaluate(table)


def test_it_is_told_whether_there_are_maps(table: SampleTable) -> None:
    class Scores(MapDetector):
        scores_alone = True

        def image_scores(
            self, samples: Sequence[Sample], **_: Any
        ) -> Iterator[tuple[Sample, float]]:
            for number, sample in enumerate(samples):
                yield sample, float(number)

    detector: Any = Scores()
    bare = replace(table, samples=tuple(replace(s, masks=()) for s in table.samples))
    assert evaluate(bare).mapped
    assert evaluate_table(detector, table).mapped
    assert not evaluate_table(detector, bare).mapped


def test_an_unknown_metric_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown metric 'segf'") as caught:
        flawmap.evaluate(tmp_path / "none.flawmap", tmp_path / "none", metrics=["segf"])
    assert caught.value.hint == "did you mean 'segf1'?"
    with pytest.raises(ConfigError, match="unknown metric"):
        evaluate(SampleTable(str(tmp_path), "mvtec", ()), "pro")


def test_a_mask_of_another_size_is_told_before_anything_is_scored(
    table: SampleTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scored(*_: Any, **__: Any) -> Any:
        raise AssertionError("an image was scored")

    monkeypatch.setattr(MapDetector, "raw_maps", scored)
    last = [s for s in table.samples if s.masks][-1]
    save(Path(last.masks[1]), np.zeros((40, 50)))
    with pytest.raises(DataError, match="1 file or folder cannot be used") as raised:
        evaluate(table)
    assert f"{last.masks[1]}: the mask and its image differ in size" in str(raised.value)


def test_masks_that_are_all_black_are_told(table: SampleTable) -> None:
    assert not any("all black" in note for note in evaluate(table).notes)
    first = next(s for s in table.samples if s.masks)
    for mask in first.masks:
        save(Path(mask), np.zeros(SIZE))
    (note,) = [note for note in evaluate(table).notes if "all black" in note]
    assert "the masks of 1 defect are all black" in note


def test_parts_that_training_images_show_too_are_told(table: SampleTable) -> None:
    assert not any("show parts" in note for note in evaluate(table).notes)
    taught = [replace(s, split="train") for s in table.samples[1:2] + table.samples[5:6]]
    rest = [s for i, s in enumerate(table.samples) if i not in (1, 5)]
    rest += [replace(table.samples[1], path="unjudged.png", label=None)]
    notes = evaluate(replace(table, samples=(*taught, *rest))).notes
    assert [n for n in notes if n.startswith("2 test images of 10 show parts that training")]

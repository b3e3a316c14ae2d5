from __future__ import annotations

import csv
import io
from collections.abc import Callable
from statistics import fmean, stdev

import pytest

from flawmap.bench.groups import current
from flawmap.bench.render import aligned, render
from flawmap.bench.results import StoredCell
from flawmap.bench.table import Column, Table, Value, columns_of, make_table
from flawmap.errors import BenchError, ConfigError

Make = Callable[..., StoredCell]

COLUMNS = ("image_auroc", "aupro", "fit_seconds")


def test_mean_over_categories_then_over_seeds(stored: Make) -> None:
    cells = [
        stored("a", {"x": {"image_auroc": 0.8}, "y": {"image_auroc": 0.9}}, seed=0),
        stored("a", {"x": {"image_auroc": 0.7}, "y": {"image_auroc": 1.0}}, seed=1),
    ]
    (line,) = make_table(cells, columns=COLUMNS).lines
    means = [0.85, 0.85]
    assert line.values["image_auroc"].mean == pytest.approx(fmean(means))
    assert line.values["image_auroc"].spread == pytest.approx(stdev(means))
    assert line.seeds == (0, 1)
    assert set(line.values) == {"image_auroc"}


def test_other_options_under_the_same_name_are_another_line(stored: Make) -> None:
    def config(size: int, seed: int) -> dict[str, object]:
        return {"seed": seed, "data": {"size": [size, size]}, "training": {"threads": seed}}

    cells = [
        stored("a", {"x": {"image_auroc": size / 1000}}, seed=seed, config=config(size, seed))
        for size in (128, 256)
        for seed in (0, 1)
    ]
    lines = make_table(cells, columns=COLUMNS).lines
    assert [line.label for line in lines] == [
        "a (data.size=[128, 128])",
        "a (data.size=[256, 256])",
    ]
    assert [line.values["image_auroc"].mean for line in lines] == [0.128, 0.256]
    assert [line.seeds for line in lines] == [(0, 1), (0, 1)]


def test_options_that_are_new_since_and_their_order_make_no_other_line(stored: Make) -> None:
    scoring = {"pooling": "max", "sigma": 4.0}
    old = {"method": {"name": "a", "k": 1}, "scoring": scoring}
    new = {"scoring": {"map_size": None, "sigma": 4.0, "pooling": "max"}, "method": old["method"]}
    cells = [
        stored("a", {"tile": {"image_auroc": 0.9}}, seed=seed, config=config)
        for seed, config in enumerate((old, new))
    ]
    (line,) = make_table(cells, columns=COLUMNS).lines
    assert (line.label, line.seeds) == ("a", (0, 1))
    wide = {**new, "scoring": {**scoring, "map_size": [256, 256]}}
    more = [*cells, stored("a", {"tile": {"image_auroc": 0.9}}, seed=2, config=wide)]
    assert len(make_table(more, columns=COLUMNS).lines) == 2


def test_of_a_cell_on_changed_data_the_last_one_counts(stored: Make) -> None:
    cells = [
        stored("a", {"x": {"image_auroc": 0.5}}, key="before"),
        stored("a", {"x": {"image_auroc": 0.7}}, key="after"),
    ]
    (line,) = make_table(cells, columns=COLUMNS).lines
    assert line.values["image_auroc"].mean == 0.7


def test_separate_models_are_one_line(stored: Make) -> None:
    cost = {"fit_seconds": 10.0, "bundle_bytes": 2e6, "fit_peak_memory_mib": 100.0}
    more = {**cost, "fit_seconds": 30.0, "fit_peak_memory_mib": 300.0, "images_per_second": 5.0}
    cells = [
        stored("a", {"x": {"image_auroc": 0.8}}, setting="separate", cost=cost),
        stored("a", {"y": {"image_auroc": 0.9}}, setting="separate", cost=more),
    ]
    columns = ("image_auroc", "fit_seconds", "bundle_bytes", "fit_peak_memory_mib")
    (line,) = make_table(cells, columns=columns).lines
    assert line.complete
    found = {name: value.mean for name, value in line.values.items()}
    assert found["image_auroc"] == pytest.approx(0.85)
    assert found["fit_seconds"] == 40.0
    assert found["bundle_bytes"] == 4e6
    assert found["fit_peak_memory_mib"] == 300.0


def test_a_line_without_all_categories_says_so_and_is_never_the_best(stored: Make) -> None:
    cells = [
        stored("a", {"x": {"image_auroc": 0.99}}, setting="separate"),
        stored("b", {"x": {"image_auroc": 0.8}}, setting="separate"),
        stored("b", {"y": {"image_auroc": 0.9}}, setting="separate"),
        stored("c", {"x": {"image_auroc": 0.7}, "y": {"image_auroc": 0.7}}),
    ]
    table = make_table(cells, columns=COLUMNS)
    a, b, c = table.lines
    assert not a.complete
    assert a.marks == ("incomplete: 1 of 2 categories",)
    assert [line.values["image_auroc"].best for line in (a, b, c)] == [False, True, False]
    assert table.footnotes == a.marks


def test_whatever_auto_chose_for_a_category_it_is_one_line(stored: Make) -> None:
    def chosen(category: str, value: float, method: str, size: int, **named: object) -> StoredCell:
        return stored(
            "auto",
            {category: {"image_auroc": value}},
            key=f"{category}-{method}-{named}",
            config={"method": {"name": method}, "data": {"size": size}, "chosen": [method]},
            environment={"precision": f"of {method}", "encoder_sha256": method, "named": named},
        )

    cells = [
        stored("b", {"x": {"image_auroc": 0.8}}),
        stored("b", {"y": {"image_auroc": 0.8}}),
        chosen("x", 0.9, "patchcore", 256),
        # An earlier version chose another one here.
        chosen("y", 0.1, "patchcore", 256),
        chosen("y", 0.7, "dinomaly", 280),
    ]
    auto = make_table(cells, columns=COLUMNS).lines[1]
    assert (auto.label, auto.complete, auto.marks) == ("auto", True, ())
    assert auto.values["image_auroc"].mean == pytest.approx(0.8)
    # A line of one method says if it was measured with several precisions.
    mixed = [
        stored("b", {"x": {"image_auroc": 0.8}}, environment={"precision": "float32"}),
        stored("b", {"y": {"image_auroc": 0.8}}, environment={"precision": "bf16"}),
    ]
    assert make_table(mixed, columns=COLUMNS).lines[0].marks == (
        "several precisions: bf16; float32",
    )
    # What it chose first counts again once that is renewed.
    again = [cells[0], cells[1], cells[2], cells[4], cells[3]]
    assert make_table(again, columns=COLUMNS).lines[1].values["image_auroc"].mean == 0.5
    assert {c.key for c in cells} - {c.key for c in current(cells)} == {cells[3].key}
    # What somebody named for it makes another line.
    cells.append(chosen("x", 0.6, "patchcore", 384, **{"data.size": 384}))
    labels = [line.label for line in make_table(cells, columns=COLUMNS).lines]
    assert labels == ["b", "auto", "auto (data.size=384)"]


def test_a_seed_that_lacks_categories_does_not_count(stored: Make) -> None:
    cells = [
        stored("a", {"x": {"image_auroc": 0.8}}, seed=0, setting="separate"),
        stored("a", {"y": {"image_auroc": 0.8}}, seed=0, setting="separate"),
        stored("a", {"x": {"image_auroc": 0.2}}, seed=1, setting="separate"),
    ]
    (line,) = make_table(cells, columns=COLUMNS).lines
    assert line.seeds == (0,)
    assert line.values["image_auroc"].mean == pytest.approx(0.8)
    assert line.marks == ("1 of 2 seeds",)


def test_lines_of_other_seeds_are_not_compared(stored: Make) -> None:
    cells = [
        stored("lucky", {"x": {"image_auroc": 0.99}}, seed=0),
        *(stored("a", {"x": {"image_auroc": 0.9}}, seed=seed) for seed in (0, 1)),
        *(stored("b", {"x": {"image_auroc": 0.8}}, seed=seed) for seed in (0, 1)),
    ]
    lines = make_table(cells, columns=COLUMNS).lines
    assert [line.values["image_auroc"].best for line in lines] == [False, True, False]


def test_unified_models_of_other_categories_are_other_lines(stored: Make) -> None:
    cells = [
        stored("a", {c: {"image_auroc": 0.5} for c in "xy"}, cost={"fit_seconds": 100.0}),
        stored("a", {c: {"image_auroc": 0.7} for c in "xyz"}, cost={"fit_seconds": 300.0}),
    ]
    few, all_of_them = make_table(cells, columns=COLUMNS).lines
    assert (few.label, all_of_them.label) == ("a (2 categories)", "a (3 categories)")
    assert not few.complete
    assert few.values["image_auroc"].mean == 0.5
    assert all_of_them.values["fit_seconds"].mean == 300.0


def test_cells_of_changed_data_are_left_out_of_every_line(stored: Make) -> None:
    cells = [
        stored("a", {"x": {"image_auroc": 0.5}}, fingerprint="before"),
        stored("b", {"x": {"image_auroc": 0.6}}, fingerprint="before"),
        stored("b", {"x": {"image_auroc": 0.7}}, fingerprint="after"),
    ]
    table = make_table(cells, columns=COLUMNS)
    assert [(n.label, n.values["image_auroc"].mean) for n in table.lines] == [("b", 0.7)]
    assert any("2 cells are left out" in note for note in table.notes)


def versioned(version: str, *categories: str) -> dict[str, object]:
    return {"data_versions": dict.fromkeys(categories, version)}


def test_cells_of_changed_data_are_left_out_of_every_seed(stored: Make) -> None:
    # Each seed has a split of its own, and so a fingerprint.
    old = [
        stored(
            "a",
            {"x": {"image_auroc": 0.5}},
            seed=seed,
            fingerprint=f"old {seed}",
            environment=versioned("old", "x"),
        )
        for seed in (0, 1, 2)
    ]
    new = stored(
        "a",
        {"x": {"image_auroc": 0.9}},
        fingerprint="new 0",
        environment=versioned("new", "x"),
        key="new",
    )
    table = make_table([*old, new], columns=COLUMNS)
    (line,) = table.lines
    assert (line.seeds, line.values["image_auroc"].mean) == ((0,), 0.9)
    assert any("3 cells are left out" in note for note in table.notes)


def test_a_unified_model_is_left_out_if_one_of_its_categories_has_changed(stored: Make) -> None:
    def separate(label: str, category: str, version: str) -> StoredCell:
        figures = {category: {"image_auroc": 0.8}}
        print_of = f"{category} {version}"
        environment = versioned(version, category)
        return stored(label, figures, fingerprint=print_of, environment=environment, key=print_of)

    both = stored(
        "b", {c: {"image_auroc": 0.9} for c in "xy"}, environment=versioned("old", "x", "y")
    )
    cells = [separate("a", "x", "old"), separate("a", "y", "old"), both]
    assert [line.label for line in make_table(cells, columns=COLUMNS).lines] == ["a", "b"]
    (line,) = make_table([*cells, separate("a", "y", "new")], columns=COLUMNS).lines
    assert (line.label, line.complete) == ("a", True)


def test_figures_of_one_model_that_were_measured_at_two_times_stand_together(stored: Make) -> None:
    cost = {"fit_seconds": 10.0, "images_per_second": 5.0}
    cells = [
        stored("a", {"x": {"image_auroc": 0.8, "aupro": 0.6}}, key="1", cost=cost),
        # Scored again from the bundle, on another machine.
        stored(
            "a",
            {"x": {"image_auroc": 0.9, "segf1": 0.5, "aupro": None}},
            key="2",
            cost={"images_per_second": 7.0},
            environment={"device": "gpu"},
        ),
    ]
    columns = ("image_auroc", "aupro", "segf1", "fit_seconds", "images_per_second")
    (line,) = make_table(cells, columns=columns).lines
    means = {name: value.mean for name, value in line.values.items()}
    # What was measured twice is as it was the last time, undefined too.
    assert means == {
        "image_auroc": 0.9,
        "segf1": 0.5,
        "fit_seconds": 10.0,
        "images_per_second": 7.0,
    }
    assert "several devices: 2 cores; gpu" in line.marks
    assert line.about["device"] == "2 cores; gpu"


def test_a_figure_of_some_seeds_alone_says_so_and_is_never_the_best(stored: Make) -> None:
    cells = [
        *(stored("a", {"x": {"image_auroc": 0.8, "segf1": 0.4}}, seed=seed) for seed in (0, 1)),
        *(stored("c", {"x": {"image_auroc": 0.8, "segf1": 0.3}}, seed=seed) for seed in (0, 1)),
        stored("b", {"x": {"image_auroc": 0.9, "segf1": 0.9}}, seed=0),
        stored("b", {"x": {"image_auroc": 0.9}}, seed=1),
    ]
    a, _, b = make_table(cells, columns=("image_auroc", "segf1")).lines
    assert b.marks == ("SegF1: over 1 of these 2 seeds",)
    assert (a.values["segf1"].best, b.values["segf1"].best) == (True, False)
    assert b.values["image_auroc"].best


def test_defects_without_masks_and_several_devices_are_marked(stored: Make) -> None:
    figures = {"x": {"aupro": 0.8, "n_defect": 9, "n_defects_with_mask": 4}}
    cells = [
        stored("a", figures, seed=0, environment={"device": "cpu"}),
        stored("a", figures, seed=1, environment={"device": "gpu"}),
    ]
    (line,) = make_table(cells, columns=COLUMNS).lines
    assert any("some defects have no mask" in mark for mark in line.marks)
    assert "several devices: cpu; gpu" in line.marks


def test_a_name_is_settled_once_for_all_seeds(stored: Make) -> None:
    cells = [
        stored("old name", {"x": {"image_auroc": 0.8}}, seed=0, config={}),
        stored("new name", {"x": {"image_auroc": 0.9}}, seed=1, config={}),
    ]
    (line,) = make_table(cells, columns=COLUMNS).lines
    assert (line.label, line.seeds) == ("new name", (0, 1))


def test_the_best_is_bold_and_equal_as_shown_is_equally_good(stored: Make) -> None:
    cells = [
        stored("a", {"x": {"image_auroc": 0.900001}}, cost={"fit_seconds": 9.0}),
        stored("b", {"x": {"image_auroc": 0.9}}, cost={"fit_seconds": 3.0}),
        stored("c", {"x": {"image_auroc": 0.8}}, cost={"fit_seconds": 5.0}),
    ]
    table = make_table(cells, columns=COLUMNS)
    assert [line.values["image_auroc"].best for line in table.lines] == [True, True, False]
    assert [line.values["fit_seconds"].best for line in table.lines] == [False, True, False]
    text = render(table, "markdown")
    assert "| parts | separate | b | lite0 | 1 | **90.00** | **3.0** |" in text
    assert "| parts | separate | c | lite0 | 1 | 80.00 | 5.0 |" in text


def test_undefined_figures_are_dashes_and_empty_columns_are_left_out(stored: Make) -> None:
    cells = [
        stored("a", {"x": {"image_auroc": None, "aupro": 0.5}}),
        stored("b", {"x": {"image_auroc": 0.5, "aupro": 0.5}}),
    ]
    table = make_table(cells, columns=COLUMNS)
    assert [c.name for c in table.columns] == ["image_auroc", "aupro"]
    assert "| a | lite0 | 1 | – | 50.00 |" in render(table, "markdown")


def test_metrics_that_are_not_official_are_marked(stored: Make) -> None:
    figures = {"x": {"image_auroc": 0.5, "pro_per_image": 0.5, "aupro_0.05_original": 0.5}}
    columns = ("image_auroc", "pro_per_image", "aupro_0.05_original")
    table = make_table([stored("a", figures)], columns=columns)
    assert [c.title.endswith("*") for c in table.columns] == [False, True, True]
    assert len([f for f in table.footnotes if "not the official metric" in f]) == 2
    for form in ("markdown", "html"):
        assert "not the official metric" in render(table, form)
    official = make_table([stored("a", figures, format="mvtec-ad-2")], columns=columns)
    assert [c.title.endswith("*") for c in official.columns] == [False, True, False]


def test_marks_name_the_data_sets_that_they_are_for(stored: Make) -> None:
    figures = {"x": {"pixel_auroc": 0.5, "image_ap": 0.5, "spro_0.05_by_kind": 0.5}}
    columns = ("pixel_auroc", "image_ap", "spro_0.05_by_kind")
    ours = stored("a", figures, data="ours", format="mvtec")
    loco = stored("a", figures, data="loco", format="mvtec-loco")
    mixed = make_table([ours, loco], columns=columns)
    assert [c.title.endswith("*") for c in mixed.columns] == [True, False, True]
    pixel, overlap = mixed.footnotes
    assert pixel.startswith("P-AUROC: not the official metric of MVTec LOCO: AUROC over all")
    assert overlap.endswith("(official for MVTec LOCO only)")
    joined = make_table([stored("a", figures, format="mvtec-loco+mvtec")], columns=columns)
    assert joined.footnotes == mixed.footnotes
    alone = make_table([loco], columns=columns)
    assert [c.title.endswith("*") for c in alone.columns] == [True, False, False]


def test_published_figures_stand_beside_ours_with_their_source(stored: Make) -> None:
    figures = {
        "bottle": {"image_auroc": 0.99, "n_good": 20, "n_defect": 63},
        "zipper": {"image_auroc": 0.97, "n_good": 32, "n_defect": 119},
    }
    table = make_table([stored("patchcore", figures, data="mvtec")], columns=COLUMNS)
    (paper,) = [line for line in table.lines if line.label == "Dinomaly-B"]
    assert paper.setting == "unified"
    assert paper.values["image_auroc"].text == "99.6"
    assert any("arXiv 2405.14325" in text for text in table.footnotes)
    assert any("2 of the 15 categories" in text for text in table.notes)
    assert "| *Dinomaly-B*<sup>1</sup> |" in render(table, "markdown")
    assert not table.lines[0].source
    without = make_table([stored("a", figures)], columns=COLUMNS, published_from=())
    assert [line.label for line in without.lines] == ["a"]


def test_one_class_tasks_stand_beside_the_paper_s(stored: Make) -> None:
    """Ten models, one for each class of MNIST: their mean beside the published mean."""
    cells = [
        stored(
            "mkd",
            {f"{digit}": {"image_auroc": 0.95 + digit / 1000, "n_good": 980, "n_defect": 9020}},
            data="mnist",
            format="mnist",
        )
        for digit in range(10)
    ]
    table = make_table(cells, columns=COLUMNS)
    ours, *papers = table.lines
    assert ours.values["image_auroc"].mean == pytest.approx(0.9545)
    published = {line.label: line.values["image_auroc"].text for line in papers}
    assert published["MKD"] == "98.71"
    assert {line.setting for line in table.lines} == {"separate"}
    # A part of the test images is another task, and some of the classes another mean.
    few = [
        stored("mkd", {"3": {"image_auroc": 0.9, "n_good": 98, "n_defect": 902}}, format="mnist")
    ]
    assert not any(line.source for line in make_table(few, columns=COLUMNS).lines)


def test_published_figures_are_those_of_the_same_setting(stored: Make) -> None:
    bottle = {"bottle": {"image_auroc": 0.99, "n_good": 20, "n_defect": 63}}
    zipper = {"zipper": {"image_auroc": 0.97, "n_good": 32, "n_defect": 119}}

    def settings(figures: dict[str, dict[str, float]]) -> set[str]:
        table = make_table([stored("patchcore", figures, data="mvtec")], columns=COLUMNS)
        return {line.setting for line in table.lines if line.source}

    # A model of one category is none of the published ones over all 15.
    assert settings(bottle) == {"separate"}
    assert settings({**bottle, **zipper}) == {"unified"}


def test_other_tables_of_the_papers_can_be_named(stored: Make) -> None:
    figures = {
        "bottle": {"image_auroc": 0.99, "n_good": 20, "n_defect": 63},
        "zipper": {"image_auroc": 0.97, "n_good": 32, "n_defect": 119},
    }
    cells = [stored("NB", figures, data="mvtec")]
    table = make_table(cells, columns=COLUMNS, published_from=("components",))
    papers = {n.label: n.values["image_auroc"].text for n in table.lines if n.source}
    assert papers["NB"] == "99.06"
    assert len(papers) == 10


def test_published_figures_of_a_crop_stand_in_its_columns(stored: Make) -> None:
    counts = {"n_good": 20, "n_defect": 63}
    whole = {"image_auroc": 0.9, "pixel_auroc": 0.8, "aupro": 0.7, **counts}
    cropped = {**whole, "pixel_auroc_crop": 0.85, "aupro_crop": 0.75}
    zipper = {"zipper": {**whole, "n_good": 32, "n_defect": 119}}

    def made(bottle: dict[str, float]) -> Table:
        cells = [stored("NB", {"bottle": bottle, **zipper}, data="mvtec")]
        return make_table(cells, published_from=("components", "main"))

    def text(table: Table, label: str) -> dict[str, str | None]:
        (line,) = [line for line in table.lines if line.source and line.label == label]
        return {c.name: line.values[c.name].text for c in table.columns if c.name in line.values}

    table = made(cropped)
    auroc = {"image_auroc": "99.06"}
    assert text(table, "NB") == {**auroc, "pixel_auroc_crop": "97.62", "aupro_crop": "93.71"}
    # Others see the whole image.
    assert text(table, "UniAD")["pixel_auroc"] == "96.8"
    assert not any("centre crop alone" in note for note in table.footnotes if "NB" in note)
    plain = made(whole)
    assert text(plain, "NB") == {**auroc, "pixel_auroc": "97.62", "aupro": "93.71"}
    assert "NB, unified: pixel metrics over the centre crop alone" in plain.footnotes


def test_a_figure_over_defective_images_stands_in_the_column_of_its_metric(stored: Make) -> None:
    bottle = {"image_auroc": 0.9, "pixel_auroc": 0.8, "n_good": 20, "n_defect": 63}
    both = {"bottle": {**bottle, "pixel_auroc_defects": 0.7}}

    def made(figures: dict[str, dict[str, float]], source: str) -> dict[str, dict[str, str | None]]:
        cells = [stored("Gradients", figures, data="mvtec", setting="separate")]
        table = make_table(cells, published_from=(source,))
        shown = [c.name for c in table.columns]
        return {
            line.label: {n: v.text for n, v in line.values.items() if n in shown}
            for line in table.lines
            if line.source
        }

    assert made(both, "attribution")["Gradients with Gaussian"] == {"pixel_auroc_defects": "90.51"}
    assert made(both, "seed")["MKD"] == {"image_auroc": "87.74", "pixel_auroc_defects": "90.71"}
    # Where it was not measured there is nothing that its figures could stand beside.
    assert made({"bottle": bottle}, "attribution") == {}
    assert made({"bottle": bottle}, "seed")["MKD"] == {"image_auroc": "87.74"}


def test_significance_is_told_over_the_categories_of_all_data(stored: Make) -> None:
    def figures(base: float) -> dict[str, dict[str, float]]:
        return {f"c{i}": {"image_auroc": base + i / 1000} for i in range(4)}

    cells = [
        stored(label, figures(base), data=data)
        for label, base in (("good", 0.9), ("poor", 0.8))
        for data in ("one", "two")
    ]
    notes = make_table(cells, columns=COLUMNS).notes
    assert any("good is ahead of poor in 8 of 8 categories, p = 0.0078" in note for note in notes)
    assert any("Holm over 1 pair of lines" in note for note in notes)
    few = make_table([c for c in cells if c.data == "one"], columns=COLUMNS).notes
    assert any("share fewer than 6 categories" in note for note in few)


def test_one_correction_is_for_all_pairs_of_lines_in_both_settings(stored: Make) -> None:
    def figures(base: float) -> dict[str, dict[str, float]]:
        return {f"c{i}": {"image_auroc": base + i / 1000} for i in range(8)}

    lines = (("good", 0.9), ("fair", 0.8), ("poor", 0.7))
    unified = [stored(label, figures(base)) for label, base in lines]
    separate = [
        stored(label, {category: found})
        for label, base in lines[:2]
        for category, found in figures(base).items()
    ]
    notes = make_table([*unified, *separate], columns=COLUMNS).notes
    compared = [note for note in notes if "is ahead of" in note]
    # Three pairs in one setting and one in the other, each with p = 2 / 2^8.
    assert [note.split(", p = ")[0] for note in compared] == [
        "unified, I-AUROC: good is ahead of fair in 8 of 8 categories",
        "unified, I-AUROC: good is ahead of poor in 8 of 8 categories",
        "separate, I-AUROC: good is ahead of fair in 8 of 8 categories",
    ]
    assert all(f"p = {4 * 2 / 2**8:.2g}" in note for note in compared)
    assert compared[-1].endswith("(Wilcoxon signed-rank; Holm over 4 pairs of lines)")


def test_notes_speak_of_the_lines_that_are_shown(stored: Make) -> None:
    def about(name: str) -> dict[str, object]:
        return {"device": f"the {name}", "commit": name, "date": name, "versions": {"torch": name}}

    cells = [
        stored("a", {"x": {"image_auroc": 0.5}}, seed=7, fingerprint="1", environment=about("old")),
        stored("a", {"x": {"image_auroc": 0.8}}, seed=0, environment=about("new"), key="new"),
        stored("a", {"y": {"aupro": 0.8}}, data="other", environment=about("other")),
        # Of the data as it is now.
        stored("b", {"x": {"image_auroc": 0.8}}, seed=7, environment=about("new"), key="again"),
    ]
    text = " ".join(make_table(cells, columns=COLUMNS).notes)
    assert "Hardware: the new; the other. Commit: new; other. Date: new; other." in text
    assert "Versions: torch new; torch other." in text
    table = make_table(cells, columns=COLUMNS, only_with="image_auroc")
    assert [line.data for line in table.lines] == ["parts", "parts"]
    assert [column.name for column in table.columns] == ["image_auroc"]
    text = " ".join(table.notes)
    assert "Hardware: the new. Commit: new. Date: new. Versions: torch new. Seeds: 0, 7;" in text
    assert [line.about["device"] for line in table.lines] == ["the new", "the new"]
    (alone,) = make_table(cells, columns=COLUMNS, only_with="aupro").lines
    assert alone.data == "other"
    with pytest.raises(ConfigError, match="no finished cell has any of these columns"):
        make_table(cells, columns=("image_auroc", "segf1"), only_with="segf1")


def test_a_line_of_a_category_tells_of_its_own_model(stored: Make) -> None:
    cells = [
        stored("a", {c: {"image_auroc": 0.8}}, encoder=c, environment={"device": f"the {c}"})
        for c in "xy"
    ]
    lines = make_table(cells, columns=COLUMNS, by_category=True).lines
    assert [(line.encoder, line.about["device"], line.marks) for line in lines] == [
        ("x", "the x", ()),
        ("y", "the y", ()),
    ]
    (line,) = make_table(cells, columns=COLUMNS).lines
    assert "several devices: the x; the y" in line.marks


def test_failures_and_shared_machines_are_told(stored: Make) -> None:
    failed = stored(
        "b",
        {},
        setting="separate",
        status="failed",
        error={"message": "out of\n memory"},
        categories=("x",),
    )
    busy = stored("a", {"x": {"image_auroc": 0.5}}, environment={"jobs": 2})
    table = make_table([busy, failed], columns=COLUMNS)
    reason = "failed: b on parts/x, separate, seed 0: out of memory"
    assert any(reason in note for note in table.notes)
    assert any("while other cells ran" in f for f in table.footnotes)
    resumed = stored("a", {"x": {"image_auroc": 0.5}}, cost={"fit_resumed": True})
    (mark,) = make_table([resumed], columns=COLUMNS).footnotes
    assert "its seconds and memory are not counted" in mark
    with pytest.raises(BenchError, match=r"is finished; those that failed:\n  b on parts/x"):
        make_table([failed])
    with pytest.raises(BenchError) as caught:
        make_table([])
    assert caught.value.message == "no cell is finished"


def test_by_category(stored: Make) -> None:
    cells = [stored("a", {"x": {"image_auroc": 0.8}, "y": {"image_auroc": 0.9}})]
    table = make_table(cells, columns=COLUMNS, by_category=True)
    assert [(line.data, line.values["image_auroc"].mean) for line in table.lines] == [
        ("parts/x", 0.8),
        ("parts/y", 0.9),
    ]


def test_wrong_names(stored: Make) -> None:
    cells = [stored("a", {"x": {"image_auroc": 0.8}})]
    with pytest.raises(ConfigError, match="unknown column 'fit_second'") as caught:
        make_table(cells, columns=("fit_second",))
    assert "did you mean 'fit_seconds'" in str(caught.value)
    with pytest.raises(ConfigError, match="no finished cell has any of these columns"):
        make_table(cells, columns=("aupro",))
    with pytest.raises(ConfigError, match="did you mean 'latex'"):
        render(make_table(cells, columns=COLUMNS), "latx")


def test_every_form_holds_awkward_names(stored: Make) -> None:
    about = {"device": "2 cores", "commit": "abc", "date": "2026-01-02"}
    cells = [
        stored("50% & | <b>_x", {"x": {"image_auroc": value}}, seed=seed, environment=about)
        for seed, value in enumerate((0.8123456, 0.9))
    ]
    table = make_table(cells, columns=COLUMNS, title="A & B")
    assert r"50\% \& | <b>\_x" in render(table, "latex")
    assert r"85.62 $\pm$ 6.20" in render(table, "latex")
    assert r"50% & \| <b>_x" in render(table, "markdown")
    assert "50% &amp; | &lt;b&gt;_x" in render(table, "html")
    assert "<title>A &amp; B</title>" in render(table, "html")
    (row,) = csv.DictReader(io.StringIO(render(table, "csv")))
    assert row["method"] == "50% & | <b>_x"
    assert float(row["image_auroc"]) == fmean([0.8123456, 0.9])
    assert (row["device"], row["commit"], row["date"]) == ("2 cores", "abc", "2026-01-02")
    head, rows = aligned(table)
    assert len(head) == len(rows[0])
    assert rows[0][-1] == "85.62 ± 6.20"


def test_the_words_of_a_cell() -> None:
    from flawmap.bench.render import cell

    column = Column("fit_seconds", "fit, s", 1, 1, False)
    assert cell(column, Value(12345.67)) == "12,345.7"
    assert cell(column, None) == "–"
    assert cell(column, Value(1.0, text="1.00")) == "1.00"


def test_means_over_other_categories_are_no_match(stored: Make) -> None:
    """A metric that was measured in some categories alone, as after a grid that was stopped."""

    def cell(label: str, category: str, seed: int, **more: float) -> StoredCell:
        return stored(label, {category: {"image_auroc": 0.9, **more}}, seed=seed)

    cells = [cell("a", c, seed, aupro=0.5) for c in "xyz" for seed in (0, 1)]
    cells += [cell("b", c, seed, aupro=0.9) for c in "xy" for seed in (0, 1)]
    cells += [cell("b", "z", seed) for seed in (0, 1)]
    cells += [cell("c", c, 0, aupro=0.7) for c in "xyz"]
    cells += [cell("c", "x", 1, aupro=0.1), cell("c", "y", 1), cell("c", "z", 1)]
    cells += [cell("d", c, seed, aupro=0.3) for c in "xyz" for seed in (0, 1)]
    first, second, third, _ = make_table(cells, columns=COLUMNS).lines
    assert first.values["aupro"].best
    assert second.values["aupro"].mean == pytest.approx(0.9)
    assert not second.values["aupro"].best
    assert "AUPRO: over 2 of 3 categories" in second.marks
    # A mean over one category does not stand in one mean with those over all.
    assert third.values["aupro"].mean == pytest.approx(0.7)
    assert "AUPRO: over 1 of these 2 seeds" in third.marks


def test_the_part_of_a_fit_that_was_resumed_is_no_cost(stored: Make) -> None:
    def cell(seed: int, **cost: object) -> StoredCell:
        return stored("a", {"x": {"image_auroc": 0.9}}, seed=seed, cost=cost)

    cells = [
        cell(0, fit_seconds=20.0),
        cell(1, fit_seconds=3.0, fit_resumed=True, images_per_second=4.0),
    ]
    (line,) = make_table(cells, columns=(*COLUMNS, "images_per_second")).lines
    assert line.values["fit_seconds"].mean == 20.0
    assert line.values["images_per_second"].mean == 4.0
    assert any("stopped and resumed" in mark for mark in line.marks)
    assert "fit, s: over 1 of these 2 seeds" in line.marks
    # Where no time is shown, nothing of times needs to be said.
    (line,) = make_table(cells, columns=("image_auroc",)).lines
    assert line.marks == ()


def test_times_are_compared_on_one_quiet_machine_alone(stored: Make) -> None:
    def cell(label: str, seconds: float, jobs: int, device: str = "it") -> StoredCell:
        return stored(
            label,
            {"x": {"image_auroc": 0.9}},
            cost={"fit_seconds": seconds},
            environment={"jobs": jobs, "device": device, "versions": {}},
        )

    def best(*cells: StoredCell) -> list[str]:
        lines = make_table(cells, columns=COLUMNS).lines
        return [line.label for line in lines if line.values["fit_seconds"].best]

    assert best(cell("a", 9, 1), cell("b", 5, 1)) == ["b"]
    assert best(cell("a", 9, 1), cell("b", 5, 2), cell("c", 10, 1)) == ["a"]
    assert best(cell("a", 9, 1), cell("b", 5, 1, "another")) == []


def test_several_weights_of_an_encoder_are_told(stored: Make) -> None:
    def marks(*digests: str | None) -> tuple[str, ...]:
        cells = [
            stored("a", {"x": {"image_auroc": 0.9}}, seed=i, environment={"encoder_sha256": d})
            for i, d in enumerate(digests)
        ]
        (line,) = make_table(cells, columns=COLUMNS).lines
        return line.marks

    assert marks("1", "1", None) == ()
    assert marks("1", "2") == ("several weights of the encoder",)


def test_rates_at_the_threshold_are_not_judged() -> None:
    """Of two lines one has fewer escapes because it has more false rejects."""
    for column in columns_of(["false_reject_rate", "escape_rate"]):
        assert column.higher_is_better is None
    assert all(column.higher_is_better for column in columns_of(["image_auroc", "aupro"]))

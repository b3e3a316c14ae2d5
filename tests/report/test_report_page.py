"""The page as a whole: self-contained, well-formed, safe with any name, true to its evaluation."""

import doctest
import importlib
import math
import re
from dataclasses import replace
from datetime import datetime, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flawmap.detector import Source
from flawmap.errors import ExportError
from flawmap.report import write_report
from flawmap.report.curves import rate_limit
from flawmap.report.head import Judged, limit_words
from flawmap.report.page import render
from flawmap.report.tables import why_undefined
from flawmap.report.text import percent

VOID = {"meta", "link", "img", "br", "input"}
LOADS = {"src", "href", "xlink:href", "srcset", "poster", "action", "data", "background"}


class Page(HTMLParser):
    """Checks nesting and collects what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def attributes(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def usual(make: Any, promise: Any) -> Any:
    """Two categories: one with masks and a miss, one without masks."""
    bolts = [make.image(s, 1, category="bolt", mask=True) for s in (0.3, 0.8, 0.9)]
    bolts += [make.image(s, 0, category="bolt") for s in (0.1, 0.6, 0.2, 0.25)]
    nuts = [make.image(s, 1, category="nut", defect="dent") for s in (0.7, 0.95)]
    nuts += [make.image(0.15, 0, category="nut")]
    return make.evaluation(
        notes=["a note & more"],
        bolt=make.result(bolts, promise),
        nut=make.result(nuts, promise),
    )


def test_the_page_asks_the_network_for_nothing(detector: Any, usual: Any) -> None:
    text = render(detector, usual)
    page = Page(text)
    for _tag, attrs in page.tags:
        for name in LOADS & set(attrs):
            assert re.match(r"(data:|#)", attrs[name]), (name, attrs[name])
    assert not re.search(r"https?://|//\w+\.\w+|@import", re.sub(r"base64,[^\"]+", "", text))
    assert set(re.findall(r"url\(([^)]*)\)", text)) <= {"#hatch"}
    assert page.attributes("script") == []
    (policy,) = [m["content"] for m in page.attributes("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'")


def test_links_lead_somewhere_and_identifiers_are_unique(detector: Any, usual: Any) -> None:
    page = Page(render(detector, usual))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {a["href"][1:] for a in page.attributes("a")}
    assert {"c0", "c1", "details"} <= targets <= set(ids)


def test_pictures_have_alternative_texts_and_tables_have_scopes(detector: Any, usual: Any) -> None:
    page = Page(render(detector, usual))
    images = page.attributes("img")
    assert len(images) == 2 * 10
    assert all(len(image["alt"]) > 10 for image in images)
    assert all("scope" in th for th in page.attributes("th"))
    for svg in page.attributes("svg"):
        assert svg.get("aria-hidden") == "true" or svg["aria-label"]


def test_every_metric_is_shown_as_the_evaluation_has_it(detector: Any, usual: Any) -> None:
    page = Page(render(detector, usual))
    shown = [float(d["value"]) for d in page.attributes("data")]
    figures = [usual.mean, *(r.metrics for r in usual.categories.values())]
    for metrics in figures:
        for value in metrics.values():
            if not math.isnan(value):
                assert value in shown
                assert percent(value) in page.text
    for result in usual.categories.values():
        assert set(result.by_defect.values()) <= set(shown)


def test_optional_metrics_are_marked_unless_official(detector: Any, usual: Any) -> None:
    assert "Further metrics" not in Page(render(detector, usual)).text
    parts = {
        name: replace(
            part, metrics={**part.metrics, "aupro_0.05": math.nan, "pro_per_image_original": value}
        )
        for (name, part), value in zip(usual.categories.items(), (0.2468, math.nan), strict=True)
    }
    mean = {**usual.mean, "aupro_0.05": math.nan, "pro_per_image_original": 0.2468}
    page = Page(render(detector, replace(usual, categories=parts, mean=mean)))
    assert "AUPRO to 0.05 *" in page.text
    assert "PRO per image, original size *" in page.text
    assert "* AUPRO to 0.05: not the official metric: AUPRO up to an FPR of 0.05" in page.text
    assert "* PRO per image, original size: not the official metric: regions" in page.text
    assert [d["value"] for d in page.attributes("data")].count("0.2468") == 2
    assert "AUPRO *" not in page.text


def test_usual_metrics_are_marked_where_the_data_set_has_others(detector: Any, usual: Any) -> None:
    lists = Page(render(detector, usual)).attributes("ul")
    assert "Not the official metric" not in [found.get("aria-label") for found in lists]
    loco = replace(usual, data={**usual.data, "format": "mvtec-loco"})
    page = Page(render(detector, loco))
    words = "not the official metric of MVTec LOCO: "
    assert f"* Image AUROC: {words}chance that a defect scores above" in page.text
    assert f"* AUPRO, original size: {words}area under the per-region overlap" in page.text
    marks = [a["title"] for a in page.attributes("abbr") if a.get("title", "").startswith(words)]
    # Image AUROC and four pixel metrics at two sizes, each above its column.
    assert len(marks) == 1 + 4 * 2
    assert "AP F1-max AUROC *" in page.text


@pytest.mark.parametrize(
    ("metric", "counts", "has_threshold", "words"),
    [
        ("segf1", (2, 2, 2), False, "no threshold is set"),
        ("segf1", (2, 2, 0), True, "no defect has a mask"),
        ("spro_0.05", (2, 2, 2), True, "the data set defines no saturation"),
        ("spro_0.05_by_kind", (2, 2, 2), True, "the data set defines no saturation or judges"),
        ("image_auroc_by_kind", (2, 2, 0), True, "the data set judges no kinds of defects apart"),
        ("sample_auroc", (2, 2, 2), True, "no images are known to show one part"),
        ("pro_per_image", (2, 0, 0), True, "no defects in the test"),
        ("aupro_0.05_original", (2, 2, 2), True, "the masks mark no px"),
    ],
)
def test_why_an_optional_metric_is_missing(
    metric: str, counts: tuple[int, int, int], has_threshold: bool, words: str
) -> None:
    named = dict(zip(("good", "defect", "defects_with_mask"), counts, strict=True))
    assert why_undefined(metric, named, has_threshold).startswith(words)


def test_the_verdict_counts_what_happened(detector: Any, usual: Any) -> None:
    page = Page(render(detector, usual))
    assert "found 4 of 5 defects and rejected 1 of 5 good images ." in page.text
    assert "at most 4% of good parts rejected (from 24 held-out good images)" in page.text
    # One of five: 65.74% is the upper end of Clopper and Pearson's interval.
    assert page.text.count("1 of 5 good images below 65.8% with 95% confidence") == 1
    assert page.text.count("Too few good images for the 1.00% that was asked: bolt , nut") == 1


def test_views_of_one_part_count_once_in_the_limits(
    make: Any, detector: Any, usual: Any, promise: Any
) -> None:
    views = ((0.1, "a"), (0.6, "a"), (0.7, "a"), (0.2, "b"), (0.3, "c"))
    images = [make.image(score, 0, group=part) for score, part in views]
    images += [make.image(score, 1) for score in (0.8, 0.9)]
    page = Page(render(detector, make.evaluation(part=make.result(images, promise))))
    assert "rejected 2 of 5 good images" in page.text
    # One of three parts is rejected: as images, two of five would give 81.1%.
    assert "2 of 5 good images below 86.5% over 3 parts with 95% confidence" in page.text
    assert "2 of 5 below 86.5% over 3 parts" in page.text
    assert "0 of 2 defects below 77.7% with 95% confidence" in page.text
    said = "Views of one part are not independent"
    assert said in page.text
    assert said not in Page(render(detector, usual)).text


@pytest.mark.parametrize("n", [9, 59, 290, 1003])
def test_no_limit_is_shown_below_itself(n: int) -> None:
    words = limit_words(Judged(n, 0, n, 0))
    shown = float(words.removeprefix("below ").removesuffix("%"))
    assert 0 <= shown - 100 * rate_limit(0, n) < shown / 100


def test_no_promise_of_several_categories_is_shown_below_itself(
    make: Any, detector: Any, promise: Any
) -> None:
    many, few = (replace(promise, bound=1 / (n + 1), n=n) for n in (120, 12))
    results = {
        name: make.result([make.image(0.9, 1, category=name)], threshold)
        for name, threshold in (("bolt", many), ("nut", few))
    }
    page = Page(render(detector, make.evaluation(**results)))
    assert "at most 0.827% to 7.7% of good parts rejected in each category" in page.text


def test_missing_figures_are_dashes_with_their_reason(detector: Any, usual: Any) -> None:
    page = Page(render(detector, usual))
    reasons = {a["title"] for a in page.attributes("abbr")}
    assert reasons == {"no defect has a mask"}
    assert len(page.attributes("abbr")) == 8
    assert "a no defect has a mask" in page.text
    assert "nan" not in page.text.lower()


def test_hostile_names_are_text_and_nothing_else(
    make: Any, detector: Any, promise: Any, tmp_path: Path
) -> None:
    bad = "<script>alert('1')</script>&\"\u202e\x1b \udcff"
    file = 'x"><img src=y onerror=z>&amp;\u202egnp.png'
    image = make.image(0.9, 1, file=file, defect=bad)
    evaluation = make.evaluation(notes=[bad], **{bad: make.result([image], promise)})
    path = tmp_path / "report.html"
    write_report(detector, evaluation, path)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.attributes("script") == []
    assert not any("onerror" in attrs for _, attrs in page.tags)
    assert len(page.attributes("img")) == 2
    assert "<script>alert('1')</script>&\"\u202e\ufffd \ufffd" in page.text
    assert file in page.text
    assert any(file in image["alt"] for image in page.attributes("img"))
    assert "\x1b" not in text


def test_without_a_threshold_the_page_says_so(make: Any, detector: Any) -> None:
    images = [make.image(0.9, 1, threshold=None), make.image(0.1, 0, threshold=None)]
    detector.pixel_threshold = None
    page = Page(render(detector, make.evaluation(part=make.result(images, None))))
    assert "ranks parts but passes no verdict" in page.text
    assert "a defect above a good part in 100.0% of all pairs" in page.text
    assert "no threshold is set" in {a["title"] for a in page.attributes("abbr")}
    classes = {attrs.get("class") for _, attrs in page.tags}
    assert not classes & {"threshold", "operating", "box", "error", "right"}


@pytest.mark.parametrize(
    ("label", "said", "reason"),
    [
        (0, "says nothing about how many are missed", "no defects in the test"),
        (1, "says nothing about false alarms", "no good images in the test"),
    ],
)
def test_one_kind_of_image_alone(
    make: Any, detector: Any, promise: Any, label: int, said: str, reason: str
) -> None:
    images = [make.image(s, label) for s in (0.2, 0.9)]
    page = Page(render(detector, make.evaluation(part=make.result(images, promise))))
    assert said in page.text
    assert reason in {a["title"] for a in page.attributes("abbr")}
    assert "ROC and precision-recall curves need good images and defects" in page.text
    assert "nan" not in page.text.lower()


def test_one_category_needs_no_contents_and_no_mean(make: Any, detector: Any, promise: Any) -> None:
    result = make.result([make.image(0.9, 1), make.image(0.1, 0)], promise)
    page = Page(render(detector, make.evaluation(part=result)))
    assert page.attributes("nav") == page.attributes("tfoot") == []


def test_defects_without_names_get_no_table_of_kinds(
    make: Any, detector: Any, promise: Any
) -> None:
    for word in ("", "defect"):
        result = make.result([make.image(0.9, 1, defect=word), make.image(0.1, 0)], promise)
        page = Page(render(detector, make.evaluation(part=result)))
        assert "kind of defect" not in page.text


def test_fifteen_categories(make: Any, detector: Any, promise: Any) -> None:
    results = {
        f"category {i:02d}": make.result(
            [make.image(0.9, 1, category=str(i)), make.image(0.1, 0, category=str(i))], promise
        )
        for i in range(15)
    }
    page = Page(render(detector, make.evaluation(**results), each=1))
    assert len(page.attributes("nav")) == 1
    assert "15 categories" in page.text
    assert sum(a.get("href") == "#c14" for a in page.attributes("a")) == 3


def test_ten_thousand_images_make_a_light_page(make: Any, detector: Any, promise: Any) -> None:
    rng = np.random.default_rng(0)
    images = [
        make.image(float(s), int(i % 2), file=f"{i}.png", written=False)
        for i, s in enumerate(rng.random(10_000))
    ]
    text = render(detector, make.evaluation(part=make.result(images, promise)))
    assert len(text) < 200_000
    assert "5,000 good, 5,000 defects" in Page(text).text


def test_where_the_figures_come_from(detector: Any, usual: Any) -> None:
    detector.fitted.curves = {
        "*": {"steps": 20, "planned": 40, "losses": [[10, 0.5], [20, 0.25]]},
    }
    usual.data["skipped"] = [["test/bad.png", "empty"], ["test/gone.png", "a link"]]
    now = datetime(2030, 1, 2, 3, 4, tzinfo=timezone.utc)
    detector.source = Source("models/part <1>.flawmap", "d" * 64)
    page = Page(render(detector, usual, now=now))
    for expected in (
        "part <1>.flawmap: patchcore on lite0, 2030-01-02 03:04 UTC",
        "models/part <1>.flawmap",
        "d" * 64,
        "2026-01-02T03:04:05+00:00",
        "patchcore on lite0, 2030-01-02 03:04 UTC",
        "a note & more",
        "1 file skipped in the fit",
        "broken <1>.png : truncated",
        "2 files skipped in the evaluation",
        "test/gone.png : a link",
        "a" * 64,
        "b" * 64,
        "f" * 64,
        "MIT (package)",
        "are not Meta's release",
        "9.9.9",
        "cpu, 2 threads",
        "1 min 15 s",
        "5 images/s",
        "20 iterations of 40 planned; the time budget ended it",
        "false_reject_rate: 0.01",
    ):
        assert expected in page.text, expected


def test_the_speed_is_to_maps_only_where_all_images_have_one(detector: Any, usual: Any) -> None:
    assert "test: speed, from file to map" in Page(render(detector, usual)).text
    alone = Page(render(detector, replace(usual, mapped=False)))
    assert "test: speed, from file to score" in alone.text


def test_the_same_evaluation_gives_the_same_page(detector: Any, usual: Any) -> None:
    now = datetime(2030, 1, 1, tzinfo=timezone.utc)
    assert render(detector, usual, now=now) == render(detector, usual, now=now)


def test_a_report_that_cannot_be_written_leaves_the_old_one(
    make: Any, detector: Any, usual: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ExportError, match="the disk is full"):
        write_report(detector, usual, path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.glob(".*")] == []


@pytest.mark.parametrize("module", ["text", "curves"])
def test_examples(module: str) -> None:
    found = doctest.testmod(importlib.import_module(f"flawmap.report.{module}"))
    assert found.attempted > 0
    assert found.failed == 0


def test_held_out_images_show_how_the_fit_went(detector: Any, usual: Any) -> None:
    seen = {
        "losses": [[10, 0.5], [20, 0.2], [30, 0.3]],
        "original": "AAAA",
        "reconstructions": [[10, "BBBB"], [20, "CCCC"]],
        "stopped": True,
    }
    losses = [[10, 0.5], [30, 0.25]]
    detector.fitted.curves = {
        "*": {"steps": 30, "planned": 40, "losses": losses, "validation": seen}
    }
    text = render(detector, usual)
    page = Page(text)
    for expected in (
        "30 iterations of 40 planned; held-out images gained no more",
        "the weights of iteration 20 are kept",
        "Reconstruction of a held-out image",
        "iteration 10",
    ):
        assert expected in page.text, expected
    places = [text.index(f"base64,{jpeg}") for jpeg in ("AAAA", "BBBB", "CCCC")]
    assert places == sorted(places)

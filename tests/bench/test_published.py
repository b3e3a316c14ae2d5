from __future__ import annotations

from flawmap.bench.published import dataset_of, published
from flawmap.metrics.catalog import HEADLINE


def test_every_line_names_its_source_and_holds_percents() -> None:
    lines = published()
    assert len(lines) == 73
    for line in lines:
        assert "arXiv" in line.source
        assert line.setting in ("unified", "separate")
        assert set(line.figures) <= set(HEADLINE)
        assert line.figures
        assert all(0 < float(value) <= 100 for value in line.figures.values())


def test_a_line_is_as_printed() -> None:
    (found,) = [
        p
        for p in published()
        if (p.table, p.dataset, p.method) == ("main", "mvtec_ad", "Dinomaly-B")
    ]
    assert found.setting == "unified"
    assert list(found.figures.values()) == ["99.6", "99.8", "99.0", "98.4", "69.3", "69.2", "94.8"]


def test_data_sets_are_known_by_their_categories() -> None:
    assert dataset_of("mvtec", ["bottle", "zipper"]) == ("mvtec_ad", 15)
    assert dataset_of("visa", ["pcb1"]) == ("visa", 12)
    assert dataset_of("mvtec", ["pcb1", "candle"]) == ("visa", 12)
    assert dataset_of("real-iad", ["usb"]) == ("real_iad", 30)
    assert dataset_of("mvtec", ["bottle", "my part"]) is None
    assert dataset_of("folder", []) is None

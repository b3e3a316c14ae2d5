"""The benchmark of the metrics: its judge, its limits, and what becomes of its rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest


@pytest.fixture
def speed(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("metrics_speed")


@pytest.mark.parametrize("ties", [False, True])
def test_the_judge_and_flawmap_agree_on_all_seven(speed: ModuleType, ties: bool) -> None:
    pairs = list(speed.draw(12, 32, 0))
    maps, masks = (np.stack(part) for part in zip(*pairs, strict=True))
    assert 0 < masks.any(axis=(1, 2)).sum() < 12
    if ties:
        maps = np.round(2 * maps) / 2
    ours, _ = speed.prepare_flawmap()
    judge, _ = speed.prepare_global_sort()
    assert tuple(judge(maps, masks)) == speed.SEVEN
    assert ours(maps, masks) == pytest.approx(judge(maps, masks), abs=1e-12)


def test_more_maps_begin_with_the_same_ones(speed: ModuleType) -> None:
    few, more = list(speed.draw(2, 16, 3)), list(speed.draw(4, 16, 3))
    for (one, mask), (same, other) in zip(few, more, strict=False):
        np.testing.assert_array_equal(one, same)
        np.testing.assert_array_equal(mask, other)


def test_a_process_is_stopped_at_its_limits_and_its_end_is_told(speed: ModuleType) -> None:
    def run(code: str, seconds: float = 60, megabytes: float = 1e6) -> dict[str, object]:
        found: dict[str, object] = speed.run_limited(
            [sys.executable, "-c", code], seconds=seconds, megabytes=megabytes, threads=1
        )
        return found

    assert run("print('noise'); print('{\"a\": 1}')") == {"a": 1}
    assert run("import time; time.sleep(60)", seconds=0.2) == {"failed": "over 0.2 s"}
    assert run("raise ValueError('no')") == {"failed": "ValueError: no"}
    missing = speed.run_limited(["/no/python"], seconds=1, megabytes=1, threads=1)
    assert "No such file" in missing["failed"]
    if Path("/proc/self/status").exists():
        grows = "x = bytearray(10**8); import time; time.sleep(60)"
        assert run(grows, megabytes=51.2) == {"failed": "over 0.05 GB"}


def test_rows_become_a_table_and_a_chart(
    speed: ModuleType, script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    result = {"values": {"aupro": 0.5}, "seconds": 2.0, "peak_mb": 900.0, "before_mb": 300.0}
    rows = []
    for n in (100, 1725):
        rows.append(speed.row_of("flawmap", n, result, {"aupro": 0.5 + 2**-40}))
        rows.append(speed.row_of("anomalib AUPRO", n, {"failed": "over 16 GB"}, {}))
    meta = {"data": "drawn maps", "headline_maps": 1725, "device": "2 cores", "versions": {}}
    speed.chart(rows, tmp_path / "metrics_speed.svg", "Exact metrics")
    (tmp_path / "metrics_speed.json").write_text(json.dumps({"meta": meta, "rows": rows}))
    text = script("write_tables").table(
        tmp_path, "metrics_speed", {}, tmp_path / "docs" / "page.md"
    )
    assert "| flawmap | all seven | – | 2 | 900 | 300 | 9.095e-13 |" in text
    assert "| anomalib AUPRO | AUPRO | over 16 GB | – | – | – | – |" in text
    assert text.count("| flawmap |") == 1
    assert "Data: 1,725 drawn maps." in text
    assert "![metrics_speed](../metrics_speed.svg)" in text
    drawn = "".join(ElementTree.parse(tmp_path / "metrics_speed.svg").getroot().itertext())
    assert "flawmap (all seven)" in drawn
    assert "anomalib AUPRO (AUPRO), stopped at 100: over 16 GB" in drawn

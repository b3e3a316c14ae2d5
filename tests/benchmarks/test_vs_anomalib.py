"""The plan of the comparison with anomalib: what runs beside what, and what is left out."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flawmap.data.samples import SampleTable
from flawmap.methods.patchcore import PatchCore
from flawmap.types import Sample


@pytest.fixture
def vs_anomalib(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("vs_anomalib")


def planned(module: ModuleType) -> list[Any]:
    good = Sample("a.png", "tile", "train", 0, "good")
    tables = {("tiles", 0): SampleTable("tiles", "mvtec", (good,))}
    args = Namespace(ratios=[0.1, 0.01], train_minutes=3.0)
    return list(module.plan(tables, args))


def test_both_libraries_run_each_coreset_and_trained_methods_say_their_time(
    vs_anomalib: ModuleType,
) -> None:
    cells = planned(vs_anomalib)
    banks = [(c.library, c.settings) for c in cells if c.ratio]
    assert banks == [
        ("flawmap", "same settings, coreset 0.1"),
        ("anomalib", "same settings, coreset 0.1"),
        ("flawmap", "same settings, coreset 0.01"),
        ("anomalib", "same settings, coreset 0.01"),
    ]
    trained = {c.method: c.settings for c in cells if c.library == "anomalib" and not c.schedule}
    assert trained["stfpm"] == "same settings, 3 min"
    assert trained["padim"] == "same settings"
    assert len({c.key for c in cells}) == len(cells)


@pytest.mark.parametrize(
    ("reason", "needed"),
    [
        (None, False),
        ("over the limit of 15 minutes", True),
        ("killed by the system, probably because the memory was full", True),
        ("ValueError: no such layer", False),
    ],
)
def test_a_smaller_coreset_runs_where_the_peer_could_not_do_a_larger_one(
    vs_anomalib: ModuleType, tmp_path: Path, reason: str | None, needed: bool
) -> None:
    cells = planned(vs_anomalib)
    (large,) = (c for c in cells if c.library == "anomalib" and c.ratio == 0.1)
    runner = vs_anomalib.Runner(Namespace(out=tmp_path), {}, None, {})
    row = dict(zip(vs_anomalib.KEY, large.key, strict=True))
    runner.rows = [{**row, "coreset_ratio": 0.1, "reason": reason}]
    # What flawmap itself could do decides nothing.
    runner.rows.append({**row, "library": "flawmap", "coreset_ratio": 0.1})
    small = [c for c in cells if c.ratio == 0.01]
    assert [runner._needs(c) for c in small] == [needed, needed]
    assert runner._needs(large)


def test_figures_of_older_defaults_count_no_more(
    vs_anomalib: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = {(c.library, c.method, c.settings): c for c in planned(vs_anomalib)}
    ours = cells["flawmap", "patchcore", "default"]
    peer = cells["anomalib", "padim", "same settings"]
    rows = {c: [{"configuration": c.configuration}] for c in (ours, peer)}
    assert vs_anomalib.Runner._current(ours, rows[ours], "")
    monkeypatch.setattr(PatchCore, "defaults", {**PatchCore.defaults, "scoring.sigma": 3.0})
    assert not vs_anomalib.Runner._current(ours, rows[ours], "")
    assert vs_anomalib.Runner._current(peer, rows[peer], "")


def test_figures_of_other_images_count_no_more(
    vs_anomalib: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (padim,) = (c for c in planned(vs_anomalib) if c.method == "padim")
    image = tmp_path / "a.png"

    def row_of(width: int) -> dict[str, Any]:
        image.write_bytes(b"." * width)
        good = Sample(str(image), "tile", "train", 0, "good")
        tables = {("tiles", 0): SampleTable(str(tmp_path), "mvtec", (good,))}
        runner = vs_anomalib.Runner(Namespace(out=tmp_path), tables, None, {})
        found: dict[str, Any] = runner._row(padim, {"reason": "no"}, [good], [], tmp_path)
        assert found["fingerprint"] == tables["tiles", 0].fingerprint()
        return found

    one, other = row_of(10), row_of(11)
    assert vs_anomalib.Runner._current(padim, [one], one["fingerprint"])
    assert not vs_anomalib.Runner._current(padim, [one], other["fingerprint"])
    assert capsys.readouterr().err == ""
    # A row of an earlier version does not say which: it stays, and a note names it.
    del one["fingerprint"]
    assert vs_anomalib.Runner._current(padim, [one], other["fingerprint"])
    note = "tiles/tile/separate/anomalib/padim/same-settings/0: kept, without a word of which"
    assert note in capsys.readouterr().err

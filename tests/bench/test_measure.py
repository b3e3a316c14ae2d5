"""A whole cell, for real, on small images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flawmap.bench.environment import environment, peak_memory_mib
from flawmap.bench.grid import cells_of, make_grid
from flawmap.bench.runner import run_cells
from flawmap.bench.store import Store


def test_the_peak_of_memory_grows_with_what_is_held() -> None:
    import numpy as np

    before = peak_memory_mib()
    if before is None:
        pytest.skip("this system does not tell")
    held = np.ones(64 * 2**20, dtype=np.uint8)
    after = peak_memory_mib()
    assert after is not None
    # What the process held earlier may have been more.
    assert after >= before
    assert after > held.nbytes / 2**20


def test_the_environment_names_what_decides_figures() -> None:
    found = environment()
    assert {"date", "commit", "device", "threads", "versions"} == set(found)
    assert {"flawmap", "python", "torch", "timm", "numpy"} <= set(found["versions"])


@pytest.mark.slow
def test_a_cell_is_fitted_measured_and_stored(two_products: Path, tmp_path: Path) -> None:
    options = {"data.size": 64, "training.precision": "float32"}
    small = {**options, "training.iterations": 2, "method.depth": 2}
    tree: dict[str, Any] = {
        "data": {"two": str(two_products)},
        "methods": [
            {"method": "patchcore", "options": options},
            {"method": "dinomaly", "encoder": "lite0", "options": small},
        ],
        "metrics": ["pro_per_image"],
    }
    with Store(tmp_path / "r.sqlite", create=True) as store:
        summary = run_cells(cells_of(make_grid(tree)), store, keep_models=True)
        assert summary.failed == []
        patchcore, dinomaly = store.cells()
        # A further metric is measured from the bundle that was kept.
        more = {**tree, "methods": tree["methods"][:1], "metrics": ["segf1"]}
        assert run_cells(cells_of(make_grid(more)), store).failed == []
        (scored,) = (c for c in store.cells() if c.key not in (patchcore.key, dinomaly.key))
    assert "fit_seconds" not in scored.cost
    assert scored.cost["images_per_second"] > 0
    assert scored.figures["nut"]["image_auroc"] == patchcore.figures["nut"]["image_auroc"]
    assert 0 < scored.figures["bolt"]["segf1"] <= 1
    assert set(patchcore.figures) == {"bolt", "nut"}
    assert patchcore.figures["bolt"]["image_auroc"] == 1.0
    assert 0 < patchcore.figures["nut"]["pro_per_image"] <= 1
    assert patchcore.figures["nut"]["n_good"] == 4
    for cell in (patchcore, dinomaly):
        cost = cell.cost
        assert 0 < cost["latency_p50_ms"] <= cost["latency_p95_ms"]
        assert cost["images_per_second"] > 0
        assert cost["fit_seconds"] >= sum(cost["stage_seconds"].values()) * 0.9
        assert not cost["fit_resumed"]
        assert cost["bundle_bytes"] > 100_000
        assert 50 < cost["score_peak_memory_mib"] < 4000
        assert cell.environment["encoder_sha256"]
        assert cell.environment["jobs"] == 1
    # The decoder comes on top of the encoder; a memory bank has no parameters.
    assert dinomaly.cost["parameters"] > patchcore.cost["parameters"] > 100_000
    assert dinomaly.cost["macs"] > patchcore.cost["macs"] > 1_000_000

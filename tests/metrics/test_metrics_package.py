"""The package's public names, its examples and what it must not import."""

import doctest
import importlib
import subprocess
import sys

import pytest

import flawmap.metrics


@pytest.mark.parametrize(
    ("name", "n_examples"),
    [
        ("ranking", 7),
        ("masks", 6),
        ("pixel", 7),
        ("catalog", 1),
        ("saturated", 7),
        ("decided", 3),
        ("edges", 4),
    ],
)
def test_examples_in_docstrings(name, n_examples):
    results = doctest.testmod(importlib.import_module(f"flawmap.metrics.{name}"))
    assert (results.failed, results.attempted) == (0, n_examples)


def test_public_names():
    assert set(flawmap.metrics.__all__) == {
        "Confusion",
        "DecidedPixels",
        "EdgeScores",
        "MemoryBudget",
        "PixelMetrics",
        "PixelScores",
        "ProVariant",
        "SaturatedScores",
        "aupro",
        "auroc",
        "average_precision",
        "confusion",
        "edge_pixels",
        "f1_max",
        "label_regions",
        "pixel_ap",
        "pixel_auroc",
        "pixel_f1max",
        "published_crop",
        "resize_mask_nearest",
        "sample_auroc",
        "spro",
    }
    assert all(hasattr(flawmap.metrics, name) for name in flawmap.metrics.__all__)


def test_importing_the_metrics_loads_neither_torch_nor_pydantic():
    code = "import sys, flawmap.metrics; print({'torch', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

"""The catalogue of metrics: names, standing and what tables say of variants."""

import pytest

from flawmap.errors import ConfigError
from flawmap.metrics.catalog import ALWAYS, CATALOG, HEADLINE, info, marks, names, resolve


def test_the_seven_are_official_and_first():
    assert tuple(CATALOG)[:7] == HEADLINE
    assert all(info(name).official for name in ALWAYS)
    variants = [name for name, found in CATALOG.items() if not found.official]
    assert variants == [
        "aupro_0.05",
        "pro_per_image",
        "pixel_ap_edge",
        "pixel_ap_centre",
        "spro_0.05",
        "sample_auroc",
        "segf1",
    ]


def test_every_entry_stands_under_its_name_in_one_line():
    for name in names():
        found = info(name)
        assert found.name == name
        assert "\n" not in found.about + found.title + found.short
    assert len({info(name).short for name in names()}) == len(names())


def test_original_size_is_understood_where_it_exists():
    found = info("aupro_0.05_original")
    assert (found.title, found.original_size) == ("AUPRO to 0.05, original size", False)
    assert found.per_pixel
    for name in ("segf1_original", "spro_0.05_original", "image_auroc_original"):
        with pytest.raises(ConfigError, match="has no form with _original"):
            info(name)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("segf1_original", "segf1"), ("aupro_005", "aupro_0.05"), ("sample-auroc", "sample_auroc")],
)
def test_an_unknown_name_gets_the_nearest_right_one(wrong, right):
    with pytest.raises(ConfigError) as caught:
        info(wrong)
    assert caught.value.hint == f"did you mean '{right}'?"


def test_a_variant_is_official_for_its_data_set_at_original_size_only():
    assert not info("aupro_0.05").is_official("mvtec-ad-2")
    assert info("aupro_0.05_original").is_official("mvtec-ad-2")
    assert info("aupro_0.05_original").is_official("mvtec_ad2")
    assert not info("aupro_0.05_original").is_official("mvtec")
    assert not info("aupro_0.05_original").is_official()
    assert info("spro_0.05").is_official("mvtec-loco")
    assert info("image_auroc").is_official("mvtec-loco")


def test_a_data_set_with_pixel_metrics_of_its_own_has_no_other_official_ones():
    for name in ("mvtec-loco", "mvtec-ad-2"):
        assert not info("aupro").is_official(name)
        assert not info("pixel_auroc_original").is_official(name)
    assert info("aupro").is_official("real-iad")
    assert info("aupro").is_official("mvtec")
    assert marks(["aupro"], "mvtec-loco")["aupro"].startswith("not the official metric of this")


def test_marks_name_what_is_not_official():
    found = marks(["image_auroc", "aupro_0.05", "pro_per_image_original", "segf1"], "mvtec-ad-2")
    assert found == {
        "aupro_0.05": "not the official metric: AUPRO up to an FPR of 0.05 instead of 0.3 "
        "(official at original size for MVTec AD 2 only)",
        "pro_per_image_original": "not the official metric: regions averaged within each image "
        "first, as in some older papers, at original size",
    }


def test_names_are_checked_and_kept_once():
    assert resolve(["segf1", "aupro", "segf1"]) == ("segf1", "aupro")
    with pytest.raises(ConfigError, match="unknown metric 'pro'"):
        resolve(["segf1", "pro"])

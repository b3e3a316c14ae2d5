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
        "pixel_auroc_defects",
        "spro_0.05",
        "spro_0.05_by_kind",
        "spro_0.05_logical",
        "spro_0.05_structural",
        "image_auroc_by_kind",
        "image_auroc_logical",
        "image_auroc_structural",
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


def test_mvtec_loco_judges_kinds_apart():
    for base in ("spro_0.05", "image_auroc"):
        for ending in ("_by_kind", "_logical", "_structural"):
            assert info(base + ending).is_official("mvtec-loco")
            assert not info(base + ending).is_official("mvtec")
        assert not info(base).is_official("mvtec-loco")
    assert info("image_auroc").footnote(["mvtec-loco"]) == (
        "not the official metric of MVTec LOCO: chance that a defect scores above a good image, "
        "ties half"
    )
    for other in ("mvtec", "mvtec-ad-2", "real-iad", ""):
        assert info("image_auroc").is_official(other)
    # Its evaluation has no figures in their place.
    assert info("image_ap").is_official("mvtec-loco")


def test_several_data_sets_are_judged_one_by_one():
    pooled = info("pixel_auroc")
    assert pooled.is_official("mvtec+visa")
    assert not pooled.is_official("mvtec-loco+mvtec")
    about = "AUROC over all pixels of a category"
    # The data sets that it is official for are not named.
    for formats in (["mvtec", "mvtec-loco"], ["mvtec-loco+mvtec"]):
        assert pooled.footnote(formats) == f"not the official metric of MVTec LOCO: {about}"
    assert pooled.footnote(["mvtec-ad-2", "mvtec-loco", "mvtec-ad-2"]) == (
        f"not the official metric of MVTec AD 2 and MVTec LOCO: {about}"
    )
    apart = info("spro_0.05_by_kind")
    assert apart.is_official("mvtec-loco+mvtec-loco")
    assert not apart.is_official("mvtec-loco+mvtec")
    assert apart.footnote(["mvtec-loco", "mvtec"]).endswith("(official for MVTec LOCO only)")
    assert list(marks(["image_ap", "aupro"], "visa+mvtec-ad-2")) == ["aupro"]


def test_a_data_set_with_pixel_metrics_of_its_own_has_no_other_official_ones():
    for name in ("mvtec-loco", "mvtec-ad-2"):
        assert not info("aupro").is_official(name)
        assert not info("pixel_auroc_original").is_official(name)
    assert info("aupro").is_official("real-iad")
    assert info("aupro").is_official("mvtec")
    said = marks(["aupro"], "mvtec-loco")["aupro"]
    assert said.startswith("not the official metric of MVTec LOCO: area under")


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

"""How the data of results was split: magnetic tiles once by image, since then by part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

BY_IMAGE = frozenset(
    {
        *("component_effects", "components", "distillation_defaults", "dmdd_components"),
        *("fitting_time", "forgetting", "mkd_attribution", "mkd_cloner"),
        *("mkd_terms", "unified_dinomaly"),
    }
)
"""Results of magnetic tiles that were first measured with good images split by image, not by tile;
`by_image` says which of them still are."""

TILES_BY_IMAGE = frozenset({"367cba0a1a9d2256", "7ef653d697b0b6bc", "d4db2b6ebbd43548"})
"""Versions of such tiles, as cells of `flawmap bench` tell them."""

BY_PART = "by part"
"""What results say as their `split` since all views of a part stay on one side of it."""


def by_image(name: str, content: Mapping[str, Any]) -> bool:
    """Whether any magnetic tiles of a results file were split by image.

    Cells tell it by the version of their data, any other file by the `split` of its rows or, where
    none has one, of all together.

    Args:
        name: Of the file, without its ending.
        content: What it holds.
    """
    if name not in BY_IMAGE:
        return False
    if "cells" in content:
        return not split_by_part(cell["environment"] for cell in content["cells"])
    splits = {row.get("split") for row in content["rows"]}
    if splits == {None}:
        splits = {content["meta"].get("split")}
    return splits != {BY_PART}


def split_by_part(environments: Iterable[Mapping[str, Any]]) -> bool:
    """Whether cells say which images they saw, and none saw tiles split by image."""
    versions = [about.get("data_versions") for about in environments]
    return all(found and found.get("magnetic_tile") not in TILES_BY_IMAGE for found in versions)

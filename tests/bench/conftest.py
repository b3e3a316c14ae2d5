"""Cells that were never run, for what only reads results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from flawmap.bench.grid import setting_of
from flawmap.bench.results import StoredCell

Make = Callable[..., StoredCell]


@pytest.fixture
def stored() -> Make:
    """Makes a finished cell; what is not named is plain."""

    def make(
        label: str,
        figures: Mapping[str, Mapping[str, float | None]],
        *,
        data: str = "parts",
        setting: str | None = None,
        seed: int = 0,
        **other: Any,
    ) -> StoredCell:
        setting = setting or setting_of(tuple(figures))
        known: dict[str, Any] = {
            "key": f"{label}-{data}-{setting}-{seed}-{'-'.join(figures)}",
            "method": label,
            "encoder": "lite0",
            "format": "mvtec",
            "fingerprint": "f",
            "categories": tuple(figures),
            # Lines are told apart by their options.
            "config": {"method": {"name": label}, "chosen": []},
            "status": "done",
            "error": None,
            "cost": {},
            "environment": {"device": "2 cores", "commit": "abc", "versions": {"torch": "2"}},
        }
        return StoredCell(
            label=label,
            data=data,
            setting=setting,
            seed=seed,
            figures=figures,
            **{**known, **other},
        )

    return make

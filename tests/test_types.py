from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flawmap.errors import DataError
from flawmap.types import Sample


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"path": Path("a.png")}, "this path"),
        ({"masks": (Path("m.png"),)}, "this path"),
        ({"split": "Train"}, "this split"),
        ({"label": 2}, "this label"),
        ({"label": "good"}, "this label"),
    ],
)
def test_a_sample_that_would_be_misread_is_refused(change: dict[str, Any], words: str) -> None:
    right: dict[str, Any] = {"path": "a.png", "category": "bolt", "split": "train", "label": 0}
    assert Sample(**right).label == 0
    with pytest.raises(DataError, match=words) as caught:
        Sample(**{**right, **change})
    assert caught.value.where == "a.png"
    assert caught.value.expected

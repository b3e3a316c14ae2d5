"""A prediction as a line of text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

COLUMNS = (
    "path",
    "category",
    "verdict",
    "score",
    "threshold",
    "pixel_threshold",
    "height",
    "width",
    "n_regions",
    "largest_area",
    "largest_left",
    "largest_top",
    "largest_width",
    "largest_height",
    "peak",
    "peak_x",
    "peak_y",
    "map",
    "map_min",
    "map_max",
    "overlay",
)
"""The columns of predictions.csv; sizes and places in px of the source image."""


def to_json(value: Any, *, indent: int | None = None, ascii_only: bool = False) -> str:
    """JSON that every reader accepts: no NaN, and always writable.

    Args:
        value: Plain values; numbers that are not finite become null.
        indent: As for `json.dumps`.
        ascii_only: Escape everything beyond ASCII, for terminals of unknown encoding.
    """
    value = _finite(value)
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only, allow_nan=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError:
        # File names that are no UTF-8 survive as escapes only.
        return json.dumps(value, indent=indent, allow_nan=False, default=str)
    return text


def csv_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of one record: counts and the largest region instead of the list of regions."""
    height, width = record["size"]
    row = {name: record.get(name) for name in COLUMNS}
    row.update(height=height, width=width, n_regions=len(record["regions"]))
    if record["regions"]:
        largest = max(record["regions"], key=lambda region: region["area"])
        highest = max(record["regions"], key=lambda region: region["peak"])
        left, top, across, down = largest["box"]
        x, y = highest["peak_at"]
        row.update(
            largest_area=largest["area"],
            largest_left=left,
            largest_top=top,
            largest_width=across,
            largest_height=down,
            peak=highest["peak"],
            peak_x=x,
            peak_y=y,
        )
    return row


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value

"""Predictions as files: CSV, JSON Lines, maps and overlays; none of it needs torch."""

from flawmap.data.drawn import drawn_before
from flawmap.outputs.maps import read_map_png, write_map_npy, write_map_png
from flawmap.outputs.overlay import draw_overlay
from flawmap.outputs.records import to_json
from flawmap.outputs.stream import Tally, predictions, skipping
from flawmap.outputs.writer import PredictionWriter

__all__ = [
    "PredictionWriter",
    "Tally",
    "draw_overlay",
    "drawn_before",
    "predictions",
    "read_map_png",
    "skipping",
    "to_json",
    "write_map_npy",
    "write_map_png",
]

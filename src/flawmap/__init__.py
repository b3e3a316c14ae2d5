"""flawmap finds flaws on products after seeing good ones only.

>>> import flawmap
>>> detector = flawmap.fit("photos", output="model.flawmap")  # doctest: +SKIP
>>> detector.predict("part.png").verdict  # doctest: +SKIP
'defect'

Importing flawmap loads neither torch nor anything heavy; names are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flawmap.api import configure, evaluate, fit
    from flawmap.config import Config
    from flawmap.data import inspect, read_data
    from flawmap.detector import Detector
    from flawmap.errors import FlawmapError
    from flawmap.evaluation import Evaluation
    from flawmap.loading import load
    from flawmap.recalibrate import calibrate
    from flawmap.types import Prediction, Region, Sample

__version__ = "0.1.0"

_PLACES = {
    "Config": "flawmap.config",
    "Detector": "flawmap.detector",
    "Evaluation": "flawmap.evaluation",
    "FlawmapError": "flawmap.errors",
    "Prediction": "flawmap.types",
    "Region": "flawmap.types",
    "Sample": "flawmap.types",
    "calibrate": "flawmap.recalibrate",
    "configure": "flawmap.api",
    "evaluate": "flawmap.api",
    "fit": "flawmap.api",
    "inspect": "flawmap.data",
    "load": "flawmap.loading",
    "read_data": "flawmap.data",
}

__all__ = [
    "Config",
    "Detector",
    "Evaluation",
    "FlawmapError",
    "Prediction",
    "Region",
    "Sample",
    "__version__",
    "calibrate",
    "configure",
    "evaluate",
    "fit",
    "inspect",
    "load",
    "read_data",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'flawmap' has no attribute '{name}'")
    try:
        value = getattr(import_module(_PLACES[name]), name)
    except ImportError as error:
        from flawmap.errors import missing_extra

        if (extra := missing_extra(error)) is not None:
            raise extra from error
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

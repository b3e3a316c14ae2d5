"""From raw maps to verdicts, in numpy and scipy, without torch.

The one place for it: evaluation, the command line, servers and exports all pass through here.
"""

from flawmap.scoring.calibration import Calibration, CategoryCalibration, Threshold, conformal
from flawmap.scoring.maps import Smoothing, pool, resample, smooth
from flawmap.scoring.regions import find_regions
from flawmap.scoring.scorer import Scorer

__all__ = [
    "Calibration",
    "CategoryCalibration",
    "Scorer",
    "Smoothing",
    "Threshold",
    "conformal",
    "find_regions",
    "pool",
    "resample",
    "smooth",
]

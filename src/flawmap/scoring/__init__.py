"""From raw maps to verdicts, in numpy and scipy, without torch.

The one place for it: evaluation, the command line, servers and exports all pass through here.
"""

from flawmap.scoring.calibration import Calibration, CategoryCalibration, Threshold, conformal
from flawmap.scoring.maps import pool, resample, smooth_on_input
from flawmap.scoring.regions import find_regions
from flawmap.scoring.scorer import Scorer

__all__ = [
    "Calibration",
    "CategoryCalibration",
    "Scorer",
    "Threshold",
    "conformal",
    "find_regions",
    "pool",
    "resample",
    "smooth_on_input",
]

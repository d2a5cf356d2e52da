"""A cluster's constants fitted to measured steps; loads SciPy, so import it only where it is used."""

from objectives.calibration.few_rows import AfterRows, after_rows, calibrated_runs, timed_steps
from objectives.calibration.fit import (
    CalibratedConstant,
    Calibration,
    HeldBack,
    calibrate,
    calibrated_cluster,
)
from objectives.calibration.holdups import Exposure, HoldUps, exposure, exposure_of
from objectives.calibration.memory import MemoryCalibration, calibrate_memory
from objectives.calibration.parameters import Linearised, TimedStep, log_step_s
from objectives.calibration.robust_fit import is_better

__all__ = [
    "AfterRows",
    "CalibratedConstant",
    "Calibration",
    "Exposure",
    "HeldBack",
    "HoldUps",
    "Linearised",
    "MemoryCalibration",
    "TimedStep",
    "after_rows",
    "calibrate",
    "calibrate_memory",
    "calibrated_cluster",
    "calibrated_runs",
    "exposure",
    "exposure_of",
    "is_better",
    "log_step_s",
    "timed_steps",
]

"""Calibration: what layers read on a few hundred samples, and what the output loses when units go."""

from slimfast.calibration.curves import ErrorCurve, error_curves
from slimfast.calibration.data import Calibration
from slimfast.calibration.files import save_calibration
from slimfast.calibration.folders import load_calibration
from slimfast.calibration.moments import calibrate

__all__ = [
    "Calibration",
    "ErrorCurve",
    "calibrate",
    "error_curves",
    "load_calibration",
    "save_calibration",
]

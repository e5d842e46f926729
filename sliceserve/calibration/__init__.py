"""Makes the profiles of the calibrated codec: statistics of hidden states, no training."""

from sliceserve.calibration.library import default_store, keep, profiles_of
from sliceserve.calibration.profiles import CalibrationError, calibrate

__all__ = ["CalibrationError", "calibrate", "default_store", "keep", "profiles_of"]

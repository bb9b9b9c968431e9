"""Spectra: eigenvalues of the layers' covariances, measured from weights, saved and loaded."""

from slimfast.spectra.measurement import measure_again, measure_spectra
from slimfast.spectra.spectrum import Spectrum
from slimfast.spectra.storage import load_spectra, save_spectra

__all__ = ["Spectrum", "load_spectra", "measure_again", "measure_spectra", "save_spectra"]

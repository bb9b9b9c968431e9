"""Spectra: eigenvalues of the layers' covariances, measured from weights, saved and loaded."""

from slimfast.spectra.files import load_spectra, save_spectra
from slimfast.spectra.measurement import measure_again, measure_spectra, until_settled
from slimfast.spectra.spectrum import Spectrum

__all__ = ["Spectrum", "load_spectra", "measure_again", "measure_spectra", "save_spectra", "until_settled"]

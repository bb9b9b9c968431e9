"""Kernels: four grouped ops behind one dispatch."""

from slimfast.kernels.ops import (
    Covariances,
    PivotedCholesky,
    SpectraValues,
    grouped_covariance,
    grouped_eigvalsh,
    grouped_gather,
    grouped_pivoted_cholesky,
    grouped_spectra,
)

__all__ = [
    "Covariances",
    "PivotedCholesky",
    "SpectraValues",
    "grouped_covariance",
    "grouped_eigvalsh",
    "grouped_gather",
    "grouped_pivoted_cholesky",
    "grouped_spectra",
]

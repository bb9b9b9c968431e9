"""Kernels: four grouped ops behind one dispatch."""

from slimfast.kernels.backends.contract import Prepared
from slimfast.kernels.ops import (
    Covariances,
    PaddedCholesky,
    PivotedCholesky,
    SpectraValues,
    grouped_covariance,
    grouped_eigvalsh,
    grouped_gather,
    grouped_pivoted_cholesky,
    grouped_spectra,
)
from slimfast.kernels.prepare import (
    prepare_covariance,
    prepare_eigvalsh,
    prepare_gather,
    prepare_pivoted_cholesky,
)

__all__ = [
    "Covariances",
    "PaddedCholesky",
    "PivotedCholesky",
    "Prepared",
    "SpectraValues",
    "grouped_covariance",
    "grouped_eigvalsh",
    "grouped_gather",
    "grouped_pivoted_cholesky",
    "grouped_spectra",
    "prepare_covariance",
    "prepare_eigvalsh",
    "prepare_gather",
    "prepare_pivoted_cholesky",
]

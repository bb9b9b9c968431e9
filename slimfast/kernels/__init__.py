"""Kernels: four grouped ops behind one dispatch."""

from slimfast.kernels.backends.contract import Prepared
from slimfast.kernels.ops import (
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
from slimfast.kernels.results import Covariances, PaddedCholesky, PivotedCholesky, SpectraValues

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

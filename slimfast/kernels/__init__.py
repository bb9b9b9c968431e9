"""Kernels: the grouped ops behind one dispatch."""

from slimfast.kernels.backends.contract import Prepared
from slimfast.kernels.cholesky_solve import grouped_cholesky_solve
from slimfast.kernels.convolutions import Convolution
from slimfast.kernels.moments import grouped_cross_covariance, grouped_moments, grouped_patch_moments
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
from slimfast.kernels.results import (
    CholeskySolutions,
    Covariances,
    CrossMoments,
    Moments,
    PaddedCholesky,
    PivotedCholesky,
    SpectraValues,
)

__all__ = [
    "CholeskySolutions",
    "Convolution",
    "Covariances",
    "CrossMoments",
    "Moments",
    "PaddedCholesky",
    "PivotedCholesky",
    "Prepared",
    "SpectraValues",
    "grouped_cholesky_solve",
    "grouped_covariance",
    "grouped_cross_covariance",
    "grouped_eigvalsh",
    "grouped_gather",
    "grouped_moments",
    "grouped_patch_moments",
    "grouped_pivoted_cholesky",
    "grouped_spectra",
    "prepare_covariance",
    "prepare_eigvalsh",
    "prepare_gather",
    "prepare_pivoted_cholesky",
]

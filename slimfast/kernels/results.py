"""What the grouped ops return."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Covariances(NamedTuple):
    """Covariances of a group of layers: ``matrices[i]`` is (m_i, m_i); ``traces`` (g,) float64 on the CPU."""

    matrices: list[Tensor]
    traces: Tensor


class PivotedCholesky(NamedTuple):
    """Pivoted Cholesky of one (n, n) matrix, stopped after r <= k picks.

    ``order`` (r,) int64: the picks, best first. ``factor`` (n, r): S[:, order] = factor @ factor[order].T up
    to the residual, rows in the matrix's own order. ``residual`` (r,): the trace left unexplained after each
    pick.
    """

    order: Tensor
    factor: Tensor
    residual: Tensor


class PaddedCholesky(NamedTuple):
    """Pivoted Cholesky of a group of matrices, every one padded to the k_i picks that were asked for.

    ``picks[i]``: order (k_i,), factor (n_i, k_i) and residual (k_i,), of which the first ``counts[i]`` are
    picks; ``counts`` (g,) int64 on the device. Beyond them the order is -1, the factor zero and the residual
    what was left unexplained.
    """

    picks: list[PivotedCholesky]
    counts: Tensor


class SpectraValues(NamedTuple):
    """Eigenvalues of a group of layers: ``eigenvalues[i]`` (m_i,) ascending, float64 on the CPU; ``traces``
    (g,)."""

    eigenvalues: list[Tensor]
    traces: Tensor

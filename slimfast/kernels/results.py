"""What the grouped ops return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
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


@dataclass(slots=True, eq=False)
class Moments:
    """Mean and summed squares of L variables over the positions seen so far, float64 where the inputs are.

    What joining loses is a rounding of the mean: where that is r deviations, r roundings of float64 in the
    squares (r^2 for sums of x x^T).

    Attributes:
        count: The positions.
        mean: (L,); of the patches of a convolution in g groups (g, L).
        squares: The sum of (x - mean)(x - mean)^T, (L, L) or (g, L, L).

    Example:
        (moments,) = slimfast.grouped_moments([torch.randn(8, 100)])
        moments.covariance()
    """

    count: int
    mean: Tensor
    squares: Tensor

    def covariance(self) -> Tensor:
        """Return the covariance, ``squares / max(count - 1, 1)``."""
        return self.squares / max(self.count - 1, 1)

    def second(self) -> Tensor:
        """Return the sum of x x^T: the squares about zero instead of about the mean."""
        return self.squares + self.count * (self.mean[..., :, None] * self.mean[..., None, :])

    def merge(self, other: Moments) -> None:
        """Take in, in place, the moments of other positions (Chan, Golub and LeVeque, *The American
        Statistician* 37, 1983).
        """
        if other.count == 0:
            return
        both = self.count + other.count
        apart = other.mean - self.mean
        share = other.count / both
        self.squares += other.squares
        self.squares += apart[..., :, None] * apart[..., None, :] * (self.count * share)
        self.mean += apart * share
        self.count = both


@dataclass(slots=True, eq=False)
class CrossMoments:
    """Means and summed products of K and of L variables over the positions seen so far, float64.

    Attributes:
        count: The positions.
        mean_x: (K,).
        mean_y: (L,).
        products: The sum of (x - mean_x)(y - mean_y)^T, (K, L).

    Example:
        (moments,) = slimfast.grouped_cross_covariance([torch.randn(8, 100)], [torch.randn(3, 100)])
        moments.covariance()
    """

    count: int
    mean_x: Tensor
    mean_y: Tensor
    products: Tensor

    def covariance(self) -> Tensor:
        """Return the cross-covariance, ``products / max(count - 1, 1)``."""
        return self.products / max(self.count - 1, 1)

    def second(self) -> Tensor:
        """Return the sum of x y^T: the products about zero instead of about the means."""
        return self.products + self.count * torch.outer(self.mean_x, self.mean_y)

    def merge(self, other: CrossMoments) -> None:
        """Take in, in place, the moments of other positions, as :meth:`Moments.merge` does."""
        if other.count == 0:
            return
        both = self.count + other.count
        apart_x, apart_y = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        share = other.count / both
        self.products += other.products
        self.products += torch.outer(apart_x, apart_y) * (self.count * share)
        self.mean_x += apart_x * share
        self.mean_y += apart_y * share
        self.count = both


class CholeskySolutions(NamedTuple):
    """Solutions of damped systems: ``solutions[i]`` (j_i, m_i, k_i), one for each damping.

    ``failures[i]`` (j_i,) int64 on the CPU: 0, or where the damped matrix is not positive definite the order
    of the first leading minor that is not positive; the solution is NaN there.
    """

    solutions: list[Tensor]
    failures: list[Tensor]

"""Spectrum: the eigenvalues of a layer's covariance, and the width that preserves a share of the variance."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from slimfast.arrays import FloatArray
from slimfast.errors import ArgumentError, SlimfastError
from slimfast.spectra.eigenvalues import Scaling

Dtype = Literal["float32", "float64"]


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """Eigenvalues, descending, of the covariance of a layer's n units over d positions.

    Eigenvalues that no measurement gives (too few, unordered, not finite) raise :class:`SlimfastError` at
    once.

    Attributes:
        name: The layer's name.
        n: How many units it has.
        d: How many positions define each.
        eigenvalues: (m,) float64, m = min(n, d), none below zero; the other n - m are zero.
        trace: The covariance's.
        error: How far :meth:`explained_variance_ratio` may be from float64 LAPACK's; 0 where LAPACK in
            float64 measured it.
        dtype: The arithmetic of the measurement.
        scaling: As given to :func:`measure_spectra`.
        member_scaling: Likewise.

    Example:
        spectrum = slimfast.measure_spectra(model)["conv1.weight"]
        spectrum.width(explained_variance=0.9)
    """

    name: str
    n: int
    d: int
    eigenvalues: FloatArray
    trace: float
    error: float
    dtype: Dtype
    scaling: Scaling = "raw"
    member_scaling: bool = False
    _ratio: FloatArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check(self)
        object.__setattr__(self, "_ratio", _explained(self.eigenvalues))

    def explained_variance_ratio(self) -> FloatArray:
        """Compute F(1), ..., F(m): the share of the variance in the k largest eigenvalues; all 1 where none
        is.
        """
        return self._ratio

    def ratio(self, width: int) -> float:
        """Compute F(width): the share of the variance that ``width`` units can explain; 0 units explain
        nothing.
        """
        if not 0 <= width <= self.n:
            raise ArgumentError(f"ratio: expected a width in 0..{self.n}, got {width} ({self.name})")
        if width == 0:
            return 0.0
        return float(self._ratio[min(width, len(self.eigenvalues)) - 1])

    def rank(self) -> int:
        """Count the eigenvalues above m u l_1 (u of float64), at least 1: the numerical rank."""
        floor = len(self.eigenvalues) * np.finfo(np.float64).eps * float(self.eigenvalues[0])
        return max(1, int(np.count_nonzero(self.eigenvalues > floor)))

    def width(self, *, explained_variance: float = 0.95) -> int:
        """Find k(tau) = min {k : F(k) >= tau}; never more than the numerical rank. A layer without variance
        needs 1.
        """
        check_tau("width", explained_variance, self.name)
        first = int(np.searchsorted(self._ratio, explained_variance)) + 1
        return min(first, self.rank())

    def width_range(self, *, explained_variance: float = 0.95) -> tuple[int, int]:
        """Find the smallest and the largest :meth:`width` over every F within ``error`` of the measured
        one.
        """
        check_tau("width_range", explained_variance, self.name)
        if self.error == 0.0:
            width = self.width(explained_variance=explained_variance)
            return width, width
        ratio = self._ratio
        low, high = np.searchsorted(ratio, [explained_variance - self.error, explained_variance + self.error])
        return int(low) + 1, min(int(high), len(ratio) - 1) + 1

    def certified(self, *, explained_variance: float = 0.95) -> bool:
        """Whether every F within ``error`` of the measured one gives the same :meth:`width`."""
        low, high = self.width_range(explained_variance=explained_variance)
        return low == high

    def effective_rank(self) -> float:
        """Compute exp of the entropy of the normalised eigenvalues, in 1..m (Roy & Vetterli, EUSIPCO
        2007).
        """
        positive = self.eigenvalues[self.eigenvalues > 0.0]
        if positive.size == 0:
            return 1.0
        share = positive / positive.sum()
        return math.exp(-float(np.sum(share * np.log(share))))


def _explained(eigenvalues: FloatArray) -> FloatArray:
    total = float(eigenvalues.sum())
    if total == 0.0:
        return np.ones_like(eigenvalues)
    ratio: FloatArray = np.minimum(np.cumsum(eigenvalues) / total, 1.0)
    ratio[-1] = 1.0
    ratio.flags.writeable = False
    return ratio


def check_tau(what: str, tau: float, name: str = "") -> None:
    """Raise ``ValueError`` for an explained variance outside (0, 1]."""
    if not 0.0 < tau <= 1.0:
        raise ArgumentError(
            f"{what}: expected explained_variance in (0, 1], got {tau}{f' ({name})' if name else ''}"
        )


def _check(s: Spectrum) -> None:
    """Raise :class:`SlimfastError` for what no measurement gives."""
    values = s.eigenvalues
    if values.shape != (min(s.n, s.d),) or values.dtype != np.float64:
        raise SlimfastError(
            f"spectrum: expected {min(s.n, s.d)} float64 eigenvalues for {s.n} units over {s.d} positions, "
            f"got {values.dtype} of shape {values.shape} ({s.name})"
        )
    # A sum beyond what float64 holds is inf, and told below.
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(values.sum())
    if not math.isfinite(total) or not math.isfinite(s.trace):
        raise SlimfastError(
            f"spectrum: expected finite eigenvalues, got a sum of {total} and a trace of {s.trace} ({s.name})"
        )
    if not s.error >= 0.0:
        raise SlimfastError(f"spectrum: expected an error >= 0, got {s.error} ({s.name})")
    if values[-1] < 0 or (np.diff(values) > 0).any():
        raise SlimfastError(f"spectrum: expected eigenvalues >= 0 in descending order, got others ({s.name})")

"""Widths from explained variance: at one tau for all groups, or at the largest tau whose cost fits a budget.

All groups' units form one ladder: unit k + 1 of a group is added when tau passes F(k). Sorted by that value,
with ties in the order of the groups, every prefix of the ladder is a network, and its cost never falls as the
prefix grows. The solution is the longest prefix that fits, found by bisection over prefixes: exact, with no
tolerance, and one more unit of one group would not fit.

Past tau = 1, where the spectra see nothing more to gain, the ladder goes on with the units beyond each
group's rank in equal shares, so that a larger budget is used too and the whole network is its end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slimfast.costs import Cost
from slimfast.errors import SlimfastError
from slimfast.graph.groups import IntArray
from slimfast.spectra.spectrum import Spectrum

FloatArray = NDArray[np.float64]
Price = Callable[[IntArray], Cost]


class Solution(NamedTuple):
    """Widths (g,) of the chosen groups, and the tau they come from, where they come from one."""

    widths: IntArray
    explained_variance: float | None


class Ladder(NamedTuple):
    """The units after each group's first, in the order in which they are added: ``keys`` ascending, and the
    group of each.
    """

    keys: FloatArray
    groups: IntArray

    @staticmethod
    def of(keys: Sequence[FloatArray]) -> Ladder:
        """The ladder of these keys, one array per group; ties in the order of the groups."""
        groups = np.repeat(np.arange(len(keys)), [len(k) for k in keys])
        joined = np.concatenate(keys) if keys else np.zeros(0)
        order = np.argsort(joined, kind="stable")
        return Ladder(joined[order], groups[order])


@dataclass(frozen=True, slots=True, eq=False)
class Rounding:
    """What a width may be: multiples of ``step`` (g,), at least ``minimum``, and always all ``full`` (g,)
    units.
    """

    full: IntArray
    step: IntArray
    minimum: int

    def apply(self, widths: IntArray) -> IntArray:
        """Each width rounded up to one that may be."""
        up = -(-np.maximum(widths, self.minimum) // self.step) * self.step
        rounded: IntArray = np.minimum(up, self.full)
        return rounded


def widths_at(spectra: Sequence[Spectrum], tau: float, rounding: Rounding) -> Solution:
    """The width of each group at one tau."""
    widths = np.array([s.width(explained_variance=tau) for s in spectra], dtype=np.int64)
    return Solution(rounding.apply(widths), tau)


def widths_within(
    spectra: Sequence[Spectrum],
    limits: Mapping[str, float],
    price: Price,
    rounding: Rounding,
    *,
    whole: Cost,
) -> Solution:
    """The widths at the largest tau whose ``price(widths)`` is within every limit, ``params`` and ``macs``.

    :class:`SlimfastError` with the nearest that can be reached, as a share of ``whole`` too, where the
    smallest widths do not fit.
    """
    ladder = Ladder.of([_keys(s) for s in spectra])
    widths, height = longest_prefix(ladder, limits, price, rounding, whole=whole)
    return Solution(widths, min(float(ladder.keys[height]), 1.0) if height < len(ladder.keys) else 1.0)


def longest_prefix(
    ladder: Ladder, limits: Mapping[str, float], price: Price, rounding: Rounding, *, whole: Cost
) -> tuple[IntArray, int]:
    """The widths of the longest prefix of a ladder that is within every limit, and that prefix's length."""

    def widths(prefix: int) -> IntArray:
        units: IntArray = 1 + np.bincount(ladder.groups[:prefix], minlength=len(rounding.full))
        return rounding.apply(units)

    def fits(prefix: int) -> bool:
        cost = price(widths(prefix))
        return all(getattr(cost, name) <= limit for name, limit in limits.items())

    if not fits(0):
        raise _unreachable(price(widths(0)), limits, whole)
    low, high = 0, len(ladder.keys)
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return widths(low), low


def settled(spectra: Sequence[Spectrum], tau: float, rounding: Rounding) -> NDArray[np.bool_]:
    """For each group, whether every F within its spectrum's error of the measured one gives it the same
    width.
    """
    ends = np.array([s.width_range(explained_variance=tau) for s in spectra], dtype=np.int64).reshape(-1, 2)
    same: NDArray[np.bool_] = rounding.apply(ends[:, 0]) == rounding.apply(ends[:, 1])
    return same


def _keys(spectrum: Spectrum) -> FloatArray:
    """The value that tau must pass for each unit after the first: F(1), ..., F(r - 1), then n - r values
    evenly spaced in (1, 2], r = k(1) being all that tau can ask for.
    """
    needed = spectrum.width(explained_variance=1.0)
    beyond = spectrum.n - needed
    rest = 1.0 + np.arange(1, beyond + 1) / max(beyond, 1)
    return np.concatenate([spectrum.explained_variance_ratio()[: needed - 1], rest])


def _unreachable(least: Cost, limits: Mapping[str, float], whole: Cost) -> SlimfastError:
    def told(name: str, count: float) -> str:
        return f"{count:,.0f} {name} ({count / max(getattr(whole, name), 1):.4f} of the original)"

    wanted = " and ".join(told(name, limit) for name, limit in limits.items())
    nearest = " and ".join(told(name, getattr(least, name)) for name in limits)
    return SlimfastError(f"budget: {wanted} cannot be reached; the nearest that can is {nearest}")

"""Widths from explained variance: at one tau for all groups, or at the largest tau whose cost fits a budget.

All groups' units form one ladder: unit k + 1 of a group is added when tau passes F(k). Sorted by that value,
with ties in the order of the groups, every prefix of the ladder is a network, and its cost never falls as the
prefix grows. The longest prefix that fits is found by bisection over prefixes: exact, with no tolerance.

Past tau = 1, where the spectra see nothing more to gain, the ladder goes on with the units beyond each
group's rank in equal shares, so that a larger budget is used too and the whole network is its end.

Where the next unit is a dear one (a head in all blocks, eight channels of a residual stream) much of the
budget may be left. It goes to the units of other groups that still fit, in equal shares of each group, those
within a group's rank first: :func:`with_the_rest`. A unit that does not fit ends its group, and the order
depends on the prefix alone, so a larger budget never costs less: the first unit that it takes and the smaller
did not already costs more than the smaller had. It may take that dear unit in place of cheap ones of other
groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from slimfast.arrays import BoolArray, FloatArray, IntArray
from slimfast.errors import SlimfastError
from slimfast.latency.timing import seconds_text
from slimfast.memory.measuring import bytes_text
from slimfast.plans.limits import PEAK, is_latency
from slimfast.spectra.spectrum import Spectrum

# What widths cost under each limit, by its name.
Price = Callable[[IntArray], Mapping[str, float]]


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
        """Make the ladder of these keys, one array per group; ties in the order of the groups."""
        groups = np.repeat(np.arange(len(keys)), [len(k) for k in keys])
        joined = np.concatenate(keys) if keys else np.zeros(0)
        order = np.argsort(joined, kind="stable")
        return Ladder(joined[order], groups[order])


@dataclass(frozen=True, slots=True, eq=False)
class Rounding:
    """What a width may be: multiples of ``step`` (g,), at least ``minimum`` (g,), and always all ``full``
    (g,) units.
    """

    full: IntArray
    step: IntArray
    minimum: IntArray

    @property
    def spans(self) -> IntArray:
        """How many units (g,) to look at for what one of them costs."""
        return np.ones_like(self.full)

    def apply(self, widths: IntArray) -> IntArray:
        """Round each width up to one that may be."""
        up = -(-np.maximum(widths, self.minimum) // self.step) * self.step
        rounded: IntArray = np.minimum(up, self.full)
        return rounded


def widths_at(spectra: Sequence[Spectrum], tau: float, rounding: Rounding) -> Solution:
    """Find the width of each group at one tau."""
    widths = np.array([s.width(explained_variance=tau) for s in spectra], dtype=np.int64)
    return Solution(rounding.apply(widths), tau)


def widths_within(
    spectra: Sequence[Spectrum],
    limits: Mapping[str, float],
    price: Price,
    rounding: Rounding,
    *,
    whole: Mapping[str, float],
) -> Solution:
    """Find the widths at the largest tau whose ``price(widths)`` is within every limit, ``params`` and
    ``macs``, and spend what is left of the limits on further units.

    :class:`SlimfastError` with the nearest that can be reached, as a share of ``whole`` too, where the
    smallest widths do not fit.
    """
    ladder = Ladder.of([_keys(s) for s in spectra])
    units, height = longest_prefix(ladder, limits, price, rounding, whole=whole)
    tau = min(float(ladder.keys[height]), 1.0) if height < len(ladder.keys) else 1.0
    ranks = [s.width(explained_variance=1.0) for s in spectra]
    further = Ladder.of(
        [_shares(*of) for of in zip(units.tolist(), ranks, rounding.full.tolist(), strict=True)]
    )
    return Solution(with_the_rest(units, further, limits, price, rounding), tau)


def longest_prefix(
    ladder: Ladder,
    limits: Mapping[str, float],
    price: Price,
    rounding: Rounding,
    *,
    whole: Mapping[str, float],
) -> tuple[IntArray, int]:
    """Find the longest prefix of a ladder that is within every limit: its units (g,), not yet rounded to
    widths, and its length.
    """
    first: IntArray = np.ones(len(rounding.full), dtype=np.int64)
    if not _fits(first, limits, price, rounding):
        raise _unreachable(price(rounding.apply(first)), limits, whole)
    height = _longest(first, ladder.groups, limits, price, rounding)
    return _added(first, ladder.groups[:height]), height


def with_the_rest(
    units: IntArray, further: Ladder, limits: Mapping[str, float], price: Price, rounding: Rounding
) -> IntArray:
    """Add every unit of ``further``, in its order, that is within every limit with those before it, to the
    widths (g,); a group takes no more after one that is not.
    """
    waiting = further.groups
    while len(waiting):
        taken = _longest(units, waiting, limits, price, rounding)
        units, waiting = _added(units, waiting[:taken]), waiting[taken:]
        waiting = waiting[waiting != waiting[0]] if len(waiting) else waiting
    return rounding.apply(units)


def _longest(
    units: IntArray, groups: IntArray, limits: Mapping[str, float], price: Price, rounding: Rounding
) -> int:
    """Count the next units, one of each of these groups in turn, that are within every limit."""
    low, high = 0, 1
    while high <= len(groups) and _fits(_added(units, groups[:high]), limits, price, rounding):
        low, high = high, 2 * high
    high = min(high - 1, len(groups))
    while low < high:
        middle = (low + high + 1) // 2
        if _fits(_added(units, groups[:middle]), limits, price, rounding):
            low = middle
        else:
            high = middle - 1
    return low


def _added(units: IntArray, groups: IntArray) -> IntArray:
    """Add one more unit of each of these groups, as often as they stand there."""
    more: IntArray = units + np.bincount(groups, minlength=len(units))
    return more


def _fits(units: IntArray, limits: Mapping[str, float], price: Price, rounding: Rounding) -> bool:
    cost = price(rounding.apply(units))
    return all(cost[name] <= limit for name, limit in limits.items())


def settled(spectra: Sequence[Spectrum], tau: float, rounding: Rounding) -> BoolArray:
    """Say for each group whether every F within its spectrum's error of the measured one gives it the same
    width.
    """
    ends = np.array([s.width_range(explained_variance=tau) for s in spectra], dtype=np.int64).reshape(-1, 2)
    same: BoolArray = rounding.apply(ends[:, 0]) == rounding.apply(ends[:, 1])
    return same


def _keys(spectrum: Spectrum) -> FloatArray:
    """List the value that tau must pass for each unit after the first: F(1), ..., F(r - 1), then n - r values
    evenly spaced in (1, 2], r = k(1) being all that tau can ask for.
    """
    needed = spectrum.width(explained_variance=1.0)
    beyond = spectrum.n - needed
    rest = 1.0 + np.arange(1, beyond + 1) / max(beyond, 1)
    return np.concatenate([spectrum.explained_variance_ratio()[: needed - 1], rest])


def _shares(units: int, rank: int, n: int) -> FloatArray:
    """Order a group's units after the first ``units`` for when what is left of a budget is shared out: by the
    share of the group that each adds, and 1 more past the group's rank.
    """
    number = np.arange(units + 1, n + 1)
    return (number - units) / n + (number > rank)


class BudgetUnreachable(SlimfastError):
    """The smallest widths are above a limit."""


def _unreachable(
    least: Mapping[str, float], limits: Mapping[str, float], whole: Mapping[str, float]
) -> BudgetUnreachable:
    def told(name: str, count: float) -> str:
        share = f"{count / whole[name] if whole[name] else 0.0:.4f} of the original"
        of = {PEAK: "a peak memory of "}.get(name, "")
        unit = "" if name == PEAK or is_latency(name) else f" {name}"
        return f"{of}{amount_text(name, count)}{unit} ({share})"

    wanted = " and ".join(told(name, limit) for name, limit in limits.items())
    nearest = " and ".join(told(name, least[name]) for name in limits)
    return BudgetUnreachable(f"budget: {wanted} cannot be reached; the nearest that can is {nearest}")


def amount_text(name: str, count: float) -> str:
    """Write an amount of what a budget of that name limits."""
    if name == PEAK:
        return bytes_text(count)
    return seconds_text(count) if is_latency(name) else f"{count:,.0f}"

"""Widths where the time of a layer does not rise evenly: one that is wider and no slower is taken instead.

The blocks in which hardware works make stairs of a layer's time, and some widths are slower than wider ones.
For each group every width is sent up to the widest one that takes no longer, all else whole: where the
stairs are does not depend on the other widths. Over what is left the time rises, as the search for the widest
network within a budget expects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from slimfast.arrays import IntArray
from slimfast.latency.pricing import PricedLatency
from slimfast.plans.budget import Rounding

# A wide group is looked at in so many widths.
_WIDTHS = 1024
# Less than this share of the time is not slower: nothing is measured that finely.
_SLOWER = 0.999
# One unit's price is that of this share of the group, over which stairs even out, and at least of the widest
# blocks that CPUs work in: over less than a block the next unit is free, or has to pay for all of it.
_SPAN, _BLOCK = 16, 16


@dataclass(frozen=True, slots=True, eq=False)
class Stairs(Rounding):
    """What a width may be where some are slower than wider ones; ``upward`` has the width that each of a
    group's is sent to, one group after the other from ``first`` (g,) on.
    """

    upward: IntArray
    first: IntArray

    @property
    def spans(self) -> IntArray:
        spans: IntArray = np.maximum(_BLOCK, self.full // _SPAN)
        return spans

    def apply(self, widths: IntArray) -> IntArray:
        allowed = Rounding.apply(self, widths)
        sent: IntArray = self.upward[self.first + allowed]
        return sent


def with_stairs(rounding: Rounding, priced: PricedLatency, free: Sequence[int]) -> Stairs:
    """Send widths of the groups of these numbers up to those that are no slower."""
    upward = [_sent(rounding, priced, at, group) for at, group in enumerate(free)]
    first = np.cumsum([0, *(len(sent) for sent in upward)])[:-1]
    own = {field.name: getattr(rounding, field.name) for field in fields(rounding)}
    flat = np.concatenate(upward) if upward else np.zeros(0, dtype=np.int64)
    return Stairs(**own, upward=flat.astype(np.int64), first=first.astype(np.int64))


def _sent(rounding: Rounding, priced: PricedLatency, at: int, group: int) -> IntArray:
    """Find where each width 0..n of a group is sent."""
    n = int(rounding.full[at])
    wanted = np.unique(np.linspace(1, n, min(n, _WIDTHS)).round().astype(np.int64))
    every = np.tile(rounding.full, (len(wanted), 1))
    every[:, at] = wanted
    allowed = np.unique([int(rounding.apply(widths)[at]) for widths in every])
    seconds = priced.along(group, allowed.tolist())
    sent = np.arange(n + 1)
    best, fastest = n, np.inf
    for width, taken in zip(allowed[::-1].tolist(), seconds[::-1].tolist(), strict=True):
        if taken < fastest * _SLOWER:
            best, fastest = width, taken
        sent[width] = best
    return sent

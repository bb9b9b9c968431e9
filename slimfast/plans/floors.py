"""How narrow a group may become: a number of units or a share of them, for all groups or by glob."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from slimfast.errors import ArgumentError
from slimfast.graph.channel_graph import ChannelGraph

Floors: TypeAlias = int | float | Mapping[str, int | float]
"""Units as an int, a share of a group's units as a float; or one of these for each glob of groups."""


def check_floors(min_width: Floors) -> Floors:
    """Check that floors are units or shares, and return them; a mapping as a copy."""
    named = min_width.items() if isinstance(min_width, Mapping) else [("", min_width)]
    for glob, value in named:
        if not isinstance(glob, str):
            raise ArgumentError(f"plan: expected globs in min_width, got {glob!r}")
        units = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 1
        if not units and not (isinstance(value, float) and 0.0 < value <= 1.0):
            name = f"min_width[{glob!r}]" if isinstance(min_width, Mapping) else "min_width"
            raise ArgumentError(
                f"plan: expected {name} to be an integer >= 1, or a share in (0, 1] as a float, got {value!r}"
            )
    return dict(min_width) if isinstance(min_width, Mapping) else min_width


def floors_of(graph: ChannelGraph, min_width: Floors) -> dict[str, int]:
    """Find the fewest units of each group by its name: 1 where no glob means it; the first that does counts.

    ``ValueError`` for a glob that means no group.
    """
    if not isinstance(min_width, Mapping):
        return {group.name: _units(min_width, group.n) for group in graph.groups}
    found = {group.name: 1 for group in graph.groups}
    names = graph.names()
    for glob, floor in reversed(list(min_width.items())):
        meant = names.meant_by(glob, "plan: min_width")
        found |= {group.name: _units(floor, group.n) for group in graph.groups if group.name in meant}
    return found


def _units(floor: int | float, n: int) -> int:
    """Turn a share of ``n`` units into units, rounded up but for what float arithmetic adds."""
    return math.ceil(floor * n - 1e-9) if isinstance(floor, float) else int(floor)

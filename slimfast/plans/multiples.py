"""What widths are multiples of: one number for all groups, or one for those that each glob means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from slimfast.errors import ArgumentError
from slimfast.graph.channel_graph import ChannelGraph, ChannelGroup

# One number, or one for each glob of groups.
Multiples: TypeAlias = int | Mapping[str, int]

# Groups whose unit is a run of channels, cut whole: multiples are counted in their channels.
_RUNS = ("head", "block")


def check_multiples(multiple_of: Multiples, what: str = "plan") -> Multiples:
    """Check that multiples are positive integers, and return them; a mapping as a copy."""
    named = multiple_of.items() if isinstance(multiple_of, Mapping) else [("", multiple_of)]
    for glob, value in named:
        name = f"multiple_of[{glob!r}]" if isinstance(multiple_of, Mapping) else "multiple_of"
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
            raise ArgumentError(f"{what}: expected {name} to be an integer >= 1, got {value!r}")
        if not isinstance(glob, str):
            raise ArgumentError(f"{what}: expected globs in multiple_of, got {glob!r}")
    return dict(multiple_of) if isinstance(multiple_of, Mapping) else multiple_of


def multiples_of(graph: ChannelGraph, multiple_of: Multiples, what: str = "plan") -> dict[str, int]:
    """Find the multiple of each group by its name: 1 for what no glob means; the first that means it counts.

    ``ValueError`` for a glob that means no group.
    """
    if not isinstance(multiple_of, Mapping):
        return {group.name: multiple_of for group in graph.groups}
    found = {group.name: 1 for group in graph.groups}
    names = graph.names()
    for glob, multiple in reversed(list(multiple_of.items())):
        found |= dict.fromkeys(names.meant_by(glob, f"{what}: multiple_of"), multiple)
    return found


def unit_step(group: ChannelGroup, multiple_of: int) -> int:
    """Find of how many units a width must be a multiple for the cut axes to be multiples of
    ``multiple_of``.
    """
    if group.kind not in _RUNS:
        return multiple_of
    runs = [int(np.count_nonzero(m.places.units == 0)) for m in group.members if m.role != "follower"]
    return multiple_of // math.gcd(multiple_of, *runs)


def too_narrow(graph: ChannelGraph, multiple_of: Multiples) -> dict[str, int]:
    """Find the groups that have no narrower width that is a multiple, with that multiple, by name.

    A document may name groups by globs that mean nothing in this graph; those are passed over.
    """
    try:
        multiples = multiples_of(graph, multiple_of)
    except ArgumentError:
        return {}
    return {
        group.name: multiples[group.name]
        for group in graph.groups
        if multiples[group.name] > 1 and unit_step(group, multiples[group.name]) >= group.n
    }

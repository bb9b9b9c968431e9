"""Lengths of axes as polynomials in the widths of groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

from slimfast.graph.channel_graph import Axis

# (the groups that have a say, the number of indices in which they have it), as Axis.terms() has them.
Polynomial = tuple[tuple[tuple[str, ...], float], ...]


@lru_cache(maxsize=4096)
def polynomial_of(axis: Axis) -> Polynomial:
    """Read the polynomial off an axis."""
    return tuple(sorted(axis.terms().items()))


def length_at(polynomial: Polynomial, widths: Mapping[str, int], full: Mapping[str, int]) -> int:
    """Compute a length at these widths; a group that is not named keeps all of its units."""
    total = 0.0
    for names, count in polynomial:
        total += count * math.prod(widths.get(name, full[name]) / full[name] for name in names)
    return round(total)

"""Divide an axis into those that a sum or a product of lengths is made of, make one of two, and compare
two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from slimfast.arrays import IntArray
from slimfast.graph.channel_graph import Axis


def grid(axis: Axis, sizes: Sequence[int]) -> list[Axis] | None:
    """Divide an axis into the axes of a grid of these sizes; None where a group runs along several."""
    if math.prod(sizes) != axis.length:
        return None
    parts: list[list[tuple[str, IntArray]]] = [[] for _ in sizes]
    for name, units in axis.parts:
        cells = units.reshape(sizes)
        along = [d for d in range(len(sizes)) if (cells != cells.take([0], axis=d)).any()]
        if len(along) != 1:
            return None
        corner = tuple(slice(None) if d == along[0] else 0 for d in range(len(sizes)))
        parts[along[0]].append((name, cells[corner]))
    return [Axis.of(size, own) for size, own in zip(sizes, parts, strict=True)]


def cut_at(axis: Axis, place: int) -> list[Axis] | None:
    """Divide an axis into what is before a place and what is behind it."""
    if not 0 <= place <= axis.length:
        return None
    pieces = (slice(0, place), slice(place, axis.length))
    return [
        Axis.of(piece.stop - piece.start, ((name, units[piece]) for name, units in axis.parts))
        for piece in pieces
    ]


def tiled(outer: Axis, inner: Axis) -> Axis:
    """Make a grid of two axes one axis."""
    repeated = [(name, np.repeat(units, inner.length)) for name, units in outer.parts]
    tiled = [(name, np.tile(units, outer.length)) for name, units in inner.parts]
    return Axis.of(outer.length * inner.length, (*repeated, *tiled))


def signature(axis: Axis) -> tuple[Any, ...]:
    """Describe the rows of an axis, the groups and units of each index, in whatever order the indices are."""
    places = sorted(axis.places, key=itemgetter(0))
    indices = [own.indices for _, own in places]
    if sum(map(len, indices)) == len(np.unique(np.concatenate([[], *indices]))):
        # no index belongs to two units
        return tuple((name, np.sort(own.units).tobytes()) for name, own in places)
    rows = np.stack([own.along() for _, own in places])
    return (*(name for name, _ in places), rows[:, np.lexsort(rows)].tobytes())

"""What is measured together: the n units of a layer or channel group as the rows of one matrix per member
tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from slimfast.arrays import IntArray
from slimfast.errors import SlimfastError
from slimfast.graph.channel_graph import ChannelGraph, ChannelGroup, Member
from slimfast.storage.weights import Source, Weights


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A member tensor of a layer: ``units`` says which unit each index of ``dim`` belongs to (None: its own).

    ``d`` positions a unit; ``bytes`` of the tensor.
    """

    tensor: str
    dim: int
    units: IntArray | None
    d: int
    bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """``n`` units over ``d`` positions, the sum of those of its parts."""

    name: str
    n: int
    d: int
    parts: tuple[Part, ...]


def layers_of(source: Source, weights: Weights, graph: ChannelGraph | None) -> list[Layer]:
    """Make a layer for each group of the graph that has producers; without a graph, for each floating matrix.

    Without a graph, that is every floating tensor of two or more dims, dim 0 its units; a tied parameter of a
    module once. Raises :class:`SlimfastError` naming a tensor that is missing, empty, or of another shape
    than the graph's.
    """
    if graph is not None:
        return [_layer_of_group(group, graph, weights) for group in graph.groups if graph.producers(group)]
    names = dict(source.named_parameters()) if isinstance(source, nn.Module) else weights.infos
    found = [
        _layer_of_tensor(name, weights)
        for name in names
        if weights.infos[name].dtype is not None and len(weights.infos[name].shape) >= 2
    ]
    if not found:
        raise SlimfastError(f"{weights.source}: no floating tensor of two or more dims")
    return found


def positions(group: ChannelGroup, graph: ChannelGraph) -> int:
    """Count d of a group: the positions over which its producers' weights define each unit."""
    return sum(_positions(member, group, graph) for member in graph.producers(group))


def _positions(member: Member, group: ChannelGroup, graph: ChannelGraph) -> int:
    rest = math.prod(n for i, n in enumerate(graph.shape_of(member.tensor)) if i != member.dim)
    return rest * _share(member.units, group)


def unit_matrix(tensor: Tensor, dim: int, units: IntArray | None = None) -> Tensor:
    """Lay the tensor out as (n, d): row u is all of unit u's slices of ``dim``, flattened; a view where they
    are in order.

    ``units`` as in :class:`slimfast.graph.channel_graph.Axis`: every unit has equally many indices, -1
    belongs to none.
    """
    rows = tensor.movedim(dim, 0)
    if units is None:
        return rows.reshape(rows.shape[0], -1)
    order = np.argsort(units, kind="stable")[np.count_nonzero(units < 0) :]
    first, last = int(order[0]), int(order[-1])
    if last - first == len(order) - 1 and bool((np.diff(order) == 1).all()):
        rows = rows[first : last + 1]
    else:
        rows = rows.index_select(0, torch.from_numpy(order).to(tensor.device))
    return rows.reshape(int(units.max()) + 1, -1)


def _layer_of_tensor(name: str, weights: Weights) -> Layer:
    shape = weights.infos[name].shape
    if 0 in shape:
        raise SlimfastError(f"{weights.source}: expected a layer with elements, got shape {shape} ({name})")
    d = math.prod(shape[1:])
    return Layer(name, shape[0], d, (Part(name, 0, None, d, _bytes(name, weights)),))


def _layer_of_group(group: ChannelGroup, graph: ChannelGraph, weights: Weights) -> Layer:
    parts = []
    for member in graph.producers(group):
        name = graph.stored_name(member.tensor, weights.infos)
        info = weights.info(name)
        expected = graph.shape_of(member.tensor)
        if info.shape != expected:
            raise SlimfastError(f"{weights.source}: {name}: expected shape {expected}, got {info.shape}")
        if info.dtype is None:
            raise SlimfastError(f"{weights.source}: {name}: expected floating elements ({group.name})")
        if 0 in expected:
            raise SlimfastError(
                f"{weights.source}: expected a layer with elements, got shape {expected} ({name})"
            )
        d = _positions(member, group, graph)
        parts.append(Part(name, member.dim, member.units, d, _bytes(name, weights)))
    return Layer(group.name, group.n, sum(part.d for part in parts), tuple(parts))


def _share(units: IntArray, group: ChannelGroup) -> int:
    """Count the indices of each unit; they must be equally many, or its rows would not form a matrix."""
    counts = np.bincount(units[units >= 0], minlength=group.n)
    if len(counts) != group.n or counts.min() != counts.max() or counts.max() == 0:
        raise SlimfastError(
            f"expected equally many indices for each of {group.n} units, "
            f"got {counts.min()} to {counts.max()} for {len(counts)} ({group.name})"
        )
    return int(counts[0])


def _bytes(name: str, weights: Weights) -> int:
    info = weights.infos[name]
    return math.prod(info.shape) * (info.dtype.itemsize if info.dtype else 0)

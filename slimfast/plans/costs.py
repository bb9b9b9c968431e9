"""Parameters, MACs and bytes of a network at a set of widths, from its graph, in a few array operations."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from slimfast.arrays import FloatArray, IntArray
from slimfast.errors import ArgumentError, did_you_mean
from slimfast.graph import Axis, ChannelGraph, trace_channels
from slimfast.graph.channel_graph import alive_units
from slimfast.graph.cutting.products import AxisNumbers, Products


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network costs; a tied parameter counts once.

    Attributes:
        params: Elements of its parameters.
        macs: Multiply-accumulates of one forward of its example.
        bytes: Bytes of its parameters.

    Example:
        plan.cost_after.macs / plan.cost_before.macs
    """

    params: int
    macs: int
    bytes: int


def count(graph: ChannelGraph, widths: Mapping[str, int]) -> Cost:
    """Count the cost of a traced network whose groups have these widths; a group not named keeps all
    units.
    """
    model = CostModel(graph)
    return model.cost(model.vector(widths))


def count_kept(graph: ChannelGraph, keeps: Mapping[str, IntArray]) -> Cost:
    """Return count what is left of a traced network when each group keeps these units, index by index.

    Unlike :func:`count` it looks at every index of every axis instead of at widths, as a cut does; a group
    not named keeps all units.
    """
    masks = {name: alive_units(keep) for name, keep in keeps.items()}

    @functools.cache
    def length(axis: Axis) -> int:
        return len(axis.alive(masks))

    sizes = {
        name: math.prod(length(axis) for axis in axes)
        for name, axes in graph.axes.items()
        if name in graph.parameters and name not in graph.tied
    }
    macs = (
        math.prod(length(f) if isinstance(f, Axis) else f for f in op.macs)
        for op in graph.operations
        if op.macs
    )
    return Cost(
        params=sum(sizes.values()),
        macs=sum(macs),
        bytes=sum(size * graph.itemsize.get(name, 4) for name, size in sizes.items()),
    )


def count_module(model: nn.Module, example: Any) -> Cost:
    """Count the cost of a module as it is, its operations recorded with their actual shapes.

    Nothing is computed.

    Args:
        model: The module.
        example: As for :func:`slimfast.trace_channels`.

    Returns:
        Its parameters, their bytes, and the multiply-adds of one forward.

    Example:
        slimfast.count_module(thin, torch.zeros(1, 3, 224, 224)).macs
    """
    graph = trace_channels(model, example, include=())
    macs = sum(
        math.prod(f.length if isinstance(f, Axis) else f for f in op.macs)
        for op in graph.operations
        if op.macs
    )
    parameters = list(model.parameters())
    return Cost(
        params=sum(p.numel() for p in parameters),
        macs=macs,
        bytes=sum(p.numel() * p.element_size() for p in parameters),
    )


class CostModel:
    """A graph's costs compiled to arrays, for many sets of widths; ``names`` and ``full`` are its groups in
    order.

    An axis's length is the sum over its terms of count * prod(w_g / n_g) (:meth:`Axis.terms`); a parameter's
    size and an operation's MACs are products of lengths and constants. ``within`` says of the path of a
    tensor or a layer whether it counts.
    """

    def __init__(self, graph: ChannelGraph, within: Callable[[str], bool] = lambda path: True) -> None:
        self.names = tuple(group.name for group in graph.groups)
        self.full: IntArray = np.array([group.n for group in graph.groups], dtype=np.int64)
        self._index = {name: i for i, name in enumerate(self.names)}
        axes = AxisNumbers(self._index)
        parameters = [
            name
            for name in graph.axes
            if name in graph.parameters and name not in graph.tied and within(name)
        ]
        self._sizes = Products(axes, [graph.axes[name] for name in parameters])
        self._itemsize = np.array([graph.itemsize.get(name, 4) for name in parameters], dtype=np.float64)
        self._macs = Products(axes, [op.macs for op in graph.operations if op.macs and within(op.module)])
        self._lengths = axes.compiled()

    def vector(self, widths: Mapping[str, int]) -> IntArray:
        """List widths in the order of the groups; ``ValueError`` for a group that is none, or a width outside
        0..n.
        """
        vector: IntArray = self.full.copy()
        for name, width in widths.items():
            if name not in self._index:
                raise ArgumentError(f"widths: no group {name!r}{did_you_mean(name, self.names)}")
            if not 0 <= width <= self.full[self._index[name]]:
                raise ArgumentError(
                    f"widths: expected 0..{self.full[self._index[name]]}, got {width} ({name})"
                )
            vector[self._index[name]] = width
        return vector

    def cost(self, widths: IntArray) -> Cost:
        """Count the cost at these widths (g,)."""
        sizes, macs = self._items(widths)
        return Cost(params=int(sizes.sum()), macs=int(macs.sum()), bytes=int(sizes @ self._itemsize))

    def takes_part(self, group: int) -> bool:
        """Whether a group, by its number, has a say in anything that counts."""
        return bool(len(self._sizes.of_group(group)) or len(self._macs.of_group(group)))

    def group_costs(self, widths: IntArray) -> list[Cost]:
        """Count for each group the cost of the tensors and operations it takes part in; groups share them."""
        sizes, macs = self._items(widths)
        found = []
        for group in range(len(self.names)):
            tensors, operations = self._sizes.of_group(group), self._macs.of_group(group)
            found.append(
                Cost(
                    params=int(sizes[tensors].sum()),
                    macs=int(macs[operations].sum()),
                    bytes=int(sizes[tensors] @ self._itemsize[tensors]),
                )
            )
        return found

    def _items(self, widths: IntArray) -> tuple[FloatArray, FloatArray]:
        """Count elements of each parameter and MACs of each operation; float64 holds integers to 2^53
        exactly.
        """
        lengths = self._lengths(widths / np.maximum(self.full, 1))
        return self._sizes.values(lengths), self._macs.values(lengths)

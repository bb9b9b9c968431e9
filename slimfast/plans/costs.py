"""Parameters, MACs and bytes of a network at a set of widths, from its graph, in a few array operations."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from slimfast.arrays import FloatArray, IntArray
from slimfast.errors import ArgumentError, did_you_mean
from slimfast.graph import Axis, ChannelGraph, trace_channels
from slimfast.graph.channel_graph import alive_units

Terms = tuple[tuple[tuple[int, ...], int], ...]


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
        axes = _Axes(self._index)
        parameters = [
            name
            for name in graph.axes
            if name in graph.parameters and name not in graph.tied and within(name)
        ]
        self._sizes = _Products(axes, [graph.axes[name] for name in parameters])
        self._itemsize = np.array([graph.itemsize.get(name, 4) for name in parameters], dtype=np.float64)
        self._macs = _Products(axes, [op.macs for op in graph.operations if op.macs and within(op.module)])
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


class _Axes:
    """The distinct axes of a graph, numbered; number 0 is an axis of length 1."""

    def __init__(self, groups: Mapping[str, int]) -> None:
        self._groups = groups
        self._numbers: dict[Terms, int] = {(((), 1),): 0}
        self._say: list[set[int]] = [set()]
        self._seen: dict[int, int] = {}

    def number(self, axis: Axis) -> int:
        """Number an axis; two of the same polynomial have the same."""
        # An axis object stands in many shapes, and its terms take time: they are found once.
        if id(axis) not in self._seen:
            terms = {tuple(self._groups[name] for name in names): n for names, n in axis.terms().items()}
            key = tuple(sorted(terms.items()))
            if key not in self._numbers:
                self._numbers[key] = len(self._numbers)
                self._say.append({group for names, _ in key for group in names})
            self._seen[id(axis)] = self._numbers[key]
        return self._seen[id(axis)]

    def groups(self, number: int) -> set[int]:
        """List the groups that have a say in the axis of that number."""
        return self._say[number]

    def compiled(self) -> _Lengths:
        """Make the lengths of all axes a function of the kept shares of the groups."""
        return _Lengths(list(self._numbers), len(self._groups))


class _Lengths:
    """Lengths (a,) of the numbered axes from the kept share (g,) of each group."""

    def __init__(self, axes: Sequence[Terms], groups: int) -> None:
        terms = [(number, names, n) for number, axis in enumerate(axes) for names, n in axis]
        deepest = max(len(names) for _, names, _ in terms)
        # Short terms are filled up with a group of which everything is kept.
        self._factors = np.array(
            [[*names, *[groups] * (deepest - len(names))] for _, names, _ in terms], dtype=np.int64
        )
        self._counts = np.array([n for _, _, n in terms], dtype=np.float64)
        self._axis = np.array([number for number, _, _ in terms], dtype=np.int64)
        self._number = len(axes)

    def __call__(self, shares: FloatArray) -> FloatArray:
        kept = np.append(shares, 1.0)
        terms = self._counts * kept[self._factors].prod(axis=1)
        # What is left over is the rounding of w / n: the indices of an axis are whole.
        lengths: FloatArray = np.rint(np.bincount(self._axis, weights=terms, minlength=self._number))
        return lengths


class _Products:
    """Products of constants and axis lengths, one for each item."""

    def __init__(self, axes: _Axes, items: Sequence[Iterable[int | Axis]]) -> None:
        constants, numbers = [], []
        for item in items:
            factors = list(item)
            constants.append(math.prod(f for f in factors if not isinstance(f, Axis)))
            numbers.append([axes.number(f) for f in factors if isinstance(f, Axis)])
        most = max((len(row) for row in numbers), default=0)
        self._constants = np.array(constants, dtype=np.float64)
        self._numbers = np.array([row + [0] * (most - len(row)) for row in numbers], dtype=np.int64)
        self._numbers = self._numbers.reshape(len(numbers), most)
        self._of_group: dict[int, list[int]] = {}
        for i, row in enumerate(numbers):
            for group in set().union(*(axes.groups(number) for number in row)):
                self._of_group.setdefault(group, []).append(i)

    def values(self, lengths: FloatArray) -> FloatArray:
        """Compute the value of each item."""
        values: FloatArray = self._constants * lengths[self._numbers].prod(axis=1)
        return values

    def of_group(self, group: int) -> IntArray:
        """List the items in which a group has a say."""
        return np.array(self._of_group.get(group, []), dtype=np.int64)

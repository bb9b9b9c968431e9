"""The memory of a forward as a function of a network's widths, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from slimfast.arrays import FloatArray, IntArray
from slimfast.errors import SlimfastError
from slimfast.graph.channel_graph import ChannelGraph
from slimfast.graph.cutting.products import AxisNumbers, Products
from slimfast.graph.cutting.recorded_axes import Axes
from slimfast.memory.measuring import PeakMemory


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """Bytes in memory from one call of the forward up to another, of which they are no longer there.

    As many as ``each`` for every element of a tensor of these ``axes``, of which the lengths that widths
    change are rounded up to multiples of ``block``, or to half of one.
    """

    axes: Axes
    each: float
    since: int
    until: int
    block: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class MemoryTable:
    """How many bytes a forward holds at every one of its calls, at any widths.

    Attributes:
        whole: What was measured of the network as it is.
        graph: The graph that it belongs to.
        stored: What calls have made or work with, and for how long it is there.
        calls: The operation of each call and the path of its module.
        held: Bytes that no width changes: inputs, and what the network holds beside its parameters and
            buffers.

    Example:
        table = slimfast.memory_table(graph, model, example)
        plan = slimfast.plan_widths(graph, spectra, peak_memory=0.5, memory_table=table)
    """

    whole: PeakMemory
    graph: ChannelGraph
    stored: tuple[Stored, ...]
    calls: tuple[tuple[str, str], ...]
    held: float

    def predicted(self, graph: ChannelGraph, widths: Mapping[str, int]) -> float:
        """Predict the peak where the groups have these widths; others keep all units.

        Raises :class:`SlimfastError` for another graph.
        """
        vector = [widths.get(group.name, group.n) for group in graph.groups]
        return self.priced(graph).price(np.array(vector, dtype=np.int64))

    def priced(self, graph: ChannelGraph, *, factor: float = 1.0) -> PricedMemory:
        """Make a function of the widths of a graph's groups of it, times a factor; errors as of
        :meth:`predicted`.
        """
        own = [(group.name, group.n) for group in self.graph.groups]
        if own != [(group.name, group.n) for group in graph.groups]:
            raise SlimfastError(
                "memory_table: expected the table of this network with this example, got that of another "
                f"(batch {self.whole.batch}); make one with slimfast.memory_table(graph, model, example)"
            )
        return PricedMemory(self, factor)


def blocked(lengths: FloatArray, block: int) -> FloatArray:
    """Round lengths up to whole blocks; what fits into half of one takes half of one."""
    half = max(block // 2, 1)
    rounded: FloatArray = np.where(lengths <= half, half, np.ceil(lengths / block) * block)
    return rounded


class PricedMemory:
    """The peak of a forward in bytes at widths in the order of a graph's groups."""

    def __init__(self, table: MemoryTable, factor: float = 1.0) -> None:
        graph = table.graph
        self._table, self._factor = table, factor
        self._full: IntArray = np.array([group.n for group in graph.groups], dtype=np.int64)
        axes = AxisNumbers({group.name: i for i, group in enumerate(graph.groups)})
        tensors = [name for name in graph.axes if name not in graph.tied]
        self._weights = Products(axes, [graph.axes[name] for name in tensors])
        self._itemsize = np.array([graph.itemsize.get(name, 4) for name in tensors], dtype=np.float64)
        # What is rounded alike stands together.
        self._blocks = {
            block: Products(axes, [stored.axes for stored in table.stored if stored.block == block])
            for block in sorted({stored.block for stored in table.stored})
        }
        in_order = [stored for block in self._blocks for stored in table.stored if stored.block == block]
        self._each = np.array([stored.each for stored in in_order], dtype=np.float64)
        self._since = np.array([stored.since for stored in in_order], dtype=np.int64)
        self._until = np.array([stored.until for stored in in_order], dtype=np.int64)
        self._lengths = axes.compiled()
        self._changing = np.array([bool(axes.groups(number)) for number in range(axes.count)])

    @property
    def whole(self) -> float:
        """What the network takes as it is, as it was measured."""
        return float(self._table.whole.total)

    def price(self, widths: IntArray) -> float:
        """Predict the peak at these widths (g,)."""
        weights, live = self._bytes(widths)
        return self._factor * float(weights + live.max(initial=0.0))

    def where(self, widths: IntArray) -> tuple[str, str]:
        """Name the operation of the peak at these widths (g,), and the path of its module."""
        _, live = self._bytes(widths)
        return self._table.calls[int(live.argmax())] if len(live) else ("", "")

    def least(self) -> float:
        """Predict what is there whatever the widths: the peak at one unit of every group."""
        return self.price(np.minimum(self._full, 1))

    def takes_part(self, group: int) -> bool:
        """Whether a group, by its number, has a say in the peak."""
        return any(len(products.of_group(group)) for products in (self._weights, *self._blocks.values()))

    def _bytes(self, widths: IntArray) -> tuple[float, FloatArray]:
        """Count what is there all the time, and beside it at each call (c,)."""
        lengths = self._lengths(widths / np.maximum(self._full, 1))
        weights = float(self._weights.values(lengths) @ self._itemsize) + self._table.held
        sizes = [
            products.values(np.where(self._changing, blocked(lengths, block), lengths))
            for block, products in self._blocks.items()
        ]
        stored = self._each * np.concatenate([np.zeros(0), *sizes])
        number = len(self._table.calls)
        begins = np.bincount(self._since, weights=stored, minlength=number + 1)
        ends = np.bincount(self._until, weights=stored, minlength=number + 1)
        live: FloatArray = np.cumsum(begins - ends)[:number]
        return weights, live

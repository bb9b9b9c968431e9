"""A channel graph in which some groups are dropped, or joined with another unit by unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from slimfast.graph.groups import Axis, ChannelGraph, ChannelGroup, IntArray, Member, Operation, Role

Part = tuple[str, IntArray]


class Regroup:
    """``names`` maps a group to the group it joins, or to None where it is to change nothing any more.

    Groups that are joined have the same number of units, and unit u of one goes with unit u of the other.
    What no such group has a say in stays the same object.
    """

    def __init__(self, names: Mapping[str, str | None]) -> None:
        self._names = names
        self._axes: dict[Axis, Axis] = {}

    def graph(self, graph: ChannelGraph) -> ChannelGraph:
        """The whole graph after the change; its attributes and frozen parts are the caller's."""
        return replace(
            graph,
            groups=tuple(self._group(graph, group) for group in graph if group.name not in self._names),
            axes={name: tuple(map(self.axis, axes)) for name, axes in graph.axes.items()},
            operations=tuple(map(self._operation, graph.operations)),
        )

    def axis(self, axis: Axis) -> Axis:
        """An axis after the change."""
        if axis not in self._axes:
            touched = any(name in self._names for name, _ in axis.parts)
            self._axes[axis] = Axis(axis.length, self._parts(axis.parts)) if touched else axis
        return self._axes[axis]

    def _parts(self, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        found: list[Part] = []
        for name, units in parts:
            now = self._names.get(name, name)
            if now is not None:
                _join(found, now, units)
        return tuple(found)

    def _operation(self, operation: Operation) -> Operation:
        return replace(
            operation,
            outputs=tuple(tuple(map(self.axis, axes)) for axes in operation.outputs),
            macs=tuple(self.axis(m) if isinstance(m, Axis) else m for m in operation.macs),
            constants=tuple(replace(c, axis=self.axis(c.axis)) for c in operation.constants),
        )

    def _group(self, graph: ChannelGraph, group: ChannelGroup) -> ChannelGroup:
        joined = [g for g in graph if self._names.get(g.name) == group.name]
        if not joined:
            return group
        members: dict[tuple[str, int], list[Part]] = {}
        roles: dict[tuple[str, int], Role] = {}
        for member in (m for g in (group, *joined) for m in g.members):
            roles.setdefault((member.tensor, member.dim), member.role)
            _join(members.setdefault((member.tensor, member.dim), []), group.name, member.units)
        inexact = next((g.inexact for g in (group, *joined) if g.inexact is not None), None)
        together = (
            Member(tensor, dim, roles[tensor, dim], units)
            for (tensor, dim), parts in members.items()
            for _, units in parts
        )
        return replace(group, members=tuple(together), inexact=inexact)


def _join(parts: list[Part], name: str, units: IntArray) -> None:
    """Add the units of a group to ``parts``, into one of the same group where no index has two of them."""
    for i, (other, own) in enumerate(parts):
        if other == name and not bool(((own >= 0) & (units >= 0)).any()):
            parts[i] = (name, np.where(own >= 0, own, units))
            return
        if other == name and np.array_equal(own, units):
            return
    parts.append((name, units))

"""A channel graph in which some groups are dropped, joined with another, or folded unit by unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from slimfast.arrays import IntArray
from slimfast.graph.channel_graph import Axis, ChannelGraph, ChannelGroup, Member, Operation, Places, Role

Part = tuple[str, Places]
# What becomes of a group: the group it joins (itself, where it is folded) and the unit there of each of its
# units, or None where it is to change nothing any more.
GroupChange = tuple[str, IntArray] | None


class GroupRewrite:
    """A change of a graph in which groups are dropped or joined with others.

    Several units may join one unit of the other group, equally many each. What no such group has a say in
    stays the same object.
    """

    def __init__(self, changes: Mapping[str, GroupChange]) -> None:
        self._changes = changes
        self._axes: dict[Axis, Axis] = {}
        self._joining: dict[str, set[str]] = {}
        for name, change in changes.items():
            if change is not None and change[0] != name:
                self._joining.setdefault(change[0], set()).add(name)

    def graph(self, graph: ChannelGraph) -> ChannelGraph:
        """Rewrite the whole graph but for its attributes and frozen parts, which are the caller's."""
        return replace(
            graph,
            groups=tuple(self._group(graph, group) for group in graph if self._stays(group.name)),
            axes={name: tuple(map(self.axis, axes)) for name, axes in graph.axes.items()},
            operations=tuple(map(self._operation, graph.operations)),
        )

    def _stays(self, name: str) -> bool:
        """Say whether a group is still one afterwards."""
        change = self._changes.get(name, (name,))
        return change is not None and change[0] == name

    def axis(self, axis: Axis) -> Axis:
        """Rewrite an axis."""
        if axis not in self._axes:
            touched = any(name in self._changes for name in axis.groups)
            self._axes[axis] = Axis(axis.length, self._parts(axis.places)) if touched else axis
        return self._axes[axis]

    def _parts(self, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        joined: list[Part] = []
        for name, places in parts:
            now = self._part(name, places)
            if now is not None:
                _join(joined, *now)
        return tuple(joined)

    def _part(self, name: str, places: Places) -> Part | None:
        if name not in self._changes:
            return name, places
        change = self._changes[name]
        return None if change is None else (change[0], replace(places, units=change[1][places.units]))

    def _operation(self, operation: Operation) -> Operation:
        return replace(
            operation,
            outputs=tuple(tuple(map(self.axis, axes)) for axes in operation.outputs),
            macs=tuple(self.axis(m) if isinstance(m, Axis) else m for m in operation.macs),
            constants=tuple(replace(c, axis=self.axis(c.axis)) for c in operation.constants),
        )

    def _group(self, graph: ChannelGraph, group: ChannelGroup) -> ChannelGroup:
        joining, folded = self._joining.get(group.name, set()), self._changes.get(group.name)
        if not joining and folded is None:
            return group
        joined = [g for g in graph if g.name in joining]
        members: dict[tuple[str, int], list[Part]] = {}
        roles: dict[tuple[str, int], Role] = {}
        for g in (group, *joined):
            for member in g.members:
                roles.setdefault((member.tensor, member.dim), member.role)
                part = self._part(g.name, member.places)
                if part is not None:
                    _join(members.setdefault((member.tensor, member.dim), []), *part)
        inexact = next((g.inexact for g in (group, *joined) if g.inexact is not None), None)
        together = (
            Member(tensor, dim, roles[tensor, dim], places)
            for (tensor, dim), parts in members.items()
            for _, places in parts
        )
        n = group.n if folded is None else int(folded[1].max()) + 1
        return replace(group, n=n, members=tuple(together), inexact=inexact)


def joining(few: Axis, many: Axis, sizes: Mapping[str, int]) -> dict[str, GroupChange] | None:
    """Find the change to the group of ``many`` after which the two axes, each of one group, survive alike.

    None where no function from all its units to all of the other's does, or units would join unequally.
    ``sizes``: the number of units of each group.
    """
    if len(few.places) != 1 or len(many.places) != 1:
        return None
    (kept, here), (gone, other) = few.places[0], many.places[0]
    if kept == gone or not np.array_equal(here.indices, other.indices):
        return None
    units, others = here.units, other.units
    there: IntArray = np.full(sizes[gone], -1, dtype=np.int64)
    there[others] = units
    if (there < 0).any() or not np.array_equal(there[others], units):
        return None
    together = np.bincount(there, minlength=sizes[kept])
    return {gone: (kept, there)} if together.min() == together.max() else None


def folding(axes: Sequence[Axis], sizes: Mapping[str, int]) -> dict[str, GroupChange] | None:
    """Find the change to the group of several axes, the only one of each, after which they survive alike.

    Units that stand at one place become one. None where there are several groups, or where not equally many
    units would become one each. ``sizes``: the number of units of each group.
    """
    if any(len(axis.places) != 1 for axis in axes):
        return None
    name, first = axes[0].places[0]
    if any(
        n != name or not np.array_equal(p.indices, first.indices) for axis in axes for n, p in axis.places
    ):
        return None
    units = np.stack([axis.places[0][1].units for axis in axes])
    least: IntArray = np.arange(sizes[name], dtype=np.int64)
    while (least[units] != least[units].min(0)).any():
        np.minimum.at(least, units, np.broadcast_to(least[units].min(0), units.shape))
    _, unit, together = np.unique(least, return_inverse=True, return_counts=True)
    return {name: (name, unit)} if together.min() == together.max() > 1 else None


def at_once(changes: Mapping[str, GroupChange], more: Mapping[str, GroupChange]) -> bool:
    """Say whether further changes can be made together with these: no group changes twice, and none joins
    one that changes."""
    together = {**changes, **more}
    goals = {change[0] for name, change in together.items() if change is not None and change[0] != name}
    return len(together) == len(changes) + len(more) and not goals & together.keys()


def _join(parts: list[Part], name: str, places: Places) -> None:
    """Add the units of a group to ``parts``, into one of the same group where no index has two of them."""
    for i, (other, own) in enumerate(parts):
        if other != name:
            continue
        if not len(np.intersect1d(own.indices, places.indices)):
            indices = np.concatenate([own.indices, places.indices])
            order = np.argsort(indices)
            units = np.concatenate([own.units, places.units])
            parts[i] = (name, Places(own.length, indices[order], units[order]))
            return
        if np.array_equal(own.indices, places.indices) and np.array_equal(own.units, places.units):
            return
    parts.append((name, places))

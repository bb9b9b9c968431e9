"""Which axes of a length there are inside a module, and which of them it makes last."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from slimfast.graph.channel_graph import Axis, ChannelGraph
from slimfast.graph.recording.attributes import stack_of

# What an axis's length depends on: axes of equal keys are equally long after any cut.
Key: TypeAlias = tuple[Any, ...]


def axis_key(axis: Axis) -> Key:
    """Tell axes apart by what their lengths follow."""
    if len(axis.places) == 1:
        ((group, places),) = axis.places
        return axis.length, group, np.sort(places.units).tobytes()
    return axis.length, *((g, p.indices.tobytes(), p.units.tobytes()) for g, p in axis.places)


class Scopes:
    """The axes of a traced network by the modules that they are met in, those around included."""

    def __init__(self, graph: ChannelGraph) -> None:
        self._keys: dict[Axis, Key] = {}
        # of each module and length: the axes that can change, the one met last at the end
        self._met: dict[tuple[str, int], dict[Key, Axis]] = {}
        # the same for what its own operations make, and not those of the modules inside
        self._own: dict[tuple[str, int], dict[Key, Axis]] = {}
        self._staying: set[tuple[str, int]] = set()
        self._operations = graph.operations
        self._read: dict[str, list[Axis]] = {}
        for group in graph:
            for member in group.members:
                if member.role == "consumer":
                    axis = graph.axes[member.tensor][member.dim]
                    self._read.setdefault(member.tensor.rpartition(".")[0], []).append(axis)
        for name, axes in graph.axes.items():
            for path in stack_of(name.rpartition(".")[0]):
                for axis in axes:
                    if axis.places:
                        self._meet(path, axis)
                    elif name in graph.parameters:
                        self._staying.add((path, axis.length))
        for operation in graph.operations:
            for axis in {axis: None for axes in operation.outputs for axis in axes if axis.places}:
                for path in stack_of(operation.module):
                    self._meet(path, axis)
                self._own.setdefault((operation.module, axis.length), {})[self._key(axis)] = axis

    def _meet(self, path: str, axis: Axis) -> None:
        met = self._met.setdefault((path, axis.length), {})
        # again at the end
        met.pop(self._key(axis), None)
        met[self._key(axis)] = axis

    def _key(self, axis: Axis) -> Key:
        if axis not in self._keys:
            self._keys[axis] = axis_key(axis)
        return self._keys[axis]

    def axes(self, path: str, length: int) -> list[Axis]:
        """List the axes of this length inside a module that can change, each once."""
        return list(self._met.get((path, length), {}).values())

    def own(self, path: str, length: int) -> list[Axis]:
        """List the axes of this length that can change and that a module's own operations make."""
        return list(self._own.get((path, length), {}).values())

    def made_last(self, path: str, length: int) -> list[Axis]:
        """Find the axis of this length that can change and that a module has met last."""
        return self.axes(path, length)[-1:]

    def made_at_the_end(self, path: str, length: int) -> list[Axis]:
        """Find the axis of this length that can change in what the last operation of a module makes."""
        for operation in reversed(self._operations):
            if operation.module == path or operation.module.startswith(f"{path}."):
                made = [axis for axes in operation.outputs for axis in axes]
                return [axis for axis in made if axis.length == length and axis.places][:1]
        return []

    def read_first(self, path: str, length: int) -> list[Axis]:
        """Find the axis of this length that can change and that a module begins with.

        That is the one that its first layer reads, or what comes before that makes.
        """
        for operation in self._operations:
            if operation.module == path or operation.module.startswith(f"{path}." if path else ""):
                read = self._read.get(operation.module)
                axes = read or [axis for axes in operation.outputs for axis in axes if axis.places]
                if read or any(axis.length == length for axis in axes):
                    return [axis for axis in axes if axis.length == length][:1]
        return []

    def stays(self, path: str, length: int) -> bool:
        """Say whether a parameter inside a module has an axis of this length that never changes."""
        return (path, length) in self._staying

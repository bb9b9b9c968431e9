"""The axes of a graph for what a recording of the same network has: each of its calls, and each tensor."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import TypeAlias

from slimfast.errors import SlimfastError
from slimfast.graph.channel_graph import Axis, ChannelGraph, Operation
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.cutting.prediction import aligned
from slimfast.graph.recording.calls import Call, Ref, refs_in
from slimfast.graph.recording.forward import Recording

Axes: TypeAlias = tuple[Axis, ...]


def operations_of(graph: ChannelGraph, recording: Recording, what: str) -> list[Operation]:
    """Find the graph's operation for each recorded call, in order.

    Copies, which the graph may not have, keep the axes of what they copy. Raises :class:`SlimfastError`,
    which begins with ``what``, for a graph of another network.
    """
    whole = Cut(graph, {})
    found: dict[int, Operation] = {}
    for number, call in aligned(whole, recording.calls):
        operation = graph.operations[number]
        if whole.shapes_of(operation) != tuple(ref.shape for ref in call.outputs):
            raise SlimfastError(f"{what}: expected the graph of this model and this example, got another")
        found[id(call)] = operation
    return _all_of(graph, recording, found)


def alike_operations(graph: ChannelGraph, recording: Recording, what: str) -> list[Operation]:
    """Find the graph's operation for each recorded call where the forward does other things with data.

    Some networks leave masks and copies out then. What the graph has not keeps the axes of what it reads,
    where one of that is as long. Raises as :func:`operations_of`, where less than half of the calls is found.
    """
    named = [
        (
            operation.name,
            operation.module,
            tuple(tuple(axis.length for axis in axes) for axes in operation.outputs),
        )
        for operation in graph.operations
    ]
    ran = [(call.op, call.module, tuple(ref.shape for ref in call.outputs)) for call in recording.calls]
    found: dict[int, Operation] = {}
    for first, second, size in SequenceMatcher(None, named, ran, autojunk=False).get_matching_blocks():
        for i in range(size):
            found[id(recording.calls[second + i])] = graph.operations[first + i]
    if 2 * len(found) < len(ran):
        raise SlimfastError(f"{what}: expected the graph of this model and this example, got another")
    return _all_of(graph, recording, found)


def _all_of(graph: ChannelGraph, recording: Recording, found: Mapping[int, Operation]) -> list[Operation]:
    known = known_axes(recording.names, graph)
    made = []
    for call in recording.calls:
        operation = found.get(id(call)) or _copying(call, known)
        known |= {ref.value: own for ref, own in zip(call.outputs, operation.outputs, strict=True)}
        made.append(operation)
    return made


def _copying(call: Call, known: Mapping[int, Axes]) -> Operation:
    read = {ref.shape: axes_of(ref, known) for ref in reversed(refs_in(call.arguments))}
    outputs = tuple(read.get(ref.shape) or tuple(map(Axis, ref.shape)) for ref in call.outputs)
    return Operation(call.op, call.module, outputs)


def known_axes(names: Mapping[int, str], graph: ChannelGraph) -> dict[int, Axes]:
    """Find the axes of the parameters and buffers of a recording, by value."""
    found = {}
    for value, name in names.items():
        name = graph.tied.get(name, name)
        if name in graph.axes:
            found[value] = graph.axes[name]
    return found


def axes_of(ref: Ref, known: Mapping[int, Axes]) -> Axes:
    """Look the axes of a tensor up; those of its shape, which no width changes, where it has others."""
    found = known.get(ref.value)
    if found is not None and tuple(axis.length for axis in found) == ref.shape:
        return found
    return tuple(Axis(n) for n in ref.shape)

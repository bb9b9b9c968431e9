"""From a model and an example of its arguments to its channel graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from slimfast.graph import trial
from slimfast.graph.copies import named_tensors, tensor_names
from slimfast.graph.flow import FIXED, Flow, Span, Step, Value, refs_in
from slimfast.graph.grouping import Grouping
from slimfast.graph.groups import ChannelGraph
from slimfast.graph.inputs import InputSpec, arguments
from slimfast.graph.record import Recording, record
from slimfast.graph.rules import find_rule


def trace_channels(
    model: nn.Module,
    example: Any,
    *,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    settle: bool = True,
) -> ChannelGraph:
    """The channel groups of ``model``, found by running it once on tensors without data.

    ``example``: a tensor, a tuple or a dict of the model's arguments. ``include`` and ``exclude`` are globs
    over the names of groups (``layer3.*``) or their kinds (``head``): only included and not excluded groups
    are returned, and what the others would have changed stays as it is.

    ``settle``: cut every group once on tensors without data, find the Python attributes that must follow,
    and leave out what cannot be cut; without it the groups are those that the recorded operations allow.

    Raises UnsupportedGraph when the forward fails, naming the module, and TypeError for an example that is
    not made of tensors and plain values.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"trace_channels: expected an nn.Module, got {type(model).__name__}")
    inputs = InputSpec.of(example)
    args, kwargs = arguments(example)
    recording = record(model, args, kwargs)
    flow = propagate(model, recording)
    grouping = Grouping(flow, include, exclude)
    tensors, tied = tensor_names(model)
    graph = ChannelGraph(
        groups=grouping.groups(),
        axes=grouping.axes(),
        parameters=frozenset(name for name, t in tensors.items() if isinstance(t, nn.Parameter)),
        operations=tuple(grouping.operation(i) for i in range(len(flow.steps))),
        frozen=grouping.frozen(),
        inputs=inputs,
        tied=tied,
        itemsize={name: tensor.element_size() for name, tensor in tensors.items()},
    )
    return trial.settle(model, graph, recording) if settle else graph


def propagate(model: nn.Module, recording: Recording) -> Flow:
    """Follow the labels of every parameter and buffer through the recorded operations."""
    flow = Flow(dict(model.named_modules()))
    tensors = named_tensors(model)
    for value, name in recording.names.items():
        shape = tuple(tensors[name].shape)
        # a buffer (the frequencies of rotary positions) computes no unit: it has no spectrum to rank
        sources = frozenset({name} if isinstance(tensors[name], nn.Parameter) else ())
        flow.values[value] = flow.tensors[name] = Value(flow.fresh(shape), False, sources, shape)
    given = flow.reason("network input", "")
    for ref in recording.inputs:
        flow.values[ref.value] = Value([given] * len(ref.shape), True)
    for call in recording.calls:
        _follow(flow, call)
    result = flow.reason("network output", "")
    for ref in recording.outputs:
        if ref.value in flow.values:
            for way in flow.ways(ref):
                if not isinstance(way, int):
                    flow.partition.freeze(way, result)
    return flow


def _follow(flow: Flow, call: Any) -> None:
    flow.step = Step(call)
    operands = list(refs_in(call.arguments))
    for ref in operands:
        # a tensor that the model keeps outside its parameters and buffers is a constant nobody can cut
        if ref.value not in flow.values:
            flow.values[ref.value] = Value([FIXED] * len(ref.shape), False)
    data = any(flow.value(ref).data for ref in operands)
    sources = frozenset() if data else frozenset().union(*(flow.value(ref).sources for ref in operands))
    ways = find_rule(call)(flow, call)
    # a size read off another axis ties the two
    for dim, axis in enumerate(call.lengths):
        if axis is not None and axis[0] in flow.values:
            flow.tie(ways[0][dim], flow.values[axis[0]].ways[axis[1]])
    for ref, found in zip(call.outputs, ways, strict=True):
        flow.step.outputs.append([Span(way, n) for way, n in zip(found, ref.shape, strict=True)])
        flow.values[ref.value] = Value(found, data, sources)
    flow.steps.append(flow.step)

"""Follow the labels of a network's parameters and buffers through its recorded forward."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from torch import nn

from slimfast.graph.propagation.flow import FIXED, Flow, Span, Step, Value, Way, refs_in
from slimfast.graph.propagation.rules import find_rule
from slimfast.graph.propagation.zeros import Masked
from slimfast.graph.recording.forward import Call, ForwardFailed, Recording, record_at
from slimfast.graph.recording.network import Network
from slimfast.graph.recording.shape_reads import AxisOf

# What these make of a parameter are its elements still, though the input may say which: experts chosen by it.
_SELECTING = frozenset(
    f"aten.{name}"
    for name in (
        *("index", "_unsafe_index", "index_select", "select", "slice", "split", "split_with_sizes", "chunk"),
        *("view", "_unsafe_view", "reshape", "permute", "transpose", "t", "squeeze", "unsqueeze", "expand"),
        *("clone", "_to_copy", "detach", "alias"),
    )
)


def propagate(network: Network, recording: Recording, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Flow:
    """Follow the labels of every parameter and buffer through the recorded operations.

    ``args`` and ``kwargs`` are those of the recording: where it leaves parameters out, the training forward
    is recorded with them too.
    """
    flow = Flow(network.modules)
    for name, tensor in network.tensors.items():
        shape = tuple(tensor.shape)
        # a buffer (the frequencies of rotary positions) computes no unit: it has no spectrum to rank
        sources = frozenset({name} if isinstance(tensor, nn.Parameter) else ())
        flow.tensors[name] = Value(flow.fresh(shape), False, sources, shape)
    _follow_all(flow, recording)
    for (name, dim), role in flow.roles.items():
        if role == "producer" and not network.tensors[name].is_floating_point():
            told = f"its elements are {network.tensors[name].dtype}, of which no spectrum is made"
            way = flow.tensors[name].ways[dim]
            if not isinstance(way, int):
                flow.partition.freeze(way, flow.reason(told, name.rpartition(".")[0]))
    _follow_training(flow, network, recording, args, kwargs)
    return flow


def _follow_all(flow: Flow, recording: Recording) -> None:
    flow.values = {value: flow.tensors[name] for value, name in recording.names.items()}
    given = flow.reason("network input", "")
    for ref in recording.inputs:
        flow.values[ref.value] = Value([given] * len(ref.shape), True)
    parameters = (value for value, name in recording.names.items() if flow.tensors[name].sources)
    flow.nonzero = Masked(flow, parameters).nonzero
    for call in recording.calls:
        _follow(flow, call)
    result = flow.reason("network output", "")
    for ref in recording.outputs:
        if ref.value in flow.values:
            for way in flow.ways(ref):
                if not isinstance(way, int):
                    flow.partition.freeze(way, result)


def _follow_training(
    flow: Flow, network: Network, recording: Recording, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Couple what the forward leaves out in eval mode (the auxiliary classifiers of GoogLeNet) to the rest.

    It is left whole itself, for no eval mode shows what its cut does. Where the training forward cannot be
    recorded the frozen parameters say so: what they read may be cut, and they are not.
    """
    idle = _idle(flow, recording)
    paths = _deciding([n for n, t in network.tensors.items() if isinstance(t, nn.Parameter)], idle)
    if not paths:
        _tell_idle(flow, idle, "the forward does not use it with this example")
        return
    try:
        training = record_at(network, args, kwargs, recording.tensor_mode, training=paths)
    except ForwardFailed as failure:
        _tell_idle(flow, idle, f"it is left out in eval mode, and in training mode the {failure}")
        return
    steps, flow.steps, flow.training = flow.steps, [], True
    _follow_all(flow, training)
    flow.steps, flow.training = steps, False
    never = set(_idle(flow, training))
    _tell_idle(flow, [n for n in idle if n in never], "the forward does not use it with this example")


def _idle(flow: Flow, recording: Recording) -> list[str]:
    """The parameters that no operation of a recording uses."""
    used = {ref.value for call in recording.calls for ref in refs_in(call.arguments)}
    return [n for value, n in recording.names.items() if value not in used and flow.tensors[n].sources]


def _tell_idle(flow: Flow, names: Collection[str], reason: str) -> None:
    """Leave parameters alone and tell why."""
    for name in names:
        number = flow.reason(reason, name.rpartition(".")[0])
        for dim, way in enumerate(flow.tensors[name].ways):
            if not isinstance(way, int):
                flow.partition.freeze(way, number)
                flow.roles[name, dim] = "consumer"


def _deciding(parameters: Iterable[str], idle: Collection[str]) -> list[str]:
    """The modules that hold idle parameters and others: it is their forward that leaves the idle ones out."""
    inside: dict[str, set[bool]] = {}
    for name in parameters:
        parts = name.split(".")
        for depth in range(len(parts)):
            inside.setdefault(".".join(parts[:depth]), set()).add(name in idle)
    return [path for path, kinds in inside.items() if len(kinds) == 2]


def _follow(flow: Flow, call: Call) -> None:
    flow.step = Step(call)
    operands = list(refs_in(call.arguments))
    for ref in operands:
        # a tensor that the model keeps outside its parameters and buffers is a constant nobody can cut
        if ref.value not in flow.values:
            flow.values[ref.value] = Value([FIXED] * len(ref.shape), False)
    data = any(flow.value(ref).data for ref in operands)
    computed = data and call.op not in _SELECTING
    sources = frozenset() if computed else frozenset().union(*(flow.value(ref).sources for ref in operands))
    ways = find_rule(call)(flow, call)
    for dim, axis in enumerate(call.lengths):
        if axis is not None and axis[0] in flow.values:
            _tie(flow, call, ways[0], dim, axis)
    for ref, found in zip(call.outputs, ways, strict=True):
        flow.step.outputs.append([Span(way, n) for way, n in zip(found, ref.shape, strict=True)])
        flow.values[ref.value] = Value(found, data, sources)
    flow.steps.append(flow.step)


def _tie(flow: Flow, call: Call, ways: list[Way], dim: int, axis: AxisOf) -> None:
    """A size read off another axis ties the two.

    A part of it, ``c // heads``, ties that part. The number of parts is another axis of the result whose size
    was not read off one, the nearest in front, else behind; without such an axis it stays.
    """
    value, at, divisor = axis
    source, shape = flow.values[value].ways[at], call.outputs[0].shape
    if divisor == 1:
        flow.tie(ways[dim], source)
        return
    parts, part = flow.split(source, divisor, shape[dim])
    flow.tie(ways[dim], part)
    free = [d for d, n in enumerate(shape) if call.lengths[d] is None and n % divisor == 0]
    number = max((d for d in free if d < dim), default=min((d for d in free if d > dim), default=None))
    if number is None:
        flow.freeze(parts, "its length is divided by a fixed number")
    else:
        flow.tie(flow.split(ways[number], shape[number] // divisor, divisor)[1], parts)

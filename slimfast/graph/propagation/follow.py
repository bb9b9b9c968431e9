"""Follow the labels of a network's parameters and buffers through its recorded forward."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from torch import nn

from slimfast.graph.propagation.axis_labels import FIXED, Axes, fixed_axis
from slimfast.graph.propagation.flow import Propagation, TracedCall, TracedTensor
from slimfast.graph.propagation.reasons import Reason
from slimfast.graph.propagation.rules import rule_of
from slimfast.graph.propagation.zeros import ZeroTracker
from slimfast.graph.recording.calls import Call, LengthOrigin, refs_in
from slimfast.graph.recording.forward import ForwardFailed, Recording, record_at
from slimfast.graph.recording.network import Network
from slimfast.graph.recording.op_registry import entry_of


def propagate(
    network: Network, recording: Recording, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Propagation:
    """Follow the labels of every parameter and buffer through the recorded operations.

    ``args`` and ``kwargs`` are those of the recording: where it leaves parameters out, the training forward
    is recorded with them too.
    """
    flow = Propagation(network.modules)
    for name, tensor in network.tensors.items():
        # a buffer (the frequencies of rotary positions) computes no unit: it has no spectrum to rank
        sources = frozenset({name} if isinstance(tensor, nn.Parameter) else ())
        flow.tensors[name] = TracedTensor(flow.fresh(tensor.shape), False, sources)
    _follow_all(flow, recording)
    for (name, dim), role in flow.roles.items():
        if role == "producer" and not network.tensors[name].is_floating_point():
            cause = flow.causes.add(
                Reason.NOT_FLOATING, _module_of(name), detail=str(network.tensors[name].dtype)
            )
            flow.freeze_for([flow.tensors[name].axes[dim]], cause)
    _follow_training(flow, network, recording, args, kwargs)
    return flow


def _follow_all(flow: Propagation, recording: Recording) -> None:
    flow.values = {value: flow.tensors[name] for value, name in recording.names.items()}
    given = flow.causes.add(Reason.NETWORK_INPUT)
    for ref in recording.inputs:
        flow.values[ref.value] = TracedTensor([fixed_axis(given, n) for n in ref.shape], True)
    parameters = (value for value, name in recording.names.items() if flow.tensors[name].sources)
    flow.may_be_nonzero = ZeroTracker(flow, parameters).nonzero_by_now
    for call in recording.calls:
        _follow(flow, call)
    result = flow.causes.add(Reason.NETWORK_OUTPUT)
    for ref in recording.outputs:
        if ref.value in flow.values:
            flow.freeze_for(flow.axes(ref), result)


def _follow_training(
    flow: Propagation, network: Network, recording: Recording, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Couple what the forward leaves out in eval mode (the auxiliary classifiers of GoogLeNet) to the rest.

    It is left whole itself, for no eval mode shows what its cut does. Where the training forward cannot be
    recorded the frozen parameters say so: what they read may be cut, and they are not.
    """
    idle = _idle(flow, recording)
    paths = _deciding([n for n, t in network.tensors.items() if isinstance(t, nn.Parameter)], idle)
    if not paths:
        _tell_idle(flow, idle, Reason.NOT_USED)
        return
    try:
        training = record_at(network, args, kwargs, recording.tensor_mode, training=paths)
    except ForwardFailed as failure:
        _tell_idle(flow, idle, Reason.TRAINING_FAILED, str(failure))
        return
    steps, flow.steps, flow.training = flow.steps, [], True
    _follow_all(flow, training)
    flow.steps, flow.training = steps, False
    never = set(_idle(flow, training))
    _tell_idle(flow, [n for n in idle if n in never], Reason.NOT_USED)


def _idle(flow: Propagation, recording: Recording) -> list[str]:
    """The parameters that no operation of a recording uses."""
    used = {ref.value for call in recording.calls for ref in refs_in(call.arguments)}
    return [n for value, n in recording.names.items() if value not in used and flow.tensors[n].sources]


def _tell_idle(flow: Propagation, names: Collection[str], reason: Reason, detail: str = "") -> None:
    """Leave parameters alone and tell why."""
    for name in names:
        axes = flow.tensors[name].axes
        flow.freeze_for(axes, flow.causes.add(reason, _module_of(name), detail=detail))
        for dim, axis in enumerate(axes):
            if not axis.fixed:
                flow.roles[name, dim] = "consumer"


def _module_of(name: str) -> str:
    """The path of the module that holds a parameter."""
    return name.rpartition(".")[0]


def _deciding(parameters: Iterable[str], idle: Collection[str]) -> list[str]:
    """The modules that hold idle parameters and others: it is their forward that leaves the idle ones out."""
    inside: dict[str, set[bool]] = {}
    for name in parameters:
        parts = name.split(".")
        for depth in range(len(parts)):
            inside.setdefault(".".join(parts[:depth]), set()).add(name in idle)
    return [path for path, kinds in inside.items() if len(kinds) == 2]


def _follow(flow: Propagation, call: Call) -> None:
    flow.step = TracedCall(call)
    operands = list(refs_in(call.arguments))
    for ref in operands:
        # a tensor that the model keeps outside its parameters and buffers is a constant nobody can cut
        if ref.value not in flow.values:
            flow.values[ref.value] = TracedTensor([FIXED.of_length(n) for n in ref.shape], False)
    data = any(flow.value(ref).data for ref in operands)
    # experts chosen by the input are still elements of the parameter they are chosen from
    computed = data and not entry_of(call.op).selects
    sources = frozenset() if computed else frozenset().union(*(flow.value(ref).sources for ref in operands))
    axes = rule_of(call)(flow, call)
    for dim, axis in enumerate(call.size_origins):
        if axis is not None and axis[0] in flow.values:
            _tie(flow, call, axes[0], dim, axis)
    for ref, found in zip(call.outputs, axes, strict=True):
        fitted = [axis.of_length(n) if axis.fixed else axis for axis, n in zip(found, ref.shape, strict=True)]
        flow.step.outputs.append(fitted)
        flow.values[ref.value] = TracedTensor(fitted, data, sources)
    flow.steps.append(flow.step)


def _tie(flow: Propagation, call: Call, axes: Axes, dim: int, axis: LengthOrigin) -> None:
    """A size read off another axis ties the two.

    A part of it, ``c // heads``, ties that part. The number of parts is another axis of the result whose size
    was not read off one, the nearest in front, else behind; without such an axis it stays.
    """
    value, at, divisor = axis
    source, shape = flow.values[value].axes[at], call.outputs[0].shape
    if divisor == 1:
        flow.tie(axes[dim], source)
        return
    parts, part = flow.split(source, divisor)
    flow.tie(axes[dim], part)
    free = [d for d, n in enumerate(shape) if call.size_origins[d] is None and n % divisor == 0]
    number = max((d for d in free if d < dim), default=min((d for d in free if d > dim), default=None))
    if number is None:
        flow.freeze(parts, Reason.FIXED_PARTS)
    else:
        flow.tie(flow.split(axes[number], shape[number] // divisor)[1], parts)

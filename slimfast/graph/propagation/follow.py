"""Follow the labels of a network's parameters and buffers through its recorded forward."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from torch import nn

from slimfast.errors import UnsupportedGraph
from slimfast.graph.propagation.axis_labels import Axes
from slimfast.graph.propagation.flow import Propagation
from slimfast.graph.propagation.network_labels import NetworkLabels, module_of
from slimfast.graph.propagation.reasons import Reason
from slimfast.graph.propagation.rules import rule_of
from slimfast.graph.recording.calls import Call, LengthOrigin, refs_in
from slimfast.graph.recording.forward import ForwardFailed, Recording, record_at
from slimfast.graph.recording.network import Network


def propagate(
    network: Network, recording: Recording, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Propagation:
    """Follow the labels of every parameter and buffer through the recorded operations.

    ``args`` and ``kwargs`` are those of the recording: where it leaves parameters out, the training forward
    is recorded with them too.
    """
    labels = NetworkLabels(network)
    flow = _follow(Propagation(labels, recording), recording)
    _leave_integers(labels, network)
    _follow_training(labels, network, recording, args, kwargs)
    return flow


def _follow(flow: Propagation, recording: Recording) -> Propagation:
    """Follow a recording from its inputs to its outputs, which stay as they are."""
    for call in recording.calls:
        _follow_call(flow, call)
    cause = flow.labels.causes.add(Reason.NETWORK_OUTPUT)
    for ref in recording.outputs:
        if flow.knows(ref.value):
            flow.labels.freeze(flow.axes(ref), cause)
    return flow


def _follow_call(flow: Propagation, call: Call) -> None:
    """Let the rule of an operation pass the labels on, then tie the axes whose lengths were passed as
    sizes."""
    flow.begin(call)
    outputs = [
        [axis.of_length(n) if axis.fixed else axis for axis, n in zip(axes, ref.shape, strict=True)]
        for axes, ref in zip(rule_of(call)(flow, call), call.outputs, strict=True)
    ]
    for dim, origin in enumerate(call.size_origins):
        if origin is not None and flow.knows(origin[0]):
            _tie(flow, call, outputs[0], dim, origin)
    flow.finish(outputs)


def _tie(flow: Propagation, call: Call, axes: Axes, dim: int, origin: LengthOrigin) -> None:
    """Tie an axis to the one that its size was read off.

    A part of it, ``c // heads``, ties that part. The number of parts is another axis of the result whose size
    was not read off one, the nearest in front, else behind; without such an axis it stays.
    """
    value, at, divisor = origin
    source, shape = flow.axis_at(value, at), call.outputs[0].shape
    if divisor == 1:
        flow.tie(axes[dim], source)
        return
    parts, part = flow.split(source, divisor)
    flow.tie(axes[dim], part)
    free = [d for d, n in enumerate(shape) if call.size_origins[d] is None and n and n % divisor == 0]
    number = max((d for d in free if d < dim), default=min((d for d in free if d > dim), default=None))
    if number is None:
        flow.freeze(parts, Reason.FIXED_PARTS)
    else:
        flow.tie(flow.split(axes[number], shape[number] // divisor)[1], parts)


def _leave_integers(labels: NetworkLabels, network: Network) -> None:
    """Freeze what is computed by weights that are no floating-point numbers."""
    for (name, dim), role in labels.roles.items():
        tensor = network.tensors[name]
        if role == "producer" and not tensor.is_floating_point():
            cause = labels.causes.add(Reason.NOT_FLOATING, module_of(name), detail=str(tensor.dtype))
            labels.freeze([labels.tensors[name].axes[dim]], cause)


def _follow_training(
    labels: NetworkLabels,
    network: Network,
    recording: Recording,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Couple what the forward leaves out in eval mode to the rest, as it is in training mode.

    Parameters that eval mode does not use (the auxiliary classifiers of GoogLeNet) are left whole themselves,
    for no eval mode shows what their cut does; what they read may be cut, and they follow. What the forward
    returns in training alone is an output as well. Where the training forward cannot be recorded the frozen
    parameters say so.
    """
    idle = _idle(labels, recording)
    known = recording
    if paths := _deciding([n for n, t in network.tensors.items() if isinstance(t, nn.Parameter)], idle):
        try:
            known = _record_partly_training(network, recording, args, kwargs, paths)
        except ForwardFailed as failure:
            labels.leave_alone(idle, Reason.TRAINING_FAILED, str(failure))
            return
        _follow(Propagation(labels, known, training=True), known)
        idle = [name for name in idle if name in set(_idle(labels, known))]
    whole = _record_training(network, recording, args, kwargs)
    if whole is not None:
        still = set(_idle(labels, whole))
        if not still.issuperset(idle) or _shapes(whole) != _shapes(known):
            _follow(Propagation(labels, whole, training=True), whole)
            idle = [name for name in idle if name in still]
    labels.leave_alone(idle, Reason.NOT_USED)


def _record_training(
    network: Network, recording: Recording, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Recording | None:
    """Record the forward with every module in training mode; None where it cannot be, without computing."""
    if recording.tensor_mode == "real":
        return None
    try:
        return _record_in_training(network, recording, args, kwargs, list(network.modules))
    except (ForwardFailed, UnsupportedGraph):
        return None


def _record_partly_training(
    network: Network,
    recording: Recording,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    training: Collection[str],
) -> Recording:
    """Record with some modules in training mode, on real tensors where they decide otherwise by values."""
    try:
        return _record_in_training(network, recording, args, kwargs, training)
    except ForwardFailed:
        if not recording.decisions or any(tensor.is_meta for tensor in network.tensors.values()):
            raise
    return record_at(network, args, kwargs, "real", training=training)


def _record_in_training(
    network: Network,
    recording: Recording,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    training: Collection[str],
) -> Recording:
    """Record once more with these modules in training mode, on such tensors and with what was decided."""
    mode, decisions = recording.tensor_mode, recording.decisions
    return record_at(network, args, kwargs, mode, training=training, decisions=decisions)


def _shapes(recording: Recording) -> list[tuple[int, ...]]:
    """List the shapes of what a forward returned."""
    return [ref.shape for ref in recording.outputs]


def _idle(labels: NetworkLabels, recording: Recording) -> list[str]:
    """List the parameters that no operation of a recording uses."""
    used = {ref.value for call in recording.calls for ref in refs_in(call.arguments)}
    return [n for value, n in recording.names.items() if value not in used and labels.tensors[n].sources]


def _deciding(parameters: Iterable[str], idle: Collection[str]) -> list[str]:
    """List the modules that hold idle parameters and others: their forwards leave the idle ones out."""
    inside: dict[str, set[bool]] = {}
    for name in parameters:
        parts = name.split(".")
        for depth in range(len(parts)):
            inside.setdefault(".".join(parts[:depth]), set()).add(name in idle)
    return [path for path, kinds in inside.items() if len(kinds) == 2]

"""Follow the labels of a network's parameters and buffers through its recorded forward."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from slimfast.arrays import Arguments
from slimfast.errors import UnsupportedGraph
from slimfast.graph.propagation.axis_labels import Axes
from slimfast.graph.propagation.flow import Propagation
from slimfast.graph.propagation.network_labels import NetworkLabels, module_of
from slimfast.graph.propagation.reasons import Reason
from slimfast.graph.propagation.rules import rule_of
from slimfast.graph.recording.calls import Call, LengthOrigin, refs_in
from slimfast.graph.recording.data_copies import copied_with_data
from slimfast.graph.recording.forward import ForwardFailed, Recording, record_at
from slimfast.graph.recording.network import Network
from slimfast.graph.recording.output_places import Outputs, staying


def propagate(
    network: Network,
    recording: Recording,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    outputs: Outputs | None = None,
    also: Sequence[tuple[Recording, Arguments]] = (),
) -> Propagation:
    """Follow the labels of every parameter and buffer through the recorded operations.

    ``args`` and ``kwargs`` are those of the recording: where it leaves parameters out, the training forward
    is recorded with them too. ``outputs``: those that stay as they are, all of them where it is None.
    ``also``: recordings of other calls and their arguments, which are followed on the same labels.
    """
    labels = NetworkLabels(network)
    flow = _follow(Propagation(labels, recording), recording, outputs)
    for other, _ in also:
        _follow(Propagation(labels, other), other, outputs)
    _leave_integers(labels, network)
    _Training(labels, network, recording, (args, kwargs), outputs, also).follow()
    return flow


def _follow(flow: Propagation, recording: Recording, outputs: Outputs | None) -> Propagation:
    """Follow a recording from its inputs to its outputs, which stay as they are."""
    for call in recording.calls:
        _follow_call(flow, call)
    cause = flow.labels.causes.add(Reason.NETWORK_OUTPUT)
    for ref, stays in zip(recording.outputs, staying(recording.places, outputs), strict=True):
        if stays and flow.knows(ref.value):
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


@dataclass(frozen=True, slots=True)
class _Training:
    """What is coupled by the forward in training mode, with the inputs and the outputs of eval mode."""

    labels: NetworkLabels
    network: Network
    recording: Recording
    inputs: Arguments
    outputs: Outputs | None
    also: Sequence[tuple[Recording, Arguments]]

    def follow(self) -> None:
        """Couple what the forward leaves out in eval mode to the rest, as it is in training mode.

        Parameters that eval mode does not use (the auxiliary classifiers of GoogLeNet) are left whole
        themselves, for no eval mode shows what their cut does; what they read may be cut, and they follow.
        What the forward returns in training alone is an output as well. Where the training forward cannot be
        recorded the frozen parameters say so. Other calls are made in training mode too.
        """
        idle = set(_idle(self.labels, self.recording))
        for other, _ in self.also:
            idle &= set(_idle(self.labels, other))
        left = [name for name in self.labels.tensors if name in idle]
        # One call may use a parameter for its shape alone, and another for what it holds.
        asked = bool(left)
        known = self.recording
        parameters = [n for n, t in self.network.tensors.items() if isinstance(t, nn.Parameter)]
        failed = ""
        if paths := _deciding(parameters, left):
            try:
                known = self._recorded_partly(paths)
                left = self._followed(known, left)
            except ForwardFailed as failure:
                failed = str(failure)
                self._note_failure(failure)
        whole = None if failed else self._recorded_whole()
        if whole is not None:
            more = not set(_idle(self.labels, whole, touched=True)).issuperset(left)
            if more or _shapes(whole) != _shapes(known):
                left = self._followed(whole, left)
        for other, inputs in self.also if asked or self.labels.training_failure is not None else ():
            left = self._followed_other(other, inputs, left)
        self.labels.leave_alone(left, Reason.TRAINING_FAILED if failed else Reason.NOT_USED, failed)
        self._note_unseen(parameters, left)

    def _note_unseen(self, parameters: Sequence[str], left: Collection[str]) -> None:
        """Note what no forward uses, with the nearest module around that has parameters which one does.

        A layer that runs without a parameter of its own is not waiting for a call that uses it.
        """
        deciding, modules = set(_deciding(parameters, left)), self.network.modules
        for name in left:
            holder = module_of(name)
            if holder in deciding and not modules[holder]._modules:
                continue
            around = [name[:at] for at, letter in enumerate(name) if letter == "."]
            self.labels.unseen[name] = next((path for path in reversed(around) if path in deciding), "")

    def _followed_other(self, other: Recording, inputs: Arguments, idle: list[str]) -> list[str]:
        """Follow another call in training mode, as :meth:`_followed` does."""
        mode, everything = other.tensor_mode, list(self.network.modules)
        try:
            found = record_at(self.network, *inputs, mode, training=everything, decisions=other.decisions)
        except (ForwardFailed, UnsupportedGraph):
            try:
                if self._has_no_data():
                    raise
                found = self._record_with_data(inputs, everything)
            except (ForwardFailed, UnsupportedGraph) as again:
                self.labels.notes.append(f"another call was not looked at in training mode: {again}")
                return idle
        self.labels.training_failure = None
        return self._followed(found, idle)

    def _followed(self, recording: Recording, idle: list[str]) -> list[str]:
        """Follow a training forward; return which of the idle parameters it does not use either."""
        still = set(_idle(self.labels, recording, touched=True))
        _follow(Propagation(self.labels, recording, training=True), recording, self.outputs)
        return [name for name in idle if name in still]

    def _record(self, training: Collection[str]) -> Recording:
        """Record once more with these modules in training mode, on such tensors and with what was decided."""
        args, kwargs = self.inputs
        mode, decisions = self.recording.tensor_mode, self.recording.decisions
        return record_at(self.network, args, kwargs, mode, training=training, decisions=decisions)

    def _record_with_data(self, inputs: Arguments, training: Collection[str]) -> Recording:
        """Record a copy on real tensors, with these modules in training mode."""
        args, kwargs = inputs
        with copied_with_data(self.network) as network:
            return record_at(network, args, kwargs, "real", training=training)

    def _has_no_data(self) -> bool:
        return any(tensor.is_meta for tensor in self.network.tensors.values())

    def _recorded_partly(self, training: Collection[str]) -> Recording:
        """Record with some modules in training mode, on real tensors where values decide then."""
        try:
            return self._record(training)
        except ForwardFailed:
            if self._has_no_data():
                raise
        return self._record_with_data(self.inputs, training)

    def _recorded_whole(self) -> Recording | None:
        """Record the forward with every module in training mode; None where it cannot be."""
        try:
            return self._recorded_partly(list(self.network.modules))
        except UnsupportedGraph as failure:
            self.labels.notes.append(f"the training forward was not looked at: {failure}")
        except ForwardFailed as failure:
            self.labels.notes.append(f"the training forward was not looked at: {failure}")
            self._note_failure(failure)
        return None

    def _note_failure(self, failure: ForwardFailed) -> None:
        """Note why the training forward fails; without data it may be the data that it lacks."""
        if not self._has_no_data():
            self.labels.training_failure = str(failure)


def _shapes(recording: Recording) -> list[tuple[int, ...]]:
    """List the shapes of what a forward returned."""
    return [ref.shape for ref in recording.outputs]


def _idle(labels: NetworkLabels, recording: Recording, *, touched: bool = False) -> list[str]:
    """List the parameters that no operation of a recording uses.

    ``touched``: also those of which only a total is taken, as ``0 * weight.sum()`` shows an idle parameter to
    DistributedDataParallel.
    """
    calls = (call for call in recording.calls if not (touched and _is_total(call)))
    used = {ref.value for call in calls for ref in refs_in(call.arguments)}
    return [n for value, n in recording.names.items() if value not in used and labels.tensors[n].sources]


def _is_total(call: Call) -> bool:
    """Say whether a call makes one number of one tensor."""
    return len(refs_in(call.arguments)) == 1 and all(not out.shape for out in call.outputs)


def _deciding(parameters: Iterable[str], idle: Collection[str]) -> list[str]:
    """List the modules that hold idle parameters and others: their forwards leave the idle ones out."""
    inside: dict[str, set[bool]] = {}
    for name in parameters:
        parts = name.split(".")
        for depth in range(len(parts)):
            inside.setdefault(".".join(parts[:depth]), set()).add(name in idle)
    return [path for path, kinds in inside.items() if len(kinds) == 2]

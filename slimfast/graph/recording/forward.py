"""One forward pass written down: every ATen operation it ran, without computing anything where that can be
helped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from slimfast.arrays import Arguments
from slimfast.errors import UnsupportedGraph, one_line
from slimfast.graph.recording.calls import Call, Ref
from slimfast.graph.recording.dataless import TensorMode, dataless, dataless_copy, dataless_tensors, quiet
from slimfast.graph.recording.decisions import Decider, Decision
from slimfast.graph.recording.dispatch_mode import Recorder, RecordingLimit
from slimfast.graph.recording.inputs import map_tensors, tensors_in
from slimfast.graph.recording.leftovers import leaves_nothing, note_made
from slimfast.graph.recording.nests import named_tensors_in
from slimfast.graph.recording.network import Network
from slimfast.graph.recording.number_origins import AttributeReads, FoundEqual, telling_equal
from slimfast.graph.recording.shape_reads import ShapeReads
from slimfast.graph.recording.shared_functions import a_copy_runs, accept, refuse_tensors_of

__all__ = ["PROCESS_LOCK", "Call", "ForwardFailed", "Recording", "Ref", "TensorMode", "dataless_copy",
           "dataless_tensors", "record", "record_at", "record_copy", "tensors_in"]  # fmt: skip

# Held while something that belongs to the whole process is changed and put back: the switch of the fused
# encoder layer, a logger, the generators of random numbers, the filters of warnings. Without it one thread
# puts back what another one has changed.
PROCESS_LOCK = threading.RLock()


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """The calls of one forward in order.

    ``names`` has the first name of each parameter and buffer by its value, ``plain`` that of each tensor that
    a module holds as neither. ``saw_lengths``: the model's Python may have seen the length of an axis.
    ``decisions``: what the forward decided by values, to be handed to the recordings that are compared with
    this one. ``reads``: what its integers were read from, None where they were not traced. ``places``: where
    in what is returned each output is. ``equal``: attributes that a module's Python has found equal to a
    length, each with the module.
    """

    calls: tuple[Call, ...]
    names: Mapping[int, str]
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]
    tensor_mode: TensorMode
    saw_lengths: bool = True
    decisions: tuple[Decision, ...] = ()
    reads: AttributeReads | None = None
    places: tuple[str, ...] = ()
    plain: Mapping[int, str] = field(default_factory=dict)
    equal: tuple[FoundEqual, ...] = ()


def record(
    network: Network,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    training: Collection[str] = (),
    decisions: Sequence[Decision] = (),
    trace_numbers: bool = False,
) -> Recording:
    """Run a network once in eval mode, on a copy without data, and write down what it did.

    Only the modules of the paths ``training`` are in training mode, without those inside of them.

    First on meta tensors; where the forward asks for values, on fake tensors; where even that asks, on the
    real arguments, and then on fake tensors again with what was decided, if that is all that they lack.
    ``decisions``: those of the recording that this one is compared with, which it makes as well.
    ``trace_numbers``: note for the integers that operations are given which attributes they were read from.
    Raises UnsupportedGraph, naming the module that failed, when the forward fails on real tensors too.
    """
    if trace_numbers:
        try:
            return _record_where_it_runs(network, args, kwargs, training, decisions, trace_numbers=True)
        except UnsupportedGraph:
            # some code may refuse what is no plain integer
            pass
    return _record_where_it_runs(network, args, kwargs, training, decisions, trace_numbers=False)


def _record_where_it_runs(
    network: Network,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    training: Collection[str],
    decisions: Sequence[Decision],
    *,
    trace_numbers: bool,
) -> Recording:
    """Record on the first kind of tensors on which the forward runs."""
    made: dict[str, Any] = {"training": training, "trace_numbers": trace_numbers}
    modes: tuple[TensorMode, ...] = ("fake", "real") if decisions else ("meta", "fake", "real")
    on_meta = any(tensor.is_meta for tensor in network.tensors.values())
    for tensor_mode in modes:
        try:
            found = record_at(network, args, kwargs, tensor_mode, decisions=decisions, **made)
        except ForwardFailed as failure:
            if tensor_mode == ("fake" if on_meta else "real"):
                raise UnsupportedGraph(f"{type(network.model).__name__}: {failure}") from failure.__cause__
            continue
        if tensor_mode == "fake" and len(found.decisions) < len(decisions) and not on_meta:
            # code that asks whether tensors have data went another way than the recording it is compared with
            continue
        if tensor_mode == "real" and found.decisions and not decisions:
            return _without_data(network, args, kwargs, found, made)
        return found
    raise AssertionError("unreachable")


def _without_data(
    network: Network,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    real: Recording,
    made: Mapping[str, Any],
) -> Recording:
    """Record again on fake tensors with the decisions of a recording on real ones; that one itself where its
    decisions are not all that fake tensors lack."""
    try:
        fake = record_at(network, args, kwargs, "fake", decisions=real.decisions, **made)
    except ForwardFailed:
        return real
    return fake if len(fake.decisions) == len(real.decisions) else real


class ForwardFailed(Exception):
    """A forward raised; the message names the module and the shapes it was called with.

    ``calls``: the operations that ran before. ``module``: the path of the module that was running.
    """

    def __init__(self, message: str, calls: tuple[Call, ...], module: str) -> None:
        super().__init__(message)
        self.calls = calls
        self.module = module


@leaves_nothing
def record_at(
    network: Network,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    tensor_mode: TensorMode,
    *,
    max_operations: int | None = None,
    training: Collection[str] = (),
    decisions: Sequence[Decision] = (),
    trace_numbers: bool = False,
) -> Recording:
    """Record on one kind of tensors only, ``max_operations`` at most (copies not counted).

    ``decisions``: those that an earlier recording made, which this one makes too.
    Raises :class:`ForwardFailed` where the forward does.
    """
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True) if tensor_mode == "fake" else None
    copied = dataless_copy(network, dataless_tensors(network, tensor_mode, fake_mode))
    return record_copy(
        copied,
        args,
        kwargs,
        tensor_mode,
        fake_mode,
        max_operations=max_operations,
        training=training,
        decisions=decisions,
        copy_of=network if trace_numbers else None,
        # on real tensors the copy has the network's own parameters
        refuse=accept if tensor_mode == "real" else refuse_tensors_of(network),
    )


def record_copy(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    tensor_mode: TensorMode = "meta",
    fake_mode: FakeTensorMode | None = None,
    *,
    max_operations: int | None = None,
    training: Collection[str] = (),
    decisions: Sequence[Decision] = (),
    copy_of: Network | None = None,
    refuse: Callable[[Tensor], None] = accept,
    recorder_of: Callable[..., Recorder] = Recorder,
) -> Recording:
    """Record a module that is nobody else's, on the tensors that it has; as :func:`record_at`.

    ``copy_of``: the network that it is a copy of, where its integers are to be traced. ``recorder_of`` makes
    the recorder.
    """
    network = Network.of(model)
    reads = None if copy_of is None else AttributeReads.in_copy(network, copy_of)
    if any(module.training for module in network.modules.values()):
        model.eval()
    for path in training:
        model.get_submodule(path).training = True

    def move(leaf: Tensor) -> Tensor:
        if tensor_mode == "real":
            # a forward may write into what it is given
            return leaf.detach().clone()
        if fake_mode is not None:
            return (
                fake_mode.from_tensor(leaf.detach())
                if leaf.device.type != "meta"
                else dataless(leaf, tensor_mode, fake_mode)
            )
        return torch.empty_like(leaf.detach(), device="meta")

    inner_args, inner_kwargs = map_tensors(tuple(args), move), map_tensors(dict(kwargs), move)
    real = tensor_mode == "real"
    decider = Decider(decisions or None, real=real) if real or decisions else None
    recorder = recorder_of(
        shortcuts=tensor_mode != "real", max_operations=max_operations, refuse=refuse, decider=decider
    )
    names = {recorder.value_of(tensor): name for name, tensor in network.tensors.items()}
    plain = {recorder.value_of(tensor): name for name, tensor in network.plain_tensors()}
    inputs = tuple(recorder.ref(t) for t in tensors_in((inner_args, inner_kwargs)))
    try:
        output, saw_lengths = _run(
            model, network, (inner_args, inner_kwargs), recorder, tensor_mode, fake_mode, decider
        )
        returned = [(place, recorder.ref(t)) for place, t in named_tensors_in(output, strict=True)]
    finally:
        made = recorder.let_go()
        if not real:
            note_made(made, network.modules.values())
    decided = tuple(decider.decisions) if decider is not None else ()
    places, outputs = tuple(place for place, _ in returned), tuple(ref for _, ref in returned)
    calls = tuple(recorder.calls)
    equal = tuple(recorder.equal)
    return Recording(calls, names, inputs, outputs, tensor_mode, saw_lengths, decided, reads, places, plain,
                     equal)  # fmt: skip


def _run(
    model: nn.Module,
    network: Network,
    arguments: Arguments,
    recorder: Recorder,
    tensor_mode: TensorMode,
    fake_mode: FakeTensorMode | None,
    decider: Decider | None,
) -> tuple[Any, bool]:
    """Run the forward under the recorder; its output, and whether its Python may have seen a length."""
    args, kwargs = arguments
    with ExitStack() as stack:
        stack.enter_context(PROCESS_LOCK)
        stack.enter_context(torch.no_grad())
        stack.enter_context(a_copy_runs(network))
        stack.enter_context(recorder.watching(network))
        stack.enter_context(telling_equal(recorder.note_equal))
        if fake_mode is not None:
            stack.enter_context(fake_mode)
            stack.enter_context(quiet())
        # the fused encoder layer hides its projections from the recorder
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        # composite operations reach the recorder undecomposed only below autograd
        stack.enter_context(torch._C._AutoDispatchBelowAutograd())
        device = torch.device("meta") if tensor_mode == "meta" else None
        listed = None if decider is None else decider.listed
        watched = (recorder.compute, listed, recorder.give_numbers, recorder.give_lists)
        reads = stack.enter_context(ShapeReads(recorder.value_of, recorder.give, device, *watched))
        stack.enter_context(recorder)
        try:
            output = model(*args, **kwargs)
        except RecordingLimit:
            output = ()
        except UnsupportedGraph:
            raise
        except Exception as error:
            module, called_with = recorder.failed_in(error)
            shapes = ", ".join(map(str, called_with)) or "no tensors"
            where = f"forward failed in {module or 'the model itself'} called with shapes {shapes}"
            message = f"{where}: {one_line(error)}"
            if "does not require grad" in message:
                message += "; nothing is differentiated here: give the part that makes what is differentiated"
            raise ForwardFailed(message, tuple(recorder.calls), module) from error
    return output, reads.saw_lengths

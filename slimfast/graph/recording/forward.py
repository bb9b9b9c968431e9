"""One forward pass written down: every ATen operation it ran, without computing anything where that can be
helped."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from slimfast.arrays import Arguments
from slimfast.errors import SlimfastError, UnsupportedGraph, one_line
from slimfast.graph.recording.calls import Call, Ref
from slimfast.graph.recording.dispatch_mode import Recorder, RecordingLimit
from slimfast.graph.recording.inputs import map_leaves, named_tensors_in, tensors_in
from slimfast.graph.recording.leftovers import leaves_nothing, note_made
from slimfast.graph.recording.module_copies import deep_copy
from slimfast.graph.recording.network import Network
from slimfast.graph.recording.shape_reads import ShapeReads
from slimfast.graph.recording.shared_functions import accept, refuse_tensors_of

__all__ = ["PROCESS_LOCK", "Call", "ForwardFailed", "Recording", "Ref", "TensorMode", "dataless_copy",
           "dataless_tensors", "record", "record_at", "record_copy", "tensors_in"]  # fmt: skip

TensorMode = Literal["meta", "fake", "real"]

# Held while something that belongs to the whole process is changed and put back: the switch of the fused
# encoder layer, a logger, the generators of random numbers, the filters of warnings. Without it one thread
# puts back what another one has changed.
PROCESS_LOCK = threading.RLock()


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """The calls of one forward in order.

    ``names`` has the first name of each parameter and buffer by its value. ``saw_lengths``: the model's
    Python may have seen the length of an axis. ``places``: where in what is returned each output is.
    """

    calls: tuple[Call, ...]
    names: Mapping[int, str]
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]
    tensor_mode: TensorMode
    saw_lengths: bool = True
    places: tuple[str, ...] = ()


def dataless_copy(network: Network, tensors: Mapping[int, Tensor] | None = None) -> nn.Module:
    """Copy the module tree with tensors without data; running or editing it leaves the network as it was.

    ``tensors``: what stands for each tensor, :func:`dataless_tensors` unless given. Tied tensors stay tied.
    """
    try:
        return deep_copy(network, dict(dataless_tensors(network) if tensors is None else tensors))
    except SlimfastError as error:
        raise UnsupportedGraph(str(error)) from error


def dataless_tensors(
    network: Network, tensor_mode: TensorMode = "meta", fake_mode: FakeTensorMode | None = None
) -> dict[int, Tensor]:
    """Make what stands in a copy for each tensor that a module holds, by the tensor's identity.

    "meta" puts them on the meta device, "fake" makes them fake tensors of ``fake_mode``; "real" shares the
    parameters and copies the buffers.
    """
    made: dict[int, Tensor] = {}
    for module in network.modules.values():
        for held in (module._parameters, module._buffers, vars(module)):
            for tensor in held.values():
                if isinstance(tensor, Tensor) and id(tensor) not in made:
                    made[id(tensor)] = _dataless(tensor, tensor_mode, fake_mode)
    return made


def _dataless(tensor: Tensor, tensor_mode: TensorMode, fake_mode: FakeTensorMode | None) -> Tensor:
    if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
        raise UnsupportedGraph("a lazy parameter has no shape yet; run the model once before tracing it")
    if tensor_mode == "real":
        return tensor if isinstance(tensor, nn.Parameter) else tensor.detach().clone()
    if fake_mode is None:
        if tensor.is_contiguous():
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        else:
            empty = torch.empty_like(tensor.detach(), device="meta")
        return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    fake: Tensor = FakeTensor(fake_mode, empty, torch.device("cpu"))
    if isinstance(tensor, nn.Parameter):
        # what nn.Parameter makes of a tensor of a class of its own, without its detach, a slow call here
        fake.requires_grad_(tensor.requires_grad)
        fake._is_param = True
    return fake


def record(
    network: Network, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, training: Collection[str] = ()
) -> Recording:
    """Run a network once in eval mode, on a copy without data, and write down what it did.

    Only the modules of the paths ``training`` are in training mode, without those inside of them.

    First on meta tensors; where the forward asks for values, on fake tensors; where even that asks, on the
    real arguments. Raises UnsupportedGraph, naming the module that failed, when the forward fails on real
    tensors too.
    """
    modes: tuple[TensorMode, ...] = ("meta", "fake", "real")
    for tensor_mode in modes:
        try:
            return record_at(network, args, kwargs, tensor_mode, training=training)
        except ForwardFailed as failure:
            on_meta = any(tensor.is_meta for tensor in network.tensors.values())
            if tensor_mode == ("fake" if on_meta else "real"):
                raise UnsupportedGraph(f"{type(network.model).__name__}: {failure}") from failure.__cause__
    raise AssertionError("unreachable")


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
) -> Recording:
    """Record on one kind of tensors only, ``max_operations`` at most (copies not counted).

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
    refuse: Callable[[Tensor], None] = accept,
) -> Recording:
    """Record a module that is nobody else's, on the tensors that it has; as :func:`record_at`."""
    network = Network.of(model)
    if any(module.training for module in network.modules.values()):
        model.eval()
    for path in training:
        model.get_submodule(path).training = True

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if tensor_mode == "real":
            # a forward may write into what it is given
            return leaf.detach().clone()
        if fake_mode is not None:
            return (
                fake_mode.from_tensor(leaf.detach())
                if leaf.device.type != "meta"
                else _dataless(leaf, tensor_mode, fake_mode)
            )
        return torch.empty_like(leaf.detach(), device="meta")

    inner_args, inner_kwargs = map_leaves(tuple(args), move), map_leaves(dict(kwargs), move)
    recorder = Recorder(shortcuts=tensor_mode == "meta", max_operations=max_operations, refuse=refuse)
    names = {recorder.value_of(tensor): name for name, tensor in network.tensors.items()}
    inputs = tuple(recorder.ref(t) for t in tensors_in((inner_args, inner_kwargs)))
    try:
        output, saw_lengths = _run(
            model, network, (inner_args, inner_kwargs), recorder, tensor_mode, fake_mode
        )
        returned = [(place, recorder.ref(t)) for place, t in named_tensors_in(output, strict=True)]
    finally:
        made = recorder.let_go()
        if tensor_mode != "real":
            note_made(made, network.modules.values())
    places, outputs = tuple(place for place, _ in returned), tuple(ref for _, ref in returned)
    return Recording(tuple(recorder.calls), names, inputs, outputs, tensor_mode, saw_lengths, places)


def _run(
    model: nn.Module,
    network: Network,
    arguments: Arguments,
    recorder: Recorder,
    tensor_mode: TensorMode,
    fake_mode: FakeTensorMode | None,
) -> tuple[Any, bool]:
    """Run the forward under the recorder; its output, and whether its Python may have seen a length."""
    args, kwargs = arguments
    with ExitStack() as stack:
        stack.enter_context(PROCESS_LOCK)
        stack.enter_context(torch.no_grad())
        stack.enter_context(recorder.watching(network))
        if fake_mode is not None:
            stack.enter_context(fake_mode)
            stack.enter_context(_quiet())
        # the fused encoder layer hides its projections from the recorder
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        # composite operations reach the recorder undecomposed only below autograd
        stack.enter_context(torch._C._AutoDispatchBelowAutograd())
        device = torch.device("meta") if tensor_mode == "meta" else None
        reads = stack.enter_context(ShapeReads(recorder.value_of, recorder.give, device, recorder.compute))
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
            raise ForwardFailed(message, tuple(recorder.calls), module) from error
    return output, reads.saw_lengths


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence fake tensors, which log every operation that fails before the error that says so is raised."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = before

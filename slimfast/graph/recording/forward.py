"""One forward pass written down: every ATen operation it ran, without computing anything where that can be
helped."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from slimfast.errors import SlimfastError, UnsupportedGraph, one_line
from slimfast.graph.recording.dispatch_mode import Call, Enough, Recorder, Ref
from slimfast.graph.recording.inputs import map_leaves, tensors_in
from slimfast.graph.recording.leftovers import leaves_nothing, note_made
from slimfast.graph.recording.module_copies import deep_copy, modules_of, named_tensors
from slimfast.graph.recording.shape_reads import ShapeReads

__all__ = ["PROCESS_LOCK", "Call", "ForwardFailed", "Place", "Recording", "Ref", "copy_hollow", "hollow_copy",
           "hollow_tensors", "record", "record_at", "record_hollow", "tensors_in"]  # fmt: skip

Place = Literal["meta", "fake", "real"]

# Held while something that belongs to the whole process is changed and put back: the switch of the fused
# encoder layer, a logger, the generators of random numbers, the filters of warnings. Without it one thread
# puts back what another one has changed.
PROCESS_LOCK = threading.RLock()


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """The calls of one forward in order. ``names`` has the first name of each parameter and buffer by its
    value. ``told``: the model's Python may have been told a length."""

    calls: tuple[Call, ...]
    names: Mapping[int, str]
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]
    place: Place
    told: bool = True


def hollow_copy(model: nn.Module, place: Place = "meta", mode: FakeTensorMode | None = None) -> nn.Module:
    """A deep copy of the module tree whose tensors have no data: running it or editing it leaves ``model``
    as it was.

    ``place="meta"`` puts them on the meta device, ``"fake"`` makes them fake tensors of ``mode``; ``"real"``
    shares the parameters and copies the buffers. Tied tensors stay tied.
    """
    return copy_hollow(model, hollow_tensors(model, place, mode))


def hollow_tensors(
    model: nn.Module, place: Place = "meta", mode: FakeTensorMode | None = None
) -> dict[int, Tensor]:
    """What stands in a hollow copy for each tensor that a module holds, by the tensor's identity."""
    found: dict[int, Tensor] = {}
    for _, module in modules_of(model):
        for held in (module._parameters, module._buffers, vars(module)):
            for tensor in held.values():
                if isinstance(tensor, Tensor) and id(tensor) not in found:
                    found[id(tensor)] = _hollow(tensor, place, mode)
    return found


def copy_hollow(model: nn.Module, tensors: Mapping[int, Tensor]) -> nn.Module:
    """A deep copy of the module tree with these tensors in place of its own."""
    try:
        return deep_copy(model, dict(tensors))
    except SlimfastError as error:
        raise UnsupportedGraph(str(error)) from error


def _hollow(tensor: Tensor, place: Place, mode: FakeTensorMode | None) -> Tensor:
    if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
        raise UnsupportedGraph("a lazy parameter has no shape yet; run the model once before tracing it")
    if place == "real":
        return tensor if isinstance(tensor, nn.Parameter) else tensor.detach().clone()
    if mode is None:
        if tensor.is_contiguous():
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        else:
            empty = torch.empty_like(tensor.detach(), device="meta")
        return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    fake: Tensor = FakeTensor(mode, empty, torch.device("cpu"))
    if isinstance(tensor, nn.Parameter):
        # what nn.Parameter makes of a tensor of a class of its own, without its detach, a slow call here
        fake.requires_grad_(tensor.requires_grad)
        fake._is_param = True
    return fake


def record(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, training: Collection[str] = ()
) -> Recording:
    """Run ``model(*args, **kwargs)`` once in eval mode on a hollow copy and write down what it did.

    Only the modules of the paths ``training`` are in training mode, without those inside of them.

    First on meta tensors; where the forward asks for values, on fake tensors; where even that asks, on the
    real arguments. Raises UnsupportedGraph, naming the module that failed, when the forward fails on real
    tensors too.
    """
    places: tuple[Place, ...] = ("meta", "fake", "real")
    for place in places:
        try:
            return record_at(model, args, kwargs, place, training=training)
        except ForwardFailed as failure:
            on_meta = any(tensor.is_meta for tensor in named_tensors(model).values())
            if place == ("fake" if on_meta else "real"):
                raise UnsupportedGraph(f"{type(model).__name__}: {failure}") from failure.__cause__
    raise AssertionError("unreachable")


class ForwardFailed(Exception):
    """The forward raised; the message names the module and the shapes it was called with.

    ``calls``: the operations that ran before. ``module``: the path of the module that was running.
    """

    def __init__(self, message: str, calls: tuple[Call, ...], module: str) -> None:
        super().__init__(message)
        self.calls = calls
        self.module = module


@leaves_nothing
def record_at(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    place: Place,
    *,
    most: int | None = None,
    training: Collection[str] = (),
) -> Recording:
    """:func:`record` on one kind of tensors only, at ``most`` so many operations (copies not counted); raises
    :class:`ForwardFailed`."""
    mode = FakeTensorMode(allow_non_fake_inputs=True) if place == "fake" else None
    hollow = hollow_copy(model, place, mode)
    return record_hollow(hollow, args, kwargs, place, mode, most=most, training=training)


def record_hollow(
    hollow: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    place: Place = "meta",
    mode: FakeTensorMode | None = None,
    *,
    most: int | None = None,
    training: Collection[str] = (),
) -> Recording:
    """:func:`record_at` on a module that is nobody else's and has its tensors there already."""
    if any(module.training for _, module in modules_of(hollow)):
        hollow.eval()
    for path in training:
        hollow.get_submodule(path).training = True

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if place == "real":
            # a forward may write into what it is given
            return leaf.detach().clone()
        if mode is not None:
            return (
                mode.from_tensor(leaf.detach()) if leaf.device.type != "meta" else _hollow(leaf, place, mode)
            )
        return torch.empty_like(leaf.detach(), device="meta")

    inner_args, inner_kwargs = map_leaves(tuple(args), move), map_leaves(dict(kwargs), move)
    recorder = Recorder(shortcuts=place == "meta", most=most)
    names = {recorder.value_of(tensor): name for name, tensor in named_tensors(hollow).items()}
    inputs = tuple(recorder.ref(t) for t in tensors_in((inner_args, inner_kwargs)))

    def let_go() -> None:
        made = recorder.let_go()
        if place != "real":
            note_made(made)

    with ExitStack() as stack:
        stack.callback(let_go)
        stack.enter_context(PROCESS_LOCK)
        stack.enter_context(torch.no_grad())
        stack.enter_context(recorder.watching(hollow))
        if mode is not None:
            stack.enter_context(mode)
            stack.enter_context(_quiet())
        # the fused encoder layer hides its projections from the recorder
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        # composite operations reach the recorder undecomposed only below autograd
        stack.enter_context(torch._C._AutoDispatchBelowAutograd())
        device = torch.device("meta") if place == "meta" else None
        reads = stack.enter_context(ShapeReads(recorder.value_of, recorder.give, device, recorder.compute))
        stack.enter_context(recorder)
        try:
            output = hollow(*inner_args, **inner_kwargs)
        except Enough:
            output = ()
        except Exception as error:
            module, given = recorder.raised_by(error)
            shapes = ", ".join(map(str, given)) or "no tensors"
            where = f"forward failed in {module or 'the model itself'} called with shapes {shapes}"
            message = f"{where}: {one_line(error)}"
            raise ForwardFailed(message, tuple(recorder.calls), module) from error
        outputs = tuple(recorder.ref(t) for t in tensors_in(output, strict=True))
        return Recording(tuple(recorder.calls), names, inputs, outputs, place, reads.told)


@contextmanager
def _quiet() -> Iterator[None]:
    """Fake tensors log every operation that fails, with a traceback, before the error that says so is
    raised."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = before

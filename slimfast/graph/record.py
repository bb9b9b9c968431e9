"""One forward pass written down: every ATen operation it ran, without computing anything where that can be
helped."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from slimfast.errors import UnsupportedGraph
from slimfast.graph.inputs import map_leaves
from slimfast.graph.lengths import Given, ShapeReads

Place = Literal["meta", "fake", "real"]

# Composite operations recorded as they are called instead of what they decompose into: the scale of an
# attention would become a bare number, a linear layer on (B, T, C) a reshape to (B T, C) and back, a
# recurrent layer a step per token.
_WHOLE = frozenset(
    f"aten::{name}"
    for name in ("linear", "matmul", "scaled_dot_product_attention", "lstm", "gru", "rnn_tanh", "rnn_relu",
                 "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
)  # fmt: skip

# Composite operations that decompose into others at other lengths, 1 above all.
_SHAPE_DEPENDENT = frozenset({"aten::einsum", "aten::tensordot"})

# Operations whose sizes are those of their result, dim by dim.
_SIZED = frozenset(
    f"aten::{name}"
    for name in ("view", "_unsafe_view", "_reshape_alias", "expand", "zeros", "ones", "empty", "full",
                 "new_zeros", "new_ones", "new_empty", "new_full")
)  # fmt: skip


class Ref(NamedTuple):
    """A tensor in a recording: the same ``value`` is the same tensor object; an in-place op may change its
    shape."""

    value: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One operation as it ran: ``arguments`` by schema name, defaults filled in, every tensor replaced by
    its Ref.

    ``pointwise``: PyTorch's own tag for an operation that works element by element with broadcasting.
    ``lengths``: for each dim of the output the axis whose length was passed as its size, None where the size
    came from elsewhere. ``within``: which of the forward's einsums this is a part of, counted from 1; 0 for
    none.
    """

    op: str
    module: str
    arguments: dict[str, Any]
    outputs: tuple[Ref, ...]
    pointwise: bool
    lengths: Given = ()
    within: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """The calls of one forward in order. ``names`` has the first name of each parameter and buffer by its
    value."""

    calls: tuple[Call, ...]
    names: Mapping[int, str]
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]
    place: Place


def hollow_copy(model: nn.Module, place: Place = "meta", mode: FakeTensorMode | None = None) -> nn.Module:
    """A deep copy of the module tree whose tensors have no data: running it or editing it leaves ``model``
    as it was.

    ``place="meta"`` puts them on the meta device, ``"fake"`` makes them fake tensors of ``mode``; ``"real"``
    shares the parameters and copies the buffers. Tied tensors stay tied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]:
            if isinstance(tensor, Tensor) and id(tensor) not in memo:
                memo[id(tensor)] = _hollow(tensor, place, mode)
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise UnsupportedGraph(
            f"{type(model).__name__}: the module cannot be copied: {_first_line(error)}"
        ) from error


def _hollow(tensor: Tensor, place: Place, mode: FakeTensorMode | None) -> Tensor:
    if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
        raise UnsupportedGraph("a lazy parameter has no shape yet; run the model once before tracing it")
    if place == "real":
        return tensor if isinstance(tensor, nn.Parameter) else tensor.detach().clone()
    if mode is None:
        empty = torch.empty_like(tensor.detach(), device="meta")
    else:
        with mode:
            empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def tensor_names(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Parameters and buffers by first name, and further names of a shared tensor mapped to that first
    name."""
    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        if id(tensor) in first:
            tied[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            tensors[name] = tensor
    return tensors, tied


def record(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Recording:
    """Run ``model(*args, **kwargs)`` once in eval mode on a hollow copy and write down what it did.

    First on meta tensors; where the forward asks for values, on fake tensors; where even that asks, on the
    real arguments. Raises UnsupportedGraph, naming the module that failed, when the forward fails on real
    tensors too.
    """
    on_meta = any(t.device.type == "meta" for t in tensor_names(model)[0].values())
    places: tuple[Place, ...] = ("meta", "fake") if on_meta else ("meta", "fake", "real")
    for place in places:
        try:
            return record_at(model, args, kwargs, place)
        except ForwardFailed as failure:
            if place == places[-1]:
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


def record_at(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], place: Place) -> Recording:
    """:func:`record` on one kind of tensors only; raises :class:`ForwardFailed`."""
    mode = FakeTensorMode(allow_non_fake_inputs=True) if place == "fake" else None
    hollow = hollow_copy(model, place, mode).eval()

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or place == "real":
            return leaf
        if mode is not None:
            return (
                mode.from_tensor(leaf.detach()) if leaf.device.type != "meta" else _hollow(leaf, place, mode)
            )
        return torch.empty_like(leaf.detach(), device="meta")

    inner_args, inner_kwargs = map_leaves(tuple(args), move), map_leaves(dict(kwargs), move)
    recorder = _Recorder()
    names = {recorder.value_of(tensor): name for name, tensor in tensor_names(hollow)[0].items()}
    inputs = tuple(recorder.ref(t) for t in tensors_in((inner_args, inner_kwargs)))
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_module_stack(hollow, recorder))
        if mode is not None:
            stack.enter_context(mode)
            stack.enter_context(_quiet())
        if place == "meta":
            stack.enter_context(torch.device("meta"))
        # the fused encoder layer hides its projections from the recorder
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fastpath)
        # composite operations reach the recorder undecomposed only below autograd
        stack.enter_context(torch._C._AutoDispatchBelowAutograd())
        stack.enter_context(ShapeReads(recorder.value_of, recorder.give))
        stack.enter_context(recorder)
        try:
            output = hollow(*inner_args, **inner_kwargs)
        except Exception as error:
            shapes = ", ".join(str(list(s)) for s in recorder.called_with) or "no tensors"
            where = f"forward failed in {recorder.module or 'the model itself'} called with shapes {shapes}"
            message = f"{where}: {_first_line(error)}"
            raise ForwardFailed(message, tuple(recorder.calls), recorder.module) from error
    outputs = tuple(recorder.ref(t) for t in tensors_in(output))
    return Recording(tuple(recorder.calls), names, inputs, outputs, place)


def tensors_in(nest: Any) -> Iterator[Tensor]:
    """The tensors of nested lists, tuples, mappings and dataclasses, in order.

    Other objects are not looked into: a decoder's key/value cache shrinks with its heads and is no output to
    keep.
    """
    if isinstance(nest, Tensor):
        yield nest
    elif isinstance(nest, Mapping):
        for value in nest.values():
            yield from tensors_in(value)
    elif isinstance(nest, (list, tuple)):
        for value in nest:
            yield from tensors_in(value)
    elif is_dataclass(nest) and not isinstance(nest, type):
        for entry in fields(nest):
            yield from tensors_in(getattr(nest, entry.name))


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


@contextmanager
def _module_stack(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Keep the dotted path of the running module in ``recorder.stack``."""

    def enter(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            shapes = [t.shape for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
            recorder.stack.append((path, shapes))

        return hook

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        recorder.stack.pop()

    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(path), prepend=True, with_kwargs=True))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down each ATen operation. Tensors are kept alive so that an object's identity names one
    tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.stack: list[tuple[str, list[torch.Size]]] = []
        self._given: Given = ()
        self._within = self._composites = 0
        self._values: dict[int, int] = {}
        self._alive: list[Tensor] = []

    @property
    def module(self) -> str:
        return self.stack[-1][0] if self.stack else ""

    @property
    def called_with(self) -> list[torch.Size]:
        return self.stack[-1][1] if self.stack else []

    def value_of(self, tensor: Tensor) -> int:
        value = self._values.get(id(tensor))
        if value is None:
            value = self._values[id(tensor)] = len(self._alive)
            self._alive.append(tensor)
        return value

    def give(self, lengths: Given) -> None:
        """The axes that the sizes of the calls from here on were read off."""
        self._given = lengths

    def ref(self, tensor: Tensor) -> Ref:
        return Ref(self.value_of(tensor), tuple(tensor.shape))

    def _replace(self, argument: Any) -> Any:
        if isinstance(argument, Tensor):
            return self.ref(argument)
        if isinstance(argument, (list, tuple)):
            return [self._replace(item) for item in argument]
        return argument

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        if _decomposes(func):
            return self._decomposed(func, args, kwargs)
        bound = self._bind(func, args, kwargs)
        output = func(*args, **kwargs)
        outputs = tuple(self.ref(t) for t in tensors_in(output))
        sized = func._schema.name in _SIZED and len(self._given) == len(outputs[0].shape)
        self.calls.append(
            Call(
                op=func._schema.name.replace("::", "."),
                module=self.module,
                arguments=bound,
                outputs=outputs,
                pointwise=torch.Tag.pointwise in func.tags,
                lengths=self._given if sized else (),
                within=self._within,
            )
        )
        return output

    def _decomposed(self, func: Any, args: Any, kwargs: Any) -> Any:
        outermost = func._schema.name in _SHAPE_DEPENDENT and not self._within
        if outermost:
            self._composites += 1
            self._within = self._composites
        try:
            with self:
                return func.decompose(*args, **kwargs)
        finally:
            if outermost:
                self._within = 0

    def _bind(self, func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
        """Arguments by name, with the shapes they had before the call."""
        bound: dict[str, Any] = {}
        for position, entry in enumerate(func._schema.arguments):
            if position < len(args):
                bound[entry.name] = self._replace(args[position])
            elif entry.name in kwargs:
                bound[entry.name] = self._replace(kwargs[entry.name])
            elif entry.has_default_value():
                bound[entry.name] = entry.default_value
        return bound


@cache
def _decomposes(func: Any) -> bool:
    """Whether an operation is a composition of others that we would rather see."""
    if func._schema.name in _WHOLE:
        return False
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"))


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__

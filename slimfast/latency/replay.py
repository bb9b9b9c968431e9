"""Recorded operations run again: each on what it was given, and several of them as a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.arrays import Arguments, Shape
from slimfast.errors import SlimfastError, one_line
from slimfast.graph.recording.calls import Ref, refs_in
from slimfast.graph.recording.forward import Recording
from slimfast.graph.recording.inputs import tensors_in
from slimfast.graph.recording.network import Network

# What lays its operand out by sizes and strides: they are its first arguments behind it.
_STRIDED = frozenset({"aten::as_strided", "aten::as_strided_"})
# What a recording writes beside the arguments of an operation.
_NOTES = frozenset({"value", "positions"})


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One operation that can run again: the overload, its arguments with a :class:`Ref` for each tensor."""

    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Ref, ...]

    def reads(self) -> list[Ref]:
        """List the tensors that it reads."""
        return refs_in([*self.args, *self.kwargs.values()])

    def with_constants(self, constants: Mapping[tuple[str, int | None], int]) -> Step:
        """Give it other integers: by (argument, place in it where it is a list)."""
        if not constants:
            return self
        names = [argument.name for argument in self.function._schema.arguments]
        args, kwargs = list(self.args), dict(self.kwargs)
        for (name, index), value in constants.items():
            place = names.index(name)
            held: Any = args if place < len(args) else kwargs
            key: Any = place if place < len(args) else name
            old = held[key][index] if index is not None else held[key]
            # -1 asks for whatever fits
            if old == -1:
                continue
            if index is None:
                held[key] = value
            else:
                held[key] = [*held[key][:index], value, *held[key][index + 1 :]]
        return replace(self, args=tuple(args), kwargs=kwargs)

    def laid_out(self, shape: Shape, thin: Shape) -> Step:
        """Give it the sizes and strides of a thinner result, where it lays its operand out by strides.

        PyTorch computes those itself from its operand (a pooling of channels that lie side by side), so that
        no constant of the forward tells them.
        """
        if self.function._schema.name not in _STRIDED or tuple(self.args[1]) != shape:
            return self
        made = thin_strides(shape, tuple(self.args[2]), thin)
        return replace(self, args=(self.args[0], list(thin), list(made), *self.args[3:]))

    def describe(self, number: Callable[[int], int]) -> tuple[Any, ...]:
        """Describe it by plain data, tensors by their numbers."""
        return (
            str(self.function),
            _described(self.args, number),
            _described(tuple(self.kwargs.items()), number),
        )


def thin_strides(shape: Shape, strides: Sequence[int], thin: Shape) -> tuple[int, ...]:
    """Find the strides of a thinner tensor that lies in memory as one of this shape and these strides does.

    A stride is the number of elements of some of the narrowest dims together; one that is not stays.
    """
    order = sorted((dim for dim, length in enumerate(shape) if length > 1), key=lambda dim: strides[dim])
    spans, before, after = {1: 1}, 1, 1
    for dim in order:
        before, after = before * shape[dim], after * thin[dim]
        spans[before] = after
    return tuple(spans.get(stride, stride) for stride in strides)


def _described(argument: Any, number: Callable[[int], int]) -> Any:
    if isinstance(argument, Ref):
        return ("tensor", number(argument.value))
    if isinstance(argument, (list, tuple)):
        return [_described(item, number) for item in argument]
    return repr(argument)


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A tensor of the forward, as much of it as is needed to make it at other lengths.

    ``held``: the tensor itself, where it is a weight or holds no floating-point numbers. ``order``: its dims
    from the one with the widest stride to the one with the narrowest.
    """

    shape: Shape
    dtype: torch.dtype
    device: torch.device
    order: tuple[int, ...]
    weight: bool
    held: Tensor | None

    @classmethod
    def of(cls, tensor: Tensor, *, weight: bool) -> Value:
        """Describe a tensor."""
        strides = tensor.stride()
        order = tuple(sorted(range(tensor.ndim), key=lambda dim: (-strides[dim], dim)))
        keep = weight or not tensor.is_floating_point()
        return cls(
            tuple(tensor.shape), tensor.dtype, tensor.device, order, weight, tensor.detach() if keep else None
        )

    def at(self, shape: Shape) -> Tensor:
        """Make it at these lengths: its first indices where it is held, else numbers from N(0, 1)."""
        laid_out = torch.empty([shape[dim] for dim in self.order], dtype=self.dtype, device=self.device)
        back = sorted(range(len(shape)), key=self.order.__getitem__)
        made = laid_out.permute(back)
        if self.held is None:
            return made.normal_()
        held = self.held
        for dim, length in enumerate(shape):
            held = held.narrow(dim, 0, length)
        return made.copy_(held)

    def describe(self) -> tuple[Any, ...]:
        """Describe what of it decides about time."""
        return (str(self.dtype), self.order, self.weight)


def replayed(network: Network, recording: Recording, given: Arguments) -> tuple[list[Step], dict[int, Value]]:
    """Run a recorded forward again on real tensors, operation by operation; its steps, and every value.

    Raises :class:`SlimfastError` naming the operation that cannot run again.
    """
    plain = dict(network.plain_tensors())
    tensors: dict[int, Tensor] = {
        ref.value: tensor for ref, tensor in zip(recording.inputs, tensors_in(given), strict=True)
    }
    tensors |= {value: network.tensors[name] for value, name in recording.names.items()}
    tensors |= {value: plain[name] for value, name in recording.plain.items() if name in plain}
    weights = recording.names.keys() | recording.plain.keys()
    device = next((tensor.device for tensor in tensors.values()), torch.device("cpu"))
    values = {number: Value.of(tensor, weight=number in weights) for number, tensor in tensors.items()}
    left = {ref.value: i for i, call in enumerate(recording.calls) for ref in refs_in(call.arguments)}
    steps = []
    for i, call in enumerate(recording.calls):
        number = call.arguments.get("value")
        for ref in refs_in(call.arguments):
            if ref.value not in tensors:
                if ref.shape or not isinstance(number, (int, float)):
                    raise SlimfastError(
                        f"latency: {call.op} at {call.module or 'the model itself'} reads a tensor that "
                        "Python makes in the forward; make it a buffer of the module"
                    )
                tensors[ref.value] = torch.tensor(number, device=device)
                values[ref.value] = Value.of(tensors[ref.value], weight=True)
        step, output = _run(call.op, call.module, call.arguments, call.outputs, tensors, device)
        steps.append(step)
        for ref, tensor in zip(call.outputs, tensors_in(output), strict=True):
            tensors[ref.value] = tensor
            values.setdefault(ref.value, Value.of(tensor, weight=False))
        for value in {ref.value for ref in refs_in(call.arguments)}:
            if left[value] == i and value not in weights:
                del tensors[value]
    return steps, values


def _run(
    op: str,
    module: str,
    arguments: Mapping[str, Any],
    outputs: tuple[Ref, ...],
    tensors: Mapping[int, Tensor],
    device: torch.device,
) -> tuple[Step, Any]:
    """Run one operation with the overload that takes its arguments."""
    namespace, _, name = op.partition(".")
    packet = getattr(getattr(torch.ops, namespace), name)
    problem = "no overload takes its arguments"
    for overload in packet.overloads():
        function = getattr(packet, overload)
        schema = function._schema.arguments
        names = {argument.name for argument in schema}
        if arguments.keys() - _NOTES != names - _NOTES:
            continue
        given = {a.name: _on_device(arguments.get(a.name), device) for a in schema}
        args = tuple(given[a.name] for a in schema if not a.kwarg_only)
        kwargs = {a.name: given[a.name] for a in schema if a.kwarg_only}
        step = Step(function, args, kwargs, outputs)
        try:
            return step, function(*_filled(args, tensors), **_filled_by_name(kwargs, tensors))
        except (RuntimeError, TypeError) as error:
            problem = one_line(error)
    raise SlimfastError(f"latency: {op} at {module or 'the model itself'} cannot run alone: {problem}")


def _on_device(argument: Any, device: torch.device) -> Any:
    """Put the device of the run in the place of the one that was recorded."""
    return device if isinstance(argument, torch.device) else argument


def _filled(args: Sequence[Any], tensors: Mapping[int, Tensor]) -> list[Any]:
    return [
        tensors[a.value]
        if type(a) is Ref
        else _filled(a, tensors)
        if type(a) is list or type(a) is tuple
        else a
        for a in args
    ]


def _filled_by_name(kwargs: Mapping[str, Any], tensors: Mapping[int, Tensor]) -> dict[str, Any]:
    return {name: _filled([value], tensors)[0] for name, value in kwargs.items()}


class Replay(nn.Module):
    """Steps as a module: called with the tensors of ``inputs``, it returns those of ``returned``."""

    def __init__(
        self,
        steps: Sequence[Step],
        held: Mapping[int, Tensor],
        inputs: Sequence[int],
        returned: Sequence[int],
    ) -> None:
        super().__init__()
        self._steps = tuple(steps)
        self._inputs, self._returned = tuple(inputs), tuple(returned)
        self._held = tuple(held)
        for value, tensor in held.items():
            self.register_buffer(f"value{value}", tensor)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The operations, in order."""
        return self._steps

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Run the steps."""
        tensors = dict(zip(self._inputs, given, strict=True))
        for value in self._held:
            tensors[value] = self._buffers[f"value{value}"]  # type: ignore[assignment]
        for step in self._steps:
            output = step.function(*_filled(step.args, tensors), **_filled_by_name(step.kwargs, tensors))
            if type(output) is Tensor and len(step.outputs) == 1:
                tensors[step.outputs[0].value] = output
            else:
                for ref, tensor in zip(step.outputs, tensors_in(output), strict=True):
                    tensors[ref.value] = tensor
        return tuple(tensors[value] for value in self._returned)


def module_of(
    steps: Sequence[Step], held: Mapping[int, Tensor], inputs: Sequence[int], returned: Sequence[int]
) -> Replay:
    """Make a module of steps, in eval mode."""
    return Replay(steps, held, inputs, returned).eval()

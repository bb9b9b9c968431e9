"""What a model is called with: the shapes, dtypes and value ranges of its arguments, without their data."""

from __future__ import annotations

import functools
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slimfast.arrays import Arguments
from slimfast.errors import ArgumentError, ArgumentTypeError, SlimfastError, UnsupportedGraph, one_line

Json = Any
# A nested argument: a TensorSpec, a plain scalar or None, or a list, tuple or mapping of nested arguments.
Nested = Any

_SCALARS = (bool, int, float, str, type(None))
# What stands beside the tensors of an output and holds none.
_WITHOUT_TENSORS = (
    *(*_SCALARS, complex, bytes, type, ModuleType, Enum, slice, range, PurePath, np.ndarray, np.generic),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, torch.Generator, nn.Module),
    *(FunctionType, BuiltinFunctionType, MethodType, functools.partial, re.Pattern),
)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor argument. ``low`` and ``high`` are the smallest and largest value seen in an integer
    tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    low: int = 0
    high: int = 0

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSpec:
        low = high = 0
        integral = not tensor.dtype.is_floating_point and not tensor.dtype.is_complex
        if integral and tensor.dtype != torch.bool and tensor.numel() and tensor.device.type != "meta":
            low, high = int(tensor.min()), int(tensor.max())
        return cls(tuple(tensor.shape), tensor.dtype, low, high)

    def make(self, generator: torch.Generator) -> Tensor:
        """Make a tensor of this kind on the CPU: floats from N(0, 1), integers from [low, high], booleans all
        True.
        """
        if self.dtype == torch.bool:
            return torch.ones(self.shape, dtype=torch.bool, device="cpu")
        if self.dtype.is_floating_point or self.dtype.is_complex:
            wide = torch.complex64 if self.dtype.is_complex else torch.float32
            return torch.randn(self.shape, generator=generator, dtype=wide, device="cpu").to(self.dtype)
        return torch.randint(self.low, self.high + 1, self.shape, generator=generator, device="cpu").to(
            self.dtype
        )


@dataclass(frozen=True, slots=True)
class InputSpec:
    """The positional and keyword arguments of a model's forward, each tensor replaced by its
    :class:`TensorSpec`."""

    args: tuple[Nested, ...]
    kwargs: Mapping[str, Nested]

    @classmethod
    def of(cls, example: Any) -> InputSpec:
        """Describe an example of arguments, as :func:`arguments` takes it.

        Raises TypeError for an argument that is neither a tensor nor a plain scalar nor a nest of those.
        """
        args, kwargs = arguments(example)
        return cls(
            tuple(_to_spec(a, f"argument {i}") for i, a in enumerate(args)),
            {name: _to_spec(a, f"argument {name!r}") for name, a in kwargs.items()},
        )

    def example(self, seed: int = 0, device: str | torch.device = "cpu") -> Arguments:
        """Make (args, kwargs) up, the same for the same seed on every device.

        Raises :class:`SlimfastError` where no tensor can be what is described: a description from a file may
        ask for one that fits no memory.
        """
        generator = torch.Generator().manual_seed(seed)

        def make(leaf: Any) -> Any:
            return leaf.make(generator).to(device) if isinstance(leaf, TensorSpec) else leaf

        try:
            return map_leaves(self.args, make), map_leaves(dict(self.kwargs), make)
        except (RuntimeError, TypeError, NotImplementedError, MemoryError) as error:
            raise SlimfastError(f"the inputs that are described cannot be made: {one_line(error)}") from error

    def to_json(self) -> Json:
        """Write plain dicts, lists and scalars; :meth:`from_json` inverts it."""
        return {
            "args": [_encode(a) for a in self.args],
            "kwargs": {k: _encode(v) for k, v in self.kwargs.items()},
        }

    @classmethod
    def from_json(cls, obj: Json) -> InputSpec:
        """Read what :meth:`to_json` wrote; ValueError for anything that it cannot have written."""
        if not isinstance(obj, Mapping) or set(obj) != {"args", "kwargs"}:
            raise ArgumentError("InputSpec: expected an object with 'args' and 'kwargs'")
        if not isinstance(obj["args"], list) or not isinstance(obj["kwargs"], Mapping):
            raise ArgumentError("InputSpec: expected a list 'args' and an object 'kwargs'")
        return cls(tuple(_decode(a) for a in obj["args"]), {k: _decode(v) for k, v in obj["kwargs"].items()})


def arguments(example: Any) -> Arguments:
    """Split an example into (args, kwargs).

    It is a tensor, a tuple or list of arguments, or a dict of keyword arguments; TypeError for all else.
    """
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), {str(name): value for name, value in example.items()}
    if isinstance(example, (tuple, list)):
        return tuple(example), {}
    raise ArgumentTypeError(
        f"example: expected a tensor, tuple or dict of the model's arguments, got {type(example).__name__}"
    )


def map_leaves(nest: Any, function: Callable[[Any], Any]) -> Any:
    """Apply ``function`` to everything in a nest of lists, tuples and mappings, which stays the same."""
    if isinstance(nest, Mapping):
        return {key: map_leaves(value, function) for key, value in nest.items()}
    if isinstance(nest, tuple) and hasattr(nest, "_fields"):
        return type(nest)(*(map_leaves(value, function) for value in nest))
    if isinstance(nest, (list, tuple)):
        return type(nest)(map_leaves(value, function) for value in nest)
    return function(nest)


def cloned(nest: Any) -> Any:
    """Copy every tensor of a nest of arguments, for a forward that may write into what it is given."""
    return map_leaves(nest, lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf)


def tensors_in(nest: Any, *, strict: bool = False) -> Iterator[Tensor]:
    """Yield the tensors of whatever a forward takes or returns, in order, each object once.

    Lists, tuples, mappings and sets are looked into, and so is any other object: its attributes, in
    ``__dict__`` and slots (a detector's result class, a distribution of :mod:`torch.distributions`, a
    dataclass). Not so modules, and caches: a class named ``...Cache`` holds what the next call reads, as a
    decoder's keys and values, which shrink with its heads and are no output to keep.

    Raises:
        UnsupportedGraph: ``strict``, and an object that cannot be looked into, by its type.
    """
    for _, tensor in named_tensors_in(nest, strict=strict):
        yield tensor


def named_tensors_in(nest: Any, *, strict: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Yield what :func:`tensors_in` does, each with its place: ``boxes.0`` is the first of ``boxes``.

    A tensor alone has the place "".
    """
    yield from _tensors_in(nest, strict, set(), "")


def _tensors_in(nest: Any, strict: bool, seen: set[int], place: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(nest, Tensor):
        yield place, nest
        return
    if isinstance(nest, _WITHOUT_TENSORS) or id(nest) in seen:
        return
    seen.add(id(nest))
    parts = _parts_of(nest)
    if parts is None and strict:
        kind = f"{type(nest).__module__}.{type(nest).__qualname__}"
        raise UnsupportedGraph(
            f"the forward returns a {kind}, which cannot be looked into for tensors; return tensors, or an "
            f"object that holds them as attributes"
        )
    for name, value in parts or ():
        yield from _tensors_in(value, strict, seen, f"{place}.{name}" if place else str(name))


def _parts_of(holder: Any) -> Iterable[tuple[Any, Any]] | None:
    """List what an object holds by name: its items where it is a container, and its attributes; None where it
    shows neither.
    """
    bases = type(holder).__mro__
    if any(base.__name__.endswith("Cache") for base in bases):
        return ()
    slots = [name for base in bases for name in _slots_of(base)]
    attributes = [*vars(holder).items()] if hasattr(holder, "__dict__") else []
    attributes += [(name, getattr(holder, name)) for name in slots if hasattr(holder, name)]
    if isinstance(holder, Mapping):
        # A dictionary that shows its items as attributes too, as Hugging Face's outputs do, has them once.
        items = list(holder.values())
        beside = [(name, value) for name, value in attributes if not any(value is item for item in items)]
        return [*holder.items(), *beside]
    if isinstance(holder, (list, tuple, set, frozenset, deque)):
        return [*enumerate(holder), *attributes]
    return attributes if slots or hasattr(holder, "__dict__") else None


def _slots_of(kind: type) -> list[str]:
    """List the names under which a class keeps what its ``__slots__`` name."""
    slots = kind.__dict__.get("__slots__", ())
    names = [slots] if isinstance(slots, str) else [*slots]
    private = f"_{kind.__name__.lstrip('_')}"
    return [
        private + name if name.startswith("__") and not name.endswith("__") else name
        for name in names
        if name not in ("__dict__", "__weakref__")
    ]


def _to_spec(argument: Any, where: str) -> Nested:
    def convert(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return TensorSpec.of(leaf)
        if isinstance(leaf, _SCALARS):
            return leaf
        raise ArgumentTypeError(
            f"example: {where} holds a {type(leaf).__name__}; expected tensors, numbers, strings or None"
        )

    return map_leaves(argument, convert)


def _encode(nested: Nested) -> Json:
    if isinstance(nested, TensorSpec):
        body: dict[str, Json] = {
            "shape": list(nested.shape),
            "dtype": str(nested.dtype).removeprefix("torch."),
        }
        if nested.low or nested.high:
            body |= {"low": nested.low, "high": nested.high}
        return {"tensor": body}
    if isinstance(nested, Mapping):
        return {"dict": {key: _encode(value) for key, value in nested.items()}}
    if isinstance(nested, (list, tuple)):
        return {"tuple" if isinstance(nested, tuple) else "list": [_encode(value) for value in nested]}
    return {"value": nested}


def _decode(obj: Json) -> Nested:
    if not isinstance(obj, Mapping) or len(obj) != 1:
        raise ArgumentError(f"InputSpec: expected an object with one key, got {obj!r}")
    ((kind, body),) = obj.items()
    if kind == "tensor" and isinstance(body, Mapping):
        dtype = getattr(torch, str(body.get("dtype")), None)
        shape = body.get("shape")
        if set(body) - {"shape", "dtype", "low", "high"}:
            raise ArgumentError(f"InputSpec: expected shape, dtype, low and high, got {sorted(body)}")
        if not isinstance(shape, list) or not all(_in_int64(s) and s >= 0 for s in shape):
            raise ArgumentError(f"InputSpec: not the shape of a tensor: {shape!r}")
        if not isinstance(dtype, torch.dtype):
            raise ArgumentError(f"InputSpec: not a dtype: {body.get('dtype')!r}")
        low, high = body.get("low", 0), body.get("high", 0)
        if not _in_int64(low) or not _in_int64(high) or low > high:
            raise ArgumentError(f"InputSpec: low {low!r} and high {high!r} are not a range of integers")
        return TensorSpec(tuple(shape), dtype, low, high)
    if kind == "dict" and isinstance(body, Mapping):
        return {key: _decode(value) for key, value in body.items()}
    if kind in ("tuple", "list") and isinstance(body, list):
        items = [_decode(value) for value in body]
        return tuple(items) if kind == "tuple" else items
    if kind == "value" and isinstance(body, _SCALARS):
        return body
    raise ArgumentError(f"InputSpec: cannot read {kind!r}")


def _in_int64(value: object) -> bool:
    # One below the last: ranges are handed on with their end excluded.
    return type(value) is int and -(2**63) <= value < 2**63 - 1

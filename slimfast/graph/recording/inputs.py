"""What a model is called with: the shapes, dtypes and value ranges of its arguments, without their data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from slimfast.arrays import Arguments
from slimfast.errors import ArgumentError, ArgumentTypeError, SlimfastError, one_line, shown
from slimfast.graph.recording.nests import (
    SCALARS,
    cloned,
    copied_with,
    holds_tensors,
    map_leaves,
    map_tensors,
    objects_in,
    tensors_in,
)

__all__ = ["InputSpec", "ObjectSpec", "TensorSpec", "arguments", "cloned", "map_leaves", "map_tensors",
           "tensors_in"]  # fmt: skip

Json = Any
# Tensors of integers of no more elements are written with their values.
_WRITTEN = 4096
# A nested argument: a TensorSpec, an ObjectSpec, a plain scalar or None, or a list, tuple or mapping of
# nested arguments.
Nested = Any


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor argument. ``low`` and ``high`` are the smallest and largest value seen in an integer
    tensor.

    ``values``: those of an integer or boolean tensor, which may decide what a forward does (the places of
    images among tokens, the ends of edges); None where they are not known. Two descriptions are equal
    whatever the values; a file has those of tensors that are not large.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    low: int = 0
    high: int = 0
    values: Tensor | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSpec:
        if tensor.is_nested:
            raise ArgumentTypeError("example: expected tensors padded to one length, got a nested one")
        if tensor.layout != torch.strided:
            layout = str(tensor.layout).removeprefix("torch.")
            advice = "give its to_dense(), and what is made of that takes the sparse one too"
            raise ArgumentTypeError(f"example: expected dense tensors, got one of layout {layout}: {advice}")
        shape, dtype = tuple(tensor.shape), tensor.dtype
        if dtype.is_floating_point or dtype.is_complex or tensor.is_meta:
            return cls(shape, dtype)
        values = tensor.detach().to("cpu", copy=True)
        if dtype == torch.bool or not tensor.numel():
            return cls(shape, dtype, values=values)
        return cls(shape, dtype, int(values.min()), int(values.max()), values)

    def make(self, generator: torch.Generator) -> Tensor:
        """Make a tensor of this kind on the CPU: floats from N(0, 1), integers and booleans as they were
        where that is known, else integers from [low, high] and booleans all True.
        """
        if self.values is not None and self.values.shape == self.shape:
            return self.values.clone()
        if self.dtype == torch.bool:
            return torch.ones(self.shape, dtype=torch.bool, device="cpu")
        if self.dtype.is_floating_point or self.dtype.is_complex:
            wide = torch.complex64 if self.dtype.is_complex else torch.float32
            return torch.randn(self.shape, generator=generator, dtype=wide, device="cpu").to(self.dtype)
        return torch.randint(self.low, self.high + 1, self.shape, generator=generator, device="cpu").to(
            self.dtype
        )


@dataclass(frozen=True, slots=True)
class ObjectSpec:
    """One argument that is an object with tensors in it: a dataclass, a graph, a batch class.

    ``name``: that of its class. ``held``: a copy of it with a :class:`TensorSpec` in the place of each
    tensor; None where it was read from a file, which holds no objects.
    """

    name: str
    held: Any = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, holder: Any) -> ObjectSpec:
        kind = type(holder)
        described = map_tensors(holder, TensorSpec.of)
        return cls(f"{kind.__module__}.{kind.__qualname__}", described)

    def make(self, generator: torch.Generator, device: str | torch.device) -> Any:
        """Make an object of this kind, with tensors made up."""
        if self.held is None:
            raise SlimfastError(f"the inputs hold a {self.name}, which a file does not keep; give example=")
        specs = {id(spec): spec.make(generator).to(device) for spec in objects_in(self.held, TensorSpec)}
        return copied_with(self.held, specs)


@dataclass(frozen=True, slots=True)
class InputSpec:
    """The positional and keyword arguments of a model's forward, each tensor replaced by its
    :class:`TensorSpec`."""

    args: tuple[Nested, ...]
    kwargs: Mapping[str, Nested]

    @classmethod
    def of(cls, example: Any) -> InputSpec:
        """Describe an example of arguments, as :func:`arguments` takes it.

        Raises TypeError for an argument that is neither a tensor nor a plain scalar nor a nest of those, nor
        an object that holds tensors.
        """
        args, kwargs = arguments(example)
        return cls(
            tuple(_to_spec(a, f"argument {i}") for i, a in enumerate(args)),
            {name: _to_spec(a, f"argument {name!r}") for name, a in kwargs.items()},
        )

    def example(self, seed: int = 0, device: str | torch.device = "cpu") -> Arguments:
        """Make (args, kwargs) up, the same for the same seed on every device; integers are the example's own.

        Raises :class:`SlimfastError` where no tensor can be what is described: a description from a file may
        ask for one that fits no memory.
        """
        generator = torch.Generator().manual_seed(seed)

        def make(leaf: Any) -> Any:
            if isinstance(leaf, ObjectSpec):
                return leaf.make(generator, device)
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

    It is a tensor, a tuple or list of arguments, a dict of keyword arguments, or an object that holds tensors
    and is the one argument; TypeError for all else.
    """
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), {str(name): value for name, value in example.items()}
    if isinstance(example, (tuple, list)):
        return tuple(example), {}
    if holds_tensors(example):
        return (example,), {}
    raise ArgumentTypeError(
        f"example: expected a tensor, tuple or dict of the model's arguments, got {type(example).__name__}"
    )


def _to_spec(argument: Any, where: str) -> Nested:
    def convert(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return TensorSpec.of(leaf)
        if isinstance(leaf, SCALARS):
            return leaf
        if holds_tensors(leaf):
            return ObjectSpec.of(leaf)
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
        if nested.values is not None and nested.values.numel() <= _WRITTEN:
            body["values"] = nested.values.reshape(-1).tolist()
        return {"tensor": body}
    if isinstance(nested, ObjectSpec):
        return {"object": nested.name}
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
        return _decode_tensor(body)
    if kind == "dict" and isinstance(body, Mapping):
        return {key: _decode(value) for key, value in body.items()}
    if kind in ("tuple", "list") and isinstance(body, list):
        items = [_decode(value) for value in body]
        return tuple(items) if kind == "tuple" else items
    if kind == "object" and isinstance(body, str):
        return ObjectSpec(body)
    if kind == "value" and isinstance(body, SCALARS):
        return body
    raise ArgumentError(f"InputSpec: cannot read {kind!r}")


def _decode_tensor(body: Mapping[str, Json]) -> TensorSpec:
    dtype = getattr(torch, str(body.get("dtype")), None)
    shape = body.get("shape")
    if set(body) - {"shape", "dtype", "low", "high", "values"}:
        raise ArgumentError(f"InputSpec: expected shape, dtype, low, high and values, got {sorted(body)}")
    if not isinstance(shape, list) or not all(_in_int64(s) and s >= 0 for s in shape):
        raise ArgumentError(f"InputSpec: not the shape of a tensor: {shape!r}")
    if not isinstance(dtype, torch.dtype):
        raise ArgumentError(f"InputSpec: not a dtype: {body.get('dtype')!r}")
    low, high = body.get("low", 0), body.get("high", 0)
    if not _in_int64(low) or not _in_int64(high) or low > high:
        raise ArgumentError(f"InputSpec: low {low!r} and high {high!r} are not a range of integers")
    return TensorSpec(tuple(shape), dtype, low, high, _decode_values(body.get("values"), shape, dtype))


def _decode_values(values: Json, shape: list[int], dtype: torch.dtype) -> Tensor | None:
    if values is None:
        return None
    kind = bool if dtype == torch.bool else int
    fits = isinstance(values, list) and len(values) == prod(shape) <= _WRITTEN
    if not fits or dtype.is_floating_point or dtype.is_complex or not all(type(v) is kind for v in values):
        raise ArgumentError(f"InputSpec: not the values of a {dtype} of shape {shape}: {shown(values)}")
    try:
        return torch.tensor(values, dtype=dtype, device="cpu").reshape(shape)
    except (RuntimeError, OverflowError, TypeError, ValueError) as error:
        raise ArgumentError(f"InputSpec: values of a {dtype}: {one_line(error)}") from None


def _in_int64(value: object) -> bool:
    # One below the last: ranges are handed on with their end excluded.
    return type(value) is int and -(2**63) <= value < 2**63 - 1

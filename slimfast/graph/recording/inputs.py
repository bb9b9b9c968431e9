"""What a model is called with: the shapes, dtypes and value ranges of its arguments, without their data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from slimfast.errors import SlimfastError

Json = Any
# A nested argument: a TensorSpec, a plain scalar or None, or a list, tuple or mapping of nested arguments.
Nested = Any

_SCALARS = (bool, int, float, str, type(None))


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
            return torch.ones(self.shape, dtype=torch.bool)
        if self.dtype.is_floating_point or self.dtype.is_complex:
            wide = torch.complex64 if self.dtype.is_complex else torch.float32
            return torch.randn(self.shape, generator=generator, dtype=wide).to(self.dtype)
        return torch.randint(self.low, self.high + 1, self.shape, generator=generator).to(self.dtype)


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

    def example(
        self, seed: int = 0, device: str | torch.device = "cpu"
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
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
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise SlimfastError(f"the inputs that are described cannot be made: {reason}") from error

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
            raise ValueError("InputSpec: expected an object with 'args' and 'kwargs'")
        if not isinstance(obj["args"], list) or not isinstance(obj["kwargs"], Mapping):
            raise ValueError("InputSpec: expected a list 'args' and an object 'kwargs'")
        return cls(tuple(_decode(a) for a in obj["args"]), {k: _decode(v) for k, v in obj["kwargs"].items()})


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Split an example into (args, kwargs).

    It is a tensor, a tuple or list of arguments, or a dict of keyword arguments; TypeError for all else.
    """
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), {str(name): value for name, value in example.items()}
    if isinstance(example, (tuple, list)):
        return tuple(example), {}
    raise TypeError(
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


def tensors_in(nest: Any) -> Iterator[Tensor]:
    """Find the tensors in nested lists, tuples, mappings and dataclasses, in order.

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


def _to_spec(argument: Any, where: str) -> Nested:
    def convert(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return TensorSpec.of(leaf)
        if isinstance(leaf, _SCALARS):
            return leaf
        raise TypeError(
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
        raise ValueError(f"InputSpec: expected an object with one key, got {obj!r}")
    ((kind, body),) = obj.items()
    if kind == "tensor" and isinstance(body, Mapping):
        dtype = getattr(torch, str(body.get("dtype")), None)
        shape = body.get("shape")
        if set(body) - {"shape", "dtype", "low", "high"}:
            raise ValueError(f"InputSpec: expected shape, dtype, low and high, got {sorted(body)}")
        if not isinstance(shape, list) or not all(_in_int64(s) and s >= 0 for s in shape):
            raise ValueError(f"InputSpec: not the shape of a tensor: {shape!r}")
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"InputSpec: not a dtype: {body.get('dtype')!r}")
        low, high = body.get("low", 0), body.get("high", 0)
        if not _in_int64(low) or not _in_int64(high) or low > high:
            raise ValueError(f"InputSpec: low {low!r} and high {high!r} are not a range of integers")
        return TensorSpec(tuple(shape), dtype, low, high)
    if kind == "dict" and isinstance(body, Mapping):
        return {key: _decode(value) for key, value in body.items()}
    if kind in ("tuple", "list") and isinstance(body, list):
        items = [_decode(value) for value in body]
        return tuple(items) if kind == "tuple" else items
    if kind == "value" and isinstance(body, _SCALARS):
        return body
    raise ValueError(f"InputSpec: cannot read {kind!r}")


def _in_int64(value: object) -> bool:
    # One below the last: ranges are handed on with their end excluded.
    return type(value) is int and -(2**63) <= value < 2**63 - 1

"""Where the sizes that a model's Python passes on come from: integers read off a shape remember its axis.

``b, n, c = x.shape`` followed by ``y.reshape(b, n, c)`` ties the last axis of y to that of x, wherever y came
from. No recorded operation says so: it is seen here, one level above, where the model reads shapes and passes
sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# An axis: the number of a tensor in the recording, and the dim.
AxisOf = tuple[int, int]
Given = tuple["AxisOf | None", ...]

# Functions whose integers are the sizes of their result, dim by dim, after the tensor they are called on.
_SIZED = frozenset({"view", "reshape", "expand", "new_zeros", "new_ones", "new_empty", "new_full"})
# The same without such a tensor.
_MADE = frozenset({"zeros", "ones", "empty", "full"})


class Length(int):
    """The length of an axis, as an integer that knows which. Arithmetic gives plain integers."""

    axis: AxisOf


class ShapeReads(TorchFunctionMode):
    """Makes shapes of :class:`Length` and tells ``given`` which axes the sizes of a function are from."""

    def __init__(self, value_of: Callable[[Tensor], int], given: Callable[[Given], None]) -> None:
        super().__init__()
        self._value_of = value_of
        self._given = given

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__" and func.__self__ is Tensor.shape:
            return torch.Size(self._lengths(args[0]))
        if name == "size" and isinstance(args[0], Tensor):
            return self._size(args[0], *args[1:], **kwargs)
        if name not in _SIZED and name not in _MADE:
            return func(*args, **kwargs)
        sizes = (args[1:] if name in _SIZED else args) or (kwargs.get("size", ()),)
        if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
            sizes = sizes[0]
        given = tuple(size.axis if isinstance(size, Length) else None for size in sizes)
        if not any(given):
            return func(*args, **kwargs)
        self._given(given)
        try:
            return func(*args, **kwargs)
        finally:
            self._given(())

    def _lengths(self, tensor: Tensor) -> list[int]:
        value = self._value_of(tensor)
        lengths: list[int] = []
        for dim in range(tensor.dim()):
            length = Length(torch._C.TensorBase.size(tensor, dim))
            length.axis = (value, dim)
            lengths.append(length)
        return lengths

    def _size(self, tensor: Tensor, dim: int | None = None) -> Any:
        lengths = self._lengths(tensor)
        return torch.Size(lengths) if dim is None else lengths[dim]

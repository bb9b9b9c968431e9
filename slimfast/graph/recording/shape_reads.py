"""Trace where the sizes come from that a model's Python passes on: a length read off a shape remembers its
axis.

``b, n, c = x.shape`` followed by ``y.reshape(b, n, c)`` ties the last axis of y to that of x, wherever y came
from, and ``y.reshape(b, n, heads, c // heads)`` its last two. No recorded operation says so: it is seen here,
one level above, where the model reads shapes and passes sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import multi_head_attention_forward
from torch.overrides import TorchFunctionMode

from slimfast.graph.recording.calls import LengthOrigin, SizeOrigins
from slimfast.graph.recording.number_origins import LengthRead, Origin, TracedInt, numbers_in
from slimfast.graph.recording.op_registry import sized_operations

# Functions that compute the sizes of their result.
_FLATTENS = frozenset({torch.flatten, Tensor.flatten})
# The names of functions that tell lengths, divide an axis or compute sizes, and of the one that is seen
# through.
_SEEN = frozenset({"__get__", "__getitem__", "size", "flatten", "unflatten", "multi_head_attention_forward"})

# Functions that make tensors on the default device.
_MAKERS = frozenset(
    getattr(torch, name)
    for name in ("empty", "empty_permuted", "empty_strided", "ones", "zeros", "full", "eye", "arange",
                 "range", "linspace", "logspace", "rand", "randn", "randint", "randperm", "tril_indices",
                 "triu_indices", "tensor", "as_tensor", "asarray", "scalar_tensor", "bartlett_window",
                 "blackman_window", "hamming_window", "hann_window", "kaiser_window", "sparse_coo_tensor")
) | {torch.fft.fftfreq, torch.fft.rfftfreq}  # fmt: skip


class TracedLength(TracedInt):
    """The length of an axis, or an exact part of it, as an integer that knows which.

    Division without a remainder gives such a part, all other arithmetic integers that know their origin.
    """

    axis: LengthOrigin

    def __floordiv__(self, divisor: Any) -> Any:
        """Divide the length; what is left of it stays a part of the axis where there is no remainder."""
        quotient = super().__floordiv__(divisor)
        value, dim, before = self.axis
        whole = isinstance(quotient, TracedInt) and int(quotient) * divisor == int(self)
        if not whole or before > 1 or divisor < 2:
            return quotient
        return _length(quotient, (value, dim, int(divisor)), quotient.origin)


def _length(number: int, axis: LengthOrigin, origin: Origin) -> TracedLength:
    """Make a length that knows its axis."""
    length = TracedLength(number)
    length.axis, length.origin = axis, origin
    return length


def _sizes(args: Any, kwargs: Any) -> SizeOrigins:
    """Find the axes of the sizes in ``y.reshape(a, b)``, ``torch.zeros((a, b))`` and their like."""
    sizes = (args[1:] if args and isinstance(args[0], Tensor) else args) or (kwargs.get("size", ()),)
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = sizes[0]
    return _axes(sizes)


def _unflattened(tensor: Tensor, dim: int, sizes: Any) -> SizeOrigins:
    """Find the axes of the sizes that one dim of a tensor is divided into; the other dims stay."""
    rest = tensor.dim() - 1
    before = dim % (rest + 1)
    return (*[None] * before, *_axes(sizes), *[None] * (rest - before))


def _axes(sizes: Any) -> SizeOrigins:
    """Find the axis that each size was read off, None where it was not."""
    return tuple(size.axis if isinstance(size, TracedLength) else None for size in sizes)


# Questions about a tensor whose answer tells none of its lengths.
_SAYS_NO_LENGTH = frozenset(
    {Tensor.dim, Tensor.is_floating_point, Tensor.is_complex}
    | {getattr(Tensor, name).__get__ for name in ("ndim", "dtype", "device", "is_meta", "is_cuda", "layout",
                                                  "requires_grad")}
)  # fmt: skip


# The attention of nn.MultiheadAttention reads shapes, but hides all that it calls from a mode: here is the
# same code without the check that hides it.
_ATTENTION = FunctionType(
    multi_head_attention_forward.__code__,
    {**multi_head_attention_forward.__globals__, "has_torch_function": lambda tensors: False},
    multi_head_attention_forward.__name__,
    multi_head_attention_forward.__defaults__,
)


class ShapeReads(TorchFunctionMode):
    """Makes shapes of :class:`TracedLength`, and reports the axes that the sizes of a function come from to
    ``given``.

    New tensors are made on ``device``, as under PyTorch's own mode for that; every further mode would cost a
    recording a tenth of its time.

    ``computes`` is told when a function begins that computes the sizes of its result from its operand's, and
    when it ends. ``listed`` answers ``tensor.tolist()``. ``numbers`` is told the integers that a function
    is called with, and none afterwards, and ``lists`` the lists of integers that a tensor is indexed with.
    ``saw_lengths`` says whether the model's Python may have been told a
    length.
    """

    def __init__(
        self,
        value_of: Callable[[Tensor], int],
        given: Callable[[SizeOrigins], None],
        device: torch.device | None = None,
        computes: Callable[[bool], None] = lambda computes: None,
        listed: Callable[[Tensor], Any] | None = None,
        numbers: Callable[[tuple[int, ...]], None] = lambda numbers: None,
        lists: Callable[[list[list[int]]], None] = lambda lists: None,
    ) -> None:
        super().__init__()
        self.saw_lengths = False
        self._value_of = value_of
        self._given = given
        self._device = device
        self._computes = computes
        self._numbers = numbers
        self._lists = lists
        # these functions are named like the ATen operations that they call
        self._sized = sized_operations()
        self._listed = listed
        self._seen = _SEEN | self._sized | (frozenset() if listed is None else {"tolist"})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        numbers = numbers_in((*args, kwargs)) if kwargs else numbers_in(args)
        if not numbers:
            return self._call(func, args, kwargs)
        self._numbers(numbers)
        try:
            return self._call(func, args, kwargs)
        finally:
            self._numbers(())

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Answer what asks for lengths, and call anything else, the sizes it is given noted."""
        name = getattr(func, "__name__", "")
        if self._device is not None and func in _MAKERS and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": self._device}
            if func is torch.tensor and args and isinstance(args[0], (int, float)):
                # the same tensor, made by an operation that is recorded with its number
                func, args = torch.full, ((), *args)
        if name not in self._seen:
            return self._watching_lengths(func, func(*args, **kwargs))
        if name == "__get__" and func.__self__ is Tensor.shape:
            return torch.Size(self._lengths(args[0]))
        if func is Tensor.size:
            return self._size(*args, **kwargs)
        if func is Tensor.tolist and self._listed is not None:
            self.saw_lengths = True
            return self._listed(args[0])
        if func is multi_head_attention_forward:
            with self:
                return _ATTENTION(*args, **kwargs)
        if func is Tensor.__getitem__:
            return self._indexed(func, args)
        if func in _FLATTENS:
            return self._flattened(func, args, kwargs)
        if name in self._sized:
            given = _sizes(args, kwargs)
        elif name == "unflatten":
            given = _unflattened(*args, **kwargs)
        else:
            return self._watching_lengths(func, func(*args, **kwargs))
        if not any(given):
            return func(*args, **kwargs)
        self._given(given)
        try:
            return func(*args, **kwargs)
        finally:
            self._given(())

    def _watching_lengths(self, func: Any, result: Any) -> Any:
        """Return the result of a function, having noted whether it may tell a length."""
        if type(result) is not Tensor and func not in _SAYS_NO_LENGTH and not _tensors_alone(result):
            self.saw_lengths = True
        return result

    def _indexed(self, func: Any, args: Any) -> Any:
        """Index a tensor, and say meanwhile which lists of positions it is indexed with."""
        indices = args[1] if isinstance(args[1], tuple) else (args[1],)
        lists = [item for item in indices if type(item) is list and all(type(n) is int for n in item)]
        if not lists:
            return self._watching_lengths(func, func(*args))
        self._lists(lists)
        try:
            return self._watching_lengths(func, func(*args))
        finally:
            self._lists([])

    def _flattened(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Call a function that computes the sizes of its result, and say so meanwhile."""
        self._computes(True)
        try:
            return func(*args, **kwargs)
        finally:
            self._computes(False)

    def _lengths(self, tensor: Tensor) -> list[int]:
        """List the lengths of a tensor, each knowing its axis."""
        self.saw_lengths = True
        value = self._value_of(tensor)
        lengths = (torch._C.TensorBase.size(tensor, dim) for dim in range(tensor.dim()))
        return [_length(n, (value, dim, 1), LengthRead(value, dim, n)) for dim, n in enumerate(lengths)]

    def _size(self, tensor: Tensor, dim: int | None = None) -> Any:
        """Answer ``tensor.size(dim)``."""
        lengths = self._lengths(tensor)
        return torch.Size(lengths) if dim is None else lengths[dim]


def _tensors_alone(result: Any) -> bool:
    """Say whether a result holds tensors and nothing else."""
    if isinstance(result, (tuple, list)):
        return all(map(_tensors_alone, result))
    return result is None or isinstance(result, Tensor)

"""Know what some operations return without data, where PyTorch's own answer runs dozens of others.

PyTorch describes a GELU, a batch norm or an attention in Python, by decomposing it; in a recording that would
be most of the time. The registry's ``meta_shape`` functions return the same empty tensor, on the meta device
or fake, from the shapes alone. Where a layout, a dtype or an error needs thought they have no answer, and
PyTorch's is taken. Here is what they share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from slimfast.graph.recording.op_registry import MetaShape, entry_of


def shortcut_of(operation: str) -> MetaShape | None:
    """Find what answers for an operation; one in place returns its operand, where the answer has its
    shape."""
    meta_shape = entry_of(operation).meta_shape
    if meta_shape is None or not operation.endswith("_"):
        return meta_shape

    def in_place(arguments: Mapping[str, Any]) -> Tensor | None:
        made = meta_shape(arguments)
        operand: Tensor = arguments["self"]
        return operand if made is not None and made.shape == operand.shape else None

    return in_place


def without_data(*tensors: Any) -> bool:
    """Say whether these are floating tensors without data, of one dtype, device and kind; None counts as
    one.

    A fake tensor that knows its number is not among them: what is computed of it may know its own.
    """
    first = tensors[0]
    kind, dtype, device = type(first), first.dtype, first.device
    if not dtype.is_floating_point or not (first.is_meta or kind is FakeTensor):
        return False
    return all(
        t is None
        or (
            isinstance(t, Tensor)
            and t.device == device
            and t.dtype == dtype
            and (type(t) is FakeTensor) == (kind is FakeTensor)
            and getattr(t, "constant", None) is None
        )
        for t in tensors
    )


def plain(*tensors: Any) -> bool:
    """Say whether these are contiguous ones of such tensors."""
    return without_data(*tensors) and all(t is None or t.is_contiguous() for t in tensors)


def empty(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Make a tensor without data of this shape, in the dtype of another unless one is given, of its kind."""
    dtype = like.dtype if dtype is None else dtype
    if type(like) is not FakeTensor:
        return torch.empty(shape, dtype=dtype, device="meta")
    with torch._C._DisableTorchDispatch():
        made = torch.empty(shape, dtype=dtype, device="meta")
        return FakeTensor(like.fake_mode, made, like.device)


def broadcast(a: Sequence[int], b: Sequence[int]) -> list[int] | None:
    """Find the shape that two shapes broadcast to, None where they do not."""
    if len(a) < len(b):
        a, b = b, a
    shape = list(a)
    for dim in range(-len(b), 0):
        if shape[dim] == 1:
            shape[dim] = b[dim]
        elif b[dim] not in (1, shape[dim]):
            return None
    return shape

"""Know what some operations return on the meta device, where PyTorch's own answer runs dozens of others.

PyTorch describes a GELU, a batch norm or an attention in Python, by decomposing it; in a recording that would
be most of the time. The registry's ``meta_shape`` functions return the same empty tensor from the shapes
alone. Where a layout, a dtype or an error needs thought they have no answer, and PyTorch's is taken. Here is
what they share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

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


def plain(*tensors: Any) -> bool:
    """Say whether these are contiguous floating tensors of one dtype on the meta device (None counts
    as one)."""
    dtype = tensors[0].dtype
    return dtype.is_floating_point and all(
        t is None or (isinstance(t, Tensor) and t.is_meta and t.dtype == dtype and t.is_contiguous())
        for t in tensors
    )


def empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Make a tensor without data of this shape, in the dtype of another."""
    return torch.empty(shape, dtype=like.dtype, device="meta")


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

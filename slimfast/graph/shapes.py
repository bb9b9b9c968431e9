"""What some operations return on the meta device, where PyTorch's own answer runs dozens of others.

PyTorch describes batch norm, for one, by decomposing it; on a network of a hundred of them that is most of
the time of a recording. These functions return the same empty tensor from the shapes alone. Where a layout
would need thought they have no answer, and PyTorch's is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

# The result of an operation, from its arguments by name; None: ask PyTorch.
Shortcut: TypeAlias = Callable[[dict[str, Any]], Any]

_MISMATCH = "expected {what} of {want} elements, got {got}"


def _check(what: str, tensor: Tensor | None, want: int) -> None:
    if tensor is not None and tensor.numel() != want:
        raise RuntimeError(_MISMATCH.format(what=what, want=want, got=tensor.numel()))


def _empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device="meta")


def _batch_norm(a: dict[str, Any]) -> Tensor | None:
    source = a["input"]
    if source.dim() < 2:
        return None
    for name in ("weight", "bias", "running_mean", "running_var"):
        _check(name, a[name], source.shape[1])
    return torch.empty_like(source)


def _layer_norm(a: dict[str, Any]) -> Tensor | None:
    source, shape = a["input"], tuple(a["normalized_shape"])
    if not shape or tuple(source.shape[-len(shape) :]) != shape:
        return None
    for name in ("weight", "bias"):
        if a[name] is not None and tuple(a[name].shape) != shape:
            return None
    return _empty(source, source.shape)


def _convolution(a: dict[str, Any]) -> Tensor | None:
    source, weight, groups = a["input"], a["weight"], a["groups"]
    taps = weight.dim() - 2
    if source.dim() != weight.dim() or source.dtype != weight.dtype or taps < 1:
        return None
    if not (source.is_contiguous() and weight.is_contiguous()):
        return None
    first, second = weight.shape[:2]
    incoming, outgoing = (first, second * groups) if a["transposed"] else (second * groups, first)
    if source.shape[1] != incoming or outgoing % groups:
        return None
    _check("bias", a["bias"], outgoing)
    positions = _transposed_positions if a["transposed"] else _positions
    shape = [source.shape[0], outgoing, *positions(a, source.shape[2:], weight.shape[2:])]
    return _empty(source, shape) if min(shape) > 0 else None


def _per_dim(value: Sequence[int], taps: int) -> Sequence[int]:
    return value if len(value) == taps else list(value) * taps


def _positions(a: dict[str, Any], lengths: Sequence[int], kernel: Sequence[int]) -> list[int]:
    stride, padding, dilation = (_per_dim(a[n], len(kernel)) for n in ("stride", "padding", "dilation"))
    return [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(lengths, kernel, stride, padding, dilation, strict=True)
    ]


def _transposed_positions(a: dict[str, Any], lengths: Sequence[int], kernel: Sequence[int]) -> list[int]:
    stride, padding, dilation, more = (
        _per_dim(a[n], len(kernel)) for n in ("stride", "padding", "dilation", "output_padding")
    )
    return [
        (n - 1) * s - 2 * p + d * (k - 1) + o + 1
        for n, k, s, p, d, o in zip(lengths, kernel, stride, padding, dilation, more, strict=True)
    ]


SHORTCUTS: dict[str, Shortcut] = {
    "aten::batch_norm": _batch_norm,
    "aten::layer_norm": _layer_norm,
    "aten::convolution": _convolution,
}

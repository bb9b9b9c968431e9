"""What some operations return on the meta device, where PyTorch's own answer runs dozens of others.

PyTorch describes a GELU, a batch norm or an attention in Python, by decomposing it; in a recording that would
be most of the time. These functions return the same empty tensor from the shapes alone. Where a layout, a
dtype or an error needs thought they have no answer, and PyTorch's is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

# The result of an operation, from its arguments by name; None: ask PyTorch.
Shortcut: TypeAlias = Callable[[Mapping[str, Any]], Any]

_UNARY = ("relu", "relu6", "gelu", "silu", "mish", "sigmoid", "hardsigmoid", "hardswish", "hardtanh", "tanh",
          "elu", "leaky_relu", "softplus", "clamp", "clamp_min", "clamp_max", "neg", "exp", "log", "sqrt",
          "rsqrt", "reciprocal", "sin", "cos", "erf", "rsub")  # fmt: skip
_BINARY = ("add", "sub", "mul", "div")
_UPSAMPLES = ("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d")


def _plain(*tensors: Any) -> bool:
    """Whether these are contiguous floating tensors of one dtype on the meta device (None counts as one)."""
    dtype = tensors[0].dtype
    return dtype.is_floating_point and all(
        t is None or (isinstance(t, Tensor) and t.is_meta and t.dtype == dtype and t.is_contiguous())
        for t in tensors
    )


def _empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device="meta")


def _broadcast(a: Sequence[int], b: Sequence[int]) -> list[int] | None:
    """The shape that two shapes broadcast to, None where they do not."""
    if len(a) < len(b):
        a, b = b, a
    shape = list(a)
    for dim in range(-len(b), 0):
        if shape[dim] == 1:
            shape[dim] = b[dim]
        elif b[dim] not in (1, shape[dim]):
            return None
    return shape


def _pointwise(a: Mapping[str, Any]) -> Tensor | None:
    """Element by element, of one tensor or of two or one and a number, in the dtype of the first."""
    first, second = a["self"], a.get("other")
    if isinstance(second, (bool, complex)) or not (_plain(first) and _all_numbers(a)):
        return None
    if not isinstance(second, Tensor):
        return _empty(first, first.shape)
    if not _plain(first, second) or a.get("rounding_mode") is not None:
        return None
    shape = _broadcast(first.shape, second.shape)
    return None if shape is None else _empty(first, shape)


def _all_numbers(a: Mapping[str, Any]) -> bool:
    """Whether the arguments but the operands are plain numbers, words or nothing."""
    return all(
        isinstance(value, (bool, int, float, str, type(None)))
        for name, value in a.items()
        if name not in ("self", "other")
    )


def _in_place(a: Mapping[str, Any]) -> Tensor | None:
    made = _pointwise(a)
    found: Tensor = a["self"]
    return found if made is not None and made.shape == found.shape else None


def _batch_norm(a: Mapping[str, Any]) -> Tensor | None:
    source = a["input"]
    of_channels = [a[name] for name in ("weight", "bias", "running_mean", "running_var")]
    if not _plain(source, *of_channels) or source.dim() < 2:
        return None
    fit = all(t is None or t.shape == source.shape[1:2] for t in of_channels)
    return _empty(source, source.shape) if fit else None


def _layer_norm(a: Mapping[str, Any]) -> Tensor | None:
    source, weight, bias = a["input"], a["weight"], a.get("bias")
    shape = tuple(a["normalized_shape"])
    # the result is contiguous, whatever the layout of the input
    if (
        not source.is_meta
        or not source.dtype.is_floating_point
        or tuple(source.shape[-len(shape) :]) != shape
    ):
        return None
    for own in (weight, bias):
        if own is not None and not (own.is_meta and own.dtype == source.dtype and tuple(own.shape) == shape):
            return None
    return _empty(source, source.shape)


def _group_norm(a: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor] | None:
    source, groups = a["input"], a["group"]
    if not _plain(source, a["weight"], a["bias"]) or source.dim() < 2 or a["C"] % groups:
        return None
    if any(t is not None and tuple(t.shape) != (a["C"],) for t in (a["weight"], a["bias"])):
        return None
    if tuple(source.shape[:2]) != (a["N"], a["C"]) or source.numel() != a["N"] * a["C"] * a["HxW"]:
        return None
    statistics = (a["N"], groups)
    return _empty(source, source.shape), _empty(source, statistics), _empty(source, statistics)


def _convolution(a: Mapping[str, Any]) -> Tensor | None:
    source, weight, bias, groups = a["input"], a["weight"], a["bias"], a["groups"]
    taps = weight.dim() - 2
    if not _plain(source, weight, bias) or source.dim() != weight.dim() or taps < 1:
        return None
    first, second = weight.shape[:2]
    incoming, outgoing = (first, second * groups) if a["transposed"] else (second * groups, first)
    if source.shape[1] != incoming or outgoing % groups or incoming % groups:
        return None
    if bias is not None and tuple(bias.shape) != (outgoing,):
        return None
    shape = [source.shape[0], outgoing, *_positions(a, source.shape[2:], weight.shape[2:])]
    return _empty(source, shape) if min(shape) > 0 else None


def _positions(a: Mapping[str, Any], lengths: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """The lengths of a convolution's result, as the documentation of nn.Conv2d and nn.ConvTranspose2d has
    them."""
    names = ("stride", "padding", "dilation", "output_padding")
    per_dim = [a[name] if len(a[name]) == len(kernel) else list(a[name]) * len(kernel) for name in names]
    found = []
    for n, k, s, p, d, more in zip(lengths, kernel, *per_dim, strict=True):
        reach = d * (k - 1) - 2 * p
        found.append((n - 1) * s + reach + more + 1 if a["transposed"] else (n - reach - 1) // s + 1)
    return found


def _linear(a: Mapping[str, Any]) -> Tensor | None:
    source, weight, bias = a["input"], a["weight"], a["bias"]
    if not _plain(source, weight, bias) or source.dim() < 2 or weight.dim() != 2:
        return None
    if source.shape[-1] != weight.shape[1] or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    return _empty(source, [*source.shape[:-1], weight.shape[0]])


def _attention(a: Mapping[str, Any]) -> Tensor | None:
    query, key, value, mask = (a[name] for name in ("query", "key", "value", "attn_mask"))
    q, k, v = (list(t.shape) for t in (query, key, value))
    like = (query.device, query.dtype)
    same = all((t.device, t.dtype) == like for t in (key, value)) and query.dtype.is_floating_point
    if (
        not (same and query.is_meta)
        or not len(q) == len(k) == len(v) == 4
        or q[-1] != k[-1]
        or k[-2] != v[-2]
    ):
        return None
    grouped = bool(a["enable_gqa"]) and k[1] > 0 and q[1] % k[1] == 0
    if k[:2] != v[:2] or q[0] != k[0] or not (q[1] == k[1] or grouped):
        return None
    scores = [*q[:-1], k[-2]]
    if mask is not None and _broadcast(scores, mask.shape) != scores:
        return None
    return _empty(query, [*q[:-1], v[-1]])


def _mean(a: Mapping[str, Any]) -> Tensor | None:
    source, dims = a["self"], a.get("dim")
    if not _plain(source) or not dims or a.get("dtype") is not None:
        return None
    gone = {dim % source.dim() for dim in dims} if source.dim() else set()
    if len(gone) != len(dims) or any(not -source.dim() <= dim < source.dim() for dim in dims):
        return None
    kept = [1 if d in gone else n for d, n in enumerate(source.shape) if a["keepdim"] or d not in gone]
    return _empty(source, kept)


def _cat(a: Mapping[str, Any]) -> Tensor | None:
    parts = a["tensors"]
    if not parts or not _plain(*parts) or not all(1 < t.dim() == parts[0].dim() for t in parts):
        return None
    shape = list(parts[0].shape)
    if not -len(shape) <= a["dim"] < len(shape):
        return None
    shape[a["dim"]] = sum(t.shape[a["dim"]] for t in parts)
    fit = all(
        n == m or d == a["dim"] % len(shape)
        for t in parts
        for d, (n, m) in enumerate(zip(t.shape, shape, strict=True))
    )
    return _empty(parts[0], shape) if fit else None


def _roll(a: Mapping[str, Any]) -> Tensor | None:
    source, dims = a["self"], a["dims"]
    known = len(dims) == len(a["shifts"]) > 0 and all(-source.dim() <= dim < source.dim() for dim in dims)
    return _empty(source, source.shape) if known and _plain(source) else None


def _upsample(a: Mapping[str, Any]) -> Tensor | None:
    source, size = a["self"], a["output_size"]
    if source.dim() != 4 or not _plain(source) or min(*size, *source.shape) < 1:
        return None
    return _empty(source, [*source.shape[:2], *size])


SHORTCUTS: dict[str, Shortcut] = {
    **{f"aten::{name}": _pointwise for name in (*_UNARY, *_BINARY)},
    **{f"aten::{name}_": _in_place for name in (*_UNARY, *_BINARY)},
    **{f"aten::{name}": _upsample for name in _UPSAMPLES},
    "aten::batch_norm": _batch_norm,
    "aten::layer_norm": _layer_norm,
    "aten::rms_norm": _layer_norm,
    "aten::native_group_norm": _group_norm,
    "aten::convolution": _convolution,
    "aten::linear": _linear,
    "aten::scaled_dot_product_attention": _attention,
    "aten::mean": _mean,
    "aten::cat": _cat,
    "aten::roll": _roll,
}

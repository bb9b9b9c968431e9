"""What the ops of streaming moments ask of their arguments; each message names its layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from slimfast.errors import ArgumentError, NonFinite
from slimfast.kernels.checks import all_finite
from slimfast.kernels.convolutions import Convolution
from slimfast.kernels.dtypes import COMPUTED, FLOATING
from slimfast.kernels.results import CrossMoments, Moments

# Moments of up to so many numbers are made many at a time, on lines of so many.
_SMALL = 1 << 12
_LINE = 8


def with_variables_first(
    op: str, xs: Sequence[Tensor], dims: int | Sequence[int], names: Sequence[str]
) -> list[Tensor]:
    """View every x as (variables, positions ...)."""
    each = [dims] * len(xs) if isinstance(dims, int) else list(dims)
    if len(each) != len(xs):
        raise ArgumentError(f"{op}: expected one dim or {len(xs)}, got {len(each)}")
    views = []
    for x, dim, name in zip(xs, each, names, strict=True):
        _check_floating(op, x, name)
        if not -x.ndim <= dim < x.ndim:
            raise ArgumentError(f"{op}: expected a dim of {x.ndim}, got {dim} ({name})")
        if x.shape[dim] == 0:
            raise ArgumentError(f"{op}: expected one or more variables, got {tuple(x.shape)} ({name})")
        own = x.detach() if x.requires_grad else x
        # Many small ones come here: what is in place already is not moved.
        views.append(own if dim in (0, -x.ndim) else own.movedim(dim, 0))
    return views


def _check_floating(op: str, x: Tensor, name: str) -> None:
    if x.dtype not in FLOATING:
        raise ArgumentError(f"{op}: expected float32, float64, bfloat16 or float16, got {x.dtype} ({name})")


def checked_masks(
    op: str, views: Sequence[Tensor], masks: Sequence[Tensor | None] | None, names: Sequence[str]
) -> list[Tensor | None]:
    kept: list[Tensor | None] = [None] * len(views)
    if masks is not None:
        kept = list(masks)
    if len(kept) != len(views):
        raise ArgumentError(f"{op}: expected {len(views)} masks, got {len(kept)}")
    for x, mask, name in zip(views, kept, names, strict=True):
        if mask is None:
            continue
        if mask.dtype != torch.bool or mask.shape != x.shape[1:] or mask.device != x.device:
            raise ArgumentError(
                f"{op}: expected a bool mask of shape {tuple(x.shape[1:])} on {x.device}, got {mask.dtype} "
                f"of {tuple(mask.shape)} on {mask.device} ({name})"
            )
    return kept


def product_dtypes(
    op: str, inputs: Sequence[Sequence[Tensor]], dtype: torch.dtype | None
) -> list[torch.dtype]:
    if dtype not in (None, *COMPUTED):
        raise ArgumentError(f"{op}: expected dtype float32 or float64, got {dtype}")
    return [
        dtype or (torch.float64 if any(x.dtype == torch.float64 for x in each) else torch.float32)
        for each in inputs
    ]


def check_convolution(op: str, x: Tensor, conv: Convolution, name: str) -> None:
    _check_floating(op, x, name)
    spatial = x.ndim - 2
    lengths = [len(each) for each in conv[:4]]
    if not 1 <= spatial <= 3 or any(length != spatial for length in lengths):
        raise ArgumentError(
            f"{op}: expected (N, C, ...) of 1 to 3 spatial dims and as many numbers, got {tuple(x.shape)} "
            f"and {conv} ({name})"
        )
    numbers = (*conv.kernel, *conv.stride, *conv.dilation, conv.groups)
    if min(numbers) < 1 or min(conv.padding) < 0 or x.shape[1] == 0 or x.shape[1] % conv.groups:
        raise ArgumentError(f"{op}: expected a convolution of {x.shape[1]} channels, got {conv} ({name})")
    if min(conv.outputs(x.shape[2:])) < 1:
        raise ArgumentError(
            f"{op}: expected an input that the kernel fits into, got {tuple(x.shape)} and {conv} ({name})"
        )


def moments_to_add_to(
    op: str,
    xs: Sequence[Tensor],
    shapes: Sequence[tuple[int, ...]],
    into: Sequence[Moments] | None,
    names: Sequence[str],
) -> list[Moments]:
    """Check the moments that are added to, of means of these shapes, or make new ones."""
    if into is None:
        sizes = [math.prod(shape) * (1 + shape[-1]) for shape in shapes]
        if len(xs) > 1 and max(sizes) <= _SMALL and all(x.is_cpu for x in xs):
            return _together(shapes, sizes)
        return [
            Moments(0, _zeros(x, shape), _zeros(x, (*shape, shape[-1])))
            for x, shape in zip(xs, shapes, strict=True)
        ]
    _check_count(op, into, xs)
    for moments, x, shape, name in zip(into, xs, shapes, names, strict=True):
        _check_sums(op, (moments.mean, moments.squares), (shape, (*shape, shape[-1])), x, name)
    return list(into)


def _together(shapes: Sequence[tuple[int, ...]], sizes: Sequence[int]) -> list[Moments]:
    """Make moments of many small layers out of one piece of memory, each on a cache line of its own."""
    lengths = [-(-size // _LINE) * _LINE for size in sizes]
    whole = torch.zeros(sum(lengths), dtype=torch.float64, device="cpu")
    moments = []
    for shape, own in zip(shapes, torch.split(whole, lengths), strict=True):
        count = math.prod(shape)
        squares = own.as_strided((*shape, shape[-1]), _strides(shape), own.storage_offset() + count)
        moments.append(Moments(0, own[:count] if len(shape) == 1 else own[:count].view(shape), squares))
    return moments


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    length = shape[-1]
    return (length, 1) if len(shape) == 1 else (length * length, length, 1)


def cross_to_add_to(
    op: str,
    xs: Sequence[Tensor],
    ys: Sequence[Tensor],
    into: Sequence[CrossMoments] | None,
    names: Sequence[str],
) -> list[CrossMoments]:
    """Check the same of pairs (K, ...) and (L, ...), or make new ones."""
    shapes = [((len(x),), (len(y),), (len(x), len(y))) for x, y in zip(xs, ys, strict=True)]
    if into is None:
        return [
            CrossMoments(0, *(_zeros(x, shape) for shape in each)) for x, each in zip(xs, shapes, strict=True)
        ]
    _check_count(op, into, xs)
    for moments, x, each, name in zip(into, xs, shapes, names, strict=True):
        _check_sums(op, (moments.mean_x, moments.mean_y, moments.products), each, x, name)
    return list(into)


def check_finite(
    op: str,
    found: Sequence[Sequence[Tensor]],
    inputs: Sequence[Sequence[Tensor]],
    masks: Sequence[Tensor | None],
    names: Sequence[str],
) -> None:
    """Raise :class:`NonFinite` for the first layer in whose sums ``found`` a value is not finite.

    ``inputs``: of each layer its operands, variables first; the message is of the first that holds one.
    """
    if all_finite([part for parts in found for part in parts]):
        return
    # One look at all of them, on a GPU one wait.
    sums = torch.stack([torch.stack([part.sum() for part in parts]).sum() for parts in found])
    for finite, xs, mask, name in zip(sums.isfinite().tolist(), inputs, masks, names, strict=True):
        if not finite:
            raise NonFinite(_non_finite(op, xs, mask, name))


def _non_finite(op: str, xs: Sequence[Tensor], mask: Tensor | None, name: str) -> str:
    for x in xs:
        bad = ~x.isfinite() if mask is None else ~x.isfinite() & mask
        count = int(bad.sum())
        if count:
            place = tuple(bad.nonzero()[0].tolist())
            value, where = x[place].item(), f"variable {place[0]} at position {place[1:]}"
            return f"{op}: expected finite values, got {value} of {where}, {count} in all ({name})"
    return f"{op}: expected values whose squares are finite, got an overflow ({name})"


def _zeros(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=like.device)


def _check_count(op: str, into: Sequence[Moments] | Sequence[CrossMoments], xs: Sequence[Tensor]) -> None:
    if len(into) != len(xs):
        raise ArgumentError(f"{op}: expected {len(xs)} moments to add to, got {len(into)}")


def _check_sums(
    op: str, sums: Sequence[Tensor], shapes: Sequence[tuple[int, ...]], x: Tensor, name: str
) -> None:
    for own, shape in zip(sums, shapes, strict=True):
        if (
            own.shape != shape
            or own.dtype != torch.float64
            or own.device != x.device
            or not own.is_contiguous()
        ):
            raise ArgumentError(
                f"{op}: expected contiguous float64 moments of shape {shape} on {x.device} to add to, got "
                f"{own.dtype} of {tuple(own.shape)} on {own.device} ({name})"
            )

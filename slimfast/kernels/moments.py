"""Streaming moments: means and centred squares of what layers read, summed over batch after batch.

Products are made in float32 (or float64) of positions centred on the mean of the part they are in, and
summed in float64. Parts and batches join as Chan, Golub and LeVeque do it (*The American Statistician* 37,
1983), so that means far above the deviations cost no digits of float32, whatever the batches are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from slimfast.errors import ArgumentError
from slimfast.kernels.backends.contract import Backend
from slimfast.kernels.checks import check_one_device, names_of
from slimfast.kernels.convolutions import Convolution
from slimfast.kernels.dispatch import select_backend
from slimfast.kernels.moments_checks import (
    check_convolution,
    check_finite,
    checked_masks,
    cross_to_add_to,
    moments_to_add_to,
    product_dtypes,
    with_variables_first,
)
from slimfast.kernels.results import CrossMoments, Moments


def grouped_moments(
    xs: Sequence[Float[Tensor, "..."]],
    *,
    dims: int | Sequence[int] = 0,
    masks: Sequence[Bool[Tensor, "..."] | None] | None = None,
    into: Sequence[Moments] | None = None,
    dtype: torch.dtype | None = None,
    names: Sequence[str] | None = None,
    backend: str = "auto",
) -> list[Moments]:
    """Add up mean and squares of the variables of every x_i over its positions, to earlier ones or new ones.

    x_i has its L_i variables along one dim; all its other dims are positions. It is read as it lies in
    memory, whatever its strides: nothing is transposed or copied first. Equivalent, in float64, to ``columns
    = x.movedim(dim, 0).flatten(1)[:, mask.flatten()]`` and then ``columns.mean(1)`` and ``torch.cov(columns,
    correction=0) * columns.shape[1]``.

    Args:
        xs: float32, float64, bfloat16 or float16.
        dims: The dim of the variables, of each or of all: 0 for (L, s), -1 for what a linear layer reads, 1
            for what a convolution reads.
        masks: Of each x_i None, or which positions count: bool, of its shape without that dim.
        into: What to add to, in place; these are returned.
        dtype: Of the products, float32 or float64; by default float64 for float64 inputs, float32 for the
            rest. Sums of them are in float64.
        names: Of the layers, for messages.
        backend: The kernels to use.

    Returns:
        The moments. Where no position counts, those of ``into`` unchanged, or new ones of count 0.

    Raises:
        ValueError: Naming the layer, for a wrong shape, or for a value that is not finite at a position that
            counts. ``into`` is then of no more use.

    Example:
        moments = None
        for batch in (torch.randn(4, 16, 8), torch.randn(2, 16, 8)):
            moments = slimfast.grouped_moments([batch], dims=-1, into=moments)
        moments[0].count   # 96 positions of 8 variables
    """
    named = names_of("moments", xs, names)
    views = with_variables_first("moments", xs, dims, named)
    kept = checked_masks("moments", views, masks, named)
    moments = _added(xs, views, kept, into, dtype, named, backend)
    found = [(m.mean, m.squares.diagonal()) for m in moments]
    check_finite("moments", found, [[x] for x in views], kept, named)
    return moments


def add_moments_unseen(
    xs: Sequence[Tensor],
    *,
    dims: int | Sequence[int] = 0,
    masks: Sequence[Tensor | None] | None = None,
    into: Sequence[Moments] | None = None,
    dtype: torch.dtype | None = None,
    names: Sequence[str] | None = None,
    backend: str = "auto",
) -> list[Moments]:
    """Add up as :func:`grouped_moments` does, without a look at whether all is finite.

    On a GPU that look waits for the device. Who adds layer after layer asks :func:`all_finite` once instead.
    """
    named = names_of("moments", xs, names)
    views = with_variables_first("moments", xs, dims, named)
    return _added(xs, views, checked_masks("moments", views, masks, named), into, dtype, named, backend)


def _added(
    xs: Sequence[Tensor],
    views: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    into: Sequence[Moments] | None,
    dtype: torch.dtype | None,
    names: Sequence[str],
    backend: str,
) -> list[Moments]:
    dtypes = product_dtypes("moments", [[x] for x in xs], dtype)
    moments = moments_to_add_to("moments", xs, [(len(x),) for x in views], into, names)
    for module, mine in _backends_of("moments", xs, dtypes, backend):
        module.moments(*_parts_of(mine, views, masks, moments, dtypes))
    return moments


def all_finite(moments: Iterable[Moments]) -> bool:
    """Say whether all sums are finite, in one wait for each device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for each in moments:
        sums = by_device.setdefault(each.mean.device, [])
        sums += [each.mean.sum(), each.squares.diagonal().sum()]
    return all(bool(torch.stack(sums).isfinite().all()) for sums in by_device.values())


def grouped_cross_covariance(
    xs: Sequence[Float[Tensor, "..."]],
    ys: Sequence[Float[Tensor, "..."]],
    *,
    dims: int | Sequence[int] = 0,
    masks: Sequence[Bool[Tensor, "..."] | None] | None = None,
    into: Sequence[CrossMoments] | None = None,
    dtype: torch.dtype | None = None,
    names: Sequence[str] | None = None,
    backend: str = "auto",
) -> list[CrossMoments]:
    """Add up the means and centred products of the variables of x_i with those of y_i at the same positions.

    As :func:`grouped_moments` with a second operand: x_i has K_i variables along the dim, y_i has L_i, and
    their positions are the same. Equivalent, in float64, to ``(x - x.mean(1, keepdim=True)) @ (y -
    y.mean(1, keepdim=True)).T`` for (K, s) and (L, s).

    Args:
        xs: As there.
        ys: As many, with the same positions.
        dims: The dim of the variables in both, of each pair or of all.
        masks: Which positions count, as there.
        into: What to add to, in place; these are returned.
        dtype: Of the products, as there.
        names: Of the pairs, for messages.
        backend: The kernels to use.

    Returns:
        The moments.

    Raises:
        ValueError: As :func:`grouped_moments` does, and where positions differ.

    Example:
        wide, thin = torch.randn(4, 16, 8), torch.randn(4, 16, 3)
        (moments,) = slimfast.grouped_cross_covariance([wide], [thin], dims=-1)
        moments.products.shape   # (8, 3)
    """
    op = "cross_covariance"
    named = names_of(op, xs, names)
    if len(ys) != len(xs):
        raise ArgumentError(f"{op}: expected as many ys as xs, {len(xs)}, got {len(ys)}")
    left, right = (with_variables_first(op, each, dims, named) for each in (xs, ys))
    for x, y, name in zip(left, right, named, strict=True):
        if x.shape[1:] != y.shape[1:]:
            raise ArgumentError(
                f"{op}: expected the same positions, got {tuple(x.shape[1:])} and {tuple(y.shape[1:])} "
                f"({name})"
            )
    kept = checked_masks(op, left, masks, named)
    dtypes = product_dtypes(op, list(zip(xs, ys, strict=True)), dtype)
    moments = cross_to_add_to(op, left, right, into, named)
    for module, mine in _backends_of(op, [*xs, *ys], dtypes, backend):
        module.cross_covariance(*_parts_of(mine, left, right, kept, moments, dtypes))
    found = [(m.mean_x, m.mean_y, m.products) for m in moments]
    check_finite(op, found, list(zip(left, right, strict=True)), kept, named)
    return moments


def grouped_patch_moments(
    xs: Sequence[Float[Tensor, "..."]],
    convolutions: Sequence[Convolution],
    *,
    into: Sequence[Moments] | None = None,
    dtype: torch.dtype | None = None,
    names: Sequence[str] | None = None,
    backend: str = "auto",
) -> list[Moments]:
    """Add up mean and squares of the patches that a convolution reads of every x_i (N, C, ...).

    The V = C / g * taps variables of each of the g groups are in the order of the convolution's weight,
    flattened from dim 1 on; the positions are those of its output. Patches are made a few at a time, in
    cache. Equivalent, for two spatial dims and one group, to :func:`grouped_moments` of
    ``torch.nn.functional.unfold(x, ...)`` with ``dims=1``.

    Args:
        xs: float32, float64, bfloat16 or float16, with one to three spatial dims.
        convolutions: What reads each.
        into: What to add to, in place; these are returned.
        dtype: Of the products, as :func:`grouped_moments` takes it.
        names: Of the layers, for messages.
        backend: The kernels to use.

    Returns:
        The moments: mean (g, V) and squares (g, V, V).

    Raises:
        ValueError: As :func:`grouped_moments` does, and for a convolution that does not fit its input.

    Example:
        conv = slimfast.Convolution(kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1))
        (moments,) = slimfast.grouped_patch_moments([torch.randn(2, 4, 8, 8)], [conv])
        moments.squares.shape   # (1, 36, 36)
    """
    op = "patch_moments"
    named = names_of(op, xs, names)
    if len(convolutions) != len(xs):
        raise ArgumentError(f"{op}: expected {len(xs)} convolutions, got {len(convolutions)}")
    for x, conv, name in zip(xs, convolutions, named, strict=True):
        check_convolution(op, x, conv, name)
    dtypes = product_dtypes(op, [[x] for x in xs], dtype)
    shapes = [
        (conv.groups, x.shape[1] // conv.groups * conv.taps) for x, conv in zip(xs, convolutions, strict=True)
    ]
    moments = moments_to_add_to(op, xs, shapes, into, named)
    for module, mine in _backends_of(op, xs, dtypes, backend):
        module.patch_moments(*_parts_of(mine, xs, convolutions, moments, dtypes))
    found = [(m.mean, m.squares.diagonal(dim1=1, dim2=2)) for m in moments]
    check_finite(op, found, [[x.detach().movedim(1, 0)] for x in xs], [None] * len(xs), named)
    return moments


def _backends_of(
    op: str, inputs: Sequence[Tensor], dtypes: Sequence[torch.dtype], backend: str
) -> list[tuple[Backend, list[int]]]:
    """Choose the backends, each with the layers that it takes: a layer's follows from its own dtype, so that
    its bits do not depend on its neighbours.
    """
    if not inputs:
        return []
    check_one_device(op, inputs)
    return [
        (
            select_backend(op, inputs, backend, in_float64=wanted == torch.float64),
            [i for i, dtype in enumerate(dtypes) if dtype == wanted],
        )
        for wanted in dict.fromkeys(dtypes)
    ]


def _parts_of(mine: Sequence[int], *lists: Sequence[Any]) -> list[list[Any]]:
    """Pick the layers ``mine`` out of each list."""
    return [[each[i] for i in mine] for each in lists]

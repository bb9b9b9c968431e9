"""Streaming moments as kernels on a device see them: operands, and positions in four dims.

Activations, pairs of them and patches are one thing here: variable v of an operand is channel v // taps at
tap v % taps, and plain operands have one tap. Nothing is copied that four dims of positions can describe.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from slimfast.errors import ArgumentError
from slimfast.kernels.convolutions import Convolution
from slimfast.kernels.results import CrossMoments, Moments

DIMS = 4
# Kernels find the places of an image in 32 bits.
MOST_INNER = 1 << 30


class Operand(NamedTuple):
    """An operand and the means of its variables so far; strides count elements."""

    data: Tensor
    variables: int
    channel_stride: int
    strides: tuple[int, ...]
    mean: Tensor


class Taps(NamedTuple):
    """The image that patches are read from, and how: three dims."""

    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    step: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MomentLayer:
    """x, and y where it is not x itself, at positions ``outputs``; ``group``: variables of one group.

    ``counted``: (1,) int64 on the device, how many positions the mask leaves.
    """

    x: Operand
    y: Operand | None
    outputs: tuple[int, ...]
    taps: Taps
    mask: Tensor | None
    mask_strides: tuple[int, ...]
    counted: Tensor | None
    group: int
    sums: Moments | CrossMoments
    products: Tensor
    dtype: torch.dtype

    @property
    def positions(self) -> int:
        return math.prod(self.outputs)

    @property
    def in_double(self) -> bool:
        """Whether products are made in float64: float64 operands are centred in it."""
        operands = (self.x,) if self.y is None else (self.x, self.y)
        return torch.float64 in (self.dtype, *(operand.data.dtype for operand in operands))

    def add_positions(self, masked: int | None) -> None:
        """Count what was added: all positions, or those that the mask leaves."""
        self.sums.count += self.positions if masked is None else masked


class _Dim(NamedTuple):
    size: int
    strides: tuple[int, ...]


def moment_layers(
    xs: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    into: Sequence[Moments],
    dtypes: Sequence[torch.dtype],
) -> list[MomentLayer]:
    """Describe each x (variables, positions ...) with itself."""
    return [
        _plain(x, None, mask, sums, (sums.mean,), sums.squares, dtype)
        for x, mask, sums, dtype in zip(xs, masks, into, dtypes, strict=True)
    ]


def cross_layers(
    xs: Sequence[Tensor],
    ys: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    into: Sequence[CrossMoments],
    dtypes: Sequence[torch.dtype],
) -> list[MomentLayer]:
    """Describe each x with its y, of the same positions."""
    return [
        _plain(x, y, mask, sums, (sums.mean_x, sums.mean_y), sums.products, dtype)
        for x, y, mask, sums, dtype in zip(xs, ys, masks, into, dtypes, strict=True)
    ]


def patch_layers(
    xs: Sequence[Tensor],
    convolutions: Sequence[Convolution],
    into: Sequence[Moments],
    dtypes: Sequence[torch.dtype],
) -> list[MomentLayer]:
    """Describe the patches of each x (N, C, ...); all groups of a convolution are one layer."""
    layers = []
    for x, conv, sums, dtype in zip(xs, convolutions, into, dtypes, strict=True):
        x = x.detach()
        if max(x.shape[2:]) > MOST_INNER:
            raise ArgumentError(
                f"patch_moments: expected images of at most {MOST_INNER} along a dim, got {tuple(x.shape)}"
            )
        missing = DIMS + 1 - x.ndim
        ones, zeros = (1,) * missing, (0,) * missing
        outputs = (len(x), *ones, *conv.outputs(x.shape[2:]))
        strides = (x.stride(0), *zeros, *x.stride()[2:])
        operand = Operand(x, x.shape[1] * conv.taps, x.stride(1), strides, sums.mean)
        taps = Taps(
            (*ones, *x.shape[2:]),
            (*ones, *conv.kernel),
            (*ones, *conv.stride),
            (*zeros, *conv.padding),
            (*ones, *conv.dilation),
        )
        group = sums.mean.shape[-1]
        no_mask = (0,) * DIMS
        layers.append(
            MomentLayer(operand, None, outputs, taps, None, no_mask, None, group, sums, sums.squares, dtype)
        )
    return layers


def _plain(
    x: Tensor,
    y: Tensor | None,
    mask: Tensor | None,
    sums: Moments | CrossMoments,
    means: Sequence[Tensor],
    products: Tensor,
    dtype: torch.dtype,
) -> MomentLayer:
    operands = [x] if y is None else [x, y]
    dims = _merged(operands, mask)
    if len(dims) > DIMS or any(dim.size > MOST_INNER for dim in dims[1:]):
        operands = [operand.contiguous() for operand in operands]
        mask = None if mask is None else mask.contiguous()
        dims = _merged(operands, mask)
    dims += [_Dim(1, (0,) * (len(operands) + 1))] * (DIMS - len(dims))
    outputs = tuple(dim.size for dim in dims)
    strides = list(zip(*(dim.strides for dim in dims), strict=True))
    described = [
        Operand(each, len(each), each.stride(0), its, mean)
        for each, its, mean in zip(operands, strides, means, strict=False)
    ]
    ones, zeros = (1,) * (DIMS - 1), (0,) * (DIMS - 1)
    return MomentLayer(
        described[0],
        None if y is None else described[1],
        outputs,
        Taps(outputs[1:], ones, ones, zeros, ones),
        mask,
        strides[-1],
        None if mask is None else mask.sum().reshape(1),
        len(x),
        sums,
        products,
        dtype,
    )


def _merged(operands: Sequence[Tensor], mask: Tensor | None) -> list[_Dim]:
    """Describe the positions by as few dims as their strides in all operands and the mask allow, what is
    closest in the first operand last.
    """
    shape = operands[0].shape[1:]
    none = (0,) * len(shape)
    each = [operand.stride()[1:] for operand in operands] + [none if mask is None else mask.stride()]
    dims = [_Dim(size, tuple(at)) for size, *at in zip(shape, *each, strict=True) if size != 1]
    merged: list[_Dim] = []
    for dim in sorted(dims, key=lambda dim: -dim.strides[0]):
        last = merged[-1] if merged else None
        if last and all(a == dim.size * b for a, b in zip(last.strides, dim.strides, strict=True)):
            merged[-1] = _Dim(last.size * dim.size, dim.strides)
        else:
            merged.append(dim)
    return merged

"""Grouped gather in Triton: all tensors of a network in one launch from a device-side table.

Every tensor is described as (outer, a, mid, b, inner) where a and b are the dims that are cut, either of them
possibly of length one; the output is written in order, tile by tile, and each output element finds its source
by four divisions, done by multiplication. Elements are moved as the widest integers that divide every run, so
that whole rows travel 8 bytes at a time whatever their dtype. A tensor whose uncut dims do not merge into
these five is made contiguous first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, no_type_check

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from slimfast.arrays import IntArray
from slimfast.kernels.backends.triton.schedule import to_device

# A slab's numbers: where it is, then for each axis from the outermost its length and stride (elements), and
# for each length the multiplier and shift that divide by it, and where the kept indices of the cut axes begin
# (-1: all kept).
SOURCE, TARGET, COUNT, WIDTH, FIRST_TILE, KEPT_A, KEPT_B, AXES = (tl.constexpr(i) for i in range(8))
AXIS_FIELDS = tl.constexpr(4)
FIELDS = tl.constexpr(7 + 5 * 4)
TILE = 1024
# Offsets within a slab stay below this, where division by multiplication is exact; larger tensors are several
# slabs.
MOST_ELEMENTS = 1 << 31


class Axis(NamedTuple):
    """One axis of a slab: its length in the output and its stride in the source, in elements."""

    length: int
    stride: int


class Slab(NamedTuple):
    """A part of one tensor: addresses, the element width in bytes, five axes and the kept indices of two."""

    source: int
    target: int
    width: int
    axes: tuple[Axis, ...]
    kept_a: Tensor | None
    kept_b: Tensor | None

    @property
    def elements(self) -> int:
        """Elements written."""
        return int(np.prod([axis.length for axis in self.axes], dtype=np.int64))


@triton.jit
@no_type_check
def _quotient(dividend, axis):
    """Compute ``dividend // length`` of an axis for 0 <= dividend < 2**31 (Granlund and Montgomery, 1994)."""
    length = tl.load(axis)
    quotient = tl.umulhi(dividend, tl.load(axis + 2).to(tl.uint32)) >> tl.load(axis + 3).to(tl.uint32)
    return tl.where(length == 1, dividend, quotient)


@triton.jit
@no_type_check
def _coordinate(number, axis):
    """Split off the coordinate along this axis from what is left for the axes outside it."""
    outside = _quotient(number, axis)
    return number - outside * tl.load(axis).to(tl.uint32), outside


@triton.jit
@no_type_check
def _kept(coordinate, inside, first, indices):
    """Look up the source coordinate along a cut axis."""
    cut = first >= 0
    index = tl.load(indices + first + coordinate, inside & (coordinate < tl.where(cut, 1 << 31, 0)), 0)
    return tl.where(cut, index, coordinate.to(tl.int64))


@triton.jit
@no_type_check
def _copy(slab, number, inside, at, ELEMENT: tl.constexpr):
    source = tl.load(slab + SOURCE).to(tl.pointer_type(ELEMENT))
    target = tl.load(slab + TARGET).to(tl.pointer_type(ELEMENT))
    tl.store(target + number, tl.load(source + at, inside), inside)


@triton.jit
@no_type_check
def gather_kernel(slabs, indices, count, TILE: tl.constexpr):
    """Copy output elements TILE * program_id.. of the slab that this program's tile belongs to."""
    tile = tl.program_id(0)
    low = 0
    high = count
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(slabs + FIELDS * middle + FIRST_TILE) <= tile:
            low = middle
        else:
            high = middle
    slab = slabs + FIELDS * low
    first = (tile - tl.load(slab + FIRST_TILE)) * TILE
    number = (first + tl.arange(0, TILE)).to(tl.uint32)
    inside = number < tl.load(slab + COUNT)
    axis = slab + AXES
    inner, rest = _coordinate(number, axis + 4 * AXIS_FIELDS)
    b, rest = _coordinate(rest, axis + 3 * AXIS_FIELDS)
    mid, rest = _coordinate(rest, axis + 2 * AXIS_FIELDS)
    a, outer = _coordinate(rest, axis + 1 * AXIS_FIELDS)
    at = outer.to(tl.int64) * tl.load(axis + 1)
    at += _kept(a, inside, tl.load(slab + KEPT_A), indices) * tl.load(axis + 1 * AXIS_FIELDS + 1)
    at += mid.to(tl.int64) * tl.load(axis + 2 * AXIS_FIELDS + 1)
    at += _kept(b, inside, tl.load(slab + KEPT_B), indices) * tl.load(axis + 3 * AXIS_FIELDS + 1)
    at += inner.to(tl.int64) * tl.load(axis + 4 * AXIS_FIELDS + 1)
    width = tl.load(slab + WIDTH)
    if width == 8:
        _copy(slab, number, inside, at, tl.int64)
    elif width == 4:
        _copy(slab, number, inside, at, tl.int32)
    elif width == 2:
        _copy(slab, number, inside, at, tl.int16)
    else:
        _copy(slab, number, inside, at, tl.int8)


def prepare_gather(
    tensors: list[Tensor], keeps: list[Mapping[int, Tensor]]
) -> tuple[list[Tensor], Callable[[], None]]:
    """Prepare the results and what fills them: see :func:`slimfast.kernels.ops.grouped_gather`."""
    device = tensors[0].device
    outputs = []
    slabs: list[Slab] = []
    # What the slabs point to; copies are made anew by every launch.
    sources, copies = [], []
    for tensor, keep in zip(tensors, keeps, strict=True):
        kept = {dim: index for dim, index in keep.items() if len(index) < tensor.shape[dim]}
        source = tensor.detach()
        if any(len(segment) > 1 for segment in _segments(source, kept)):
            source = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            copies.append((source, tensor.detach()))
        lengths = [len(kept[dim]) if dim in kept else n for dim, n in enumerate(tensor.shape)]
        output = torch.empty(lengths, dtype=tensor.dtype, device=device)
        sources.append(source)
        outputs.append(output)
        slabs += _slabs(source, output, kept)
    rows, indices, tiles = _table(slabs)
    tables = to_device([rows, indices], device)

    def launch() -> None:
        for copy, tensor in copies:
            copy.copy_(tensor)
        # Nothing to write is no grid.
        if sources and tiles:
            gather_kernel[(tiles,)](*tables, len(rows), TILE, enable_fp_fusion=True)

    return outputs, launch


def _segments(tensor: Tensor, cut: Iterable[int]) -> list[list[Axis]]:
    """Merge the uncut dims before, between and after the cut ones, each as far as their strides allow."""
    borders = [-1, *sorted(cut), tensor.ndim]
    segments = []
    for before, after in itertools.pairwise(borders):
        merged: list[Axis] = []
        for dim in range(before + 1, after):
            length, stride = tensor.shape[dim], tensor.stride(dim)
            if length == 1:
                continue
            if merged and merged[-1].stride == length * stride:
                merged[-1] = Axis(merged[-1].length * length, stride)
            else:
                merged.append(Axis(length, stride))
        segments.append(merged)
    return segments


def _slabs(source: Tensor, output: Tensor, kept: Mapping[int, Tensor]) -> list[Slab]:
    """List the slabs of one tensor whose uncut dims merge: none if it is empty, several if it is large."""
    if output.numel() == 0:
        return []
    if output.numel() < MOST_ELEMENTS:
        return [_slab(source, output, kept)]
    if output.shape[0] == 1:
        inner = {dim - 1: index for dim, index in kept.items() if dim}
        return _slabs(source[int(kept[0]) if 0 in kept else 0], output[0], inner)
    slabs = []
    for half in torch.arange(output.shape[0], device="cpu").tensor_split(2):
        low, high = int(half[0]), int(half[-1]) + 1
        part = source if 0 in kept else source[low:high]
        keep = {dim: index[low:high] if dim == 0 else index for dim, index in kept.items()}
        slabs += _slabs(part, output[low:high], keep)
    return slabs


def _slab(source: Tensor, output: Tensor, kept: Mapping[int, Tensor]) -> Slab:
    """Make one slab, its elements as wide as its runs and addresses allow."""
    whole = Axis(1, 0)
    segments = [segment[0] if segment else whole for segment in _segments(source, kept)]
    # Without a second cut, or a first, their axes and the segments outside them have length one.
    segments = [whole] * (3 - len(segments)) + segments
    dims = [None] * (2 - len(kept)) + sorted(kept)
    cuts = [whole if dim is None else Axis(len(kept[dim]), source.stride(dim)) for dim in dims]
    axes = [segments[0], cuts[0], segments[1], cuts[1], segments[2]]
    size = source.element_size()
    inner = axes[-1]
    factor = 8 // size if inner.stride == 1 else 1
    # Halving ends at one, which divides everything.
    while (
        inner.length % factor
        or any(axis.stride % factor for axis in axes[:-1])
        or source.data_ptr() % (factor * size)
        or output.data_ptr() % (factor * size)
    ):
        factor //= 2
    wide = [Axis(axis.length, axis.stride // factor) for axis in axes[:-1]]
    wide.append(Axis(inner.length // factor, inner.stride))
    indices = [None if dim is None else kept[dim] for dim in dims]
    return Slab(source.data_ptr(), output.data_ptr(), factor * size, tuple(wide), *indices)


def _table(slabs: Sequence[Slab]) -> tuple[IntArray, IntArray, int]:
    """List the slabs' numbers (s, fields), all kept indices one after another, and how many tiles there
    are.
    """
    rows = np.zeros((len(slabs), FIELDS.value), dtype=np.int64)
    begins: dict[int, int] = {}
    indices: list[IntArray] = []
    length = tiles = 0
    for row, slab in zip(rows, slabs, strict=True):
        first = []
        for kept in (slab.kept_a, slab.kept_b):
            if kept is not None and id(kept) not in begins:
                begins[id(kept)] = length
                indices.append(kept.numpy())
                length += len(kept)
            first.append(-1 if kept is None else begins[id(kept)])
        row[: AXES.value] = (slab.source, slab.target, slab.elements, slab.width, tiles, *first)
        row[AXES.value :] = [number for axis in slab.axes for number in (*axis, *_divider(axis.length))]
        tiles += -(-slab.elements // TILE)
    return rows, np.concatenate(indices) if indices else np.zeros(0, dtype=np.int64), tiles


def _divider(length: int) -> tuple[int, int]:
    """Find (multiplier, shift) with n // length = (n multiplier >> 32) >> shift for n < 2**31 and length
    > 1.
    """
    if length == 1:
        return 0, 0
    shift = (length - 1).bit_length() - 1
    return -(-(1 << (32 + shift)) // length), shift

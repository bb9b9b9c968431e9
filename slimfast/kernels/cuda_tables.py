"""What the CUDA kernels are told: int64 tables, one row per layer, laid out by the enums of csrc/cuda/*.hpp.

Plain numbers only: nothing here touches a device.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType

import torch
from torch import Tensor

TYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

# Splitting the samples of a layer: enough blocks to fill a GPU, each with enough samples to be worth its sum.
_BLOCKS_PER_LAYER = 64
_SAMPLES_PER_SPLIT = 512
# From this size on the large tile wastes less than it saves.
_LARGE_TILE_FROM = 256
# The kernels count the units of a gathered row in 31 bits, with room for one tile.
MAX_GATHER_ROW = (1 << 31) - 4096


@dataclass(slots=True)
class Tables:
    """The tables of one call, one after the other."""

    numbers: list[int] = field(default_factory=list)

    def add(self, layers: list[list[int]], blocks: list[int] | None = None) -> int:
        """Appends a table, after the starts of its layers' blocks where given; returns its place in bytes."""
        place = 8 * len(self.numbers)
        if blocks is not None:
            self.numbers += itertools.accumulate(blocks, initial=0)
        for layer in layers:
            self.numbers += layer
        return place


@dataclass(slots=True)
class CovarianceBin:
    """Layers that one kernel takes together; ``partial`` elements of workspace hold sums of split ones."""

    in_double: bool
    tile: int
    layers: list[list[int]] = field(default_factory=list)
    tiles: list[int] = field(default_factory=list)
    splits: list[int] = field(default_factory=list)
    partial: int = 0


def covariance_bins(
    module: ModuleType, xs: list[Tensor], rows: list[bool], outs: list[Tensor]
) -> tuple[list[CovarianceBin], list[list[int]]]:
    """The layers in bins, the costliest of each first, and all of them in the caller's order.

    A layer is cut the same way whatever else is in the call, so that its result is the same bit for bit.
    """
    bins: dict[tuple[bool, int], CovarianceBin] = {}
    first_rows = list(itertools.accumulate((x.shape[0] for x in xs), initial=0))
    layers: list[list[int]] = [[]] * len(xs)
    for i in sorted(range(len(xs)), key=lambda i: -outs[i].shape[0] * xs[i].numel()):
        x, out = xs[i], outs[i]
        in_double = torch.float64 in (x.dtype, out.dtype)
        size = out.shape[0]
        samples = x.shape[1] if rows[i] else x.shape[0]
        small = in_double or size < _LARGE_TILE_FROM
        tile = module.COVARIANCE_SMALL_TILE if small else module.COVARIANCE_LARGE_TILE
        batch = bins.setdefault((in_double, tile), CovarianceBin(in_double, tile))
        side = -(-size // tile)
        tiles = side * (side + 1) // 2
        splits = max(1, min(-(-_BLOCKS_PER_LAYER // tiles), samples // _SAMPLES_PER_SPLIT))
        layers[i] = [x.data_ptr(), TYPE_CODES[x.dtype], *x.shape, *x.stride(), int(rows[i]), first_rows[i]]
        layers[i] += [out.data_ptr(), int(out.dtype == torch.float64), splits, batch.partial]
        batch.partial += tiles * splits * tile * tile if splits > 1 else 0
        batch.layers.append(layers[i])
        batch.tiles.append(tiles)
        batch.splits.append(splits)
    return list(bins.values()), layers


@dataclass(frozen=True, slots=True)
class Reduction:
    """How matrices are brought to tridiagonal form: ``cluster`` blocks each, working in ``placement``.

    ``cluster`` 0 is the kernel that gives a warp to each matrix and needs nothing else.
    """

    is_double: bool
    cluster: int
    placement: int


def reduction_of(module: ModuleType, size: int, is_double: bool, limits: tuple[int, bool]) -> Reduction:
    """The kernel for a matrix of this size on a device of these (shared bytes per block, has clusters)."""
    shared_bytes, has_clusters = limits
    if size <= module.WARP_MATRIX:
        return Reduction(is_double, 0, module.IN_SHARED)
    cluster = 1
    while cluster <= (module.MAX_CLUSTER if has_clusters else 1):
        if module.tridiagonalise_shared_bytes(size, is_double, cluster, module.IN_SHARED) <= shared_bytes:
            return Reduction(is_double, cluster, module.IN_SHARED)
        cluster *= 2
    cluster = module.MAX_CLUSTER if has_clusters else 1
    vectors = module.tridiagonalise_shared_bytes(size, is_double, cluster, module.VECTORS_IN_SHARED)
    return Reduction(
        is_double, cluster, module.VECTORS_IN_SHARED if vectors <= shared_bytes else module.IN_WORKSPACE
    )


def can_gather(tensor: Tensor, keep: Mapping[int, Tensor]) -> bool:
    """Whether the tensor fits the kernel's five dims as it lies; a contiguous one always does."""
    return _choice(_merged_dims(tensor, keep)) is not None


def gather_layer(
    tensor: Tensor, keep: Mapping[int, Tensor], out: Tensor, places: Mapping[int, int]
) -> list[int]:
    """The table's row for one tensor; ``places`` says where each kept dim's indices are in the table.

    The kernel sees [outer, a, middle, b, inner]; dims that are not kept are merged where their strides allow.
    """
    unit, dims = _in_units(tensor, out, keep, _merged_dims(tensor, keep))
    slots = _slots(dims, places)
    sizes = [size for size, _, _ in slots]
    row, middle, inner = math.prod(sizes[2:]), math.prod(sizes[3:]), sizes[4]
    numbers = [tensor.data_ptr(), out.data_ptr(), unit, math.prod(sizes), sizes[1], row, middle, inner]
    numbers += [stride for _, stride, _ in slots]
    numbers += [slots[1][2], slots[3][2]]
    return numbers + [_divisor(max(n, 1)) for n in (row, middle, inner, sizes[1])]


_Dim = tuple[int, int, int]  # size in the result, stride in the source, kept dim or -1


def _merged_dims(tensor: Tensor, keep: Mapping[int, Tensor]) -> list[_Dim]:
    dims: list[_Dim] = []
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if dim in keep:
            dims.append((keep[dim].numel(), stride, dim))
        elif size != 1:
            if dims and dims[-1][2] < 0 and dims[-1][1] == size * stride:
                dims[-1] = (dims[-1][0] * size, stride, -1)
            else:
                dims.append((size, stride, -1))
    return dims


def _in_units(
    tensor: Tensor, out: Tensor, keep: Mapping[int, Tensor], dims: list[_Dim]
) -> tuple[int, list[_Dim]]:
    """The widest unit in which all runs of the last dim start and end, and the dims counted in it."""
    element = tensor.element_size()
    if not dims or dims[-1][2] >= 0 or dims[-1][1] != 1:
        return element, dims
    run, _, _ = dims[-1]
    counts = [
        run * element,
        tensor.data_ptr(),
        out.data_ptr(),
        *(stride * element for _, stride, _ in dims[:-1]),
    ]
    unit = max(u for u in (1, 2, 4, 8, 16) if u >= element and all(n % u == 0 for n in counts))
    per_unit = unit // element
    return unit, [(size, stride // per_unit, kept) for size, stride, kept in dims[:-1]] + [
        (run // per_unit, 1, -1)
    ]


def _slots(dims: list[_Dim], places: Mapping[int, int]) -> list[tuple[int, int, int]]:
    """(size, stride, place of the indices or -1) of outer, a, middle, b and inner."""
    chosen = _choice(dims)
    assert chosen is not None, "can_gather was asked first"
    slots = [(1, 0, -1)] * 5
    for slot, (size, stride, dim) in zip(chosen, dims, strict=True):
        slots[slot] = (size, stride, places[dim] if dim >= 0 else -1)
    return slots


def _choice(dims: list[_Dim]) -> tuple[int, ...] | None:
    """The slot of each dim, increasing, kept dims in slots 1 or 3; the earliest, so that rows are short.

    A single dim goes to slot 1, the only one whose length has 63 bits. ``None`` where they do not fit.
    """
    if len(dims) == 1:
        return (1,)
    kept = [i for i, dim in enumerate(dims) if dim[2] >= 0]
    choices = itertools.combinations(range(5), len(dims))
    return next((chosen for chosen in choices if all(chosen[i] in (1, 3) for i in kept)), None)


def _divisor(d: int) -> int:
    """Division by d as a multiplier and a shift, for numerators below 2**31: see ``Divisor`` in gather.cu."""
    if d >= 1 << 31:
        return 31 << 32
    shift = (d - 1).bit_length()
    return (shift << 32) + ((((1 << shift) - d) << 32) // d + 1)

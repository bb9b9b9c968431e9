"""What the CUDA kernels are told: int64 tables, one row per layer, laid out by the enums of csrc/cuda/*.hpp.

Plain numbers only: nothing here touches a device.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from slimfast.arrays import IntArray
from slimfast.kernels.dtypes import CODES

# Splitting the samples of a layer: enough blocks to fill a GPU, each with enough samples to be worth its sum.
_BLOCKS_PER_LAYER = 64
_SAMPLES_PER_SPLIT = 512
# From this size on the large tile wastes less than it saves.
LARGE_TILE_FROM = 256


@dataclass(slots=True)
class Tables:
    """The tables of one call, one after the other."""

    parts: list[IntArray] = field(default_factory=list)
    length: int = 0

    def add(
        self, layers: IntArray | Sequence[Sequence[int]], blocks: IntArray | Sequence[int] | None = None
    ) -> int:
        """Append a table, after the starts of its layers' blocks where given; returns its place in bytes."""
        place = 8 * self.length
        if blocks is not None:
            self._append(np.concatenate([np.zeros(1, np.int64), np.cumsum(blocks, dtype=np.int64)]))
        self._append(np.asarray(layers, dtype=np.int64).reshape(-1))
        return place

    def _append(self, part: IntArray) -> None:
        self.parts.append(part)
        self.length += len(part)

    @property
    def numbers(self) -> IntArray:
        """All of them."""
        return np.concatenate(self.parts)


@dataclass(frozen=True, slots=True)
class Launch:
    """A table of ``count`` layers, ``place`` bytes from where all tables begin, and its grid's blocks."""

    place: int
    count: int
    blocks: int

    def at(self, address: int) -> tuple[int, int, int]:
        """Return a kernel's arguments where the tables begin at ``address``."""
        return address + self.place, self.count, self.blocks


@dataclass(slots=True)
class CovarianceBin:
    """Layers that one kernel takes together; ``partial`` elements of workspace hold sums of split ones."""

    in_double: bool
    tile: int
    layers: list[list[int]] = field(default_factory=list)
    tiles: list[int] = field(default_factory=list)
    splits: list[int] = field(default_factory=list)
    partial: int = 0

    def add_to(self, tables: Tables, finish_rows: int) -> tuple[Launch, Launch]:
        """Add the launches of the tiles, and of the sums over splits, ``finish_rows`` of a tile to a
        block.
        """
        blocks = [tiles * splits for tiles, splits in zip(self.tiles, self.splits, strict=True)]
        tiles = Launch(tables.add(self.layers, blocks), len(blocks), sum(blocks))
        split = [i for i, splits in enumerate(self.splits) if splits > 1]
        blocks = [self.tiles[i] * self.tile // finish_rows for i in split]
        finish = Launch(tables.add([self.layers[i] for i in split], blocks), len(split), sum(blocks))
        return tiles, finish


def covariance_bins(
    module: ModuleType, xs: list[Tensor], rows: list[bool], outs: list[Tensor], shared_bytes: int
) -> tuple[list[CovarianceBin], list[list[int]]]:
    """Sort the layers into bins, the costliest of each first, and list all of them in the caller's order.

    ``shared_bytes``: of a block on the device.

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
        fits = module.covariance_shared_bytes(in_double, module.COVARIANCE_LARGE_TILE) <= shared_bytes
        large = fits and size >= LARGE_TILE_FROM
        tile = module.COVARIANCE_LARGE_TILE if large else module.COVARIANCE_SMALL_TILE
        batch = bins.setdefault((in_double, tile), CovarianceBin(in_double, tile))
        side = -(-size // tile)
        tiles = side * (side + 1) // 2
        splits = max(1, min(-(-_BLOCKS_PER_LAYER // tiles), samples // _SAMPLES_PER_SPLIT))
        layers[i] = [x.data_ptr(), CODES[x.dtype], *x.shape, *x.stride(), int(rows[i]), first_rows[i]]
        layers[i] += [out.data_ptr(), int(out.dtype == torch.float64), splits, batch.partial]
        batch.partial += tiles * splits * tile * tile if splits > 1 else 0
        batch.layers.append(layers[i])
        batch.tiles.append(tiles)
        batch.splits.append(splits)
    return list(bins.values()), layers


@dataclass(frozen=True, slots=True)
class Reduction:
    """How matrices are brought to tridiagonal form: in how many ``stages``, with ``cluster`` blocks each.

    No stage is the kernel that gives a warp to each matrix and needs nothing else. In two stages, the blocks
    share the panels.
    """

    is_double: bool
    stages: int
    cluster: int


def reduction_of(module: ModuleType, size: int, is_double: bool, limits: tuple[int, bool]) -> Reduction:
    """Choose the kernels for a matrix of this size on a device of these (shared bytes per block, has
    clusters).

    One stage where one or two blocks hold the matrix: it waits less. With more, it keeps too many of them.
    """
    shared_bytes, has_clusters = limits
    if size <= module.WARP_MATRIX:
        return Reduction(is_double, 0, 1)
    for cluster in (1, 2) if has_clusters else (1,):
        if module.tridiagonalise_shared_bytes(size, is_double, cluster) <= shared_bytes:
            return Reduction(is_double, 1, cluster)
    cluster = 1
    while has_clusters and cluster < module.MAX_CLUSTER and cluster * module.panel_rows(is_double) < size:
        cluster *= 2
    return Reduction(is_double, 2, cluster)


class Chase(NamedTuple):
    """``cluster`` blocks of ``warps`` to each matrix in the second stage."""

    cluster: int
    warps: int


# Predicted cycles of a step of the chase: what a warp's hop takes alone, in issue slots of one of the four
# schedulers, and for the barrier of a block and of a cluster.
_HOP_CYCLES, _HOP_ISSUE_CYCLES = 1400, 200
_BARRIER_CYCLES, _CLUSTER_BARRIER_CYCLES = 50, 400
_BAND = 32


def chase_of(module: ModuleType, sizes: Sequence[int], is_double: bool, device: tuple[bool, int]) -> Chase:
    """Choose the blocks that are done soonest with matrices of these sizes, the largest first, on a device of
    these (has clusters, multiprocessors).

    A sweep makes m / 32 hops, and the next starts two hops behind it: more than m / 64 warps have nothing to
    do. Few matrices get several blocks each, many keep the device busy with one each. What is found is the
    same bit for bit, so that the choice may follow the number of matrices.
    """
    has_clusters, processors = device
    most, slower = module.chase_warps(is_double), 2 if is_double else 1
    hops = max(1, -(-(sizes[0] - 2) // _BAND))
    useful = -(-hops // 2)
    costs = {}
    for cluster in (1, 2, 4, 8) if has_clusters else (1,):
        warps = min(most, -(-useful // cluster))
        turns = -(-len(sizes) // max(1, processors // cluster))
        barrier = _CLUSTER_BARRIER_CYCLES if cluster > 1 else _BARRIER_CYCLES
        step = slower * max(_HOP_CYCLES, _HOP_ISSUE_CYCLES * warps) + barrier
        costs[Chase(cluster, warps)] = turns * max(2, -(-hops // (cluster * warps))) * step
    # Of equals the fewest blocks.
    return min(costs, key=lambda chase: costs[chase])

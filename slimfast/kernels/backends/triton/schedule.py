"""What the Triton covariance kernels are told: a table of layers and lists of work items, all int64, one
copy.

Nothing here needs Triton or a GPU. A layer is cut by its own shape alone, so that its result is the same bit
for bit whatever else is in the call. Notation: a layer x (n, d) is read as an (m, k) operand whose Gram over
k is wanted, x itself where the rows are the variables and x.T where the columns are.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from slimfast.arrays import IntArray
from slimfast.kernels.backends.contract import host_table

# The order of a layer's numbers in the table; the kernels unpack the same names.
LAYER_FIELDS = (
    "number",
    "pointer",
    "units",
    "positions",
    "unit_stride",
    "position_stride",
    "by_rows",
    "aligned",
    "mean",
    "edge",
    "edge_parts",
    "first_block",
    "matrix",
)
# "aligned": 16-byte loads are possible along no axis, along k or along m.
ALIGNED_NOT, ALIGNED_K, ALIGNED_M = range(3)

# Units of one work item of the moments, and columns of one of the summary.
MOMENT_UNITS = 16
SUMMARY_COLUMNS = 64
# A tile is not cut along k into pieces of fewer steps than this: a piece costs a write and a read of its
# tile.
LEAST_STEPS = 8
# A layer of fewer tiles is cut along k into about so many items: enough of them for a few layers to fill a
# GPU.
ITEMS_PER_LAYER = 32
# From this size on the large tile wastes less than it saves.
LARGE_TILE_FROM = 256
# Bands of tile rows that share what they read through the L2 cache.
BAND = 8


class Layers(NamedTuple):
    """The layer table (g, fields), with the sizes of the vectors that it points into.

    ``vectors``: float64 means of all units, then r of the layers that need it; ``edge_parts``: its partial
    sums; ``blocks``: work items of the moments in all.
    """

    table: IntArray
    vectors: int
    edge_parts: int
    blocks: int


class Tiles(NamedTuple):
    """Tiles of ``block`` x ``block`` results, read in steps of ``depth`` along k."""

    block: int
    depth: int
    warps: int
    stages: int


class GramWork(NamedTuple):
    """Items (layer, i, j, begin, end, slot) of the Gram launch, and cut tiles (layer, i, j, first slot,
    pieces).

    ``slot`` is -1 where the tile is whole; ``slots`` counts the partial tiles.
    """

    items: IntArray
    cut: IntArray
    slots: int


def layer_table(
    xs: Sequence[Tensor],
    rows: Sequence[bool],
    matrices: Sequence[Tensor],
    numbers: Sequence[int],
    *,
    centred_later: bool,
) -> Layers:
    """Make the table of layers of one dtype, ``numbers`` of the call; ``centred_later``: products are taken
    of what is not centred.
    """
    table = np.zeros((len(xs), len(LAYER_FIELDS)), dtype=np.int64)
    units = sum(x.shape[0] for x in xs)
    mean = block = edge_parts = 0
    vectors = units
    for row, x, by_rows, matrix, number in zip(table, xs, rows, matrices, numbers, strict=True):
        n, d = x.shape
        blocks = -(-n // MOMENT_UNITS)
        # The vector that centring needs later: the means themselves for rows, r for columns.
        needs_edge = centred_later and not by_rows
        edge, parts = (vectors, edge_parts) if needs_edge else (mean, -1)
        row[:] = (
            *(number, x.data_ptr(), n, d, x.stride(0), x.stride(1), by_rows, _aligned(x, by_rows)),
            *(mean, edge, parts, block, matrix.data_ptr()),
        )
        mean += n
        block += blocks
        if needs_edge:
            vectors += d
            edge_parts += blocks * d
    return Layers(table, vectors, edge_parts, block)


def _aligned(x: Tensor, by_rows: bool) -> int:
    """Find along which axis of the operand every run of 16 bytes is contiguous and starts at a multiple of
    16.
    """
    vector = 16 // x.element_size()
    if x.data_ptr() % 16:
        return ALIGNED_NOT
    for along, across, found in ((1, 0, ALIGNED_K), (0, 1, ALIGNED_M)):
        if x.stride(along) == 1 and x.stride(across) % vector == 0 and x.shape[along] % vector == 0:
            # Along positions is along k exactly where the units are the variables.
            return found if by_rows else ALIGNED_K + ALIGNED_M - found
    return ALIGNED_NOT


def moment_items(layers: Layers) -> IntArray:
    """List (layer, first unit) of every :data:`MOMENT_UNITS` units."""
    units = layers.table[:, LAYER_FIELDS.index("units")]
    return _ranges(units, MOMENT_UNITS)


def summary_items(layers: Layers) -> IntArray:
    """List (layer, first column): one item a layer, and where r is needed one for each stretch of columns."""
    positions = layers.table[:, LAYER_FIELDS.index("positions")]
    parts = layers.table[:, LAYER_FIELDS.index("edge_parts")]
    return _ranges(np.where(parts >= 0, positions, 1), SUMMARY_COLUMNS)


def _ranges(ends: IntArray, step: int) -> IntArray:
    """List (i, start) for every start in range(0, ends[i], step)."""
    counts = -(-ends // step)
    number = np.repeat(np.arange(len(ends), dtype=np.int64), counts)
    before = np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([number, step * (np.arange(len(number), dtype=np.int64) - before)], axis=1)


def choose_tiles(size: int, compute: torch.dtype, *, exact: bool) -> Tiles:
    """Choose the tiles for a layer of this m; float64 tiles are always small.

    ``exact``: products of 16-bit numbers, half as large, so twice as many a step.
    """
    if compute == torch.float64:
        return Tiles(block=64, depth=16, warps=4, stages=3)
    depth = 64 if exact else 32
    if size >= LARGE_TILE_FROM:
        return Tiles(block=128, depth=depth, warps=8, stages=3)
    return Tiles(block=64, depth=depth, warps=4, stages=3)


def gram_work(sizes: Sequence[Sequence[int]], tiles: Tiles) -> GramWork:
    """List tiles of the lower triangles of operands of these sizes (m, k), those of few tiles cut along k.

    The longest items come first, because what is started last should end soonest.
    """
    # Layers of one shape are cut alike.
    pieces = {(m, k): _pieces(m, k, tiles) for m, k in {(m, k) for m, k in sizes}}
    items, cut = [], []
    slots = 0
    for layer, (m, k) in enumerate(sizes):
        of_shape, cut_of_shape, slots_of_shape = pieces[m, k]
        item = of_shape.copy()
        item[:, 0] = layer
        if slots_of_shape:
            item[:, 5] += slots
            tile = cut_of_shape.copy()
            tile[:, 0] = layer
            tile[:, 3] += slots
            cut.append(tile)
            slots += slots_of_shape
        items.append(item)
    merged = np.concatenate(items)
    longest_first = np.argsort(merged[:, 3] - merged[:, 4], kind="stable")
    return GramWork(merged[longest_first], np.concatenate(cut) if cut else np.zeros((0, 5), np.int64), slots)


def _pieces(m: int, k: int, tiles: Tiles) -> tuple[IntArray, IntArray, int]:
    """List items, cut tiles and slots of one layer, the first of its call."""
    grid = _triangle(-(-m // tiles.block))
    steps = -(-k // tiles.depth)
    wanted = max(1, min(-(-ITEMS_PER_LAYER // len(grid)), steps // LEAST_STEPS))
    length = -(-steps // wanted) * tiles.depth
    begins = np.arange(0, k, length, dtype=np.int64)
    pieces, count = len(begins), len(grid)
    item = np.zeros((count * pieces, 6), dtype=np.int64)
    item[:, 1:3] = np.repeat(grid, pieces, axis=0)
    item[:, 3] = np.tile(begins, count)
    item[:, 4] = np.minimum(item[:, 3] + length, k)
    if pieces == 1:
        item[:, 5] = -1
        return item, np.zeros((0, 5), np.int64), 0
    item[:, 5] = np.arange(len(item))
    cut = np.zeros((count, 5), dtype=np.int64)
    cut[:, 1:3] = grid
    cut[:, 3] = pieces * np.arange(count)
    cut[:, 4] = pieces
    return item, cut, len(item)


@functools.lru_cache(maxsize=256)
def _triangle(count: int) -> IntArray:
    """List (i, j) with j <= i < count, in bands of rows."""
    i, j = np.tril_indices(count)
    order = np.lexsort((i, j, i // BAND))
    return np.stack([i[order], j[order]], axis=1).astype(np.int64)


def to_device(tables: Sequence[IntArray], device: torch.device) -> list[Tensor]:
    """Copy the tables to the device by one copy that nobody waits for, each at a multiple of 16 bytes."""
    lengths = [table.size + table.size % 2 for table in tables]
    host = host_table(sum(lengths), device)
    written = host.numpy()
    starts = np.cumsum([0, *lengths])
    for start, table in zip(starts[:-1].tolist(), tables, strict=True):
        written[start : start + table.size] = table.reshape(-1)
        # What makes the length even is read by nobody.
        written[start + table.size : start + table.size + table.size % 2] = 0
    parts = torch.split(host.to(device, non_blocking=True), lengths)
    return [part[: table.size].view(table.shape) for part, table in zip(parts, tables, strict=True)]

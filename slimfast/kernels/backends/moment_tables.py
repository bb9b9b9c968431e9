"""What the kernels of streaming moments are told: rows of int64, tiles and parts of the positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from slimfast.arrays import IntArray
from slimfast.kernels.backends.moment_layers import DIMS, MomentLayer
from slimfast.kernels.dtypes import CODES

# The fields of a layer's row, each with how many numbers it has; csrc/cuda/moments.hpp has the same.
_OPERAND = (
    *(("data", 1), ("type", 1), ("variables", 1), ("channel_stride", 1), ("strides", DIMS)),
    *(("first", 1), ("sums", 1), ("mean", 1)),
)
_FIELDS = (
    *((f"x_{name}", width) for name, width in _OPERAND),
    *((f"y_{name}", width) for name, width in _OPERAND),
    *(("symmetric", 1), ("mask", 1), ("mask_strides", DIMS), ("outputs", DIMS), ("sizes", DIMS - 1)),
    *(("kernel", DIMS - 1), ("step", DIMS - 1), ("padding", DIMS - 1), ("dilation", DIMS - 1)),
    *(("group", 1), ("bundle", 1), ("products", 1), ("earlier", 1), ("counted", 1), ("splits", 1)),
    ("partial", 1),
)
_STARTS = np.cumsum([0, *(width for _, width in _FIELDS)]).tolist()
# Where each field begins, and how many numbers a row has.
FIELD = dict(zip((name for name, _ in _FIELDS), _STARTS[:-1], strict=True))
FIELDS: int = _STARTS[-1]

# Parts of the positions are whole numbers of so many: kCovarianceChunk in C++.
CHUNK = 128
# Parts of the positions: enough blocks to fill a GPU, each with enough positions to be worth its sum.
_BLOCKS_PER_LAYER = 256
_POSITIONS_PER_SPLIT = 512
# Partial sums of the layers that are launched together; one larger layer still goes, alone.
_WORKSPACE_ELEMENTS = 1 << 26


@dataclass(slots=True)
class MomentTable:
    """Rows of layers that are launched together, in the order of ``layers``.

    ``sums``, ``means`` and ``partial``: float64 elements of the workspaces that the rows point into.
    """

    layers: list[MomentLayer]
    rows: IntArray
    tile: list[int]
    tiles: list[int]
    splits: list[int]
    sums: int
    means: int
    partial: int


def moment_tables(layers: Sequence[MomentLayer], tile_sizes: Sequence[int]) -> list[MomentTable]:
    """Make the tables of layers with products in tiles of these sizes.

    A layer is cut by its own shape alone, so that its result is the same bit for bit whatever else is in the
    call. One without positions adds nothing and is left out.
    """
    tables: list[MomentTable] = []
    for layer, tile in zip(layers, tile_sizes, strict=True):
        if layer.positions == 0:
            continue
        bundle, tiles = _tiles_of(layer, tile)
        splits = max(1, min(-(-_BLOCKS_PER_LAYER // tiles), layer.positions // _POSITIONS_PER_SPLIT))
        need = tiles * splits * tile * tile
        if not tables or tables[-1].partial + need > _WORKSPACE_ELEMENTS:
            tables.append(MomentTable([], np.zeros((0, FIELDS), np.int64), [], [], [], 0, 0, 0))
        table = tables[-1]
        table.rows = np.vstack([table.rows, _row(layer, bundle, splits, table)])
        table.layers.append(layer)
        table.tile.append(tile)
        table.tiles.append(tiles)
        table.splits.append(splits)
        variables = layer.x.variables + (0 if layer.y is None else layer.y.variables)
        table.sums += splits * variables
        table.means += variables
        table.partial += need
    return tables


def _tiles_of(layer: MomentLayer, tile: int) -> tuple[int, int]:
    """Choose how many variables share a triangle of tiles, and count the tiles."""
    if layer.y is not None:
        return layer.group, -(-layer.x.variables // tile) * -(-layer.y.variables // tile)
    bundle = min(max(1, tile // layer.group) * layer.group, layer.x.variables)
    side = -(-bundle // tile)
    return bundle, -(-layer.x.variables // bundle) * (side * (side + 1) // 2)


def tile_places(layer: MomentLayer, tile: int) -> Iterator[tuple[int, int, int, int]]:
    """List (row, where its variables end, column, where its end) of the tiles, in the kernels' order."""
    if layer.y is not None:
        rows, columns = layer.x.variables, layer.y.variables
        yield from ((i, rows, j, columns) for i in range(0, rows, tile) for j in range(0, columns, tile))
        return
    bundle, _ = _tiles_of(layer, tile)
    for first in range(0, layer.x.variables, bundle):
        end = min(first + bundle, layer.x.variables)
        for i in range(0, bundle, tile):
            yield from ((first + i, end, first + j, end) for j in range(0, i + 1, tile))


def _row(layer: MomentLayer, bundle: int, splits: int, table: MomentTable) -> IntArray:
    first_of_y = layer.x.variables if layer.y is not None else 0
    numbers: list[int] = []
    for operand, before in ((layer.x, 0), (layer.y or layer.x, first_of_y)):
        numbers += [operand.data.data_ptr(), CODES[operand.data.dtype], operand.variables]
        numbers += [operand.channel_stride, *operand.strides, table.means + before]
        numbers += [table.sums + splits * before, operand.mean.data_ptr()]
    numbers += [int(layer.y is None), 0 if layer.mask is None else layer.mask.data_ptr()]
    numbers += [*layer.mask_strides, *layer.outputs]
    numbers += [number for part in layer.taps for number in part]
    numbers += [layer.group, bundle, layer.products.data_ptr(), layer.sums.count]
    numbers += [0 if layer.counted is None else layer.counted.data_ptr(), splits, table.partial]
    return np.array(numbers, dtype=np.int64)


def count_positions(layers: Sequence[MomentLayer]) -> None:
    """Take in how many positions were added; masks are asked in one wait for the device."""
    masked = [layer for layer in layers if layer.counted is not None]
    counts = torch.cat([layer.counted for layer in masked if layer.counted is not None]) if masked else None
    found = dict(zip(map(id, masked), [] if counts is None else counts.tolist(), strict=True))
    for layer in layers:
        layer.add_positions(found.get(id(layer)))

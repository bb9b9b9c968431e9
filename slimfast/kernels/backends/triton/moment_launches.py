"""Streaming moments on Triton: what the kernels are told, and their launches."""

from __future__ import annotations

import itertools
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from slimfast.arrays import IntArray
from slimfast.kernels.backends.moment_layers import (
    MomentLayer,
    cross_layers,
    moment_layers,
    patch_layers,
)
from slimfast.kernels.backends.moment_tables import (
    CHUNK,
    FIELD,
    MomentTable,
    count_positions,
    moment_tables,
    tile_places,
)
from slimfast.kernels.backends.triton import schedule
from slimfast.kernels.backends.triton.where import interpreted
from slimfast.kernels.convolutions import Convolution
from slimfast.kernels.results import CrossMoments, Moments

_OF_Y = FIELD["y_data"] - FIELD["x_data"]


def add_moments(
    xs: list[Tensor], masks: list[Tensor | None], into: list[Moments], dtypes: list[torch.dtype]
) -> None:
    """Add the moments of each x (variables, positions ...)."""
    _add(moment_layers(xs, masks, into, dtypes))


def add_cross_covariance(
    xs: list[Tensor],
    ys: list[Tensor],
    masks: list[Tensor | None],
    into: list[CrossMoments],
    dtypes: list[torch.dtype],
) -> None:
    """Add those of each x with each y."""
    _add(cross_layers(xs, ys, masks, into, dtypes))


def add_patch_moments(
    xs: list[Tensor], convolutions: list[Convolution], into: list[Moments], dtypes: list[torch.dtype]
) -> None:
    """Add those of the patches of each x."""
    _add(patch_layers(xs, convolutions, into, dtypes))


def _add(layers: list[MomentLayer]) -> None:
    tiles = [_tiles_of(layer) for layer in layers]
    for table in moment_tables(layers, [tile.block for tile in tiles]):
        _launch(table)
    count_positions(layers)


def _tiles_of(layer: MomentLayer) -> schedule.Tiles:
    widest = layer.group if layer.y is None else max(layer.x.variables, layer.y.variables)
    # Elements are looked up one by one: more of them than this, or of two steps at a time, are more than the
    # registers hold.
    if layer.in_double or _is_exact(layer) or widest < schedule.LARGE_TILE_FROM:
        return schedule.Tiles(block=64, depth=32 if _is_exact(layer) else 16, warps=8, stages=1)
    return schedule.Tiles(block=128, depth=16, warps=8, stages=1)


def _is_exact(layer: MomentLayer) -> bool:
    """Say whether the products of both operands, of one 16-bit dtype, are exact in float32."""
    dtypes = {layer.x.data.dtype, (layer.y or layer.x).data.dtype}
    return not layer.in_double and dtypes in ({torch.bfloat16}, {torch.float16})


def _launch(table: MomentTable) -> None:
    """Sum the means, then the products about them, and join both with what was there."""
    from slimfast.kernels.backends.triton import operand_kernels as operands
    from slimfast.kernels.backends.triton import product_kernels as kernels
    from slimfast.kernels.backends.triton.moment_kernels import ELEMENT

    device = table.layers[0].x.data.device
    sums, means = _variable_items(table, operands.SUM_VARIABLES, operands.MEAN_VARIABLES)
    products, finish = _tile_items(table)
    lists = [*sums.values(), *products.values(), *finish.values()]
    rows, means_on, *rest = schedule.to_device([table.rows, means, *lists], device)
    given = iter(rest)

    split_sums = torch.empty(2 * table.sums, dtype=torch.float64, device=device)
    centre, squares, apart = torch.empty(3, table.means, dtype=torch.float64, device=device)
    partial = torch.empty(table.partial, dtype=torch.float64, device=device)
    for dtype in sums:
        items = next(given)
        operands.sums_kernel[(len(items),)](
            *(rows, items, split_sums),
            ELEMENT=ELEMENT[dtype],
            VARS=operands.SUM_VARIABLES,
            BLOCK=operands.SUM_POSITIONS,
        )
    operands.means_kernel[(len(means_on),)](
        rows, means_on, split_sums, centre, squares, apart, VARS=operands.MEAN_VARIABLES
    )
    for of_x, of_y, in_double, exact, tiles in products:
        items = next(given)
        for centred in (False, True) if exact else (True,):
            kernels.products_kernel[(len(items),)](
                *(rows, items, centre, squares, partial, 1.0),
                ELEMENT_X=ELEMENT[of_x],
                ELEMENT_Y=ELEMENT[of_y],
                COMPUTE=ELEMENT[torch.float64 if in_double else torch.float32],
                BLOCK=tiles.block,
                DEPTH=tiles.depth,
                LENGTH=kernels.PART,
                PRECISION=kernels.PRECISION,
                EXACT=exact,
                CENTRE=centred,
                # The interpreter's bfloat16 product is wrong; float32 holds the same numbers.
                WIDEN=interpreted(),
                num_warps=tiles.warps,
                num_stages=tiles.stages,
            )
    for block, exact in finish:
        items = next(given)
        kernels.finish_kernel[(len(items), block // kernels.FINISH_ROWS)](
            *(rows, items, centre, squares, apart, partial),
            BLOCK=block,
            ROWS=kernels.FINISH_ROWS,
            EXACT=exact,
        )


def _variable_items(
    table: MomentTable, of_sums: int, of_means: int
) -> tuple[dict[torch.dtype, IntArray], IntArray]:
    """List the blocks of variables: for the sums (layer, operand, first, begin, end, split) by dtype, for the
    means (layer, operand, first).
    """
    sums: dict[torch.dtype, list[tuple[int, ...]]] = {}
    means = []
    for number, layer in enumerate(table.layers):
        operands = [(0, layer.x)] if layer.y is None else [(0, layer.x), (_OF_Y, layer.y)]
        for place, operand in operands:
            means += [(number, place, first) for first in range(0, operand.variables, of_means)]
            sums.setdefault(operand.data.dtype, []).extend(
                (number, place, first, begin, end, split)
                for split, (begin, end) in enumerate(_splits(layer.positions, table.splits[number]))
                for first in range(0, operand.variables, of_sums)
            )
    return {dtype: np.array(items) for dtype, items in sums.items()}, np.array(means)


def _splits(positions: int, splits: int) -> list[tuple[int, int]]:
    """Cut the positions into parts of whole chunks."""
    chunks = -(-positions // CHUNK)
    ends = [chunks * split // splits * CHUNK for split in range(splits + 1)]
    return [(begin, min(end, positions)) for begin, end in itertools.pairwise(ends)]


# Both dtypes, whether products are in float64 or exact, and the tiles.
_Kind: TypeAlias = tuple[torch.dtype, torch.dtype, bool, bool, schedule.Tiles]


def _tile_items(table: MomentTable) -> tuple[dict[_Kind, IntArray], dict[tuple[int, bool], IntArray]]:
    """List the tiles: for the products (layer, row, its end, column, its end, begin, end, slot) by kind, to
    finish without a part of the positions by size and exactness.
    """
    products: dict[_Kind, list[tuple[int, ...]]] = {}
    finish: dict[tuple[int, bool], list[tuple[int, ...]]] = {}
    at = 0
    for number, layer in enumerate(table.layers):
        tile, splits = table.tile[number], _splits(layer.positions, table.splits[number])
        y = layer.x if layer.y is None else layer.y
        exact = _is_exact(layer)
        kind = (layer.x.data.dtype, y.data.dtype, layer.in_double, exact, _tiles_of(layer))
        for place in tile_places(layer, tile):
            finish.setdefault((tile, exact), []).append((number, *place, at))
            for begin, end in splits:
                products.setdefault(kind, []).append((number, *place, begin, end, at))
                at += tile * tile
    return (
        {kind: np.array(items) for kind, items in products.items()},
        {kind: np.array(items) for kind, items in finish.items()},
    )

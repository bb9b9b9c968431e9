"""Triton kernels of the products of streaming moments, cross-covariances and patch moments.

:mod:`slimfast.kernels.backends.triton.operand_kernels` comes first. *Products*: a tile is the sum over a
split of chunks whose products start from zero, because tensor cores truncate what they accumulate; after
every PART positions it moves to the workspace, in float64. *Finish*: splits in their order, and the earlier
positions' share (Chan, Golub and LeVeque).

float32 and float64 operands are centred as they are loaded. Tiles of 16-bit operands keep their exact
products, and their means are taken out when they are finished, in float64; where the means of one of a tile's
variables hold more than a tenth of its sum of squares that would lose digits, and the tile is made of what is
centred.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from slimfast.kernels.backends.triton.operand_kernels import (
    EARLIER,
    FIRST,
    GROUP,
    OPERAND,
    PRODUCTS,
    ROW,
    SPLITS,
    SYMMETRIC,
    VARIABLES,
    counted_positions,
    values,
)

# Positions whose products are added up in float32.
PART = 1024
# Rows of a tile that one program finishes.
FINISH_ROWS = 16
# Three TF32 products of the high and low parts make a float32 product.
PRECISION = "tf32x3"


@triton.jit
@no_type_check
def _centred(layer, operand, means, v, end, p, p_end, ELEMENT: tl.constexpr, COMPUTE: tl.constexpr):
    """Load as :func:`values` and subtract the means, in two parts so that a large one loses nothing."""
    x, counts = values(layer, operand, v, end, p, p_end, ELEMENT)
    mean = tl.load(means + tl.load(operand + FIRST) + v, v < end, 0.0)
    high = mean.to(COMPUTE)
    low = (mean - high.to(tl.float64)).to(COMPUTE)
    centred = (x.to(COMPUTE) - high[:, None]) - low[:, None]
    return tl.where((v < end)[:, None] & counts[None, :], centred, 0.0)


@triton.jit
@no_type_check
def _large_means(layer, operand, means, squares, v, end):
    """Count the variables whose means hold more than a tenth of their sum of squares."""
    first = tl.load(operand + FIRST)
    mean = tl.load(means + first + v, v < end, 0.0)
    square = tl.load(squares + first + v, v < end, 0.0)
    return tl.sum(tl.where(counted_positions(layer).to(tl.float64) * mean * mean > 0.1 * square, 1, 0), 0)


@triton.jit
@no_type_check
def _is_raw(layer, of_y, means, squares, item, within):
    """Say whether a tile of 16-bit operands is made of them as they are; ``item``: from its rows on."""
    of_rows = _large_means(layer, layer, means, squares, tl.load(item) + within, tl.load(item + 1))
    of_columns = _large_means(layer, of_y, means, squares, tl.load(item + 2) + within, tl.load(item + 3))
    return of_rows + of_columns == 0


@triton.jit
@no_type_check
def products_kernel(
    layers,
    items,
    means,
    squares,
    partial,
    one,
    ELEMENT_X: tl.constexpr,
    ELEMENT_Y: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    LENGTH: tl.constexpr,
    PRECISION: tl.constexpr,
    EXACT: tl.constexpr,
    CENTRE: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Sum a tile over a split; items (layer, row, row end, column, column end, begin, end, slot).

    With EXACT there are two launches, and the means of a tile's variables decide in which of them it is made.
    """
    item = items + 8 * tl.program_id(0)
    layer = layers + ROW * tl.load(item)
    of_y = layer + tl.where(tl.load(layer + SYMMETRIC) != 0, 0, OPERAND)
    within = tl.arange(0, BLOCK)
    mine = True
    if EXACT:
        mine = _is_raw(layer, of_y, means, squares, item + 1, within) != CENTRE
    i = tl.load(item + 1) + within
    i_end = tl.load(item + 2)
    j = tl.load(item + 3) + within
    j_end = tl.load(item + 4)
    begin = tl.load(item + 5)
    end = tl.load(item + 6)
    slot = partial + tl.load(item + 7) + (within * BLOCK)[:, None] + within[None, :]
    if mine:
        for part in range(begin, end, LENGTH):
            tile = tl.zeros((BLOCK, BLOCK), COMPUTE)
            for start in range(part, tl.minimum(part + LENGTH, end), DEPTH):
                p = start + tl.arange(0, DEPTH)
                if CENTRE:
                    a = _centred(layer, layer, means, i, i_end, p, end, ELEMENT_X, COMPUTE)
                    b = _centred(layer, of_y, means, j, j_end, p, end, ELEMENT_Y, COMPUTE)
                else:
                    a, _ = values(layer, layer, i, i_end, p, end, ELEMENT_X)
                    b, _ = values(layer, of_y, j, j_end, p, end, ELEMENT_Y)
                    if WIDEN:
                        a = a.to(tl.float32)
                        b = b.to(tl.float32)
                product = tl.dot(a, tl.trans(b), input_precision=PRECISION, out_dtype=COMPUTE)
                # The multiplication keeps the compiler from running one accumulation through all chunks.
                tile += product * one
            wide = tile.to(tl.float64)
            if part > begin:
                wide += tl.load(slot)
            tl.store(slot, wide)


@triton.jit
@no_type_check
def finish_kernel(
    layers,
    items,
    means,
    squares,
    apart,
    partial,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Add rows of a tile to the products; items (layer, row, row end, column, column end, slot)."""
    item = items + 6 * tl.program_id(0)
    layer = layers + ROW * tl.load(item)
    symmetric = tl.load(layer + SYMMETRIC) != 0
    of_y = layer + tl.where(symmetric, 0, OPERAND)
    first = tl.program_id(1) * ROWS
    r = tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK)
    at = partial + tl.load(item + 5) + ((first + r) * BLOCK)[:, None] + c[None, :]
    total = tl.zeros((ROWS, BLOCK), tl.float64)
    for split in range(tl.load(layer + SPLITS)):
        total += tl.load(at + split * (BLOCK * BLOCK))
    row = tl.load(item + 1) + first + r
    column = tl.load(item + 3) + c
    rows = row < tl.load(item + 2)
    columns = column < tl.load(item + 4)
    here = counted_positions(layer).to(tl.float64)
    before = tl.load(layer + EARLIER).to(tl.float64)
    weight = before * (here / tl.maximum(before + here, 1.0))
    of_row = tl.load(apart + tl.load(layer + FIRST) + row, rows, 0.0)
    of_column = tl.load(apart + tl.load(of_y + FIRST) + column, columns, 0.0)
    total += of_row[:, None] * of_column[None, :] * weight
    if EXACT:
        raw = _is_raw(layer, of_y, means, squares, item + 1, c)
        taken = here * tl.where(raw, 1.0, 0.0)
        of_row = tl.load(means + tl.load(layer + FIRST) + row, rows, 0.0)
        of_column = tl.load(means + tl.load(of_y + FIRST) + column, columns, 0.0)
        total -= of_row[:, None] * of_column[None, :] * taken
    # The products of y's variables with all of x, or of a group's own alone.
    group = tl.load(layer + GROUP)
    width = tl.where(symmetric, group, tl.load(of_y + VARIABLES))
    height = tl.where(symmetric, group, tl.load(layer + VARIABLES))
    same = (row // height)[:, None] == (column // width)[None, :]
    # Of a symmetric layer the lower half.
    last = row + tl.where(symmetric, 0, tl.load(item + 4))
    inside = rows[:, None] & columns[None, :] & same & (column[None, :] <= last[:, None])
    own = (
        tl.load(layer + PRODUCTS).to(tl.pointer_type(tl.float64)) + (row // height * height * width)[:, None]
    )
    place = own + (row % height * width)[:, None] + (column % width)[None, :]
    total += tl.load(place, inside, 0.0)
    tl.store(place, total, inside)
    # The upper half is the lower one's mirror image: exact symmetry.
    mirror = own + (column % width * height)[None, :] + (row % height)[:, None]
    mirrored = column < tl.where(symmetric, tl.load(item + 4), 0)
    tl.store(mirror, total, inside & mirrored[None, :])

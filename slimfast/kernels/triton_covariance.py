"""Triton kernels of the grouped covariance: all layers of one dtype, each step one launch over a table.

*Moments*: float64 means and centred sums of squares of every unit, and their *summary* for every layer.
*Gram*: persistent, over the tiles of all lower triangles; a tile is the sum of chunks along k whose products
start from zero, because tensor cores truncate what they accumulate, and long tiles are cut along k. *Sum*:
the pieces of the cut tiles, always in the same order.

float32 and float64 operands are centred as they are loaded. 16-bit operands keep their exact products, so
their Gram G is centred afterwards: G - d mu mu^T for rows, and for columns, with r_j = sum_i mu_i x_ij and g
= sum_i mu_i^2, the double centring G - r 1^T - 1 r^T + g. Where the means carry more than a tenth of the sum
of squares that subtraction would lose digits, and the operand is centred in float32 as it is loaded.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl

from slimfast.kernels import triton_schedule as schedule

(
    POINTER,
    UNITS,
    POSITIONS,
    UNIT_STRIDE,
    POSITION_STRIDE,
    BY_ROWS,
    ALIGNED,
    MEAN,
    EDGE,
    EDGE_PARTS,
    FIRST_BLOCK,
    MATRIX,
) = (tl.constexpr(i) for i in range(len(schedule.LAYER_FIELDS)))
FIELDS = tl.constexpr(len(schedule.LAYER_FIELDS))
ALIGNED_NOT, ALIGNED_K, ALIGNED_M = (tl.constexpr(i) for i in range(3))
MOMENT_UNITS = tl.constexpr(schedule.MOMENT_UNITS)

ELEMENT = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
MOMENT_POSITIONS = 128
SUMMARY_BLOCKS = 32
# Rows of a tile that one program of the sum adds up.
SUM_ROWS = 16
# Three TF32 products of the high and low parts make a float32 product.
PRODUCTS = "tf32x3"


@triton.jit
@no_type_check
def moments_kernel(
    layers,
    items,
    vectors,
    sums,
    edge_parts,
    ELEMENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Means of a block of units, the block's centred squares and squared means, and its share of r."""
    item = items + 2 * tl.program_id(0)
    layer = layers + FIELDS * tl.load(item)
    first = tl.load(item + 1)
    block = tl.load(layer + FIRST_BLOCK) + first // MOMENT_UNITS
    data = tl.load(layer + POINTER).to(tl.pointer_type(ELEMENT))
    units = tl.load(layer + UNITS)
    positions = tl.load(layer + POSITIONS)
    position_stride = tl.load(layer + POSITION_STRIDE)
    parts = tl.load(layer + EDGE_PARTS)
    u = first + tl.arange(0, MOMENT_UNITS)
    column = tl.arange(0, BLOCK)
    rows = data + (u * tl.load(layer + UNIT_STRIDE))[:, None]

    total = tl.zeros((MOMENT_UNITS, BLOCK), tl.float64)
    for start in range(0, positions, BLOCK):
        p = start + column
        inside = (u < units)[:, None] & (p < positions)[None, :]
        total += tl.load(rows + (p * position_stride)[None, :], inside, 0.0).to(tl.float64)
    mean = tl.sum(total, 1) / positions.to(tl.float64)
    tl.store(vectors + tl.load(layer + MEAN) + u, mean, u < units)

    squares = tl.zeros((MOMENT_UNITS, BLOCK), tl.float64)
    for start in range(0, positions, BLOCK):
        p = start + column
        inside = (u < units)[:, None] & (p < positions)[None, :]
        x = tl.load(rows + (p * position_stride)[None, :], inside, 0.0).to(tl.float64)
        centred = tl.where(inside, x - mean[:, None], 0.0)
        squares += centred * centred
        if parts >= 0:
            row = edge_parts + parts + (first // MOMENT_UNITS) * positions
            tl.store(row + p, tl.sum(mean[:, None] * x, 0), p < positions)
    tl.store(sums + 2 * block, tl.sum(tl.sum(squares, 1), 0))
    tl.store(sums + 2 * block + 1, tl.sum(mean * mean, 0))


@triton.jit
@no_type_check
def summary_kernel(
    layers, items, sums, edge_parts, vectors, summary, BLOCKS: tl.constexpr, COLUMNS: tl.constexpr
):
    """A layer's trace and g = sum of squared means into ``summary`` (g, 2), and a stretch of its r."""
    item = items + 2 * tl.program_id(0)
    index = tl.load(item)
    layer = layers + FIELDS * index
    start = tl.load(item + 1)
    positions = tl.load(layer + POSITIONS)
    parts = tl.load(layer + EDGE_PARTS)
    first = tl.load(layer + FIRST_BLOCK)
    blocks = tl.cdiv(tl.load(layer + UNITS), MOMENT_UNITS)
    block = tl.arange(0, BLOCKS)
    if start == 0:
        squares = tl.zeros((BLOCKS,), tl.float64)
        means = tl.zeros((BLOCKS,), tl.float64)
        for b in range(0, blocks, BLOCKS):
            inside = b + block < blocks
            squares += tl.load(sums + 2 * (first + b + block), inside, 0.0)
            means += tl.load(sums + 2 * (first + b + block) + 1, inside, 0.0)
        tl.store(summary + 2 * index, tl.sum(squares, 0) / tl.maximum(positions - 1, 1).to(tl.float64))
        tl.store(summary + 2 * index + 1, tl.sum(means, 0))
    if parts >= 0:
        p = start + tl.arange(0, COLUMNS)
        edge = tl.zeros((BLOCKS, COLUMNS), tl.float64)
        for b in range(0, blocks, BLOCKS):
            inside = (b + block < blocks)[:, None] & (p < positions)[None, :]
            rows = edge_parts + parts + ((b + block) * positions)[:, None]
            edge += tl.load(rows + p[None, :], inside, 0.0)
        tl.store(vectors + tl.load(layer + EDGE) + p, tl.sum(edge, 0), p < positions)


@triton.jit
@no_type_check
def _panel(data, m, k, size, length, stride_m, stride_k, ALIGNMENT: tl.constexpr):
    """Operand elements (m, k), zero outside.

    Where the layer is aligned, loads are 16 bytes wide; dividing and multiplying changes no value, and is how
    the compiler learns that a number read from memory is a multiple.
    """
    VECTOR: tl.constexpr = 128 // data.dtype.element_ty.primitive_bitwidth
    if ALIGNMENT == ALIGNED_K:
        length = length // VECTOR * VECTOR
        at = data + (m * (stride_m // VECTOR * VECTOR))[:, None] + k[None, :]
    elif ALIGNMENT == ALIGNED_M:
        size = size // VECTOR * VECTOR
        at = data + m[:, None] + (k * (stride_k // VECTOR * VECTOR))[None, :]
    else:
        at = data + (m * stride_m)[:, None] + (k * stride_k)[None, :]
    return tl.load(at, (m < size)[:, None] & (k < length)[None, :], 0.0)


@triton.jit
@no_type_check
def _centred(x, means, m, k, size, length, by_rows, COMPUTE: tl.constexpr):
    """``x`` (m, k) less its units' means, in two parts so that a large mean loses nothing; zero outside."""
    of_m = tl.load(means + m, m < tl.where(by_rows, size, 0), 0.0)
    of_k = tl.load(means + k, k < tl.where(by_rows, 0, length), 0.0)
    high_m = of_m.to(COMPUTE)
    high_k = of_k.to(COMPUTE)
    low_m = (of_m - high_m.to(tl.float64)).to(COMPUTE)
    low_k = (of_k - high_k.to(tl.float64)).to(COMPUTE)
    inside = (m < size)[:, None] & (k < length)[None, :]
    high = high_m[:, None] + high_k[None, :]
    low = low_m[:, None] + low_k[None, :]
    return tl.where(inside, (x.to(COMPUTE) - high) - low, 0.0)


@triton.jit
@no_type_check
def _product(
    layer,
    means,
    i,
    j,
    begin,
    end,
    scale,
    ELEMENT: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    CENTRE: tl.constexpr,
    DEPTH: tl.constexpr,
    PRODUCTS: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Sum over k in begin..end of operand[i, k] operand[j, k], times ``scale`` and in its type."""
    COMPUTE: tl.constexpr = scale.dtype
    data = tl.load(layer + POINTER).to(tl.pointer_type(ELEMENT))
    if ALIGNMENT != ALIGNED_NOT:
        data = tl.multiple_of(data, 16)
    by_rows = tl.load(layer + BY_ROWS) != 0
    units = tl.load(layer + UNITS)
    positions = tl.load(layer + POSITIONS)
    unit_stride = tl.load(layer + UNIT_STRIDE)
    position_stride = tl.load(layer + POSITION_STRIDE)
    size = tl.where(by_rows, units, positions)
    length = tl.where(by_rows, positions, units)
    stride_m = tl.where(by_rows, unit_stride, position_stride)
    stride_k = tl.where(by_rows, position_stride, unit_stride)
    # Element by element, half as many addresses are as much as the registers hold.
    STEP: tl.constexpr = max(DEPTH // 2, 16) if ALIGNMENT == ALIGNED_NOT else DEPTH
    tile = tl.zeros((i.shape[0], j.shape[0]), COMPUTE)
    for start in range(begin, end, STEP):
        k = start + tl.arange(0, STEP)
        a = _panel(data, i, k, size, length, stride_m, stride_k, ALIGNMENT)
        b = _panel(data, j, k, size, length, stride_m, stride_k, ALIGNMENT)
        if CENTRE:
            a = _centred(a, means, i, k, size, length, by_rows, COMPUTE)
            b = _centred(b, means, j, k, size, length, by_rows, COMPUTE)
        elif WIDEN:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        # The multiplication is what keeps the compiler from running one accumulation through all chunks.
        tile += tl.dot(a, tl.trans(b), input_precision=PRODUCTS, out_dtype=COMPUTE) * scale
    return tile


@triton.jit
@no_type_check
def _mean_is_large(layer, summary):
    """Whether the means hold more than a tenth of the layer's sum of squares."""
    positions = tl.load(layer + POSITIONS)
    of_means = positions.to(tl.float64) * tl.load(summary + 1)
    centred = tl.load(summary) * tl.maximum(positions - 1, 1).to(tl.float64)
    return of_means > 0.1 * (of_means + centred)


@triton.jit
@no_type_check
def _store(layer, vectors, summary, tile, i, j, scale, OUT: tl.constexpr, EXACT: tl.constexpr):
    """Write rows i, columns j of the lower triangle and their mirror image, centring what is not yet."""
    by_rows = tl.load(layer + BY_ROWS) != 0
    size = tl.where(by_rows, tl.load(layer + UNITS), tl.load(layer + POSITIONS))
    if EXACT:
        # One formula for both sides, without branches: a tile that passes through a branch is kept several
        # times.
        edge = vectors + tl.load(layer + EDGE)
        of_i = tl.load(edge + i, i < size, 0.0)
        of_j = tl.load(edge + j, j < size, 0.0)
        weight = tl.where(_mean_is_large(layer, summary), 0.0, scale)
        product = tl.where(by_rows, tl.load(layer + POSITIONS).to(tl.float64) * weight, 0.0)
        addend = tl.where(by_rows, 0.0, weight)
        tile -= (of_i * product).to(tile.dtype)[:, None] * of_j.to(tile.dtype)[None, :]
        tile -= (of_i * addend).to(tile.dtype)[:, None]
        tile -= ((of_j - tl.load(summary + 1)) * addend).to(tile.dtype)[None, :]
    matrix = tl.load(layer + MATRIX).to(tl.pointer_type(OUT))
    below = (i < size)[:, None] & (j[None, :] <= i[:, None])
    above = (i < size)[None, :] & (j[:, None] < i[None, :])
    value = tile.to(OUT)
    tl.store(matrix + (i * size)[:, None] + j[None, :], value, below)
    tl.store(matrix + (j * size)[:, None] + i[None, :], tl.trans(value), above)


@triton.jit(do_not_specialize=["count"])
@no_type_check
def gram_kernel(
    layers,
    items,
    count,
    vectors,
    summary,
    partial,
    ELEMENT: tl.constexpr,
    COMPUTE: tl.constexpr,
    OUT: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    PRODUCTS: tl.constexpr,
    EXACT: tl.constexpr,
    CENTRE: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Persistent: every program takes each ``num_programs``-th tile, whole or a piece along k.

    With EXACT there are two launches, and the means of a layer decide in which of them it is done.
    """
    for number in range(tl.program_id(0), count, tl.num_programs(0)):
        item = items + 6 * number
        index = tl.load(item)
        layer = layers + FIELDS * index
        mine = True
        if EXACT:
            mine = _mean_is_large(layer, summary + 2 * index) == CENTRE
        if mine:
            i = tl.load(item + 1) * BLOCK + tl.arange(0, BLOCK)
            j = tl.load(item + 2) * BLOCK + tl.arange(0, BLOCK)
            begin = tl.load(item + 3) // DEPTH * DEPTH
            end = tl.load(item + 4)
            slot = tl.load(item + 5)
            means = vectors + tl.load(layer + MEAN)
            scale = 1.0 / tl.maximum(tl.load(layer + POSITIONS) - 1, 1).to(tl.float64)
            aligned = tl.load(layer + ALIGNED)
            if aligned == ALIGNED_K:
                tile = _product(
                    *(layer, means, i, j, begin, end, scale.to(COMPUTE), ELEMENT),
                    ALIGNED_K,
                    CENTRE,
                    DEPTH,
                    PRODUCTS,
                    WIDEN,
                )
            elif aligned == ALIGNED_M:
                tile = _product(
                    *(layer, means, i, j, begin, end, scale.to(COMPUTE), ELEMENT),
                    ALIGNED_M,
                    CENTRE,
                    DEPTH,
                    PRODUCTS,
                    WIDEN,
                )
            else:
                tile = _product(
                    *(layer, means, i, j, begin, end, scale.to(COMPUTE), ELEMENT),
                    ALIGNED_NOT,
                    CENTRE,
                    DEPTH,
                    PRODUCTS,
                    WIDEN,
                )
            if slot < 0:
                _store(layer, vectors, summary + 2 * index, tile, i, j, scale, OUT, EXACT)
            else:
                within = tl.arange(0, BLOCK)
                at = partial + slot * (BLOCK * BLOCK) + (within * BLOCK)[:, None] + within[None, :]
                tl.store(at, tile)


@triton.jit
@no_type_check
def sum_kernel(
    layers,
    items,
    vectors,
    summary,
    partial,
    OUT: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Add up the pieces of ROWS rows of a cut tile in float64, in their order along k."""
    item = items + 5 * tl.program_id(0)
    index = tl.load(item)
    layer = layers + FIELDS * index
    first = tl.load(item + 3)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    at = partial + (row * BLOCK)[:, None] + column[None, :]
    tile = tl.zeros((ROWS, BLOCK), tl.float64)
    for slot in range(first, first + tl.load(item + 4)):
        tile += tl.load(at + slot * (BLOCK * BLOCK)).to(tl.float64)
    scale = 1.0 / tl.maximum(tl.load(layer + POSITIONS) - 1, 1).to(tl.float64)
    i = tl.load(item + 1) * BLOCK + row
    j = tl.load(item + 2) * BLOCK + column
    _store(layer, vectors, summary + 2 * index, tile, i, j, scale, OUT, EXACT)

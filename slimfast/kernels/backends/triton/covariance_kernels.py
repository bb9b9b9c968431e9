"""Triton kernels of the grouped covariance: all layers of one dtype, each step one launch over a table.

:mod:`slimfast.kernels.backends.triton.moment_kernels` comes first. *Gram*: persistent, over the tiles of
all lower triangles; a tile is the sum of chunks along k whose products start from zero, because tensor
cores truncate what they accumulate, and long tiles are cut along k.
*Sum*: the pieces of the cut tiles, always in the same order.

float32 and float64 operands are centred as they are loaded. 16-bit operands keep their exact products, so
their Gram G is centred afterwards: G - d mu mu^T for rows, and for columns, with r_j = sum_i mu_i x_ij and g
= sum_i mu_i^2, the double centring G - r 1^T - 1 r^T + g. Where the means carry more than a tenth of the sum
of squares that subtraction would lose digits, and the operand is centred in float32 as it is loaded.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from slimfast.kernels.backends.triton.moment_kernels import (
    ALIGNED,
    BY_ROWS,
    EDGE,
    FIELDS,
    MATRIX,
    MEAN,
    NUMBER,
    POINTER,
    POSITION_STRIDE,
    POSITIONS,
    UNIT_STRIDE,
    UNITS,
)

ALIGNED_NOT, ALIGNED_K, ALIGNED_M = (tl.constexpr(i) for i in range(3))

# Rows of a tile that one program of the sum adds up.
SUM_ROWS = 16
# Three TF32 products of the high and low parts make a float32 product.
PRODUCTS = "tf32x3"


@triton.jit
@no_type_check
def _panel(data, m, k, size, length, stride_m, stride_k, ALIGNMENT: tl.constexpr):
    """Load operand elements (m, k), zero outside.

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
    """Subtract from ``x`` (m, k) its units' means, in two parts so that a large mean loses nothing; zero
    outside.
    """
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
    """Sum operand[i, k] operand[j, k] over k in begin..end, times ``scale`` and in its type."""
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
    STEP: tl.constexpr = 16 if ALIGNMENT == ALIGNED_NOT else DEPTH
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
def _store(layer, vectors, summary, tile, row, column, scale, OUT: tl.constexpr, EXACT: tl.constexpr):
    """Write a piece of the lower triangle that begins at (row, column) and its mirror image.

    What is not centred yet is, before. Places count 32 bits from the corner: there are many, in registers.
    """
    by_rows = tl.load(layer + BY_ROWS) != 0
    size = tl.where(by_rows, tl.load(layer + UNITS), tl.load(layer + POSITIONS))
    r = tl.arange(0, tile.shape[0])
    c = tl.arange(0, tile.shape[1])
    if EXACT:
        # One formula for both sides, without branches: a tile that passes through a branch is kept several
        # times.
        edge = vectors + tl.load(layer + EDGE)
        of_i = tl.load(edge + row + r, row + r < size, 0.0)
        of_j = tl.load(edge + column + c, column + c < size, 0.0)
        weight = tl.where(_mean_is_large(layer, summary), 0.0, scale)
        product = tl.where(by_rows, tl.load(layer + POSITIONS).to(tl.float64) * weight, 0.0)
        addend = tl.where(by_rows, 0.0, weight)
        tile -= (of_i * product).to(tile.dtype)[:, None] * of_j.to(tile.dtype)[None, :]
        tile -= (of_i * addend).to(tile.dtype)[:, None]
        tile -= ((of_j - tl.load(summary + 1)) * addend).to(tile.dtype)[None, :]
    matrix = tl.load(layer + MATRIX).to(tl.pointer_type(OUT))
    step = size.to(tl.int32)
    rows = tl.minimum(size - row, tile.shape[0]).to(tl.int32)
    # Positive below the block of the diagonal, where all columns are written.
    above = tl.minimum(row - column, tile.shape[1]).to(tl.int32)
    value = tile.to(OUT)
    lower = (r < rows)[:, None] & (c[None, :] <= above + r[:, None])
    upper = (r < rows)[None, :] & (c[:, None] < above + r[None, :])
    tl.store(matrix + row * size + column + ((r * step)[:, None] + c[None, :]), value, lower)
    tl.store(matrix + column * size + row + ((c * step)[:, None] + r[None, :]), tl.trans(value), upper)


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
    """Compute tiles, whole or a piece along k: persistent, every program takes each ``num_programs``-th.

    With EXACT there are two launches, and the means of a layer decide in which of them it is done.
    """
    for number in range(tl.program_id(0), count, tl.num_programs(0)):
        item = items + 6 * number
        layer = layers + FIELDS * tl.load(item)
        of_layer = summary + 2 * tl.load(layer + NUMBER)
        mine = True
        if EXACT:
            mine = _mean_is_large(layer, of_layer) == CENTRE
        if mine:
            row = tl.load(item + 1) * BLOCK
            column = tl.load(item + 2) * BLOCK
            i = row + tl.arange(0, BLOCK)
            j = column + tl.arange(0, BLOCK)
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
                _store(layer, vectors, of_layer, tile, row, column, scale, OUT, EXACT)
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
    layer = layers + FIELDS * tl.load(item)
    of_layer = summary + 2 * tl.load(layer + NUMBER)
    first = tl.load(item + 3)
    within = tl.program_id(1) * ROWS
    at = partial + ((within + tl.arange(0, ROWS)) * BLOCK)[:, None] + tl.arange(0, BLOCK)[None, :]
    tile = tl.zeros((ROWS, BLOCK), tl.float64)
    for slot in range(first, first + tl.load(item + 4)):
        tile += tl.load(at + slot * (BLOCK * BLOCK)).to(tl.float64)
    scale = 1.0 / tl.maximum(tl.load(layer + POSITIONS) - 1, 1).to(tl.float64)
    row = tl.load(item + 1) * BLOCK + within
    column = tl.load(item + 2) * BLOCK
    _store(layer, vectors, of_layer, tile, row, column, scale, OUT, EXACT)

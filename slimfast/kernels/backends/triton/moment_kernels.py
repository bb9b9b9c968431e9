"""Triton kernels of the moments of layers: what the covariances are centred with, and their traces.

float64 means and centred sums of squares of every unit; their *summary* for every layer: the trace, the sum
of squared means, and for the columns of 16-bit layers r_j = sum_i mu_i x_ij.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl

from slimfast.kernels.backends.triton import schedule

(
    NUMBER,
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
MOMENT_UNITS = tl.constexpr(schedule.MOMENT_UNITS)

ELEMENT = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
MOMENT_POSITIONS = 128
SUMMARY_BLOCKS = 32


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
    """Compute means of a block of units, the block's centred squares and squared means, and its share of
    r.
    """
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
    """Sum a layer's trace and g = sum of squared means into ``summary`` (g, 2), and a stretch of its r."""
    item = items + 2 * tl.program_id(0)
    layer = layers + FIELDS * tl.load(item)
    of_layer = summary + 2 * tl.load(layer + NUMBER)
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
        tl.store(of_layer, tl.sum(squares, 0) / tl.maximum(positions - 1, 1).to(tl.float64))
        tl.store(of_layer + 1, tl.sum(means, 0))
    if parts >= 0:
        p = start + tl.arange(0, COLUMNS)
        edge = tl.zeros((BLOCKS, COLUMNS), tl.float64)
        for b in range(0, blocks, BLOCKS):
            inside = (b + block < blocks)[:, None] & (p < positions)[None, :]
            rows = edge_parts + parts + ((b + block) * positions)[:, None]
            edge += tl.load(rows + p[None, :], inside, 0.0)
        tl.store(vectors + tl.load(layer + EDGE) + p, tl.sum(edge, 0), p < positions)

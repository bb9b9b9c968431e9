"""Triton kernels of damped systems, over the rows of :mod:`slimfast.kernels.backends.damped_systems`.

Programs are (part of a system's work, system); a system with less work than the largest has idle ones. B^T
lies below the damped matrix as more rows, so that eliminating its columns solves forward. All is float64.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from slimfast.kernels.backends import damped_systems

FIELDS = tl.constexpr(len(damped_systems.FIELDS))
MATRIX, _, SIZE, ROW_STRIDE, COLUMN_STRIDE, DAMPING, RIGHT, SIDES = (tl.constexpr(i) for i in range(8))
RIGHT_ROW_STRIDE, RIGHT_COLUMN_STRIDE, SOLUTION, FAILURE, FACTOR, SQUARES, UNKNOWNS = (
    tl.constexpr(i) for i in range(8, len(damped_systems.FIELDS))
)

# Two blocks of float64 in registers want as many threads.
WARPS = 8


@triton.jit
@no_type_check
def _numbers(system, FIELD: tl.constexpr):
    """Point to one of the system's float64 workspaces."""
    return tl.load(system + FIELD).to(tl.pointer_type(tl.float64))


@triton.jit
@no_type_check
def _within(stride, BLOCK: tl.constexpr):
    """Places of a block of rows that are ``stride`` apart."""
    i = tl.arange(0, BLOCK)
    return (i * stride)[:, None] + i[None, :]


@triton.jit
@no_type_check
def _failed_before(system, step, BLOCK: tl.constexpr):
    """Say whether a step before this one met a minor that is not positive."""
    failure = tl.load(tl.load(system + FAILURE).to(tl.pointer_type(tl.int64)))
    return (failure != 0) & (failure <= step * BLOCK)


@triton.jit
@no_type_check
def _tile(number, first, blocks):
    """Find tile ``number`` of the lower triangle of blocks first..blocks - 1, then of right-hand sides."""
    side = blocks - first
    triangle = side * (side + 1) // 2
    row = ((tl.sqrt(8.0 * number.to(tl.float64) + 1.0) - 1.0) / 2.0).to(tl.int64)
    # The root is rounded.
    row = tl.where(row * (row + 1) // 2 > number, row - 1, row)
    row = tl.where((row + 1) * (row + 2) // 2 <= number, row + 1, row)
    column = number - row * (row + 1) // 2
    below = number - triangle
    of_sides = below >= 0
    side = tl.maximum(side, 1)
    return (
        first + tl.where(of_sides, blocks - first + below // side, row),
        first + tl.where(of_sides, below % side, column),
    )


@triton.jit
@no_type_check
def load_kernel(systems, members, ELEMENT: tl.constexpr, BLOCK: tl.constexpr):
    """Fill a tile of a factor: the damped matrix padded by the identity, then B^T padded by zeros."""
    system = systems + FIELDS * tl.load(members + tl.program_id(1))
    size = tl.load(system + SIZE)
    sides = tl.load(system + SIDES)
    blocks = tl.cdiv(size, BLOCK)
    count = blocks * (blocks + 1) // 2 + tl.cdiv(sides, BLOCK) * blocks
    number = tl.program_id(0).to(tl.int64)
    if number < count:
        row_block, column_block = _tile(number, number * 0, blocks)
        row = row_block * BLOCK + tl.arange(0, BLOCK)
        column = column_block * BLOCK + tl.arange(0, BLOCK)
        side = row - blocks * BLOCK
        matrix = tl.load(system + MATRIX).to(tl.pointer_type(ELEMENT))
        at = (row * tl.load(system + ROW_STRIDE))[:, None] + (column * tl.load(system + COLUMN_STRIDE))[
            None, :
        ]
        lower = (row < size)[:, None] & (column[None, :] <= row[:, None])
        value = tl.load(matrix + at, lower, 0.0).to(tl.float64)
        damping = tl.load((system + DAMPING).to(tl.pointer_type(tl.float64)))
        added = tl.where(row < size, damping, tl.where(row < blocks * BLOCK, 1.0, 0.0))
        value += tl.where(row[:, None] == column[None, :], added[:, None], 0.0)
        right = tl.load(system + RIGHT).to(tl.pointer_type(ELEMENT))
        at = (column * tl.load(system + RIGHT_ROW_STRIDE))[None, :]
        at += (side * tl.load(system + RIGHT_COLUMN_STRIDE))[:, None]
        given = ((side >= 0) & (side < sides))[:, None] & (column < size)[None, :]
        value += tl.load(right + at, given, 0.0).to(tl.float64)
        stride = blocks * BLOCK
        tl.store(
            _numbers(system, FACTOR)
            + row_block * BLOCK * stride
            + column_block * BLOCK
            + _within(stride, BLOCK),
            value,
        )


@triton.jit(do_not_specialize=["step"])
@no_type_check
def panel_kernel(systems, step, BLOCK: tl.constexpr):
    """Eliminate the columns of a square, which every program does for itself, in a block of rows below it."""
    system = systems + FIELDS * tl.program_id(1)
    blocks = tl.cdiv(tl.load(system + SIZE), BLOCK)
    part = tl.program_id(0).to(tl.int64)
    count = blocks - step - 1 + tl.cdiv(tl.load(system + SIDES), BLOCK)
    if (part < count) & (_failed_before(system, step, BLOCK) == 0):
        stride = blocks * BLOCK
        within = _within(stride, BLOCK)
        corner = _numbers(system, FACTOR) + step * BLOCK * stride + step * BLOCK
        below = corner + (part + 1) * BLOCK * stride
        square = tl.load(corner + within)
        rows = tl.load(below + within)
        i = tl.arange(0, BLOCK)
        failure = tl.zeros((1,), tl.int64)
        # Of the identity beyond the matrix there is nothing to eliminate.
        for c in range(tl.minimum(BLOCK, tl.load(system + SIZE) - step * BLOCK)):
            own = (i == c)[None, :]
            column = tl.sum(tl.where(own, square, 0.0), 1)
            lower = tl.sum(tl.where(own, rows, 0.0), 1)
            pivot = tl.sum(tl.where(i == c, column, 0.0), 0)
            # From a pivot that is not positive on there are no numbers.
            inverse = tl.where(pivot > 0.0, 1.0 / tl.sqrt(tl.where(pivot > 0.0, pivot, 1.0)), float("nan"))
            at = step * BLOCK + c + 1
            failure = tl.where((failure == 0) & (tl.where(pivot > 0.0, 0, 1) != 0), at, failure)
            column = column * inverse
            lower = lower * inverse
            right = tl.where(i > c, column, 0.0)[None, :]
            square = tl.where(own, column[:, None], square - column[:, None] * right)
            rows = tl.where(own, lower[:, None], rows - lower[:, None] * right)
        tl.store(below + within, rows)
        # One program of a system tells; a step before this one has not.
        first = (tl.zeros((1,), tl.int64) + part) == 0
        told = tl.load(system + FAILURE).to(tl.pointer_type(tl.int64)) + tl.zeros((1,), tl.int64)
        tl.store(told, failure, first & (failure != 0))
        kept = _numbers(system, SQUARES) + step * BLOCK * BLOCK + _within(BLOCK, BLOCK)
        tl.store(kept, square, (i * 0 + part == 0)[:, None])


@triton.jit(do_not_specialize=["step"])
@no_type_check
def update_kernel(systems, step, BLOCK: tl.constexpr):
    """Take the columns of a step out of a tile of what follows."""
    system = systems + FIELDS * tl.program_id(1)
    blocks = tl.cdiv(tl.load(system + SIZE), BLOCK)
    left = blocks - step - 1
    count = left * (left + 1) // 2 + tl.cdiv(tl.load(system + SIDES), BLOCK) * left
    number = tl.program_id(0).to(tl.int64)
    if (number < count) & (_failed_before(system, step + 1, BLOCK) == 0):
        row, column = _tile(number, number * 0 + step + 1, blocks)
        stride = blocks * BLOCK
        within = _within(stride, BLOCK)
        factor = _numbers(system, FACTOR)
        a = tl.load(factor + row * BLOCK * stride + step * BLOCK + within)
        b = tl.load(factor + column * BLOCK * stride + step * BLOCK + within)
        tile = factor + row * BLOCK * stride + column * BLOCK + within
        tl.store(tile, tl.load(tile) - tl.dot(a, tl.trans(b), out_dtype=tl.float64))


@triton.jit(do_not_specialize=["step"])
@no_type_check
def backward_kernel(systems, step, BLOCK: tl.constexpr):
    """Find the unknowns of a block of right-hand sides, and take them out of one block before."""
    system = systems + FIELDS * tl.program_id(1)
    blocks = tl.cdiv(tl.load(system + SIZE), BLOCK)
    before = tl.maximum(step, 1)
    part = tl.program_id(0).to(tl.int64)
    count = tl.cdiv(tl.load(system + SIDES), BLOCK) * before
    if (part < count) & (_failed_before(system, blocks, BLOCK) == 0):
        side = part // before
        target = part % before
        stride = blocks * BLOCK
        within = _within(stride, BLOCK)
        factor = _numbers(system, FACTOR)
        sides = factor + (blocks + side) * BLOCK * stride
        value = tl.load(sides + step * BLOCK + within)
        square = tl.load(_numbers(system, SQUARES) + step * BLOCK * BLOCK + _within(BLOCK, BLOCK))
        i = tl.arange(0, BLOCK)
        live = tl.minimum(BLOCK, tl.load(system + SIZE) - step * BLOCK)
        for turn in range(live):
            c = live - 1 - turn
            row = tl.sum(tl.where((i == c)[:, None], square, 0.0), 0)
            diagonal = tl.sum(tl.where(i == c, row, 0.0), 0)
            own = (i == c)[None, :]
            found = tl.sum(tl.where(own, value, 0.0), 1) / diagonal
            earlier = tl.where(i < c, row, 0.0)[None, :]
            value = tl.where(own, found[:, None], value - found[:, None] * earlier)
        unknowns = _numbers(system, UNKNOWNS) + side * BLOCK * stride + step * BLOCK + within
        tl.store(unknowns, value, (i * 0 + target == 0)[:, None])
        if step > 0:
            rows = tl.load(factor + step * BLOCK * stride + target * BLOCK + within)
            tile = sides + target * BLOCK + within
            tl.store(tile, tl.load(tile) - tl.dot(value, rows, out_dtype=tl.float64))


@triton.jit
@no_type_check
def store_kernel(systems, members, ELEMENT: tl.constexpr, BLOCK: tl.constexpr):
    """Write a block of a solution, NaN where the system failed."""
    system = systems + FIELDS * tl.load(members + tl.program_id(1))
    size = tl.load(system + SIZE)
    sides = tl.load(system + SIDES)
    blocks = tl.cdiv(size, BLOCK)
    part = tl.program_id(0).to(tl.int64)
    if part < blocks * tl.cdiv(sides, BLOCK):
        i = part % blocks * BLOCK + tl.arange(0, BLOCK)
        side = part // blocks * BLOCK + tl.arange(0, BLOCK)
        inside = (i < size)[:, None] & (side < sides)[None, :]
        unknowns = _numbers(system, UNKNOWNS) + (side * (blocks * BLOCK))[None, :] + i[:, None]
        failure = tl.load(tl.load(system + FAILURE).to(tl.pointer_type(tl.int64)))
        # What a failed system left may be anything.
        usable = i * 0 + failure == 0
        value = tl.load(unknowns, inside & usable[:, None], float("nan"))
        solution = tl.load(system + SOLUTION).to(tl.pointer_type(ELEMENT))
        tl.store(solution + (i * sides)[:, None] + side[None, :], value.to(ELEMENT), inside)

"""Triton kernels of what streaming moments are centred on, and how they find elements of operands.

Over the rows of :mod:`slimfast.kernels.backends.moment_tables`. *Sums*: of every variable and of its squares
over each split of the positions, in float64. *Means*: of the call's positions, and how far they are from
those before, which move to those of all. Patches are read where their image has them, and never stored.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from slimfast.kernels.backends.moment_tables import FIELD, FIELDS

ROW = tl.constexpr(FIELDS)
OPERAND = tl.constexpr(FIELD["y_data"] - FIELD["x_data"])
DATA, VARIABLES, CHANNEL_STRIDE, STRIDES, FIRST, SUMS, MEAN = (
    tl.constexpr(FIELD[f"x_{name}"])
    for name in ("data", "variables", "channel_stride", "strides", "first", "sums", "mean")
)
SYMMETRIC, MASK, MASK_STRIDES, OUTPUTS = (
    tl.constexpr(FIELD[name]) for name in ("symmetric", "mask", "mask_strides", "outputs")
)
SIZES, KERNEL, STEP, PADDING, DILATION = (
    tl.constexpr(FIELD[name]) for name in ("sizes", "kernel", "step", "padding", "dilation")
)
GROUP, PRODUCTS, EARLIER, COUNTED, SPLITS = (
    tl.constexpr(FIELD[name]) for name in ("group", "products", "earlier", "counted", "splits")
)

# Variables and positions of a step of the sums, and variables of one program of the means.
SUM_VARIABLES, SUM_POSITIONS, MEAN_VARIABLES = 16, 64, 128


@triton.jit
@no_type_check
def _taps(layer, operand, v):
    """Find how far variables ``v`` of an operand are from any position, and their places in the image."""
    kernel = tl.load(layer + KERNEL + 2)
    tap_2 = v % kernel * tl.load(layer + DILATION + 2)
    rest = v // kernel
    kernel = tl.load(layer + KERNEL + 1)
    tap_1 = rest % kernel * tl.load(layer + DILATION + 1)
    rest = rest // kernel
    kernel = tl.load(layer + KERNEL)
    tap_0 = rest % kernel * tl.load(layer + DILATION)
    offset = rest // kernel * tl.load(operand + CHANNEL_STRIDE)
    offset += tap_0 * tl.load(operand + STRIDES + 1)
    offset += tap_1 * tl.load(operand + STRIDES + 2)
    offset += tap_2 * tl.load(operand + STRIDES + 3)
    # Places in an image are below 2^30.
    return offset, tap_0.to(tl.int32), tap_1.to(tl.int32), tap_2.to(tl.int32)


@triton.jit
@no_type_check
def _outputs(layer, p):
    """Take positions apart, the last dim innermost."""
    along = tl.load(layer + OUTPUTS + 3)
    out_2 = p % along
    rest = p // along
    along = tl.load(layer + OUTPUTS + 2)
    out_1 = rest % along
    rest = rest // along
    along = tl.load(layer + OUTPUTS + 1)
    return rest // along, rest % along, out_1, out_2


@triton.jit
@no_type_check
def _counts(layer, sample, out_0, out_1, out_2, p, p_end):
    """Whether positions count: before ``p_end``, and left by the mask."""
    mask = tl.load(layer + MASK)
    at = sample * tl.load(layer + MASK_STRIDES) + out_0 * tl.load(layer + MASK_STRIDES + 1)
    at += out_1 * tl.load(layer + MASK_STRIDES + 2) + out_2 * tl.load(layer + MASK_STRIDES + 3)
    # A limit instead of a truth: the interpreter makes numbers of truths that it spreads over a vector.
    left = tl.load(mask.to(tl.pointer_type(tl.int8)) + at, p < tl.where(mask != 0, p_end, 0), 1)
    return (p < p_end) & (left != 0)


@triton.jit
@no_type_check
def values(layer, operand, v, end, p, p_end, ELEMENT: tl.constexpr):
    """Load variables ``v`` at positions ``p``, zero outside the image, and whether each position counts."""
    sample, out_0, out_1, out_2 = _outputs(layer, p)
    counts = _counts(layer, sample, out_0, out_1, out_2, p, p_end)
    at_0 = out_0 * tl.load(layer + STEP) - tl.load(layer + PADDING)
    at_1 = out_1 * tl.load(layer + STEP + 1) - tl.load(layer + PADDING + 1)
    at_2 = out_2 * tl.load(layer + STEP + 2) - tl.load(layer + PADDING + 2)
    start = sample * tl.load(operand + STRIDES) + at_0 * tl.load(operand + STRIDES + 1)
    start += at_1 * tl.load(operand + STRIDES + 2) + at_2 * tl.load(operand + STRIDES + 3)
    offset, tap_0, tap_1, tap_2 = _taps(layer, operand, v)
    place_0 = tap_0[:, None] + at_0.to(tl.int32)[None, :]
    place_1 = tap_1[:, None] + at_1.to(tl.int32)[None, :]
    place_2 = tap_2[:, None] + at_2.to(tl.int32)[None, :]
    inside = (v < end)[:, None] & counts[None, :]
    inside &= (place_0 >= 0) & (place_0 < tl.load(layer + SIZES).to(tl.int32))
    inside &= (place_1 >= 0) & (place_1 < tl.load(layer + SIZES + 1).to(tl.int32))
    inside &= (place_2 >= 0) & (place_2 < tl.load(layer + SIZES + 2).to(tl.int32))
    data = tl.load(operand + DATA).to(tl.pointer_type(ELEMENT))
    return tl.load(data + (offset[:, None] + start[None, :]), inside, 0.0), counts


@triton.jit
@no_type_check
def sums_kernel(layers, items, sums, ELEMENT: tl.constexpr, VARS: tl.constexpr, BLOCK: tl.constexpr):
    """Sum variables over a split; items (layer, 0 or OPERAND, first variable, begin, end, split)."""
    item = items + 6 * tl.program_id(0)
    layer = layers + ROW * tl.load(item)
    operand = layer + tl.load(item + 1)
    v = tl.load(item + 2) + tl.arange(0, VARS)
    begin = tl.load(item + 3)
    p_end = tl.load(item + 4)
    end = tl.load(operand + VARIABLES)
    total = tl.zeros((VARS, BLOCK), tl.float64)
    squares = tl.zeros((VARS, BLOCK), tl.float64)
    for start in range(begin, p_end, BLOCK):
        x, _ = values(layer, operand, v, end, start + tl.arange(0, BLOCK), p_end, ELEMENT)
        wide = x.to(tl.float64)
        total += wide
        squares += wide * wide
    to = sums + 2 * (tl.load(operand + SUMS) + tl.load(item + 5) * end + v)
    tl.store(to, tl.sum(total, 1), v < end)
    tl.store(to + 1, tl.sum(squares, 1), v < end)


@triton.jit
@no_type_check
def counted_positions(layer):
    """Count the positions of this call that count."""
    by_mask = tl.load(layer + COUNTED)
    every = tl.load(layer + OUTPUTS) * tl.load(layer + OUTPUTS + 1)
    every = every * tl.load(layer + OUTPUTS + 2) * tl.load(layer + OUTPUTS + 3)
    if by_mask != 0:
        every = tl.load(by_mask.to(tl.pointer_type(tl.int64)))
    return every


@triton.jit
@no_type_check
def means_kernel(layers, items, sums, means, squares, apart, VARS: tl.constexpr):
    """Join the means of a block of variables, and sum their squares; items (layer, 0 or OPERAND, first)."""
    item = items + 3 * tl.program_id(0)
    layer = layers + ROW * tl.load(item)
    operand = layer + tl.load(item + 1)
    v = tl.load(item + 2) + tl.arange(0, VARS)
    end = tl.load(operand + VARIABLES)
    split_sums = sums + 2 * (tl.load(operand + SUMS) + v)
    total = tl.zeros((VARS,), tl.float64)
    square = tl.zeros((VARS,), tl.float64)
    for split in range(tl.load(layer + SPLITS)):
        total += tl.load(split_sums + 2 * split * end, v < end, 0.0)
        square += tl.load(split_sums + 2 * split * end + 1, v < end, 0.0)
    here = counted_positions(layer).to(tl.float64)
    every = here + tl.load(layer + EARLIER).to(tl.float64)
    mean = total / tl.maximum(here, 1.0)
    before = tl.load(operand + MEAN).to(tl.pointer_type(tl.float64)) + v
    old = tl.load(before, v < end, 0.0)
    distance = (mean - old) * tl.minimum(here, 1.0)
    first = tl.load(operand + FIRST)
    tl.store(means + first + v, mean, v < end)
    tl.store(squares + first + v, square, v < end)
    tl.store(apart + first + v, distance, v < end)
    tl.store(before, old + distance * (here / tl.maximum(every, 1.0)), v < end)

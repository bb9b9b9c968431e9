"""Convolutions, matrix products and attention: one axis is summed over, another starts."""

from __future__ import annotations

from math import prod
from typing import Any

from slimfast.graph.propagation.axis_labels import FIXED, Axes, AxisLabels, first_free
from slimfast.graph.propagation.flow import Propagation
from slimfast.graph.propagation.label_matrices import Mark
from slimfast.graph.propagation.reasons import Reason
from slimfast.graph.propagation.rules.pointwise import align
from slimfast.graph.propagation.rules.registry import rule
from slimfast.graph.recording.forward import Call, Ref

CONVOLUTIONS = ("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution")
PRODUCTS = ("mm", "bmm", "matmul", "mv", "dot", "vdot", "addmm", "baddbmm", "addbmm", "addmv")


@rule(*CONVOLUTIONS)
def convolution(flow: Propagation, call: Call) -> list[Axes]:
    """Channels are (groups, positions in a group) on both sides; the weight has all outputs and one group's
    inputs, or, transposed, all inputs and one group's outputs. A filter of one tap mixes nothing along its
    axis."""
    source, weight = call.arguments["input"], call.arguments["weight"]
    bias, groups = call.arguments.get("bias"), call.arguments["groups"]
    transposed = bool(call.arguments.get("transposed", False))
    out = call.outputs[0]
    taps = len(weight.shape) - 2
    at = len(source.shape) - taps - 1
    axes = flow.axes(source)
    still = [_still(call, source, out, dim) for dim in range(-taps, 0)]
    for axis, stays in zip(axes[at + 1 :], still, strict=True):
        if not stays:
            flow.freeze(axis, Reason.SLIDES)
    channels = _channels(flow, call, axes[at], weight, transposed)
    if isinstance(bias, Ref):
        flow.unify(channels, flow.axes(bias)[0])
    weight_axes = flow.axes(weight)
    shared = (source if transposed else out).shape
    positions = [
        axis if stays else n for axis, n, stays in zip(axes[at + 1 :], shared[at + 1 :], still, strict=True)
    ]
    flow.macs(prod(weight.shape[2:]), *positions, *axes[:at], *weight_axes[:2])
    if groups > 1 and not channels.fixed:
        flow.constant("groups", groups, flow.split(channels, groups)[0])
    after = [axis if stays else FIXED for axis, stays in zip(axes[at + 1 :], still, strict=True)]
    return [[*axes[:at], channels, *after]]


def _still(call: Call, source: Ref, out: Ref, dim: int) -> bool:
    """Whether each index along this axis is made of the one at its own place alone."""
    settings = [(call.arguments[name], value) for name, value in (("stride", 1), ("padding", 0))]
    alone = all(given[dim if len(given) > 1 else 0] == value for given, value in settings)
    return alone and call.arguments["weight"].shape[dim] == 1 and source.shape[dim] == out.shape[dim]


def _channels(flow: Propagation, call: Call, axis: AxisLabels, weight: Ref, transposed: bool) -> AxisLabels:
    """Join the incoming channels with the weight's and return the outgoing ones."""
    groups, source = call.arguments["groups"], call.arguments["input"]
    at = len(source.shape) - len(weight.shape) + 1
    first, second = flow.axes(weight)[:2]
    if groups == 1:
        consumed, produced = (first, second) if transposed else (second, first)
        flow.produce(weight, produced)
        flow.consume(weight, consumed)
        flow.unify(axis, consumed)
        _summed(flow, consumed, (weight, 0 if transposed else 1), (source, at))
        return produced
    if transposed:
        flow.consume(weight, first)
        flow.produce(weight, second)
        flow.unify(axis, first)
        outer, _ = flow.split(first, groups)
        flow.mark(outer, Mark.BLOCK)
        return flow.merge(outer, second)
    # a depthwise filter scales the channel it is given; it makes no new one
    if not (groups == len(axis) == weight.shape[0] and not axis.fixed):
        flow.produce(weight, first)
    flow.consume(weight, second)
    outer, inner = flow.split(axis, groups)
    own_outer, _ = flow.split(first, groups)
    if groups < len(axis):
        flow.mark(outer, Mark.BLOCK)
    flow.unify(outer, own_outer)
    flow.unify(inner, second)
    _summed(flow, second, (weight, 1), (source, at))
    return first


@rule("linear")
def linear(flow: Propagation, call: Call) -> list[Axes]:
    source, weight, bias = (call.arguments[name] for name in ("input", "weight", "bias"))
    axes = flow.axes(source)
    produced: AxisLabels = FIXED
    if len(weight.shape) == 2:
        produced = flow.axes(weight)[0]
        flow.produce(weight, produced)
    consumed = flow.axes(weight)[-1]
    flow.consume(weight, consumed)
    flow.unify(axes[-1], consumed)
    _summed(flow, consumed, (weight, -1), (source, -1))
    result: Axes = [*axes[:-1], *([produced] if len(weight.shape) == 2 else [])]
    if isinstance(bias, Ref) and bias.shape:
        flow.unify(produced, flow.axes(bias)[-1])
    flow.macs(*result, consumed)
    return [result]


def factors(call: Call) -> tuple[Ref, Ref, Any]:
    """The two factors of a matrix product and what is added to it, None where nothing is."""
    names = ("mat1", "mat2", "batch1", "batch2", "mat", "vec", "other", "tensor")
    operands = [call.arguments[name] for name in names if isinstance(call.arguments.get(name), Ref)]
    first = call.arguments["self"]
    return (operands[0], operands[1], first) if len(operands) > 1 else (first, operands[0], None)


@rule(*PRODUCTS)
def product(flow: Propagation, call: Call) -> list[Axes]:
    """(..., m, k) times (..., k, n); a vector on either side has no m or n. The added term broadcasts to the
    result."""
    a, b, added = factors(call)
    vector_a, vector_b = len(a.shape) == 1, len(b.shape) == 1
    axes_a, axes_b = flow.axes(a), flow.axes(b)
    summed_a, summed_b = axes_a[-1], axes_b[-1 if vector_b else -2]
    rows: Axes = [] if vector_a else [axes_a[-2]]
    columns: Axes = [] if vector_b else [axes_b[-1]]
    for ref, summed, own in ((b, summed_b, columns), (a, summed_a, rows)):
        for axis in own:
            flow.produce(ref, axis)
        flow.consume(ref, summed)
    flow.unify(summed_a, summed_b)
    _summed(flow, summed_a, (a, -1), (b, -1 if vector_b else -2))
    batch = _batch(flow, a, b)
    if flow.value(a).data and flow.value(b).data and any(not axis.fixed for axis in batch):
        for axis in batch:
            flow.mark(axis, Mark.HEAD)
        for axis in (summed_a, *rows, *columns):
            flow.mark(axis, Mark.HEAD_DIM)
    flow.macs(*batch, *rows, summed_a, *columns)
    result: Axes = [*batch, *rows, *columns]
    if added is not None:
        if call.op == "aten.addbmm":
            for axis in batch:
                flow.freeze(axis, Reason.SUMS)
            result = [*rows, *columns]
        for axis, other in zip(result, align(flow, call.outputs[0].shape, [added]), strict=True):
            if isinstance(added, Ref) and not other.fixed:
                flow.unify(axis, other)
    return [result]


def _summed(flow: Propagation, axis: AxisLabels, *factors: tuple[Ref, int]) -> None:
    """The products of two tensors are added up along this axis, which is this dim of theirs: what both have
    in a removed unit counts."""
    if not axis.fixed and all(flow.may_be_nonzero(ref, dim) for ref, dim in factors):
        flow.inexact(axis, Reason.SUMS_NONZERO)


def _batch(flow: Propagation, a: Ref, b: Ref) -> Axes:
    """The leading axes of two factors, broadcast against each other."""
    rank = max(len(a.shape), len(b.shape)) - 2
    axes: Axes = []
    for dim in range(-rank - 2, -2):
        met = [flow.axes(ref)[dim] for ref in (a, b) if len(ref.shape) >= -dim]
        size = max(map(len, met))
        full = [axis for axis in met if len(axis) == size]
        if len(full) == 2:
            flow.unify(full[0], full[1])
        axes.append(first_free(full, full[0]) if size > 1 else FIXED)
    return axes


@rule("scaled_dot_product_attention")
def attention(flow: Propagation, call: Call) -> list[Axes]:
    """q (..., H, L, E), k (..., G, S, E), v (..., G, S, V) to (..., H, L, V); with ``enable_gqa`` H is a
    multiple of G."""
    query, key, value = (call.arguments[name] for name in ("query", "key", "value"))
    q, k, v = (flow.axes(ref) for ref in (query, key, value))
    flow.unify(q[-1], k[-1])
    _summed(flow, q[-1], (query, -1), (key, -1))
    flow.unify(k[-2], v[-2])
    flow.freeze(k[-2], Reason.ATTENDS)
    if call.arguments.get("scale") is None:
        flow.inexact(q[-1], Reason.SCALE)
        flow.mark(q[-1], Mark.SCALED)
    batch = _heads(flow, query, key, value)
    for axis in batch:
        flow.mark(axis, Mark.HEAD)
    if any(not axis.fixed for axis in batch):
        flow.mark(q[-1], Mark.HEAD_DIM)
        flow.mark(v[-1], Mark.HEAD_DIM)
    mask = call.arguments.get("attn_mask")
    scores: Axes = [*batch, q[-2], k[-2]]
    if isinstance(mask, Ref):
        shape = tuple(map(len, scores))
        for axis, other, size in zip(scores, align(flow, shape, [mask]), shape, strict=True):
            if size > 1 and not other.fixed:
                flow.unify(axis, other)
    # L S (E + V) multiply-adds per head: the axis E + V is q's and v's one after the other
    both = flow.concatenate([q[-1], v[-1]])
    flow.macs(key.shape[-2], *batch, q[-2], both)
    return [[*batch, q[-2], v[-1]]]


def _heads(flow: Propagation, query: Ref, key: Ref, value: Ref) -> Axes:
    for name, other in zip(flow.axes(key)[:-2], flow.axes(value)[:-2], strict=True):
        flow.unify(name, other)
    grouped = len(query.shape) > 2 and query.shape[-3] != key.shape[-3] and key.shape[-3] > 1
    if not grouped:
        return _batch(flow, query, key)
    axes = flow.axes(query)[:-2]
    outer, _ = flow.split(axes[-1], key.shape[-3])
    flow.unify(outer, flow.axes(key)[-3])
    return axes

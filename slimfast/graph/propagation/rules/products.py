"""Follow linear layers, matrix products and attention: one axis is summed over, another starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from slimfast.graph.propagation.axis_labels import FIXED, Axes, AxisLabels, first_free
from slimfast.graph.propagation.flow import Propagation
from slimfast.graph.propagation.label_matrices import Mark
from slimfast.graph.propagation.reasons import Reason
from slimfast.graph.propagation.rules.pointwise import align
from slimfast.graph.propagation.zeros import NonzeroByAxis, ZeroTracker
from slimfast.graph.recording.calls import Call, Ref
from slimfast.graph.recording.meta_shortcuts import broadcast, empty, plain, without_data
from slimfast.graph.recording.op_registry import op


def layer_operands(call: Call) -> tuple[Ref, Any, Any]:
    """Pick the input of a layer, its weight and its bias, which may be None."""
    return call.arguments["input"], call.arguments.get("weight"), call.arguments.get("bias")


def bias_or(tracker: ZeroTracker, weight: Ref, bias: Ref | None, dim: int = 0) -> bool:
    """Say whether this axis of a weight, or the bias added along it, may be other than 0 at removed units."""
    return tracker.may_be_nonzero(weight, dim) or (bias is not None and tracker.may_be_nonzero(bias, 0))


def _linear_zeros(tracker: ZeroTracker, call: Call, axes: Axes) -> NonzeroByAxis:
    """Track zeros: the rows of the weight become the last axis; at a removed index of another the bias
    stays."""
    source, weight, bias = layer_operands(call)
    rest = range(len(axes) - (len(weight.shape) == 2))
    others = [bias is not None or tracker.may_be_nonzero(source, dim) for dim in rest]
    return others if len(others) == len(axes) else [*others, bias_or(tracker, weight, bias)]


def _linear_shape(a: Mapping[str, Any]) -> Tensor | None:
    """Know the shape of a linear layer of contiguous tensors."""
    source, weight, bias = a["input"], a["weight"], a["bias"]
    if not plain(source, weight, bias) or source.dim() < 2 or weight.dim() != 2:
        return None
    if source.shape[-1] != weight.shape[1]:
        # As PyTorch says it, which imports a compiler to do so on the meta device.
        rows = f"{source.numel() // max(source.shape[-1], 1)}x{source.shape[-1]}"
        raise RuntimeError(
            f"mat1 and mat2 shapes cannot be multiplied ({rows} and {weight.shape[1]}x{weight.shape[0]})"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    return empty(source, [*source.shape[:-1], weight.shape[0]])


@op("linear", zeros=_linear_zeros, meta_shape=_linear_shape, whole=True, certain=True, weighs="layer")
def linear(flow: Propagation, call: Call) -> list[Axes]:
    """Sum over the input's last axis and start an axis from the rows of the weight."""
    source, weight, bias = (call.arguments[name] for name in ("input", "weight", "bias"))
    axes = flow.axes(source)
    produced: AxisLabels = FIXED
    if len(weight.shape) == 2:
        produced = flow.axes(weight)[0]
        flow.produce(weight, produced)
    consumed = flow.axes(weight)[-1]
    flow.consume(weight, consumed)
    flow.unify(axes[-1], consumed)
    sum_along(flow, consumed, (weight, -1), (source, -1))
    result: Axes = [*axes[:-1], *([produced] if len(weight.shape) == 2 else [])]
    if isinstance(bias, Ref) and bias.shape:
        flow.unify(produced, flow.axes(bias)[-1])
    flow.macs(*result, consumed)
    return [result]


def factors(call: Call) -> tuple[Ref, Ref, Any]:
    """Pick the two factors of a matrix product and what is added to it, None where nothing is."""
    names = ("mat1", "mat2", "batch1", "batch2", "mat", "vec", "other", "tensor")
    operands = [call.arguments[name] for name in names if isinstance(call.arguments.get(name), Ref)]
    first = call.arguments["self"]
    return (operands[0], operands[1], first) if len(operands) > 1 else (first, operands[0], None)


def _product_zeros(tracker: ZeroTracker, call: Call, axes: Axes) -> NonzeroByAxis:
    """Track zeros: the first factor has the rows, the second the columns, both have the axes in front."""
    a, b, added = factors(call)
    rows, columns, rank = len(a.shape) > 1, len(b.shape) > 1, len(axes)
    front = range(-2, rank - rows - columns - 2)
    made = [all(tracker.broadcast_nonzero(ref, dim - len(front)) for ref in (a, b)) for dim in front]
    made += [tracker.may_be_nonzero(a, -2)] if rows else []
    made += [tracker.may_be_nonzero(b, -1)] if columns else []
    term = [isinstance(added, Ref) and tracker.broadcast_nonzero(added, dim) for dim in range(-rank, 0)]
    return [left or right for left, right in zip(made, term, strict=True)]


# A product of more than two axes decomposes into a reshape, a product and a reshape, which say no more.
@op("matmul", zeros=_product_zeros, whole=True, weighs="product")
@op("mm", "addmm", zeros=_product_zeros, weighs="product")
@op("bmm", "mv", "dot", "vdot", "baddbmm", "addbmm", "addmv", zeros=_product_zeros)
def product(flow: Propagation, call: Call) -> list[Axes]:
    """Follow (..., m, k) times (..., k, n).

    A vector on either side has no m or n. The added term broadcasts to the result.
    """
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
    sum_along(flow, summed_a, (a, -1), (b, -1 if vector_b else -2))
    batch = _batch(flow, a, b)
    # weights that the input chooses are no heads
    made = all(flow.value(ref).data and not flow.value(ref).sources for ref in (a, b))
    if made and any(not axis.fixed for axis in batch):
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
            # what broadcasts goes with any length
            if isinstance(added, Ref) and (not other.fixed or len(other) > 1):
                flow.unify(axis, other)
    return [result]


def sum_along(flow: Propagation, axis: AxisLabels, *factors: tuple[Ref, int]) -> None:
    """Note whether products that are added up along an axis count at removed units.

    ``factors``: the two tensors, each with the dim that the axis is of it. Where both may be other than 0,
    masking is not the same as removal.
    """
    if not axis.fixed and all(flow.may_be_nonzero(ref, dim) for ref, dim in factors):
        flow.inexact(axis, Reason.SUMS_NONZERO)


def _batch(flow: Propagation, a: Ref, b: Ref) -> Axes:
    """List the leading axes of two factors, broadcast against each other."""
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


def _attention_zeros(tracker: ZeroTracker, call: Call, axes: Axes) -> NonzeroByAxis:
    """Track zeros: a softmax of 0 is not 0, but what it weighs is; the positions are those of the query."""
    value, rank = call.arguments["value"], len(axes)
    front = [tracker.broadcast_nonzero(value, dim) for dim in range(-rank, -2)]
    return [*front, True, tracker.may_be_nonzero(value, -1)]


def _attention_shape(a: Mapping[str, Any]) -> Tensor | None:
    """Know the shape of an attention over four axes."""
    query, key, value, mask = (a[name] for name in ("query", "key", "value", "attn_mask"))
    q, k, v = (list(t.shape) for t in (query, key, value))
    # for fake tensors PyTorch has the layout that the device's own kernel gives
    if not query.is_meta or not without_data(query, key, value) or not len(q) == len(k) == len(v) == 4:
        return None
    if q[-1] != k[-1] or k[-2] != v[-2]:
        return None
    grouped = bool(a["enable_gqa"]) and k[1] > 0 and q[1] % k[1] == 0
    if k[:2] != v[:2] or q[0] != k[0] or not (q[1] == k[1] or grouped):
        return None
    scores = [*q[:-1], k[-2]]
    if mask is not None and broadcast(scores, mask.shape) != scores:
        return None
    return empty(query, [*q[:-1], v[-1]])


# Decomposed, the scale would become a bare number.
@op("scaled_dot_product_attention", zeros=_attention_zeros, meta_shape=_attention_shape, whole=True)
def attention(flow: Propagation, call: Call) -> list[Axes]:
    """Follow q (..., H, L, E), k (..., G, S, E), v (..., G, S, V) to (..., H, L, V).

    With ``enable_gqa`` H is a multiple of G.
    """
    query, key, value = (call.arguments[name] for name in ("query", "key", "value"))
    q, k, v = (flow.axes(ref) for ref in (query, key, value))
    flow.unify(q[-1], k[-1])
    sum_along(flow, q[-1], (query, -1), (key, -1))
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
            if size > 1 and len(other) == size:
                # also with a bias that is computed for each head, or for each position
                flow.unify(axis, other)
    # L S (E + V) multiply-adds per head: the axis E + V is q's and v's one after the other
    both = flow.concatenate([q[-1], v[-1]])
    flow.macs(key.shape[-2], *batch, q[-2], both)
    return [[*batch, q[-2], v[-1]]]


def _heads(flow: Propagation, query: Ref, key: Ref, value: Ref) -> Axes:
    """List the leading axes of an attention, in which several queries may share a key."""
    for name, other in zip(flow.axes(key)[:-2], flow.axes(value)[:-2], strict=True):
        flow.unify(name, other)
    grouped = len(query.shape) > 2 and query.shape[-3] != key.shape[-3] and key.shape[-3] > 1
    if not grouped:
        return _batch(flow, query, key)
    axes = flow.axes(query)[:-2]
    outer, _ = flow.split(axes[-1], key.shape[-3])
    flow.unify(outer, flow.axes(key)[-3])
    return axes

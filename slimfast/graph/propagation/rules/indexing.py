"""Follow selections: by position, by a range, by the values of an index tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from slimfast.graph.propagation.axis_labels import FIXED, Axes, AxisLabels
from slimfast.graph.propagation.flow import Propagation
from slimfast.graph.propagation.reasons import Reason
from slimfast.graph.propagation.rules.frozen import unknown
from slimfast.graph.propagation.rules.pointwise import elementwise
from slimfast.graph.recording.calls import Call, Ref
from slimfast.graph.recording.meta_shortcuts import empty, plain
from slimfast.graph.recording.op_registry import entry_of, op


@op("select", selects=True)
def select(flow: Propagation, call: Call) -> list[Axes]:
    """Drop the axis of which one index is taken, and freeze it.

    Not so where the result serves for its shape alone, and the first or last index is there at every length.
    """
    axes = list(flow.axes(call.arguments["self"]))
    axis = axes.pop(call.arguments["dim"])
    if call.arguments["index"] not in (0, -1) or flow.is_used(call.outputs[0]):
        flow.freeze(axis, Reason.ONE_INDEX)
    return [axes]


@op("unbind")
def unbind(flow: Propagation, call: Call) -> list[Axes]:
    """Freeze the axis that is taken apart index by index."""
    axes = list(flow.axes(call.arguments["self"]))
    flow.freeze(axes.pop(call.arguments["dim"]), Reason.INDEX_BY_INDEX)
    return [list(axes) for _ in call.outputs]


@op("slice", selects=True)
def slice_(flow: Propagation, call: Call) -> list[Axes]:
    """Take the labels of a range; a step keeps the runs that it jumps over whole."""
    source = call.arguments["self"]
    axes = list(flow.axes(source))
    dim = call.arguments["dim"] % len(axes)
    axis, length = axes[dim], source.shape[dim]
    start, end, step = slice(call.arguments["start"], call.arguments["end"], call.arguments["step"]).indices(
        length
    )
    if axis.fixed or (start, end, step) == (0, length, 1):
        return [axes]
    if step != 1:
        if end < length or start >= step or length % step:
            axes[dim] = flow.freeze(axis, Reason.EVERY, str(step))
            return [axes]
        # Runs of `step` indices go or stay whole, so that those behind them keep their places in their runs.
        axes[dim], place = flow.split(axis, length // step)
        flow.freeze(place, Reason.EVERY, str(step))
        return [axes]
    # A number that counts from the end is right as long as what is behind it stays.
    if call.arguments["start"] and call.arguments["start"] < 0:
        flow.freeze(axis[start:], Reason.FROM_END)
    elif start:
        flow.constant("start", start, axis[:start])
    if call.arguments["end"] is not None and call.arguments["end"] < 0:
        flow.freeze(axis[end:], Reason.FROM_END)
    elif end < length:
        flow.constant("end", end, axis[:end])
    axes[dim] = axis[start:end]
    return [axes]


@op("flip")
def flip(flow: Propagation, call: Call) -> list[Axes]:
    """Turn the labels of some axes round."""
    axes = list(flow.axes(call.arguments["self"]))
    for dim in call.arguments["dims"]:
        axes[dim] = axes[dim][::-1]
    return [axes]


def _roll_shape(a: Mapping[str, Any]) -> Tensor | None:
    """Know the shape of a contiguous tensor that is shifted."""
    source, dims = a["self"], a["dims"]
    known = len(dims) == len(a["shifts"]) > 0 and all(-source.dim() <= dim < source.dim() for dim in dims)
    return empty(source, source.shape) if known and plain(source) else None


@op("roll", meta_shape=_roll_shape)
def roll(flow: Propagation, call: Call) -> list[Axes]:
    """Freeze the axes that are shifted by a fixed number."""
    axes = list(flow.axes(call.arguments["self"]))
    for dim in call.arguments["dims"] or range(len(axes)):
        flow.freeze(axes[dim], Reason.SHIFTS)
    return [axes]


@op("index", "_unsafe_index", selects=True, masks=True)
def index(flow: Propagation, call: Call) -> list[Axes]:
    """Follow ``self[indices]``: the axes that are indexed stay whole, those of the index tensors pass on.

    Of an axis of which Python says the positions, these stay, and what they are counted over.
    """
    axes, out = chosen(flow, call), call.outputs[0]
    if len(axes) != len(out.shape):
        masked = behind_mask(flow, call)
        return unknown(flow, call) if masked is None else [masked]
    return [
        [
            axis if len(axis) == length else flow.freeze(axis, Reason.TAKES_PART)
            for axis, length in zip(axes, out.shape, strict=True)
        ]
    ]


def chosen(flow: Propagation, call: Call) -> Axes:
    """List the axes of ``self[indices]`` if the indices are positions, or masks of one axis each."""
    source, given = call.arguments["self"], call.arguments["indices"]
    axes = flow.axes(source)
    given = [*given, *[None] * (len(axes) - len(given))]
    at = [dim for dim, ref in enumerate(given) if ref is not None]
    said = call.arguments.get("positions") or []
    frozen = [_taken(flow, axes[dim], said[dim] if dim < len(said) else None) for dim in at]
    tensors = [given[dim] for dim in at]
    kept = [axis for axis, ref in zip(axes, given, strict=True) if ref is None]
    # adjacent index tensors put their axes where they stand, others in front
    first = at[0] if at == list(range(at[0], at[-1] + 1)) else 0
    shape = np.broadcast_shapes(*(ref.shape for ref in tensors))
    own: Axes = [_latest(frozen).of_length(n) for n in shape]
    if len(tensors) == 1 and any(not axis.fixed for axis in flow.axes(tensors[0])):
        own = flow.axes(tensors[0])
    else:
        for ref in tensors:
            for axis in flow.axes(ref):
                flow.freeze(axis, Reason.INDEXES)
    return [*kept[:first], *own, *kept[first:]]


def _taken(flow: Propagation, axis: AxisLabels, positions: Sequence[int] | None) -> AxisLabels:
    """Freeze what must stay of an axis of which some indices are taken, at positions that Python has said or
    (None) at any; return a fixed axis."""
    if not positions:
        return flow.freeze(axis, Reason.BY_VALUE)
    first, last = min(0, *positions), max(-1, *positions)
    fixed = [flow.freeze(axis[: last + 1], Reason.ONE_INDEX)] if last >= 0 else []
    fixed += [flow.freeze(axis[len(axis) + first :], Reason.ONE_INDEX)] if first < 0 else []
    return _latest(fixed)


def _latest(fixed: Axes) -> AxisLabels:
    """Choose, of fixed axes, the one whose reason was found last."""
    return max(fixed, key=lambda axis: axis.reason.number if axis.reason else 0)


def alike(flow: Propagation, ref: Ref) -> int:
    """Count the last axes along which a tensor is the same everywhere, because it was expanded there."""
    while (traced := flow.made_by(ref)) is not None:
        source = traced.call.arguments.get("self")
        if not isinstance(source, Ref):
            return 0
        if traced.call.op == "aten.expand":
            repeated = [n == 1 for n in (*[1] * (len(ref.shape) - len(source.shape)), *source.shape)]
            return next((i for i, one in enumerate(reversed(repeated)) if not one), len(repeated))
        if source.shape != ref.shape or not entry_of(traced.call.op).selects:
            return 0
        ref = source
    return 0


def behind_mask(flow: Propagation, call: Call) -> Axes | None:
    """List the axes of ``self[mask]`` for one mask over several axes, which become one; None where there are
    more indices.

    Axes along which the mask is the same everywhere are chosen whole, and lie inside of that one.
    """
    masks = [(dim, ref) for dim, ref in enumerate(call.arguments["indices"]) if ref is not None]
    if len(masks) > 1:
        return None
    ((at, mask),) = masks
    axes = flow.axes(call.arguments["self"])
    end = at + len(mask.shape)
    whole = alike(flow, mask) if call.op.endswith("index") else 0
    split, places = end - whole, len(mask.shape) - whole
    if not places:
        return None
    frozen = [flow.freeze(a, Reason.TAKES_PART) for a in [*axes[at:split], *flow.axes(mask)[:places]]]
    chosen_rows = _latest(frozen)
    if whole:
        inner = prod(mask.shape[places:])
        chosen_rows = chosen_rows.of_length(call.outputs[0].shape[at] // inner)
        for axis, own in zip(axes[split:end], flow.axes(mask)[places:], strict=True):
            flow.unify(axis, own)
            chosen_rows = flow.merge(chosen_rows, axis)
    return [*axes[:at], chosen_rows, *axes[end:]]


@op("index_select", selects=True)
def index_select(flow: Propagation, call: Call) -> list[Axes]:
    """Freeze the axis that is looked up by value; the axis of the index takes its place."""
    axes = list(flow.axes(call.arguments["self"]))
    dim = call.arguments["dim"]
    flow.freeze(axes[dim], Reason.BY_VALUE)
    own = flow.axes(call.arguments["index"])
    axes[dim] = own[0] if own else FIXED
    return [axes]


@op("gather")
def gather(flow: Propagation, call: Call) -> list[Axes]:
    """Freeze the axis that is looked up by value; the other axes are those of the index."""
    source, positions = call.arguments["self"], call.arguments["index"]
    axes = list(flow.axes(source))
    dim = call.arguments["dim"] % max(len(axes), 1)
    for d, axis in enumerate(flow.axes(positions)):
        if d == dim:
            flow.freeze(axes[d], Reason.BY_VALUE)
        elif source.shape[d] == positions.shape[d]:
            flow.unify(axes[d], axis)
        else:
            flow.freeze(axes[d], Reason.READS_PART)
    return [list(flow.axes(positions))]


@op("embedding", weighs="layer")
def embedding(flow: Propagation, call: Call) -> list[Axes]:
    """Freeze the rows, which are looked up by value; the columns are the channels."""
    weight = call.arguments["weight"]
    rows, columns = flow.axes(weight)
    flow.produce(weight, columns)
    flow.freeze(rows, Reason.BY_VALUE)
    return [[*flow.axes(call.arguments["indices"]), columns]]


@op("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(flow: Propagation, call: Call) -> list[Axes]:
    """Follow rows that are looked up and summed up: the result is (bags, columns), then come tables of
    positions."""
    weight = call.arguments["weight"]
    rows, columns = flow.axes(weight)
    flow.produce(weight, columns)
    flow.freeze(rows, Reason.BY_VALUE)
    tables: list[Axes] = [[FIXED] * len(out.shape) for out in call.outputs[1:3]]
    # where each maximum was found has a column for each, if there are any
    return [[FIXED, columns], *tables, [FIXED, columns][: len(call.outputs[3].shape)]]


@op("sort", "topk", "argsort", "argmax", "argmin", "max", "min", "kthvalue", "median", "mode")
@op("cumsum", "cumprod", "logcumsumexp")
def along(flow: Propagation, call: Call) -> list[Axes]:
    """Freeze the axis along which order or number matters: sorting, choosing, running sums."""
    source = call.arguments["self"]
    axes = list(flow.axes(source))
    dim = call.arguments.get("dim")
    if "other" in call.arguments:
        return elementwise(flow, call)
    frozen = [flow.freeze(axis) for axis in (axes if dim is None else [axes[dim]])]
    results: list[Axes] = []
    for out in call.outputs:
        if dim is None:
            results.append([FIXED] * len(out.shape))
        elif len(out.shape) == len(axes):
            changed = list(axes)
            changed[dim] = frozen[0]
            results.append(changed)
        else:
            results.append([axis for d, axis in enumerate(axes) if d != dim % len(axes)])
    return results

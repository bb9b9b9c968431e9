"""Follow writes: some places of a tensor are replaced by, or added to, those of another."""

from __future__ import annotations

from collections.abc import Iterable

from slimfast.graph.propagation.axis_labels import Axes, AxisLabels
from slimfast.graph.propagation.flow import Propagation
from slimfast.graph.propagation.label_matrices import Mark
from slimfast.graph.propagation.reasons import Reason
from slimfast.graph.propagation.rules.frozen import unknown
from slimfast.graph.propagation.rules.indexing import alike, behind_mask, chosen
from slimfast.graph.propagation.zeros import all_nonzero
from slimfast.graph.recording.calls import Call, Ref
from slimfast.graph.recording.op_registry import op


@op("index_add", "index_copy", "index_reduce", "index_fill", zeros=all_nonzero)
def write_slices(flow: Propagation, call: Call) -> list[Axes]:
    """Write slices of ``self`` along ``dim``: the other axes are those of what is written."""
    written = _written(call)
    if written is None:
        return unknown(flow, call)
    axes = list(flow.axes(call.arguments["self"]))
    dim = call.arguments["dim"] % len(axes)
    axes[dim] = flow.freeze(axes[dim], Reason.BY_VALUE)
    for axis in flow.axes(call.arguments["index"]):
        flow.freeze(axis, Reason.WRITES_THERE)
    for source in written:
        own = flow.axes(source)
        flow.freeze(own[dim], Reason.WRITES_ELSEWHERE)
        _join(flow, [(axes[d], own[d]) for d in range(len(axes)) if d != dim])
    return [axes]


@op("scatter", "scatter_add", "scatter_reduce", zeros=all_nonzero)
def scatter(flow: Propagation, call: Call) -> list[Axes]:
    """Write elements at ``index`` along ``dim``: the other axes are one with those of the index."""
    target, places, written = call.arguments["self"], call.arguments["index"], _written(call)
    if written is None:
        return unknown(flow, call)
    axes = list(flow.axes(target))
    dim = call.arguments["dim"] % len(axes)
    axes[dim] = flow.freeze(axes[dim], Reason.BY_VALUE)
    for d, (axis, length) in enumerate(zip(flow.axes(places), places.shape, strict=True)):
        for ref in written if d == dim else [target, *written]:
            own = flow.axes(ref)[d]
            if ref.shape[d] == length:
                _join(flow, [(own, axis)])
            else:
                flow.freeze(own, Reason.WRITES_PART)
                flow.freeze(axis, Reason.WRITES_ALONG)
    return [axes]


@op("index_put", "_index_put_impl", "_unsafe_index_put", zeros=all_nonzero, masks=True)
def index_put(flow: Propagation, call: Call) -> list[Axes]:
    """Follow ``self[indices] = values``: the axes of the values are those of what is chosen, the last ones
    first."""
    target, source = call.arguments["self"], call.arguments["values"]
    given = [(dim, ref) for dim, ref in enumerate(call.arguments["indices"]) if ref is not None]
    axes = chosen(flow, call)
    if any(_may_be_mask(target, dim, ref) for dim, ref in given):
        behind = behind_mask(flow, call)
        if behind is None:
            return unknown(flow, call)
        axes = behind
    for axis, own, size in zip(axes[::-1], flow.axes(source)[::-1], source.shape[::-1], strict=False):
        if size > 1:
            _join(flow, [(axis, own)])
    return [list(flow.axes(target))]


@op("masked_scatter", zeros=all_nonzero)
def masked_scatter(flow: Propagation, call: Call) -> list[Axes]:
    """Write the elements of ``source`` one after the other where the mask says: whole rows of it, if the mask
    is the same along the last axes and these are as long in the source."""
    target, mask, source = (call.arguments[name] for name in ("self", "mask", "source"))
    # a mask is broadcast to the target
    ones = next((i for i, n in enumerate(reversed(mask.shape)) if n > 1), len(mask.shape))
    rows = min(max(ones, alike(flow, mask)), len(target.shape) - 1)
    if len(mask.shape) > len(target.shape) or not rows or source.shape[-rows:] != target.shape[-rows:]:
        return unknown(flow, call)
    axes = list(flow.axes(target))
    for ref in (target, mask, source):
        own = flow.axes(ref)
        for dim in range(len(own) - rows):
            frozen = flow.freeze(own[dim], Reason.WRITES_THERE)
            if ref is target:
                axes[dim] = frozen
    _join(flow, zip(axes[-rows:], flow.axes(source)[-rows:], strict=True))
    if mask.shape[-rows:] == target.shape[-rows:]:
        _join(flow, zip(axes[-rows:], flow.axes(mask)[-rows:], strict=True))
    return [axes]


def _may_be_mask(target: Ref, dim: int, places: Ref) -> bool:
    """Say whether an index of several axes has the lengths of a mask over ``target``."""
    return len(places.shape) > 1 and places.shape == target.shape[dim : dim + len(places.shape)]


def _written(call: Call) -> list[Ref] | None:
    """List the tensor that is written: none where it is zeros; None for other numbers."""
    source = next(call.arguments[name] for name in ("source", "src", "value") if name in call.arguments)
    if isinstance(source, Ref):
        return [source] if source.shape else None
    return [] if source == 0 else None


def _join(flow: Propagation, pairs: Iterable[tuple[AxisLabels, AxisLabels]]) -> None:
    """Join axes of the target with those of what is written into it, as an addition does."""
    for a, b in pairs:
        if not a.fixed and not b.fixed and len(a) != len(b):
            # as many as a mask chooses, and nobody knows which
            flow.freeze(a)
            flow.freeze(b)
            continue
        differ = flow.differ(a, b)
        flow.unify(a, b)
        if differ:
            flow.mark(a, Mark.ADDED)

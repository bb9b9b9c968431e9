"""Follow reductions and softmax, which compute statistics along an axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from slimfast.graph.propagation.axis_labels import FIXED, Axes
from slimfast.graph.propagation.flow import Propagation
from slimfast.graph.propagation.reasons import Reason
from slimfast.graph.propagation.zeros import all_nonzero
from slimfast.graph.recording.calls import Call, Ref
from slimfast.graph.recording.meta_shortcuts import empty, plain
from slimfast.graph.recording.op_registry import op


def reduced(flow: Propagation, call: Call, source: Ref) -> tuple[Axes, Axes]:
    """List the axes that a reduction sums over, and the axes of its result."""
    axes = flow.axes(source)
    dims = call.arguments.get("dim")
    if dims is None or dims == []:
        dims = range(len(axes))
    gone = {dim % max(len(axes), 1) for dim in ([dims] if isinstance(dims, int) else dims)}
    out: Axes = []
    for dim, axis in enumerate(axes):
        if dim not in gone:
            out.append(axis)
        elif call.arguments.get("keepdim"):
            out.append(FIXED)
    return [axes[dim] for dim in sorted(gone)], out


def _mean_shape(a: Mapping[str, Any]) -> Tensor | None:
    """Know the shape of a mean of a contiguous tensor."""
    source, dims = a["self"], a.get("dim")
    if not plain(source) or not dims or a.get("dtype") is not None:
        return None
    gone = {dim % source.dim() for dim in dims} if source.dim() else set()
    if len(gone) != len(dims) or any(not -source.dim() <= dim < source.dim() for dim in dims):
        return None
    kept = [1 if d in gone else n for d, n in enumerate(source.shape) if a["keepdim"] or d not in gone]
    return empty(source, kept)


@op("mean", meta_shape=_mean_shape, certain=True)
@op("logsumexp", zeros=all_nonzero)
@op("var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm")
@op("sum", "nansum", "prod", "amax", "amin", "aminmax")
def statistic(flow: Propagation, call: Call) -> list[Axes]:
    """Allow fewer channels, though their statistic is another one and no longer that of the masked network.

    Even a sum: what a function makes of a masked channel need not be 0.
    """
    source = call.arguments["self"]
    gone, out = reduced(flow, call, source)
    for axis in gone:
        flow.inexact(axis, Reason.STATISTIC)
    return [list(out) for _ in call.outputs]


@op("all", zeros=all_nonzero)
@op("any", "count_nonzero")
def reduction(flow: Propagation, call: Call) -> list[Axes]:
    """Freeze the axes that are reduced to a yes, a no or a count."""
    source = call.arguments["self"]
    gone, out = reduced(flow, call, source)
    for axis in gone:
        flow.freeze(axis, Reason.REDUCES)
    return [list(out) for _ in call.outputs]


@op("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax", zeros=all_nonzero)
def softmax(flow: Propagation, call: Call) -> list[Axes]:
    """Allow fewer channels, as in attention between channels, though they make another softmax."""
    axes = list(flow.axes(call.arguments["self"]))
    flow.inexact(axes[call.arguments["dim"]], Reason.RUNS)
    return [axes]

"""Follow the product of a mixture of experts: rows sorted by expert, each times its expert's matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from slimfast.graph.propagation.axis_labels import Axes
from slimfast.graph.propagation.flow import Propagation
from slimfast.graph.propagation.reasons import Reason
from slimfast.graph.propagation.rules.frozen import unknown
from slimfast.graph.propagation.rules.products import sum_along
from slimfast.graph.propagation.zeros import NonzeroByAxis, ZeroTracker
from slimfast.graph.recording.calls import Call
from slimfast.graph.recording.meta_shortcuts import empty, without_data
from slimfast.graph.recording.op_registry import op


def _grouped_zeros(tracker: ZeroTracker, call: Call, axes: Axes) -> NonzeroByAxis:
    """Track zeros: the first factor has the rows, the second the columns."""
    rows, columns = (call.arguments["self"], 0), (call.arguments["mat2"], -1)
    return [tracker.may_be_nonzero(*rows), tracker.may_be_nonzero(*columns)][: len(axes)]


def _grouped_shape(a: Mapping[str, Any]) -> Tensor | None:
    """Know the shape for rows times one matrix an expert; PyTorch describes it in bfloat16 alone."""
    rows, experts = a["self"], a["mat2"]
    if rows.dim() != 2 or experts.dim() != 3 or a.get("offs") is None or a.get("out_dtype") is not None:
        return None
    if not without_data(rows, experts):
        return None
    if rows.shape[1] != experts.shape[1] or len(a["offs"]) != len(experts):
        return None
    return empty(rows, [len(rows), experts.shape[2]])


@op("_grouped_mm", zeros=_grouped_zeros, meta_shape=_grouped_shape)
def grouped_product(flow: Propagation, call: Call) -> list[Axes]:
    """Follow (rows, k) times (experts, k, n); where the parts are others (a gradient's), leave all alone."""
    rows, experts = call.arguments["self"], call.arguments["mat2"]
    if len(rows.shape) != 2 or len(experts.shape) != 3 or call.arguments.get("bias") is not None:
        return unknown(flow, call)
    (row, summed), (expert, consumed, produced) = flow.axes(rows), flow.axes(experts)
    flow.produce(experts, produced)
    flow.consume(experts, consumed)
    flow.unify(summed, consumed)
    sum_along(flow, summed, (experts, 1), (rows, 1))
    # offsets say where the rows of each expert end
    for axis in (row, expert, *flow.axes(call.arguments["offs"])):
        flow.freeze(axis, Reason.NO_RULE)
    flow.macs(row, summed, produced)
    return [[row, produced]]

"""Normalisations, reductions and softmax: operations that compute statistics along an axis."""

from __future__ import annotations

from slimfast.graph.propagation.axis_labels import FIXED, Axes, AxisLabels
from slimfast.graph.propagation.flow import Propagation
from slimfast.graph.propagation.label_matrices import Mark
from slimfast.graph.propagation.reasons import Reason
from slimfast.graph.propagation.rules.registry import rule
from slimfast.graph.recording.forward import Call, Ref

_BATCH = (
    *("native_batch_norm", "batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
    *("cudnn_batch_norm", "miopen_batch_norm", "_batch_norm_no_update", "_batch_norm_with_update"),
)
_LAYER = ("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm")
_GROUP = ("native_group_norm", "group_norm")
NORMS = (*_BATCH, *_LAYER, *_GROUP)


@rule(*_BATCH)
def batch_norm(flow: Propagation, call: Call) -> list[Axes]:
    source = call.arguments["input"]
    axes = list(flow.axes(source))
    tensors = [call.arguments.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
    for ref in tensors:
        if isinstance(ref, Ref):
            flow.unify(axes[1], flow.axes(ref)[0])
    if call.arguments.get("training") or not isinstance(call.arguments.get("running_mean"), Ref):
        for axis in (axes[0], *axes[2:]):
            flow.inexact(axis, Reason.STATISTICS)
    return [axes, *(_statistics(out, axes[1], source.shape[1]) for out in call.outputs[1:])]


def _statistics(out: Ref, channels: AxisLabels, length: int) -> Axes:
    return [channels if n == length and n > 1 else FIXED for n in out.shape]


@rule(*_LAYER)
def layer_norm(flow: Propagation, call: Call) -> list[Axes]:
    source, shape = call.arguments["input"], call.arguments["normalized_shape"]
    axes = list(flow.axes(source))
    first = len(axes) - len(shape)
    for name in ("weight", "bias"):
        ref = call.arguments.get(name)
        if isinstance(ref, Ref):
            for dim, axis in enumerate(flow.axes(ref)):
                flow.unify(axes[first + dim], axis)
    for dim, size in enumerate(shape):
        flow.inexact(axes[first + dim], Reason.LAYER_NORM)
        flow.constant(f"normalized_shape[{dim}]", size, axes[first + dim])
    rest: Axes = [*axes[:first], *[FIXED] * len(shape)]
    return [axes, *(rest for _ in call.outputs[1:])]


@rule(*_GROUP)
def group_norm(flow: Propagation, call: Call) -> list[Axes]:
    """Whole groups may go. With a single group it is a layer norm over the channels."""
    source = call.arguments["input"]
    groups = call.arguments["group"] if "group" in call.arguments else call.arguments["num_groups"]
    axes = list(flow.axes(source))
    channels = source.shape[1]
    for name in ("weight", "bias"):
        ref = call.arguments.get(name)
        if isinstance(ref, Ref):
            flow.unify(axes[1], flow.axes(ref)[0])
    per_group: AxisLabels = FIXED
    if groups == 1:
        flow.inexact(axes[1], Reason.ONE_GROUP_NORM)
    elif groups < channels:
        outer, inner = flow.split(axes[1], groups)
        flow.freeze(inner, Reason.GROUP_NORM)
        flow.mark(outer, Mark.BLOCK)
        flow.constant("group", groups, outer)
        per_group = outer
    else:
        flow.constant("group", groups, axes[1])
        per_group = axes[1]
    return [axes, *([FIXED, per_group] for _ in call.outputs[1:])]


def reduced(flow: Propagation, call: Call, source: Ref) -> tuple[Axes, Axes]:
    """The axes a reduction sums over and the axes of its result."""
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


@rule("mean", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm", "sum", "nansum", "prod",
      "amax", "amin", "aminmax", "logsumexp")  # fmt: skip
def statistic(flow: Propagation, call: Call) -> list[Axes]:
    """The statistic of fewer channels is another statistic: allowed, but no longer the masked network.

    Even a sum: what a function makes of a masked channel need not be 0.
    """
    source = call.arguments["self"]
    gone, out = reduced(flow, call, source)
    for axis in gone:
        flow.inexact(axis, Reason.STATISTIC)
    return [list(out) for _ in call.outputs]


@rule("any", "all", "count_nonzero")
def reduction(flow: Propagation, call: Call) -> list[Axes]:
    source = call.arguments["self"]
    gone, out = reduced(flow, call, source)
    for axis in gone:
        flow.freeze(axis, Reason.REDUCES)
    return [list(out) for _ in call.outputs]


@rule("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax")
def softmax(flow: Propagation, call: Call) -> list[Axes]:
    """Like a layer norm: over fewer channels, as in attention between channels, it is another function."""
    axes = list(flow.axes(call.arguments["self"]))
    flow.inexact(axes[call.arguments["dim"]], Reason.RUNS)
    return [axes]


@rule("_weight_norm_interface", "_weight_norm")
def weight_norm(flow: Propagation, call: Call) -> list[Axes]:
    """g * v / |v| with one norm per index of ``dim``: the other axes enter the norm."""
    direction, scale, dim = call.arguments["v"], call.arguments["g"], call.arguments["dim"]
    axes = list(flow.axes(direction))
    for d, axis in enumerate(axes):
        if d == dim % len(axes):
            flow.unify(axis, flow.axes(scale)[d])
        else:
            flow.inexact(axis, Reason.WEIGHT_NORM)
    return [axes, *(list(flow.axes(scale)) for _ in call.outputs[1:])]

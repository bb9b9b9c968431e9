"""Normalisations, reductions and softmax: operations that compute statistics along an axis."""

from __future__ import annotations

from slimfast.graph.propagation.flow import FIXED, Flow, Way
from slimfast.graph.propagation.label_matrices import BLOCK
from slimfast.graph.propagation.rules.registry import Ways, rule
from slimfast.graph.recording.forward import Call, Ref

_BATCH = (
    *("native_batch_norm", "batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
    *("cudnn_batch_norm", "miopen_batch_norm", "_batch_norm_no_update", "_batch_norm_with_update"),
)
_LAYER = ("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm")
_GROUP = ("native_group_norm", "group_norm")
NORMS = (*_BATCH, *_LAYER, *_GROUP)


@rule(*_BATCH)
def batch_norm(flow: Flow, call: Call) -> list[Ways]:
    source = call.arguments["input"]
    ways = list(flow.ways(source))
    tensors = [call.arguments.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
    for ref in tensors:
        if isinstance(ref, Ref):
            flow.unify(ways[1], flow.ways(ref)[0])
    if call.arguments.get("training") or not isinstance(call.arguments.get("running_mean"), Ref):
        for way in (ways[0], *ways[2:]):
            flow.inexact(way, f"{call.op} takes statistics along it")
    return [ways, *(_statistics(out, ways[1], source.shape[1]) for out in call.outputs[1:])]


def _statistics(out: Ref, channels: Way, length: int) -> Ways:
    return [channels if n == length and n > 1 else FIXED for n in out.shape]


@rule(*_LAYER)
def layer_norm(flow: Flow, call: Call) -> list[Ways]:
    source, shape = call.arguments["input"], call.arguments["normalized_shape"]
    ways = list(flow.ways(source))
    first = len(ways) - len(shape)
    for name in ("weight", "bias"):
        ref = call.arguments.get(name)
        if isinstance(ref, Ref):
            for dim, way in enumerate(flow.ways(ref)):
                flow.unify(ways[first + dim], way)
    for dim, size in enumerate(shape):
        flow.inexact(ways[first + dim], "a layer norm takes its mean and variance along it")
        flow.constant(f"normalized_shape[{dim}]", size, ways[first + dim], size)
    rest: Ways = [*ways[:first], *[FIXED] * len(shape)]
    return [ways, *(rest for _ in call.outputs[1:])]


@rule(*_GROUP)
def group_norm(flow: Flow, call: Call) -> list[Ways]:
    """Whole groups may go. With a single group it is a layer norm over the channels."""
    source = call.arguments["input"]
    groups = call.arguments["group"] if "group" in call.arguments else call.arguments["num_groups"]
    ways = list(flow.ways(source))
    channels = source.shape[1]
    for name in ("weight", "bias"):
        ref = call.arguments.get(name)
        if isinstance(ref, Ref):
            flow.unify(ways[1], flow.ways(ref)[0])
    per_group: Way = FIXED
    if groups == 1:
        flow.inexact(ways[1], "a group norm of one group takes its mean and variance along it")
    elif groups < channels:
        outer, inner = flow.split(ways[1], groups, channels // groups)
        flow.freeze(inner, "a group norm takes its mean and variance along it")
        flow.mark(outer, BLOCK)
        flow.constant("group", groups, outer, groups)
        per_group = outer
    else:
        flow.constant("group", groups, ways[1], groups)
        per_group = ways[1]
    return [ways, *([FIXED, per_group] for _ in call.outputs[1:])]


def reduced(flow: Flow, call: Call, source: Ref) -> tuple[list[Way], Ways]:
    """The axes a reduction sums over and the axes of its result."""
    ways = flow.ways(source)
    dims = call.arguments.get("dim")
    if dims is None or dims == []:
        dims = range(len(ways))
    gone = {dim % max(len(ways), 1) for dim in ([dims] if isinstance(dims, int) else dims)}
    out: Ways = []
    for dim, way in enumerate(ways):
        if dim not in gone:
            out.append(way)
        elif call.arguments.get("keepdim"):
            out.append(FIXED)
    return [ways[dim] for dim in sorted(gone)], out


@rule("mean", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm", "sum", "nansum", "prod",
      "amax", "amin", "aminmax", "logsumexp")  # fmt: skip
def statistic(flow: Flow, call: Call) -> list[Ways]:
    """The statistic of fewer channels is another statistic: allowed, but no longer the masked network.

    Even a sum: what a function makes of a masked channel need not be 0.
    """
    source = call.arguments["self"]
    gone, out = reduced(flow, call, source)
    for way in gone:
        flow.inexact(way, f"{call.op} takes a statistic along it")
    return [list(out) for _ in call.outputs]


@rule("any", "all", "count_nonzero")
def reduction(flow: Flow, call: Call) -> list[Ways]:
    source = call.arguments["self"]
    gone, out = reduced(flow, call, source)
    for way in gone:
        flow.freeze(way, f"{call.op} reduces it")
    return [list(out) for _ in call.outputs]


@rule("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax")
def softmax(flow: Flow, call: Call) -> list[Ways]:
    """Like a layer norm: over fewer channels, as in attention between channels, it is another function."""
    ways = list(flow.ways(call.arguments["self"]))
    flow.inexact(ways[call.arguments["dim"]], f"{call.op} runs along it")
    return [ways]


@rule("_weight_norm_interface", "_weight_norm")
def weight_norm(flow: Flow, call: Call) -> list[Ways]:
    """g * v / |v| with one norm per index of ``dim``: the other axes enter the norm."""
    direction, scale, dim = call.arguments["v"], call.arguments["g"], call.arguments["dim"]
    ways = list(flow.ways(direction))
    for d, way in enumerate(ways):
        if d == dim % len(ways):
            flow.unify(way, flow.ways(scale)[d])
        else:
            flow.inexact(way, "a weight norm takes its norm along it")
    return [ways, *(list(flow.ways(scale)) for _ in call.outputs[1:])]

"""Follow bilinear forms and distances, which sum products or differences of all pairs over an axis."""

from __future__ import annotations

from slimfast.graph.propagation.axis_labels import FIXED, Axes, first_free
from slimfast.graph.propagation.flow import Propagation
from slimfast.graph.propagation.reasons import Reason
from slimfast.graph.propagation.zeros import all_nonzero
from slimfast.graph.recording.calls import Call
from slimfast.graph.recording.op_registry import op


@op("_trilinear")
def trilinear(flow: Propagation, call: Call) -> list[Axes]:
    """Follow a product of three tensors, summed over some axes.

    Each is given axes of length 1 first, as the arguments say. A bilinear layer has its weight (out, in1,
    in2) among them.
    """
    refs = [call.arguments[name] for name in ("i1", "i2", "i3")]
    operands: list[Axes] = []
    for ref, name in zip(refs, ("expand1", "expand2", "expand3"), strict=True):
        own = list(flow.axes(ref))
        for dim in call.arguments[name]:
            own.insert(dim, FIXED)
        operands.append(own)
    result: Axes = []
    lengths: Axes = []
    for dim, met in enumerate(zip(*operands, strict=True)):
        length = max(map(len, met))
        full = [(ref, axis) for ref, axis in zip(refs, met, strict=True) if len(axis) == length]
        first = first_free((axis for _, axis in full), FIXED.of_length(length))
        for _, axis in full:
            flow.unify(first, axis)
        lengths.append(first)
        weights = [ref for ref, _ in full if flow.value(ref).sources]
        for ref in weights:
            (flow.consume if dim in call.arguments["sumdim"] else flow.produce)(ref, first)
        if dim not in call.arguments["sumdim"]:
            result.append(first)
        elif not weights:
            flow.inexact(first, Reason.SUMS)
    flow.macs(*lengths)
    return [result]


@op("_cdist_forward", "_euclidean_dist", zeros=all_nonzero)
def distances(flow: Propagation, call: Call) -> list[Axes]:
    """Follow distances from (..., P, M) and (..., R, M) to (..., P, R): fewer coordinates make other
    distances."""
    a, b = (flow.axes(call.arguments[name]) for name in ("x1", "x2"))
    flow.unify(a[-1], b[-1])
    flow.inexact(a[-1], Reason.NORM)
    for name in ("x1", "x2"):
        ref = call.arguments[name]
        flow.produce(ref, flow.axes(ref)[-2])
        flow.consume(ref, flow.axes(ref)[-1])
    batch: Axes = [FIXED] * (len(call.outputs[0].shape) - 2)
    for axis in (*a[:-2], *b[:-2]):
        flow.freeze(axis, Reason.REPEATS)
    return [[*batch, a[-2], b[-2]]]

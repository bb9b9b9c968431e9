"""Bilinear forms and distances: sums over an axis of products or differences of all pairs."""

from __future__ import annotations

from slimfast.graph.propagation.flow import FIXED, Flow, Way
from slimfast.graph.propagation.rules.registry import Ways, rule
from slimfast.graph.recording.forward import Call


@rule("_trilinear")
def trilinear(flow: Flow, call: Call) -> list[Ways]:
    """The product of three tensors, given axes of length 1 where told, summed over some axes: a bilinear
    layer has a weight (out, in1, in2) among them."""
    refs = [call.arguments[name] for name in ("i1", "i2", "i3")]
    axes: list[list[tuple[Way, int]]] = []
    for ref, name in zip(refs, ("expand1", "expand2", "expand3"), strict=True):
        own = list(zip(flow.ways(ref), ref.shape, strict=True))
        for dim in call.arguments[name]:
            own.insert(dim, (FIXED, 1))
        axes.append(own)
    result: Ways = []
    spans: list[tuple[Way, int]] = []
    for dim, met in enumerate(zip(*axes, strict=True)):
        length = max(n for _, n in met)
        full = [(ref, way) for ref, (way, n) in zip(refs, met, strict=True) if n == length]
        first = next((way for _, way in full if not isinstance(way, int)), FIXED)
        for _, way in full:
            flow.unify(first, way)
        spans.append((first, length))
        weights = [ref for ref, _ in full if flow.value(ref).sources]
        for ref in weights:
            (flow.consume if dim in call.arguments["sumdim"] else flow.produce)(ref, first)
        if dim not in call.arguments["sumdim"]:
            result.append(first)
        elif not weights:
            flow.inexact(first, f"{call.op} sums over it")
    flow.macs(*spans)
    return [result]


@rule("_cdist_forward", "_euclidean_dist")
def distances(flow: Flow, call: Call) -> list[Ways]:
    """(..., P, M) and (..., R, M) to (..., P, R): over fewer coordinates it is another distance."""
    a, b = (flow.ways(call.arguments[name]) for name in ("x1", "x2"))
    flow.unify(a[-1], b[-1])
    flow.inexact(a[-1], f"{call.op} takes a norm along it")
    for name in ("x1", "x2"):
        ref = call.arguments[name]
        flow.produce(ref, flow.ways(ref)[-2])
        flow.consume(ref, flow.ways(ref)[-1])
    batch: Ways = [FIXED] * (len(call.outputs[0].shape) - 2)
    for way in (*a[:-2], *b[:-2]):
        flow.freeze(way, f"{call.op} runs for each of it")
    return [[*batch, a[-2], b[-2]]]

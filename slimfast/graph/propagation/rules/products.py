"""Convolutions, matrix products and attention: one axis is summed over, another starts."""

from __future__ import annotations

from math import prod
from typing import Any

from slimfast.graph.propagation.flow import FIXED, Flow, Way
from slimfast.graph.propagation.label_matrices import BLOCK, HEAD, HEAD_DIM, SCALED
from slimfast.graph.propagation.rules.pointwise import align
from slimfast.graph.propagation.rules.registry import Ways, rule
from slimfast.graph.recording.forward import Call, Ref

DEFAULT_SCALE = "the default scale of attention depends on their number"


CONVOLUTIONS = ("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution")
PRODUCTS = ("mm", "bmm", "matmul", "mv", "dot", "vdot", "addmm", "baddbmm", "addbmm", "addmv")


@rule(*CONVOLUTIONS)
def convolution(flow: Flow, call: Call) -> list[Ways]:
    """Channels are (groups, positions in a group) on both sides; the weight has all outputs and one group's
    inputs, or, transposed, all inputs and one group's outputs. A filter of one tap mixes nothing along its
    axis."""
    source, weight = call.arguments["input"], call.arguments["weight"]
    bias, groups = call.arguments.get("bias"), call.arguments["groups"]
    transposed = bool(call.arguments.get("transposed", False))
    out = call.outputs[0]
    taps = len(weight.shape) - 2
    at = len(source.shape) - taps - 1
    ways = flow.ways(source)
    still = [_still(call, source, out, dim) for dim in range(-taps, 0)]
    for way, stays in zip(ways[at + 1 :], still, strict=True):
        if not stays:
            flow.freeze(way, f"{call.op} slides along it")
    channels = _channels(flow, call, (ways[at], source.shape[at]), weight, transposed)
    if isinstance(bias, Ref):
        flow.unify(channels, flow.ways(bias)[0])
    weight_ways = flow.ways(weight)
    shared = (source if transposed else out).shape
    positions = [
        (way, n) if stays else n
        for way, n, stays in zip(ways[at + 1 :], shared[at + 1 :], still, strict=True)
    ]
    flow.macs(
        prod(weight.shape[2:]),
        *positions,
        *zip(ways[:at], source.shape[:at], strict=True),
        (weight_ways[0], weight.shape[0]),
        (weight_ways[1], weight.shape[1]),
    )
    if groups > 1 and not isinstance(channels, int):
        flow.constant("groups", groups, flow.split(channels, groups, out.shape[at] // groups)[0], groups)
    after = [way if stays else FIXED for way, stays in zip(ways[at + 1 :], still, strict=True)]
    return [[*ways[:at], channels, *after]]


def _still(call: Call, source: Ref, out: Ref, dim: int) -> bool:
    """Whether each index along this axis is made of the one at its own place alone."""
    settings = [(call.arguments[name], value) for name, value in (("stride", 1), ("padding", 0))]
    alone = all(given[dim if len(given) > 1 else 0] == value for given, value in settings)
    return alone and call.arguments["weight"].shape[dim] == 1 and source.shape[dim] == out.shape[dim]


def _channels(flow: Flow, call: Call, incoming: tuple[Way, int], weight: Ref, transposed: bool) -> Way:
    """Join the incoming channels with the weight's and return the outgoing ones."""
    groups, source = call.arguments["groups"], call.arguments["input"]
    at = len(source.shape) - len(weight.shape) + 1
    way, length = incoming
    first, second = flow.ways(weight)[:2]
    if groups == 1:
        consumed, produced = (first, second) if transposed else (second, first)
        flow.produce(weight, produced)
        flow.consume(weight, consumed)
        flow.unify(way, consumed)
        _summed(flow, consumed, (weight, 0 if transposed else 1), (source, at))
        return produced
    if transposed:
        flow.consume(weight, first)
        flow.produce(weight, second)
        flow.unify(way, first)
        outer, _ = flow.split(first, groups, length // groups)
        flow.mark(outer, BLOCK)
        return flow.merge(outer, groups, second, weight.shape[1])
    # a depthwise filter scales the channel it is given; it makes no new one
    if not (groups == length == weight.shape[0] and not isinstance(way, int)):
        flow.produce(weight, first)
    flow.consume(weight, second)
    outer, inner = flow.split(way, groups, length // groups)
    own_outer, _ = flow.split(first, groups, weight.shape[0] // groups)
    if groups < length:
        flow.mark(outer, BLOCK)
    flow.unify(outer, own_outer)
    flow.unify(inner, second)
    _summed(flow, second, (weight, 1), (source, at))
    return first


@rule("linear")
def linear(flow: Flow, call: Call) -> list[Ways]:
    source, weight, bias = (call.arguments[name] for name in ("input", "weight", "bias"))
    ways = flow.ways(source)
    produced: Way = FIXED
    if len(weight.shape) == 2:
        produced = flow.ways(weight)[0]
        flow.produce(weight, produced)
    consumed = flow.ways(weight)[-1]
    flow.consume(weight, consumed)
    flow.unify(ways[-1], consumed)
    _summed(flow, consumed, (weight, -1), (source, -1))
    result: Ways = [*ways[:-1], *([produced] if len(weight.shape) == 2 else [])]
    if isinstance(bias, Ref) and bias.shape:
        flow.unify(produced, flow.ways(bias)[-1])
    lengths = [*source.shape[:-1], weight.shape[0] if len(weight.shape) == 2 else 1]
    flow.macs(*zip(result, lengths, strict=False), (consumed, source.shape[-1]))
    return [result]


def factors(call: Call) -> tuple[Ref, Ref, Any]:
    """The two factors of a matrix product and what is added to it, None where nothing is."""
    names = ("mat1", "mat2", "batch1", "batch2", "mat", "vec", "other", "tensor")
    operands = [call.arguments[name] for name in names if isinstance(call.arguments.get(name), Ref)]
    first = call.arguments["self"]
    return (operands[0], operands[1], first) if len(operands) > 1 else (first, operands[0], None)


@rule(*PRODUCTS)
def product(flow: Flow, call: Call) -> list[Ways]:
    """(..., m, k) times (..., k, n); a vector on either side has no m or n. The added term broadcasts to the
    result."""
    a, b, added = factors(call)
    vector_a, vector_b = len(a.shape) == 1, len(b.shape) == 1
    ways_a, ways_b = flow.ways(a), flow.ways(b)
    summed_a, summed_b = ways_a[-1], ways_b[-1 if vector_b else -2]
    rows: Ways = [] if vector_a else [ways_a[-2]]
    columns: Ways = [] if vector_b else [ways_b[-1]]
    for ref, summed, own in ((b, summed_b, columns), (a, summed_a, rows)):
        for way in own:
            flow.produce(ref, way)
        flow.consume(ref, summed)
    flow.unify(summed_a, summed_b)
    _summed(flow, summed_a, (a, -1), (b, -1 if vector_b else -2))
    batch, sizes = _batch(flow, a, b)
    if flow.value(a).data and flow.value(b).data and any(not isinstance(way, int) for way in batch):
        for way in batch:
            flow.mark(way, HEAD)
        for way in (summed_a, *rows, *columns):
            flow.mark(way, HEAD_DIM)
    m = () if vector_a else ((rows[0], a.shape[-2]),)
    n = () if vector_b else ((columns[0], b.shape[-1]),)
    flow.macs(*zip(batch, sizes, strict=True), *m, (summed_a, a.shape[-1]), *n)
    result: Ways = [*batch, *rows, *columns]
    if added is not None:
        if call.op == "aten.addbmm":
            for way in batch:
                flow.freeze(way, f"{call.op} sums over it")
            result = [*rows, *columns]
        for way, other in zip(result, align(flow, call.outputs[0].shape, [added]), strict=True):
            if isinstance(added, Ref) and not isinstance(other, int):
                flow.unify(way, other)
    return [result]


def _summed(flow: Flow, way: Way, *factors: tuple[Ref, int]) -> None:
    """The products of two tensors are added up along this axis, which is this dim of theirs: what both have
    in a removed unit counts."""
    if not isinstance(way, int) and all(flow.nonzero(ref, dim) for ref, dim in factors):
        flow.inexact(way, f"{flow.step.call.op} adds up along it what is not 0 for removed units")


def _batch(flow: Flow, a: Ref, b: Ref) -> tuple[Ways, list[int]]:
    """The leading axes of two factors, broadcast against each other, and their lengths."""
    rank = max(len(a.shape), len(b.shape)) - 2
    ways: Ways = []
    sizes: list[int] = []
    for dim in range(-rank - 2, -2):
        found = [(flow.ways(ref)[dim], ref.shape[dim]) for ref in (a, b) if len(ref.shape) >= -dim]
        size = max(n for _, n in found)
        full = [way for way, n in found if n == size]
        if len(full) == 2:
            flow.unify(full[0], full[1])
        ways.append(next((way for way in full if not isinstance(way, int)), full[0]) if size > 1 else FIXED)
        sizes.append(size)
    return ways, sizes


@rule("scaled_dot_product_attention")
def attention(flow: Flow, call: Call) -> list[Ways]:
    """q (..., H, L, E), k (..., G, S, E), v (..., G, S, V) to (..., H, L, V); with ``enable_gqa`` H is a
    multiple of G."""
    query, key, value = (call.arguments[name] for name in ("query", "key", "value"))
    q, k, v = (flow.ways(ref) for ref in (query, key, value))
    flow.unify(q[-1], k[-1])
    _summed(flow, q[-1], (query, -1), (key, -1))
    flow.unify(k[-2], v[-2])
    flow.freeze(k[-2], "attention runs along it")
    if call.arguments.get("scale") is None:
        flow.inexact(q[-1], DEFAULT_SCALE)
        flow.mark(q[-1], SCALED)
    batch, sizes = _heads(flow, query, key, value)
    for way in batch:
        flow.mark(way, HEAD)
    if any(not isinstance(way, int) for way in batch):
        flow.mark(q[-1], HEAD_DIM)
        flow.mark(v[-1], HEAD_DIM)
    mask = call.arguments.get("attn_mask")
    scores: Ways = [*batch, q[-2], k[-2]]
    if isinstance(mask, Ref):
        shape = (*sizes, query.shape[-2], key.shape[-2])
        for way, other, size in zip(scores, align(flow, shape, [mask]), shape, strict=True):
            if size > 1 and not isinstance(other, int):
                flow.unify(way, other)
    # L S (E + V) multiply-adds per head: the axis E + V is q's and v's one after the other
    both = flow.concatenate([(q[-1], query.shape[-1]), (v[-1], value.shape[-1])])
    flow.macs(
        key.shape[-2],
        *zip(batch, sizes, strict=True),
        (q[-2], query.shape[-2]),
        (both, query.shape[-1] + value.shape[-1]),
    )
    return [[*batch, q[-2], v[-1]]]


def _heads(flow: Flow, query: Ref, key: Ref, value: Ref) -> tuple[Ways, list[int]]:
    for name, other in zip(flow.ways(key)[:-2], flow.ways(value)[:-2], strict=True):
        flow.unify(name, other)
    grouped = len(query.shape) > 2 and query.shape[-3] != key.shape[-3] and key.shape[-3] > 1
    if not grouped:
        return _batch(flow, query, key)
    ways, sizes = list(flow.ways(query)[:-2]), list(query.shape[:-2])
    outer, _ = flow.split(ways[-1], key.shape[-3], sizes[-1] // key.shape[-3])
    flow.unify(outer, flow.ways(key)[-3])
    return ways, sizes

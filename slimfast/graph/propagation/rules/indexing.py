"""Selections: by position, by a range, by the values of an index tensor."""

from __future__ import annotations

import numpy as np

from slimfast.graph.propagation.flow import FIXED, Flow, Way
from slimfast.graph.propagation.rules.pointwise import elementwise, unknown
from slimfast.graph.propagation.rules.registry import Ways, rule
from slimfast.graph.recording.forward import Call


@rule("select")
def select(flow: Flow, call: Call) -> list[Ways]:
    ways = list(flow.ways(call.arguments["self"]))
    flow.freeze(ways.pop(call.arguments["dim"]), f"{call.op} takes one index of it")
    return [ways]


@rule("unbind")
def unbind(flow: Flow, call: Call) -> list[Ways]:
    ways = list(flow.ways(call.arguments["self"]))
    flow.freeze(ways.pop(call.arguments["dim"]), f"{call.op} takes it apart index by index")
    return [list(ways) for _ in call.outputs]


@rule("slice")
def slice_(flow: Flow, call: Call) -> list[Ways]:
    source = call.arguments["self"]
    ways = list(flow.ways(source))
    dim = call.arguments["dim"] % len(ways)
    way, length = ways[dim], source.shape[dim]
    start, end, step = slice(call.arguments["start"], call.arguments["end"], call.arguments["step"]).indices(
        length
    )
    if isinstance(way, int) or (start, end, step) == (0, length, 1):
        return [ways]
    if step != 1:
        told = f"{call.op} takes one of every {step} indices of it"
        if end < length or start >= step or length % step:
            ways[dim] = flow.freeze(way, told)
            return [ways]
        # Runs of `step` indices go or stay whole, so that those behind them keep their places in their runs.
        ways[dim], place = flow.split(way, length // step, step)
        flow.freeze(place, told)
        return [ways]
    if start:
        flow.constant("start", start, way[:start], start)
    if end < length:
        flow.constant("end", end, way[:end], end)
    ways[dim] = way[start:end]
    return [ways]


@rule("flip")
def flip(flow: Flow, call: Call) -> list[Ways]:
    ways = list(flow.ways(call.arguments["self"]))
    for dim in call.arguments["dims"]:
        way = ways[dim]
        ways[dim] = way if isinstance(way, int) else way[::-1]
    return [ways]


@rule("roll")
def roll(flow: Flow, call: Call) -> list[Ways]:
    ways = list(flow.ways(call.arguments["self"]))
    for dim in call.arguments["dims"] or range(len(ways)):
        flow.freeze(ways[dim], f"{call.op} shifts it by a fixed number")
    return [ways]


@rule("index", "_unsafe_index")
def index(flow: Flow, call: Call) -> list[Ways]:
    """``self[indices]`` with tensors of positions: what they point into stays, their own axes pass on."""
    found, out = chosen(flow, call), call.outputs[0]
    if len(found) != len(out.shape):
        ways = behind_mask(flow, call)
        return unknown(flow, call) if ways is None else [ways]
    for dim, ((way, _), length) in enumerate(zip(found, out.shape, strict=True)):
        if not isinstance(way, int) and len(way) != length:
            found[dim] = flow.freeze(way, f"{call.op} takes a part of it"), length
    return [[way for way, _ in found]]


def chosen(flow: Flow, call: Call) -> list[tuple[Way, int]]:
    """The axes of ``self[indices]`` with their lengths, if the indices are positions or masks of one axis."""
    source, given = call.arguments["self"], call.arguments["indices"]
    ways = flow.ways(source)
    given = [*given, *[None] * (len(ways) - len(given))]
    at = [dim for dim, ref in enumerate(given) if ref is not None]
    reasons = [flow.freeze(ways[dim], f"{call.op} looks it up by value") for dim in at]
    tensors = [given[dim] for dim in at]
    kept = [(ways[dim], n) for dim, n in enumerate(source.shape) if given[dim] is None]
    # adjacent index tensors put their axes where they stand, others in front
    first = at[0] if at == list(range(at[0], at[-1] + 1)) else 0
    shape = np.broadcast_shapes(*(ref.shape for ref in tensors))
    own: Ways = [max(reasons)] * len(shape)
    if len(tensors) == 1 and any(not isinstance(way, int) for way in flow.ways(tensors[0])):
        own = flow.ways(tensors[0])
    else:
        for ref in tensors:
            for way in flow.ways(ref):
                flow.freeze(way, f"{call.op} indexes with it")
    return [*kept[:first], *zip(own, shape, strict=True), *kept[first:]]


def behind_mask(flow: Flow, call: Call) -> Ways | None:
    """The axes of ``self[mask]`` for one mask of several axes, which makes a single one of them; None where
    there are more indices."""
    masks = [(dim, ref) for dim, ref in enumerate(call.arguments["indices"]) if ref is not None]
    if len(masks) > 1:
        return None
    ((at, mask),) = masks
    ways = flow.ways(call.arguments["self"])
    end = at + len(mask.shape)
    reasons = [flow.freeze(way, f"{call.op} takes a part of it") for way in [*ways[at:end], *flow.ways(mask)]]
    return [*ways[:at], max(reasons), *ways[end:]]


@rule("index_select")
def index_select(flow: Flow, call: Call) -> list[Ways]:
    ways = list(flow.ways(call.arguments["self"]))
    dim = call.arguments["dim"]
    flow.freeze(ways[dim], f"{call.op} looks it up by value")
    own = flow.ways(call.arguments["index"])
    ways[dim] = own[0] if own else FIXED
    return [ways]


@rule("gather")
def gather(flow: Flow, call: Call) -> list[Ways]:
    source, positions = call.arguments["self"], call.arguments["index"]
    ways = list(flow.ways(source))
    dim = call.arguments["dim"] % max(len(ways), 1)
    for d, way in enumerate(flow.ways(positions)):
        if d == dim:
            flow.freeze(ways[d], f"{call.op} looks it up by value")
        elif source.shape[d] == positions.shape[d]:
            flow.unify(ways[d], way)
        else:
            flow.freeze(ways[d], f"{call.op} reads a part of it")
    return [list(flow.ways(positions))]


@rule("embedding")
def embedding(flow: Flow, call: Call) -> list[Ways]:
    weight = call.arguments["weight"]
    rows, columns = flow.ways(weight)
    flow.produce(weight, columns)
    flow.freeze(rows, f"{call.op} looks it up by value")
    return [[*flow.ways(call.arguments["indices"]), columns]]


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(flow: Flow, call: Call) -> list[Ways]:
    """Rows are looked up and joined: (bags, columns), then tables of positions."""
    weight = call.arguments["weight"]
    rows, columns = flow.ways(weight)
    flow.produce(weight, columns)
    flow.freeze(rows, f"{call.op} looks it up by value")
    tables: list[Ways] = [[FIXED] * len(out.shape) for out in call.outputs[1:3]]
    # where each maximum was found has a column for each, if there are any
    return [[FIXED, columns], *tables, [FIXED, columns][: len(call.outputs[3].shape)]]


@rule(
    "sort",
    "topk",
    "argsort",
    "argmax",
    "argmin",
    "max",
    "min",
    "cumsum",
    "cumprod",
    "logcumsumexp",
    "kthvalue",
    "median",
    "mode",
)
def along(flow: Flow, call: Call) -> list[Ways]:
    """Operations whose result at an index depends on the order or number of the others."""
    source = call.arguments["self"]
    ways = list(flow.ways(source))
    dim = call.arguments.get("dim")
    if "other" in call.arguments:
        return elementwise(flow, call)
    reasons = [flow.freeze(way) for way in (ways if dim is None else [ways[dim]])]
    results: list[Ways] = []
    for out in call.outputs:
        if dim is None:
            results.append([FIXED] * len(out.shape))
        elif len(out.shape) == len(ways):
            changed = list(ways)
            changed[dim] = reasons[0]
            results.append(changed)
        else:
            results.append([way for d, way in enumerate(ways) if d != dim % len(ways)])
    return results

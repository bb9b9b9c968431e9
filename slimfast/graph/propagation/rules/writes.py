"""Writes by position: a tensor in which some places are replaced by, or added to, those of another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from slimfast.graph.propagation.flow import Flow, Way
from slimfast.graph.propagation.label_matrices import ADDED
from slimfast.graph.propagation.rules.indexing import behind_mask, chosen
from slimfast.graph.propagation.rules.pointwise import unknown
from slimfast.graph.propagation.rules.registry import Ways, rule
from slimfast.graph.recording.forward import Call, Ref


@rule("index_add", "index_copy", "index_reduce", "index_fill")
def write_slices(flow: Flow, call: Call) -> list[Ways]:
    """Slices of ``self`` along ``dim``: the other axes are those of what is written."""
    written = _written(call)
    if written is None:
        return unknown(flow, call)
    ways = list(flow.ways(call.arguments["self"]))
    dim = call.arguments["dim"] % len(ways)
    ways[dim] = flow.freeze(ways[dim], f"{call.op} looks it up by value")
    for way in flow.ways(call.arguments["index"]):
        flow.freeze(way, f"{call.op} writes where it says")
    for source in written:
        own = flow.ways(source)
        flow.freeze(own[dim], f"{call.op} writes where an index says")
        _join(flow, [(ways[d], own[d]) for d in range(len(ways)) if d != dim])
    return [ways]


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(flow: Flow, call: Call) -> list[Ways]:
    """Element by element, at ``index`` along ``dim``; the other axes are one with those of the index."""
    target, places, written = call.arguments["self"], call.arguments["index"], _written(call)
    if written is None:
        return unknown(flow, call)
    ways = list(flow.ways(target))
    dim = call.arguments["dim"] % len(ways)
    ways[dim] = flow.freeze(ways[dim], f"{call.op} looks it up by value")
    for d, (way, length) in enumerate(zip(flow.ways(places), places.shape, strict=True)):
        for ref in written if d == dim else [target, *written]:
            own = flow.ways(ref)[d]
            if ref.shape[d] == length:
                _join(flow, [(own, way)])
            else:
                flow.freeze(own, f"{call.op} writes a part of it")
                flow.freeze(way, f"{call.op} writes a part along it")
    return [ways]


@rule("index_put", "_index_put_impl", "_unsafe_index_put")
def index_put(flow: Flow, call: Call) -> list[Ways]:
    """``self[indices] = values``: the axes of the values are those of what is chosen, the last ones first."""
    target, source = call.arguments["self"], call.arguments["values"]
    given = [(dim, ref) for dim, ref in enumerate(call.arguments["indices"]) if ref is not None]
    found: Sequence[Way] = [way for way, _ in chosen(flow, call)]
    if any(_may_be_mask(target, dim, ref) for dim, ref in given):
        behind = behind_mask(flow, call)
        if behind is None:
            return unknown(flow, call)
        found = behind
    for way, own, size in zip(found[::-1], flow.ways(source)[::-1], source.shape[::-1], strict=False):
        if size > 1:
            _join(flow, [(way, own)])
    return [list(flow.ways(target))]


def _may_be_mask(target: Ref, dim: int, places: Ref) -> bool:
    """Whether an index of several axes has the lengths of a mask over ``target``."""
    return len(places.shape) > 1 and places.shape == target.shape[dim : dim + len(places.shape)]


def _written(call: Call) -> list[Ref] | None:
    """The tensor that is written, nothing where it is zeros, None for other numbers."""
    found = next(call.arguments[name] for name in ("source", "src", "value") if name in call.arguments)
    if isinstance(found, Ref):
        return [found] if found.shape else None
    return [] if found == 0 else None


def _join(flow: Flow, pairs: Iterable[tuple[Way, Way]]) -> None:
    """Axes of the target and of what is written into it are one, as in an addition."""
    for a, b in pairs:
        if not isinstance(a, int) and not isinstance(b, int) and len(a) != len(b):
            # as many as a mask chooses: which ones is not known
            flow.freeze(a)
            flow.freeze(b)
            continue
        differ = flow.differ(a, b)
        flow.unify(a, b)
        if differ:
            flow.mark(a, ADDED)

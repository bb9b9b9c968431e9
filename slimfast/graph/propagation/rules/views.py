"""Reshapes and other operations that only rearrange axes, and those that join or cut tensors along one."""

from __future__ import annotations

from math import prod

import numpy as np

from slimfast.graph.propagation.flow import FIXED, Flow, as_labels
from slimfast.graph.propagation.label_matrices import Labels
from slimfast.graph.propagation.rules.pointwise import unknown
from slimfast.graph.propagation.rules.registry import Ways, rule
from slimfast.graph.recording.attributes import integers_of
from slimfast.graph.recording.forward import Call


def reshape_ways(flow: Flow, ways: Ways, before: tuple[int, ...], after: tuple[int, ...]) -> Ways:
    """Axes of a tensor reshaped from ``before`` to ``after``: the smallest runs of equal product map to each
    other."""
    result: Ways = [FIXED] * len(after)
    if prod(after) == 0:
        return result
    sources = [d for d, n in enumerate(before) if n > 1]
    targets = [d for d, n in enumerate(after) if n > 1]
    i = j = 0
    while i < len(sources):
        run, out = [sources[i]], [targets[j]]
        left, right = before[sources[i]], after[targets[j]]
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                run.append(sources[i])
                left, i = left * before[sources[i]], i + 1
            else:
                out.append(targets[j])
                right, j = right * after[targets[j]], j + 1
        way, length = ways[run[0]], before[run[0]]
        for dim in run[1:]:
            way = flow.merge(way, length, ways[dim], before[dim])
            length *= before[dim]
        for dim in out[:-1]:
            length //= after[dim]
            result[dim], way = flow.split(way, after[dim], length)
        result[out[-1]] = way
    return result


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "view_copy")
def reshape(flow: Flow, call: Call) -> list[Ways]:
    if "dtype" in call.arguments:
        return unknown(flow, call)
    source, out = call.arguments["self"], call.outputs[0]
    ways = reshape_ways(flow, flow.ways(source), source.shape, out.shape)
    for dim, size in enumerate(call.arguments.get("size", ())):
        flow.constant(f"size[{dim}]", size, ways[dim], out.shape[dim])
    return [ways]


@rule("as_strided")
def as_strided(flow: Flow, call: Call) -> list[Ways]:
    """Only a change of memory layout, with the sizes as they are, is understood."""
    source = call.arguments["self"]
    if tuple(call.arguments["size"]) != source.shape or call.arguments["storage_offset"]:
        return unknown(flow, call)
    return [list(flow.ways(source))]


@rule("expand")
def expand(flow: Flow, call: Call) -> list[Ways]:
    """An axis of length 1 repeated: the copies are alike, so any of them may go."""
    source, out = call.arguments["self"], call.outputs[0]
    ways = flow.fresh(out.shape)
    offset = len(out.shape) - len(source.shape)
    for dim, way in enumerate(flow.ways(source)):
        if source.shape[dim] == out.shape[dim + offset]:
            ways[dim + offset] = way
    for dim, size in enumerate(call.arguments["size"]):
        flow.constant(f"size[{dim}]", size, ways[dim], out.shape[dim])
    return [ways]


@rule("repeat")
def repeat(flow: Flow, call: Call) -> list[Ways]:
    source, out = call.arguments["self"], call.outputs[0]
    offset = len(out.shape) - len(source.shape)
    ways = flow.fresh(out.shape)
    for dim, way in enumerate(flow.ways(source)):
        times = call.arguments["repeats"][dim + offset]
        if source.shape[dim] > 1:
            ways[dim + offset] = way if times == 1 or isinstance(way, int) else np.tile(way, (times, 1))
    for dim, times in enumerate(call.arguments["repeats"]):
        if out.shape[dim] == times:
            flow.constant(f"repeats[{dim}]", times, ways[dim], times)
    return [ways]


@rule("t", "transpose", "transpose_", "t_")
def transpose(flow: Flow, call: Call) -> list[Ways]:
    ways = list(flow.ways(call.arguments["self"]))
    if len(ways) > 1:
        a, b = call.arguments.get("dim0", 0), call.arguments.get("dim1", 1)
        ways[a], ways[b] = ways[b], ways[a]
    return [ways]


@rule("permute")
def permute(flow: Flow, call: Call) -> list[Ways]:
    ways = flow.ways(call.arguments["self"])
    return [[ways[dim] for dim in call.arguments["dims"]]]


@rule("squeeze", "unsqueeze", "squeeze_", "unsqueeze_", "view_as_real")
def resize_ones(flow: Flow, call: Call) -> list[Ways]:
    """Axes of length 1 come and go; those longer than 1 stay in order."""
    source = call.arguments["self"]
    longer = [way for way, n in zip(flow.ways(source), source.shape, strict=True) if n > 1]
    shape = call.outputs[0].shape
    if call.op == "aten.view_as_real":
        return [[*flow.ways(source), FIXED]]
    remaining = iter(longer)
    return [[next(remaining) if n > 1 else FIXED for n in shape]]


@rule("view_as_complex")
def view_as_complex(flow: Flow, call: Call) -> list[Ways]:
    ways = flow.ways(call.arguments["self"])
    flow.freeze(ways[-1])
    return [list(ways[:-1])]


@rule("cat", "concat")
def cat(flow: Flow, call: Call) -> list[Ways]:
    # an empty 1-d tensor may stand among the others and counts for nothing
    parts = [ref for ref in call.arguments["tensors"] if ref.shape != (0,)]
    dim = call.arguments["dim"] % len(parts[0].shape)
    ways = list(flow.ways(parts[0]))
    for d in range(len(ways)):
        for ref in parts[1:]:
            if d != dim:
                if isinstance(ways[d], int):
                    ways[d], other = flow.ways(ref)[d], ways[d]
                    flow.unify(ways[d], other)
                else:
                    flow.unify(ways[d], flow.ways(ref)[d])
    ways[dim] = flow.concatenate([(flow.ways(ref)[dim], ref.shape[dim]) for ref in parts])
    return [ways]


@rule("stack")
def stack(flow: Flow, call: Call) -> list[Ways]:
    parts = call.arguments["tensors"]
    ways = list(flow.ways(parts[0]))
    for ref in parts[1:]:
        for d, way in enumerate(flow.ways(ref)):
            flow.unify(ways[d], way)
            ways[d] = way if isinstance(ways[d], int) else ways[d]
    ways.insert(call.arguments["dim"] % (len(ways) + 1), FIXED)
    return [ways]


@rule("split", "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes", "chunk")
def split(flow: Flow, call: Call) -> list[Ways]:
    """Parts of one size shrink together, whether the size was written down or taken from the shape.

    A smaller last part goes along with the beginning of each of the others: that leaves it smaller by less
    than the number of parts where it was before, so that what divides by that number finds the same parts.
    """
    source = call.arguments["self"]
    dim = call.arguments["dim"] % len(source.shape)
    ways = flow.ways(source)
    way = ways[dim]
    sizes = [out.shape[dim] for out in call.outputs]
    if isinstance(way, int):
        return [list(ways) for _ in sizes]
    ends = np.cumsum(sizes)
    parts = [way[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    asked = call.arguments.get("split_size", call.arguments.get("split_sizes"))
    if isinstance(asked, list):
        for i, (part, size) in enumerate(zip(parts, sizes, strict=True)):
            flow.constant(f"split_sizes[{i}]", size, part, size)
    else:
        for part, size in zip(parts[1:], sizes[1:], strict=True):
            flow.unify(parts[0][:size], part)
        flow.constant("split_size", asked, parts[0], sizes[0])
    return [[*ways[:dim], part, *ways[dim + 1 :]] for part in parts]


@rule("glu")
def glu(flow: Flow, call: Call) -> list[Ways]:
    source, out = call.arguments["self"], call.outputs[0]
    dim = call.arguments["dim"] % len(source.shape)
    ways = list(flow.ways(source))
    labels = ways[dim]
    if not isinstance(labels, int):
        half = out.shape[dim]
        flow.unify(labels[:half], labels[half:])
        ways[dim] = labels[:half]
    return [ways]


@rule("pixel_shuffle")
def pixel_shuffle(flow: Flow, call: Call) -> list[Ways]:
    """(..., C r r, H, W) to (..., C, H r, W r): the r positions of a block stay."""
    source, out = call.arguments["self"], call.outputs[0]
    ways = list(flow.ways(source))
    channels, inside = flow.split(ways[-3], out.shape[-3], call.arguments["upscale_factor"] ** 2)
    for way in (inside, ways[-2], ways[-1]):
        flow.freeze(way)
    return [[*ways[:-3], channels, FIXED, FIXED]]


@rule("pixel_unshuffle")
def pixel_unshuffle(flow: Flow, call: Call) -> list[Ways]:
    source, out = call.arguments["self"], call.outputs[0]
    ways = list(flow.ways(source))
    for way in ways[-2:]:
        flow.freeze(way)
    n = source.shape[-3]
    return [[*ways[:-3], flow.merge(ways[-3], n, FIXED, out.shape[-3] // n), FIXED, FIXED]]


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(flow: Flow, call: Call) -> list[Ways]:
    source, groups = call.arguments["self"], call.arguments["groups"]
    ways = list(flow.ways(source))
    size = source.shape[1] // groups
    outer, inner = flow.split(ways[1], groups, size)
    flow.constant("groups", groups, outer, groups)
    ways[1] = flow.merge(inner, size, outer, groups)
    return [ways]


@rule("constant_pad_nd")
def pad(flow: Flow, call: Call) -> list[Ways]:
    """Padded channels are free labels: what they are added to, or read by, decides what becomes of them.

    Equal amounts before and after shrink together, unless the module holds two numbers they may come from.
    """
    source, amounts = call.arguments["self"], call.arguments["pad"]
    ways = list(flow.ways(source))
    for i in range(len(amounts) // 2):
        dim = len(ways) - 1 - i
        before, after = amounts[2 * i], amounts[2 * i + 1]
        if before or after:
            ways[dim] = flow.known(ways[dim])
        if isinstance(ways[dim], int) and source.shape[dim] > 1:
            continue
        if before < 0 or after < 0:
            ways[dim] = flow.freeze(ways[dim], f"{call.op} crops it")
            continue
        front = _padding(flow, 2 * i, before)
        back = _padding(flow, 2 * i + 1, after)
        if before == after and not _holds_twice(flow, before):
            flow.unify(front, back)
        inside = as_labels(ways[dim], source.shape[dim])
        ways[dim] = flow.concatenate([(front, before), (inside, source.shape[dim]), (back, after)])
    return [ways]


def _holds_twice(flow: Flow, number: int) -> bool:
    """Whether the running module has two attributes, or two places in one, with this value."""
    module = flow.modules.get(flow.step.call.module)
    return module is not None and sum(value == number for _, _, value in integers_of(module)) > 1


def _padding(flow: Flow, position: int, amount: int) -> Labels:
    labels = flow.partition.fresh(amount)[:, None]
    flow.constant(f"pad[{position}]", amount, labels, amount)
    return labels

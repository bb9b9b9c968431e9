"""Follow reshapes and what else rearranges axes, and operations that join or divide tensors along one."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from slimfast.graph.propagation.axis_labels import FIXED, Axes
from slimfast.graph.propagation.flow import Propagation
from slimfast.graph.propagation.rules.frozen import unknown
from slimfast.graph.recording.calls import Call
from slimfast.graph.recording.meta_shortcuts import empty, plain
from slimfast.graph.recording.op_registry import op


def reshape_axes(flow: Propagation, axes: Axes, after: tuple[int, ...]) -> Axes:
    """Reshape axes to the lengths ``after``: the smallest runs of equal product become each other."""
    before = [len(axis) for axis in axes]
    result: Axes = [FIXED] * len(after)
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
        axis = axes[run[0]]
        for dim in run[1:]:
            axis = flow.merge(axis, axes[dim])
        for dim in out[:-1]:
            result[dim], axis = flow.split(axis, after[dim])
        result[out[-1]] = axis
    return result


@op("view", "_unsafe_view", selects=True, sized=True, reshapes=True, plain_view=True)
@op("reshape", "_reshape_alias", selects=True, sized=True, reshapes=True, plain_view=True)
@op("view_copy", selects=True)
def reshape(flow: Propagation, call: Call) -> list[Axes]:
    """Merge and split axes, and note the sizes that must follow them."""
    if "dtype" in call.arguments:
        return unknown(flow, call)
    source, out = call.arguments["self"], call.outputs[0]
    axes = reshape_axes(flow, flow.axes(source), out.shape)
    for dim, size in enumerate(call.arguments.get("size", ())):
        flow.constant(f"size[{dim}]", size, axes[dim])
    return [axes]


@op("as_strided")
def as_strided(flow: Propagation, call: Call) -> list[Axes]:
    """Follow a change of memory layout that leaves the sizes as they are; freeze any other."""
    source = call.arguments["self"]
    if tuple(call.arguments["size"]) != source.shape or call.arguments["storage_offset"]:
        return unknown(flow, call)
    return [list(flow.axes(source))]


@op("expand", selects=True, sized=True, plain_view=True)
def expand(flow: Propagation, call: Call) -> list[Axes]:
    """Give an axis of length 1 that is repeated free labels: its copies are alike, so any of them may go."""
    source, out = call.arguments["self"], call.outputs[0]
    axes = flow.fresh(out.shape)
    offset = len(out.shape) - len(source.shape)
    for dim, axis in enumerate(flow.axes(source)):
        if source.shape[dim] == out.shape[dim + offset]:
            axes[dim + offset] = axis
    for dim, size in enumerate(call.arguments["size"]):
        flow.constant(f"size[{dim}]", size, axes[dim])
    return [axes]


@op("repeat")
def repeat(flow: Propagation, call: Call) -> list[Axes]:
    """Put each axis so many times one after the other."""
    source, out = call.arguments["self"], call.outputs[0]
    offset = len(out.shape) - len(source.shape)
    axes = flow.fresh(out.shape)
    for dim, axis in enumerate(flow.axes(source)):
        times = call.arguments["repeats"][dim + offset]
        if source.shape[dim] > 1:
            axes[dim + offset] = axis if times == 1 else axis.repeated(times)
    for dim, times in enumerate(call.arguments["repeats"]):
        if out.shape[dim] == times:
            flow.constant(f"repeats[{dim}]", times, axes[dim])
    return [axes]


@op("t", selects=True)
@op("transpose", selects=True, certain=True)
def transpose(flow: Propagation, call: Call) -> list[Axes]:
    """Swap two axes."""
    axes = list(flow.axes(call.arguments["self"]))
    if len(axes) > 1:
        a, b = call.arguments.get("dim0", 0), call.arguments.get("dim1", 1)
        axes[a], axes[b] = axes[b], axes[a]
    return [axes]


@op("permute", selects=True, certain=True)
def permute(flow: Propagation, call: Call) -> list[Axes]:
    """Reorder the axes."""
    axes = flow.axes(call.arguments["self"])
    return [[axes[dim] for dim in call.arguments["dims"]]]


@op("squeeze", "unsqueeze", selects=True, plain_view=True)
@op("view_as_real")
def resize_ones(flow: Propagation, call: Call) -> list[Axes]:
    """Drop or add axes of length 1; those longer than 1 stay in order."""
    source = call.arguments["self"]
    longer = [axis for axis, n in zip(flow.axes(source), source.shape, strict=True) if n > 1]
    shape = call.outputs[0].shape
    if call.op == "aten.view_as_real":
        return [[*flow.axes(source), FIXED]]
    remaining = iter(longer)
    return [[next(remaining) if n > 1 else FIXED for n in shape]]


@op("view_as_complex")
def view_as_complex(flow: Propagation, call: Call) -> list[Axes]:
    """Drop the last axis, the real and the imaginary part."""
    axes = flow.axes(call.arguments["self"])
    flow.freeze(axes[-1])
    return [list(axes[:-1])]


def _cat_shape(a: Mapping[str, Any]) -> Tensor | None:
    """Know the shape of contiguous tensors joined along one axis."""
    parts = a["tensors"]
    if not parts or not plain(*parts) or not all(1 < t.dim() == parts[0].dim() for t in parts):
        return None
    shape = list(parts[0].shape)
    if not -len(shape) <= a["dim"] < len(shape):
        return None
    shape[a["dim"]] = sum(t.shape[a["dim"]] for t in parts)
    fit = all(
        n == m or d == a["dim"] % len(shape)
        for t in parts
        for d, (n, m) in enumerate(zip(t.shape, shape, strict=True))
    )
    return empty(parts[0], shape) if fit else None


@op("cat", meta_shape=_cat_shape, certain=True)
@op("concat")
def cat(flow: Propagation, call: Call) -> list[Axes]:
    """Put the axes ``dim`` one after the other and join the others."""
    # an empty 1-d tensor may stand among the others and counts for nothing; all may be empty
    parts = [ref for ref in call.arguments["tensors"] if ref.shape != (0,)] or call.arguments["tensors"][:1]
    dim = call.arguments["dim"] % len(parts[0].shape)
    axes = list(flow.axes(parts[0]))
    for d in range(len(axes)):
        for ref in parts[1:]:
            if d != dim:
                if axes[d].fixed:
                    axes[d], other = flow.axes(ref)[d], axes[d]
                    flow.unify(axes[d], other)
                else:
                    flow.unify(axes[d], flow.axes(ref)[d])
    axes[dim] = flow.concatenate([flow.axes(ref)[dim] for ref in parts])
    return [axes]


@op("stack")
def stack(flow: Propagation, call: Call) -> list[Axes]:
    """Join all axes and add a new one, which is fixed."""
    parts = call.arguments["tensors"]
    axes = list(flow.axes(parts[0]))
    for ref in parts[1:]:
        for d, axis in enumerate(flow.axes(ref)):
            flow.unify(axes[d], axis)
            axes[d] = axis if axes[d].fixed else axes[d]
    axes.insert(call.arguments["dim"] % (len(axes) + 1), FIXED)
    return [axes]


@op("split", "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes", "chunk", selects=True)
def split(flow: Propagation, call: Call) -> list[Axes]:
    """Divide an axis into parts, of which those of one size shrink together.

    A smaller last part goes along with the beginning of each of the others: that leaves it smaller by less
    than the number of parts where it was before, so that what divides by that number finds the same parts.
    """
    source = call.arguments["self"]
    dim = call.arguments["dim"] % len(source.shape)
    axes = flow.axes(source)
    axis = axes[dim]
    sizes = [out.shape[dim] for out in call.outputs]
    if axis.fixed:
        return [list(axes) for _ in sizes]
    ends = np.cumsum(sizes)
    parts = [axis[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    asked = call.arguments.get("split_size", call.arguments.get("split_sizes"))
    if isinstance(asked, list):
        for i, (part, size) in enumerate(zip(parts, sizes, strict=True)):
            flow.constant(f"split_sizes[{i}]", size, part)
    else:
        for part, size in zip(parts[1:], sizes[1:], strict=True):
            flow.unify(parts[0][:size], part)
        flow.constant("split_size", asked, parts[0])
    return [[*axes[:dim], part, *axes[dim + 1 :]] for part in parts]


@op("glu")
def glu(flow: Propagation, call: Call) -> list[Axes]:
    """Join the two halves of an axis, of which one gates the other."""
    source, out = call.arguments["self"], call.outputs[0]
    dim = call.arguments["dim"] % len(source.shape)
    axes = list(flow.axes(source))
    half = out.shape[dim]
    axes[dim], gate = axes[dim][:half], axes[dim][half:]
    flow.unify(axes[dim], gate)
    return [axes]


@op("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(flow: Propagation, call: Call) -> list[Axes]:
    """Turn the channels (groups, positions in a group) into (positions in a group, groups)."""
    source, groups = call.arguments["self"], call.arguments["groups"]
    axes = list(flow.axes(source))
    outer, inner = flow.split(axes[1], groups)
    flow.constant("groups", groups, outer)
    axes[1] = flow.merge(inner, outer)
    return [axes]

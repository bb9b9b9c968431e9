"""The units that trial cuts keep: such that every constant of the network changes, and not like another."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from slimfast.arrays import IntArray
from slimfast.graph.channel_graph import Axis, ChannelGraph, Constant
from slimfast.graph.cutting.cut import Cut

# (number of an operation, its constant's argument)
ConstantKeys = set[tuple[int, str]]


def trial_keeps(graph: ChannelGraph) -> dict[str, IntArray]:
    """Choose the kept units of every group of two units or more, about two thirds of them.

    Widths differ between groups of the same size, so that a number that means two things is seen to mean two.
    """
    keeps = {}
    for i, group in enumerate(graph):
        # Golden-ratio steps spread the shares evenly, however many groups there are.
        share = 0.45 + 0.5 * (i * 0.6180339887 % 1.0)
        width = min(max(2, round(group.n * share)), group.n - 1)
        if width >= 1:
            keeps[group.name] = np.flatnonzero(np.arange(group.n) * width % group.n < width).astype(np.int64)
    return keeps


def constants_told_apart(cut: Cut) -> ConstantKeys:
    """Find the constants that a cut changes to another number than those that they may be taken for."""
    return {
        (i, constant.argument)
        for i, constant, twins in _with_twins(cut.graph)
        if cut.kept_length(constant.axis) not in (constant.value, *map(cut.kept_length, twins))
    }


def distinguishing_widths(cut: Cut, told_apart: ConstantKeys) -> dict[str, IntArray] | None:
    """Choose other units to keep, so that constants change that have not, or only like others.

    None where every constant that can change has shown what it follows.
    """
    others = dict(cut.keeps)
    for i, constant, twins in _with_twins(cut.graph):
        if (i, constant.argument) in told_apart:
            continue
        # what was changed for one constant may tell the next
        length = len(constant.axis.kept(others))
        if length not in (constant.value, *(len(axis.kept(others)) for axis in twins)):
            continue
        for name, own in constant.axis.places:
            others_own = [places.units for axis in twins for group, places in axis.places if group == name]
            free = np.setdiff1d(own.units, np.concatenate([*others_own, own.units[:0]]))
            if name in cut.keeps and len(free):
                keep = np.setdiff1d(np.arange(cut.graph[name].n), free[: 1 + len(free) // 2])
                if len(keep):
                    others[name] = keep.astype(np.int64)
                    break
    changed = any(not np.array_equal(others[name], cut.keeps[name]) for name in cut.keeps)
    return others if changed else None


def _with_twins(graph: ChannelGraph) -> Iterator[tuple[int, Constant, list[Axis]]]:
    """Find the constants that can change, each with the number of its operation and with the other axes for
    which the same value stands in the same module.
    """
    axes: dict[tuple[str, int], dict[Axis, None]] = {}
    for operation in graph.operations:
        for constant in operation.constants:
            axes.setdefault((operation.module, constant.value), {})[constant.axis] = None
    for i, operation in enumerate(graph.operations):
        for constant in operation.constants:
            if constant.axis.places:
                like = axes[operation.module, constant.value]
                yield i, constant, [axis for axis in like if axis is not constant.axis]

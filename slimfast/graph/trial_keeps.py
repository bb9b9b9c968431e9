"""Which units the trial cuts keep: such that every constant of the network changes, and not like another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from slimfast.graph.groups import Axis, ChannelGraph, Constant, IntArray, Operation

# (number of an operation, its constant's argument)
Told = set[tuple[int, str]]


def trial_keeps(graph: ChannelGraph) -> dict[str, IntArray]:
    """Kept units of every group of two units or more, about two thirds of them.

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


def told_by(graph: ChannelGraph, kept: Callable[[Axis], IntArray]) -> Told:
    """The constants that a cut changes, each to another number than the others that it may be taken for."""
    return {
        (i, constant.argument)
        for i, operation in enumerate(graph.operations)
        for constant, twins in _with_twins(operation)
        if len(kept(constant.axis)) not in (constant.value, *(len(kept(t.axis)) for t in twins))
    }


def telling_keeps(
    graph: ChannelGraph, keeps: Mapping[str, IntArray], told: Told
) -> dict[str, IntArray] | None:
    """Other units to keep, so that constants change that have not, or not unlike others that were the
    same.

    None where every constant that can change has told what it follows.
    """
    gone: dict[str, set[int]] = {}
    for i, operation in enumerate(graph.operations):
        for constant, twins in _with_twins(operation):
            if (i, constant.argument) in told:
                continue
            for name, units in constant.axis.parts:
                other = [u for t in twins for group, own in t.axis.parts if group == name for u in own]
                free = np.setdiff1d(units[units >= 0], np.array(other, dtype=np.int64))
                if name in keeps and len(free):
                    gone.setdefault(name, set()).update(free[: 1 + len(free) // 2].tolist())
                    break
    others = dict(keeps)
    for name, removed in gone.items():
        left = np.setdiff1d(np.arange(graph[name].n), sorted(removed))
        if len(left):
            others[name] = left.astype(np.int64)
    changed = any(not np.array_equal(others[name], keeps[name]) for name in keeps)
    return others if changed else None


def _with_twins(operation: Operation) -> Iterator[tuple[Constant, list[Constant]]]:
    """The constants of an operation that can change, each with its like of the same value elsewhere."""
    for constant in operation.constants:
        if constant.axis.parts:
            others = (
                c for c in operation.constants if c.value == constant.value and c.axis is not constant.axis
            )
            yield constant, list(others)

"""The table that ``print(plan)`` shows: a line a group within 80 columns, the totals, and what there is to
say of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import TextWrapper
from typing import TYPE_CHECKING

import numpy as np

from slimfast.errors import printable
from slimfast.latency.timing import seconds_text
from slimfast.memory.measuring import bytes_text
from slimfast.plans.limits import LATENCY_SECONDS, PEAK, Limits, is_latency

if TYPE_CHECKING:
    from slimfast.plans.plan_data import GroupPlan, Plan

COLUMNS = 80
_SUFFIXES = ("", "K", "M", "G", "T", "P")
_HEAD = ("group", "width", "explains", "params", "left", "MACs", "left", "by")
_LEFT = {0, 1, 7}
_WRAPPED = TextWrapper(COLUMNS, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
# What decided a width, in a word.
_BY = {"tau": "tau", "gain": "gain", "override": "hand", "mask": "mask", "excluded": "alone"}


def quantity(count: float) -> str:
    """Write a count in three digits and a decimal suffix: 4652008 -> 4.65M."""
    step = 0
    while abs(count) >= 999.5 and step < len(_SUFFIXES) - 1:
        count /= 1000
        step += 1
    if step == 0:
        return f"{count:.0f}"
    return f"{count:.{max(0, 2 - len(str(int(count))) + 1)}f}{_SUFFIXES[step]}"


def table(plan: Plan) -> str:
    """Write one aligned line per group, the totals, and what was asked for and reached.

    A group whose name leaves no room for the rest within 80 columns has a line for its name alone.
    """
    before, after = plan.cost_before, plan.cost_after
    total = ("network", "", "", *_left(before.params, after.params), *_left(before.macs, after.macs), "")
    most = max((len(str(group.n)) for group in plan.groups), default=1)
    rows = [_HEAD, *(_row(group, most) for group in plan.groups), total]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    widths[0] = min(widths[0], max(COLUMNS - sum(widths[1:]) - len(_HEAD) + 1, len("network")))
    lines = [line for row in rows[:-1] for line in _lines(row, widths)]
    last = _lines(total, widths)
    rule = "-" * min(max(map(len, [*lines, *last])), COLUMNS)
    notes = (line for note in _notes(plan) for line in _WRAPPED.wrap(note))
    shown = [lines[0], rule, *lines[1:], rule, *last, *notes]
    # A plan may come from a stranger's file.
    return "\n".join(map(printable, shown))


def _lines(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    name, *rest = row
    above = [] if len(name) <= widths[0] else [name]
    cells = [
        cell.ljust(w) if i in _LEFT else cell.rjust(w)
        for i, (cell, w) in enumerate(zip(["" if above else name, *rest], widths, strict=True))
    ]
    return [*above, " ".join(cells).rstrip()]


def _row(group: GroupPlan, most: int) -> tuple[str, ...]:
    return (
        group.name,
        f"{group.n:>{most}} -> {group.width:<{most}}",
        _explains(group),
        *_left(group.before.params, group.after.params),
        *_left(group.before.macs, group.after.macs),
        _BY[group.chosen] + ("?" if group.chosen == "tau" and not group.certified else ""),
    )


def _explains(group: GroupPlan) -> str:
    if group.width == group.n:
        return "whole"
    measured = group.dtype is not None or group.chosen == "gain"
    return f"{group.explained_variance:.4f}" if measured else "-"


def _left(before: int, after: int) -> tuple[str, str]:
    return quantity(before), f"{after / before:.0%}" if before else "-"


def _reached(plan: Plan, name: str) -> str:
    """Say what a part of the network costs now, where the graph is at hand that says which it is."""
    if plan.graph is None:
        return ""
    limits = Limits(plan.graph, {name: plan.budget[name]})
    widths = np.array([group.width for group in plan.groups], dtype=np.int64)
    old, new = limits.whole[name], limits.price(widths)[name]
    return f", reached {new:,.0f} of {old:,.0f} ({new / max(old, 1.0):.4f} of the part)"


def _notes(plan: Plan) -> list[str]:
    before, after = plan.cost_before, plan.cost_after
    notes = []
    if plan.explained_variance is not None:
        notes.append(f"tau: explained variance >= {plan.explained_variance:.6f} in every group chosen by it")
    if plan.allocation == "marginal_gain":
        notes.append("gain: the units whose next MAC or parameter lowers the output's error most")
    for name, asked in plan.budget.items():
        if name in ("params", "macs"):
            old, new = getattr(before, name), getattr(after, name)
            share = f"{new / old:.4f} of it" if old else "of none"
            notes.append(f"{name}: asked for {asked:g}, reached {new:,} of {old:,} ({share})")
        elif is_latency(name):
            told = seconds_text(asked) if name == LATENCY_SECONDS else f"{asked:g}"
            notes.append(f"latency: asked for {told}")
        elif name == PEAK:
            told = bytes_text(asked) if asked > 1 else f"{asked:g}"
            notes.append(f"peak memory: asked for {told}")
        elif name != "explained_variance":
            notes.append(f"{name}: asked for {asked:g}{_reached(plan, name)}")
    if plan.latency is not None:
        notes.append(f"latency: {plan.latency}")
    if plan.peak_memory is not None:
        notes.append(f"peak memory: {plan.peak_memory}")
    if isinstance(plan.multiple_of, int):
        if plan.multiple_of > 1:
            notes.append(f"widths are multiples of {plan.multiple_of}, or whole")
    else:
        named = ", ".join(f"{step} ({glob})" for glob, step in plan.multiple_of.items())
        notes.append(f"widths are multiples of {named}, or whole")
    return [*notes, *_measurements(plan), _SHARED]


_SHARED = "params, MACs of a group: of the tensors and operations that it takes part in"


def _measurements(plan: Plan) -> list[str]:
    """Say what the spectra do not tell: widths past a rank, and those that float32 left open."""
    chosen = [g for g in plan.groups if g.chosen == "tau"]
    notes = []
    past = [g for g in chosen if g.dtype is not None and g.width < g.n and g.explained_variance == 1.0]
    if past:
        notes += [
            f"low rank: {len(past)} of {len(chosen)} groups keep all of their variance in fewer units, for "
            f"their weights span fewer directions ({past[0].name})"
        ]
    if past and plan.explained_variance == 1.0 and "explained_variance" not in plan.budget:
        notes[-1] += (
            "; widths past the rank are shared out evenly, as variance does not tell them apart: a "
            "calibration does (slimfast.calibrate, calibration=)"
        )
    again = [g.name for g in chosen if g.dtype == "float64"]
    if again:
        more = f" and {len(again) - 1} more" if len(again) > 1 else ""
        notes.append(f"measured in float64: {len(again)} of {len(chosen)} groups, {again[0]}{more}")
    if not all(g.certified for g in chosen):
        notes.append("tau?: float32 does not settle this width")
    return notes

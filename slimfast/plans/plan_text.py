"""A plan as plain text: the table that ``print(plan)`` shows, and the explanation of its groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from slimfast.errors import printable
from slimfast.graph.channel_graph import ChannelGraph, ChannelGroup
from slimfast.graph.propagation.reasons import Reason
from slimfast.latency.timing import seconds_text
from slimfast.plans.limits import LATENCY_SECONDS, Limits, is_latency

if TYPE_CHECKING:
    from slimfast.plans.plan_data import GroupPlan, Plan

_SUFFIXES = ("", "K", "M", "G", "T", "P")

# Why a group keeps all of its units, by what chose its width.
_WHOLE = {
    "tau": "the plan keeps all of its variance",
    "gain": "every unit is worth what it costs",
    "override": "by hand",
    "mask": "none of its units is dead and can go",
    "excluded": "excluded by name, or its weights have no spectrum",
}
# Reasons that the graph tells in a word, in a sentence.
_REASONS = {
    Reason.NETWORK_INPUT.text: "it is what the network is given",
    Reason.NETWORK_OUTPUT.text: "it is what the network returns",
    Reason.ONE_UNIT.text: "all of its channels can only go at once",
    Reason.NO_PRODUCER.text: "no weight of this network produces it",
    Reason.NOT_USED.text: "the forward does not use it with this example; an example of a call that does, in "
    "also=, tells what it belongs to",
}
_STALE = (
    "attributes that stay as they are, though each holds the old length of an axis that changes, because it "
    "cannot be decided which it means, if any:"
)
_SILENT = "goes along with what is left alone (depthwise filters, tables), or takes no part in this forward"


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
    """Write one aligned line per group, the totals, and what tau was."""
    rows: list[tuple[str, ...]] = [
        ("group", "kind", "width", "", "", "variance", "params", "", "", "MACs", "", "", "by")
    ]
    rows += [_row(group) for group in plan.groups]
    before, after = plan.cost_before, plan.cost_after
    total = ("network", "", "", "", "", "")
    rows.append((*total, *_change(before.params, after.params), *_change(before.macs, after.macs), ""))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    left = {0, 1, 4, 8, 11, 12}
    lines = [
        " ".join(
            cell.ljust(w) if i in left else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    rule = "-" * max(len(line.rstrip()) for line in lines)
    body = [line.rstrip() for line in lines]
    shown = [body[0], rule, *body[1:-1], rule, body[-1], *_notes(plan)]
    # A plan may come from a stranger's file.
    return "\n".join(map(printable, shown))


def _row(group: GroupPlan) -> tuple[str, ...]:
    return (
        group.name,
        group.kind,
        str(group.n),
        "->",
        str(group.width),
        f"{group.explained_variance:.4f}" if _measured(group) else "-",
        *_change(group.before.params, group.after.params),
        *_change(group.before.macs, group.after.macs),
        _by(group),
    )


def _measured(group: GroupPlan) -> bool:
    return group.dtype is not None or group.chosen == "gain" or group.width == group.n


def _by(group: GroupPlan) -> str:
    if group.chosen != "tau":
        return group.chosen
    return f"{group.dtype}{'' if group.certified else ' (not certified)'}"


def _change(before: int, after: int) -> tuple[str, str, str]:
    return quantity(before), "->", quantity(after)


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
        notes.append(f"explained variance >= {plan.explained_variance:.6f} in every group chosen by it")
    if plan.allocation == "marginal_gain":
        notes.append("gain: the units whose next MAC or parameter lowers the output's error most")
    for name, asked in plan.budget.items():
        if name in ("params", "macs"):
            old, new = getattr(before, name), getattr(after, name)
            share = f"{new / old:.4f} of the original" if old else "of none"
            notes.append(f"{name}: asked for {asked:g}, reached {new:,} of {old:,} ({share})")
        elif is_latency(name):
            notes.append(
                f"latency: asked for {seconds_text(asked) if name == LATENCY_SECONDS else f'{asked:g}'}"
            )
        elif name != "explained_variance":
            notes.append(f"{name}: asked for {asked:g}{_reached(plan, name)}")
    if plan.latency is not None:
        notes.append(f"latency: {plan.latency}")
    if isinstance(plan.multiple_of, int):
        if plan.multiple_of > 1:
            notes.append(f"widths are multiples of {plan.multiple_of}, or whole")
    else:
        named = ", ".join(f"{step} ({glob})" for glob, step in plan.multiple_of.items())
        notes.append(f"widths are multiples of {named}, or whole")
    chosen = [g for g in plan.groups if g.chosen == "tau"]
    again = [g.name for g in chosen if g.dtype == "float64"]
    if again:
        notes.append(f"measured in float64: {len(again)} of {len(chosen)} groups ({', '.join(again)})")
    notes.append(
        "a group's params and MACs: of the tensors and operations it takes part in, which groups share"
    )
    return notes


def explanation(plan: Plan, graph: ChannelGraph) -> str:
    """Explain what each group couples, member by member, and what is left alone and why."""
    groups = {group.name: group for group in plan.groups}
    # A plan for layers of one width does not name what its configuration cannot say.
    parts = [_explain_group(group, groups[group.name]) for group in graph.groups if group.name in groups]
    alone = _left_alone(graph)
    if alone:
        parts.append("\n".join(["left alone, each layer with the reason:", *alone]))
    whole = {group.name: group.n for group in graph}
    stale = _stale(graph, whole | {name: group.width for name, group in groups.items()})
    if stale:
        parts.append("\n".join([_STALE, *stale]))
    notes = list(graph.notes)
    if graph.outputs is not None:
        notes.append(f"of the outputs {', '.join(map(str, graph.outputs))} stay, the others may get narrower")
    if graph.also:
        notes.append(f"traced with {len(graph.also)} other calls too")
    if notes:
        parts.append("\n".join(notes))
    return "\n\n".join(parts)


def _explain_group(group: ChannelGroup, planned: GroupPlan) -> str:
    width = planned.width
    whole = f", left whole: {_WHOLE[planned.chosen]}" if width == group.n else ""
    lines = [f"{group.name} ({group.kind}): {group.n} -> {width} units{whole}, removed together in"]
    lines += [f"  {m.role:<8} {m.tensor} dim {m.dim}" for m in group.members]
    if planned.note:
        lines.append(f"  {planned.note}")
    if group.inexact:
        lines.append(f"  removal is not the same as masking: {group.inexact}")
    return "\n".join(lines)


def _left_alone(graph: ChannelGraph) -> list[str]:
    """List the axes of weights that stay as long as they are, by reason, in the order they were found."""
    reasons: dict[str, list[str]] = {}
    for f in graph.frozen:
        reason = _REASONS.get(f.reason, f.reason)
        where = f" ({f.module})" if f.module and f.module not in reason else ""
        # Heads that can go whole, say, whose positions inside cannot.
        part = " (the units of no group)" if graph.axes[f.tensor][f.dim].places else ""
        reasons.setdefault(reason + where, []).append(f"{f.tensor} dim {f.dim}{part}")
    told = {f.tensor for f in graph.frozen}
    silent = [
        name
        for name, axes in graph.axes.items()
        if name in graph.parameters - told - graph.tied.keys()
        and sum(axis.length > 1 for axis in axes) > 1
        and not any(axis.places for axis in axes)
    ]
    if silent:
        reasons[_SILENT] = silent
    return [
        line for reason, names in reasons.items() for line in (f"  {reason}", *(f"    {n}" for n in names))
    ]


def _stale(graph: ChannelGraph, widths: Mapping[str, int]) -> list[str]:
    """List the attributes that may hold a width which the plan changes, and stay."""
    sizes = {group.name: group.n for group in graph}
    lines = []
    for held in graph.undecided:
        names = dict.fromkeys(name for axis in held.axes for name in axis.groups)
        changed = [name for name in names if widths[name] < sizes[name]]
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            where = f"{held.module}.{held.name}".lstrip(".")
            lines.append(f"  {where} = {held.value} ({', '.join(changed[:3])}{more})")
    return lines

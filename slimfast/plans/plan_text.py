"""The explanation of a plan: what each group couples, and what is left alone and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from slimfast.graph.channel_graph import ChannelGraph, ChannelGroup
from slimfast.graph.propagation.reasons import Reason
from slimfast.plans.multiples import too_narrow

if TYPE_CHECKING:
    from slimfast.plans.plan_data import GroupPlan, Plan

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


def explanation(plan: Plan, graph: ChannelGraph) -> str:
    """Explain what each group couples, member by member, and what is left alone and why."""
    groups = {group.name: group for group in plan.groups}
    # A plan for layers of one width does not name what its configuration cannot say.
    whole_for = why_whole(plan, graph)
    parts = [
        _explain_group(group, groups[group.name], whole_for.get(group.name, ""))
        for group in graph.groups
        if group.name in groups
    ]
    alone = [
        line
        for reason, names in left_alone(graph).items()
        for line in (f"  {reason}", *(f"    {name}" for name in names))
    ]
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


def why_whole(plan: Plan, graph: ChannelGraph | None) -> dict[str, str]:
    """Say of every group of a plan that keeps all of its units why, by its name."""
    narrow = too_narrow(graph, plan.multiple_of) if graph is not None else {}
    return {
        group.name: f"no narrower width is a multiple of {narrow[group.name]}"
        if group.name in narrow and group.chosen in ("tau", "gain")
        else _WHOLE[group.chosen]
        for group in plan.groups
        if group.width == group.n
    }


def _explain_group(group: ChannelGroup, planned: GroupPlan, why: str) -> str:
    width = planned.width
    whole = f", left whole: {why}" if why else ""
    lines = [f"{group.name} ({group.kind}): {group.n} -> {width} units{whole}, removed together in"]
    lines += [f"  {m.role:<8} {m.tensor} dim {m.dim}" for m in group.members]
    if planned.note:
        lines.append(f"  {planned.note}")
    if group.inexact:
        lines.append(f"  removal is not the same as masking: {group.inexact}")
    return "\n".join(lines)


def left_alone(graph: ChannelGraph) -> dict[str, list[str]]:
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
    return reasons


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

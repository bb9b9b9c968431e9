"""The channel graph that a plan speaks of, in the network that it is applied to."""

from __future__ import annotations

from typing import Any

from torch import nn

from slimfast.errors import SlimfastError
from slimfast.graph import trace_channels
from slimfast.graph.channel_graph import ChannelGraph
from slimfast.plans import Plan, check_plan


def graph_of(model: nn.Module, plan: Plan, example: Any = None) -> ChannelGraph:
    """Find the channel graph a plan speaks of: its own, or traced again, with ``example`` where it is given.

    The names and shapes of every parameter and buffer and the number of units of every group must agree:
    :class:`SlimfastError` if the model is another.
    """
    check_plan(plan, model)
    graph = plan.graph
    if graph is None:
        # those of a file cannot be made up where they hold an object
        calls = [*([plan.inputs] if example is None else []), *plan.also]
        made = [kwargs or args for args, kwargs in (call.example() for call in calls)]
        example, *also = made if example is None else [example, *made]
        graph = trace_channels(model, example, outputs=plan.outputs, also=also)
    sizes = {group.name: group.n for group in graph}
    for g in plan.groups:
        if sizes.get(g.name) != g.n:
            got = f"one of {sizes[g.name]} units" if g.name in sizes else "no such group"
            raise SlimfastError(f"plan: expected a model with a group {g.name} of {g.n} units, got {got}")
    return graph

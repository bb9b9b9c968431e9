"""What no forward shows that a plan goes by: a warning that names it, and how to show it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

from slimfast.graph.channel_graph import ChannelGraph
from slimfast.plans.plan_data import GroupPlan


def warn_of_unseen(graph: ChannelGraph, groups: Sequence[GroupPlan]) -> None:
    """Warn in one line of parameters that no recorded forward uses and that are as wide as a group to be cut
    around them, else of a training forward that fails with the example.

    What uses such a parameter, as an embedding of the targets that a batch of the training has, may put it
    together with units that are gone.
    """
    cut = [group for group in groups if group.width < group.n]
    beside = list(_beside(graph, cut))
    if beside:
        (name, length), group = beside[0]
        others = f" (and {len(beside) - 1} more)" if len(beside) > 1 else ""
        _warn(
            f"plan: {name}{others} is used by no forward that was seen, in training mode either, and is "
            f"{length} wide as what {group.name} makes, of which {group.width} of {group.n} units stay: what "
            "uses it may fail; show a call that does by also=, as the training makes it, or leave the group "
            "whole (exclude=)"
        )
    elif cut and graph.training_failure is not None:
        _warn(
            f"plan: the training forward cannot be looked at with this example: {graph.training_failure}; "
            "what it alone reads may keep its width and fail: show a batch as the training makes it by also="
        )


def _beside(graph: ChannelGraph, cut: Sequence[GroupPlan]) -> Iterator[tuple[tuple[str, int], GroupPlan]]:
    """Find the unused parameters, each with its length and the first group that is cut from that length in
    the same module.
    """
    for name, around in graph.unseen.items():
        lengths = {axis.length for axis in graph.axes[name]} - {1}
        inside = f"{around}." if around else ""
        for group in cut:
            found = next(
                (
                    graph.axes[member.tensor][member.dim].length
                    for member in graph[group.name].members
                    if member.tensor.startswith(inside)
                    and graph.axes[member.tensor][member.dim].length in lengths
                ),
                None,
            )
            if found is not None:
                yield (name, found), group
                break


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=6)

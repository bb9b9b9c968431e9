"""A plan that shrinks a network to what its masks leave."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import nn

from slimfast.errors import SlimfastError
from slimfast.graph import trace_channels
from slimfast.graph.recording.network import Network
from slimfast.plans.costs import CostModel, count_kept
from slimfast.plans.dead_units import Masks
from slimfast.plans.fingerprint import fingerprint
from slimfast.plans.plan_data import GroupPlan, Plan
from slimfast.plans.unseen import warn_of_unseen


def plan_from_masks(
    model: nn.Module,
    example: Any,
    *,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
) -> Plan:
    """Plan to keep exactly the units that masks, zero weights and dead scales leave.

    A unit goes where all that makes it is 0 as the layers compute with it (masks of
    :mod:`torch.nn.utils.prune` and other parametrizations included), where the scale of a batch norm or a
    depthwise filter multiplies it by 0, or where no layer reads it; and where the constant that it may still
    emit, its bias or shift behind the nonlinearity, is 0 or can be taken over exactly by the biases of the
    layers that read it. :func:`slimfast.prune_channels` does that, and verifies that the thin network
    computes what the network computes now. ``explain()`` says which dead units stay, and why.

    Args:
        model: The network, masked as it is.
        example: A tensor, a tuple or a dict of its arguments; it is run to see what dead units emit.
        include: Leave alone groups that none of these globs of names or kinds matches.
        exclude: Leave alone groups that one of these globs matches.

    Returns:
        The plan, with the kept units of each group.

    Raises:
        SlimfastError: For a model that cannot be traced or run, and one of which no unit is dead.

    Example:
        plan = slimfast.plan_from_masks(model, example)
        thin = slimfast.prune_channels(model, plan)
    """
    graph = trace_channels(
        model,
        example,
        include=None if include is None else list(include),
        exclude=None if exclude is None else list(exclude),
    )
    masks = Masks(Network.of(model), graph, example)
    found = {group.name: masks.of(group) for group in graph}
    if not any(len(dead.removable) for dead in found.values()):
        notes = [f"{name}: {dead.note}" for name, dead in found.items() if dead.note]
        more = f": {'; '.join(notes[:3])}" if notes else ""
        raise SlimfastError(f"plan_from_masks: expected units that can go, got none{more}")
    keeps = {g.name: np.setdiff1d(np.arange(g.n), found[g.name].removable).astype(np.int64) for g in graph}
    costs = CostModel(graph)
    widths = np.array([len(keeps[group.name]) for group in graph.groups], dtype=np.int64)
    before, after = costs.group_costs(costs.full), costs.group_costs(widths)
    groups = tuple(
        GroupPlan(
            name=group.name,
            kind=group.kind,
            n=group.n,
            width=len(keeps[group.name]),
            explained_variance=1.0 if len(keeps[group.name]) == group.n else 0.0,
            certified=True,
            keep=tuple(keeps[group.name].tolist()),
            dtype=None,
            chosen="mask",
            before=before[i],
            after=after[i],
            note=found[group.name].note,
        )
        for i, group in enumerate(graph.groups)
    )
    warn_of_unseen(graph, groups)
    return Plan(
        groups=groups,
        explained_variance=None,
        budget={},
        multiple_of=1,
        cost_before=count_kept(graph, {}),
        cost_after=count_kept(graph, keeps),
        shapes={name: tuple(axis.length for axis in axes) for name, axes in graph.axes.items()},
        inputs=graph.inputs,
        weights=fingerprint(model),
        graph=graph,
    )

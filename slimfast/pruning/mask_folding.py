"""Shrinking a network to its masks: what removed units still emit, taken over by those that read them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slimfast.arrays import IntArray
from slimfast.calibration.consumers import to_device
from slimfast.calibration.forward import running
from slimfast.errors import ArgumentError, SlimfastError
from slimfast.graph.channel_graph import ChannelGraph
from slimfast.graph.recording.inputs import arguments, cloned, map_leaves
from slimfast.graph.recording.module_copies import copy_network
from slimfast.graph.recording.network import Network
from slimfast.plans.dead_units import Masks
from slimfast.plans.plan_data import Plan
from slimfast.pruning.closeness import difference, rounding


def is_of_masks(plan: Plan) -> bool:
    """Say whether a plan is one of :func:`slimfast.plan_from_masks`."""
    return any(group.chosen == "mask" for group in plan.groups)


def check_repairable(plan: Plan, repair: str | None) -> None:
    """Raise ``ValueError`` for the repair of a network that loses nothing."""
    if repair is not None and is_of_masks(plan):
        raise ArgumentError(
            f"prune: expected no repair for a plan of masks, which loses nothing, got {repair!r}"
        )


def fold_masks(
    network: Network, graph: ChannelGraph, keeps: Mapping[str, IntArray], example: Any = None
) -> tuple[Network, tuple[str, ...]]:
    """Copy a network with what the removed units emit in the biases of the layers that read them, and name
    these.

    With the removed units masked the copy computes what the network does. Raises :class:`SlimfastError`
    where a unit is to go that is not dead, or not any more.
    """
    masks = Masks(network, graph, example)
    removed = {}
    for group in graph:
        gone = np.setdiff1d(np.arange(group.n), keeps.get(group.name, np.arange(group.n)))
        alive = np.setdiff1d(gone, masks.of(group).removable)
        if len(alive):
            raise SlimfastError(
                f"prune: expected {len(gone)} dead units to remove, got {len(alive)} that are not "
                f"({group.name}); make the plan again"
            )
        removed[group.name] = gone
    folded = masks.folded(removed)
    return Network.of(copy_network(network, folded, share=True)), tuple(folded)


def check_same(model: nn.Module, thin: nn.Module, graph: ChannelGraph, example: Any = None) -> None:
    """Refuse a thin network that computes anything else than the masked one it is made of."""
    inputs = graph.inputs.example() if example is None else arguments(example)
    outputs = []
    for module in (model, thin):
        with running(module) as (copy, device), torch.random.fork_rng([]):
            torch.manual_seed(0)
            args, kwargs = map_leaves(cloned(inputs), functools.partial(to_device, device=device))
            outputs.append(copy(*args, **kwargs))
    dtypes = [t.dtype for t in model.parameters() if isinstance(t, Tensor) and t.is_floating_point()]
    tolerance = rounding(model, dtypes[0] if dtypes else torch.float32, len(graph.operations))
    error = difference(*outputs)
    if not error <= tolerance:
        raise SlimfastError(
            f"prune: expected the thin network to compute what the masked one does, got outputs that are off "
            f"by {error:.2g} of their size; exclude groups (exclude=...) and make the plan again"
        )

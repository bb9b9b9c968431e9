"""Pruning: a new, smaller module that holds, bit for bit, the weights a plan keeps."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import nn

from slimfast.arrays import IntArray, Progress
from slimfast.calibration.data import Calibration
from slimfast.calibration.spilling import MEMORY, check_memory
from slimfast.distributed.dtensors import check_whole
from slimfast.errors import SlimfastError
from slimfast.graph.channel_graph import ChannelGraph
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.cutting.prediction import check_thin
from slimfast.graph.recording.inputs import arguments
from slimfast.graph.recording.network import Network
from slimfast.plans import GroupPlan, Plan, warn_of_units
from slimfast.plans.costs import count_kept
from slimfast.plans.fingerprint import check_weights, fingerprint
from slimfast.pruning.choices import Given, Repair, chosen, chosen_for_training
from slimfast.pruning.gathering import gather_slices
from slimfast.pruning.manifest_fields import Change
from slimfast.pruning.manifests import Manifest, attach, compose, frozen, manifest
from slimfast.pruning.mask_folding import check_repairable, check_same, fold_masks, is_of_masks
from slimfast.pruning.plan_graph import graph_of
from slimfast.pruning.repair import check_kind, repair_thin
from slimfast.pruning.repair.report import repaired_tensors
from slimfast.pruning.rotation.report import given_units
from slimfast.pruning.selection import Method, first_method, select_units
from slimfast.pruning.training_state import AnyOptimizer, prune_optimizer
from slimfast.pruning.verification import attach_verification, verify_and_patch
from slimfast.wrappers import unwrapped

__all__ = ["Manifest", "manifest", "prune_channels"]

_log = logging.getLogger(__name__)
# Traced, selected, gathered, checked, verified.
_STAGES = 5
_REPAIR_STAGES = 100


@overload
def prune_channels(
    model: nn.Module,
    plan: Plan | str | os.PathLike[str],
    *,
    select: Method | None = ...,
    repair: Repair = ...,
    repair_damping: float = ...,
    for_training: bool = ...,
    calibration: Calibration | None = ...,
    memory: int = ...,
    verify: bool = ...,
    strict: bool = ...,
    example: Any = ...,
    backend: str = ...,
    progress: Progress | None = ...,
    optimizer: None = ...,
) -> nn.Module: ...
@overload
def prune_channels(
    model: nn.Module,
    plan: Plan | str | os.PathLike[str],
    *,
    select: Method | None = ...,
    repair: Repair = ...,
    repair_damping: float = ...,
    for_training: bool = ...,
    calibration: Calibration | None = ...,
    memory: int = ...,
    verify: bool = ...,
    strict: bool = ...,
    example: Any = ...,
    backend: str = ...,
    progress: Progress | None = ...,
    optimizer: AnyOptimizer,
) -> tuple[nn.Module, AnyOptimizer]: ...
@torch.inference_mode(False)
def prune_channels(
    model: nn.Module,
    plan: Plan | str | os.PathLike[str],
    *,
    select: Method | None = None,
    repair: Repair = "auto",
    repair_damping: float = 0.0,
    for_training: bool = False,
    calibration: Calibration | None = None,
    memory: int = MEMORY,
    verify: bool = True,
    strict: bool = False,
    example: Any = None,
    backend: str = "auto",
    progress: Progress | None = None,
    optimizer: AnyOptimizer | None = None,
) -> nn.Module | tuple[nn.Module, AnyOptimizer]:
    """Cut a copy of ``model`` to the widths of ``plan``; ``model`` is untouched.

    Names, dtypes, devices, ``requires_grad``, tied weights and train/eval mode are as in ``model``; the same
    plan on the same weights gives the same network, bit for bit. What was kept is at hand as
    ``manifest(thin)``, and a thin network can be pruned again. The shapes of every operation of the thin
    network are compared with the prediction.

    Args:
        model: The network; one in a usual wrapper is taken out of it, and returned without.
        plan: Its widths, or the path of the file they are in.
        select: How the units are chosen where the plan has not done so: a method of :func:`slimfast.select`;
            unless given "activations" where the ``calibration`` has measured, else "lookahead".
        repair: Then solves the layers that read what was cut for the best weights in closed form, from the
            ``"weights"`` alone or from the ``"activations"`` of a ``calibration``, which also gives the batch
            norms their statistics; ``repair_report(thin)`` says what was done and what was not. From its
            ``"moments"`` no network runs, in a fraction of the time: for networks without batch norms. None
            repairs nothing; unless given, it is from activations where there is a calibration.
        repair_damping: The least damping from data, in units of the mean variance of what a layer
            reads: 0 fits what the thin network is now; 1, which moves weights along the directions of more
            than mean variance only, is the better start of a training.
        for_training: Chooses units and repair as a training starts best from them: large units, or those by
            activations where heads are cut, and with a ``calibration`` a repair with a damping of 1.
        calibration: From :func:`slimfast.calibrate`: chooses the units and repairs, unless told otherwise.
        memory: Bytes of activations that a repair holds in memory; the rest goes to a temporary file.
        verify: Also runs both networks and compares (:func:`slimfast.verify`); ``verification_report(thin)``
            says what was found.
        strict: Refuses a plan that was made from other weights of the same shapes, which is else a warning.
        example: What they are then called with, and the thin network is recorded with, instead of inputs made
            up to the plan's description.
        backend: The kernels to use.
        progress: Called with the number of stages done and of all, a hundred of which are a repair from
            activations; what it raises (:class:`slimfast.Cancelled`) ends the work.
        optimizer: That of ``model``, so that a training goes on. Gradients do not come along.

    Returns:
        The thin network. With an ``optimizer``, (thin network, its optimizer): the same hyperparameters, and
        the state of what was kept (:func:`slimfast.pruning.training_state.prune_optimizer`).

    Raises:
        ValueError: For wrong arguments.
        SlimfastError: For a plan of another model and for a thin network that fails a check.

    Example:
        thin = slimfast.prune_channels(model, slimfast.plan(model, example, macs=0.5))
    """
    done, total = 0, _STAGES

    def reached(stage: str) -> None:
        nonlocal done
        _log.debug("pruning %s: %s", type(model).__name__, stage)
        done += 1
        if progress is not None:
            progress(done, total)

    def repaired(parts: int, of: int) -> None:
        if progress is not None:
            progress(done + parts * _REPAIR_STAGES // of, total)

    model = unwrapped(model)
    plan = Plan.of(plan)
    given, calibrated = Given(select, repair, repair_damping), calibration is not None
    if for_training:
        kinds = {group.kind for group in plan.groups}
        select, repair, repair_damping = chosen_for_training(given, kinds, calibrated=calibrated)
    else:
        select, repair, repair_damping = chosen(given, calibrated=calibrated, lossless=is_of_masks(plan))
    total += _REPAIR_STAGES if repair in ("activations", "moments") else 0
    network = Network.of(model)
    check_whole(network.tensors, type(model).__name__)
    check_kind(repair, calibration, repair_damping)
    check_memory("prune", memory)
    check_repairable(plan, repair)
    graph = graph_of(model, plan, example)
    # One level is the decorator's.
    check_weights(plan.weights, fingerprint(model), strict=strict, stacklevel=4)
    reached("traced")
    keeps = _keeps(model, graph, plan.groups, select, calibration, backend)
    reached("units selected")
    cut = Cut(graph, keeps)
    _check_cost(plan, cut)
    folded: tuple[str, ...] = ()
    if is_of_masks(plan):
        network, folded = fold_masks(network, graph, keeps, example)
    patches = cut.attribute_patches(network)
    gathered = gather_slices(network.tensors, cut.tensor_cuts, backend)
    thin = cut.thin_copy(network, tensors=gathered, patches=patches)
    reached("weights gathered")
    mismatches = check_thin(thin, cut, None if example is None else arguments(example))
    if mismatches:
        raise SlimfastError(f"prune: the thin network does not have the predicted shapes: {mismatches[0]}")
    shapes = {name: tuple(tensor.shape) for name, tensor in network.tensors.items()}
    cuts = cut.tensor_cuts.items()
    indices = {name: {dim: frozen(index) for dim, index in dims.items()} for name, dims in cuts}
    widths = {name: (graph[name].n, len(keep)) for name, keep in keeps.items()}
    reached("shapes checked")
    checked = None
    if verify:
        checked, read_in_training = verify_and_patch(network, thin, cut, example)
        patches = (*patches, *read_in_training)
        if is_of_masks(plan):
            check_same(model, thin, graph, example)
    attach_verification(thin, checked)
    moved: dict[str, tuple[Change, ...]] = dict.fromkeys(folded, ("masks",))
    if repair is not None:
        how: dict[str, Any] = {"damping": repair_damping, "memory": memory, "backend": backend}
        found = repair_thin(
            model, thin, graph, keeps, kind=repair, calibration=calibration, tick=repaired, **how
        )
        moved = dict.fromkeys(repaired_tensors(found.fits, found.norms, shapes), ("repair",))
        done = total - 1
    attach(thin, compose(manifest(model), Manifest(shapes, indices, patches, widths, moved)))
    reached("verified" if verify else "done")
    _log.info("pruned %s: %d tensors cut", type(model).__name__, len(cuts))
    return thin if optimizer is None else (thin, prune_optimizer(optimizer, model, thin))


def _keeps(
    model: nn.Module,
    graph: ChannelGraph,
    groups: Sequence[GroupPlan],
    method: Method | None,
    calibration: Calibration | None,
    backend: str,
) -> dict[str, IntArray]:
    """Find the kept units of every group: the plan's, or chosen now."""
    keeps = {g.name: np.array(g.keep, dtype=np.int64) for g in groups if g.keep is not None}
    open_groups = [g for g in groups if g.keep is None]
    if len(given_units(model, open_groups)) < len(open_groups):
        warn_of_units(model, first_method(method, calibration), "prune")
    return keeps | select_units(
        model, graph, open_groups, method=method, calibration=calibration, backend=backend
    )


def _check_cost(plan: Plan, cut: Cut) -> None:
    """Refuse a plan whose costs are not those of the network that its units leave."""
    said, left = plan.cost_after, count_kept(cut.graph, cut.keeps)
    if (said.params, said.macs) != (left.params, left.macs):
        raise SlimfastError(
            f"prune: expected the {said.params:,} parameters and {said.macs:,} MACs that the plan says, got "
            f"{left.params:,} and {left.macs:,} with the units it keeps; make the plan again"
        )

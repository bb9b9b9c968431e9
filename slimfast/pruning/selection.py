"""Which units of each group stay, once a plan has said how many: rankings of the weights producing them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn

from slimfast.arrays import IntArray
from slimfast.calibration.consumers import consumers_of
from slimfast.calibration.data import Calibration, check_calibration
from slimfast.calibration.moments import unit_covariance
from slimfast.errors import ArgumentError, NonFinite, SlimfastError, did_you_mean
from slimfast.graph.channel_graph import ChannelGraph, ChannelGroup
from slimfast.graph.recording.module_copies import named_tensors
from slimfast.kernels.memory import call_bytes
from slimfast.kernels.ops import grouped_covariance, grouped_pivoted_cholesky
from slimfast.plans import GroupPlan, Plan, warn_of_units
from slimfast.pruning.plan_graph import graph_of
from slimfast.pruning.rotation.report import given_units
from slimfast.pruning.unit_scores import Score, unit_scores, weight_rows
from slimfast.pruning.wide_reads import wide_rows
from slimfast.pruning.wide_units import pivoted_rows
from slimfast.wrappers import unwrapped

Method: TypeAlias = Literal[Score, "pivoted_cholesky", "activations"]
METHODS: tuple[str, ...] = get_args(Method)
# The paper's is l1; on ResNets units by lookahead end higher after the same training (docs/evidence).
DEFAULT_METHOD: Literal["lookahead"] = "lookahead"

_BATCH_BYTES = 256 << 20  # of covariances factored in one grouped call on a CPU


def select(
    model: nn.Module,
    plan: Plan | str | os.PathLike[str],
    *,
    method: Method | None = None,
    calibration: Calibration | None = None,
    backend: str = "auto",
) -> Plan:
    """Choose by ``method`` the units that each group of ``plan`` keeps, whatever was chosen before.

    A unit is measured on all the convolution and linear weights that produce it together, where nothing
    else is said:

    - ``l1``, ``l2``: the norm of its weights (Li et al., ICLR 2017);
    - ``lookahead``: that norm times the norm of the weights that read it, which is the norm of what the
      product of the two layers loses (Park et al., ICLR 2020);
    - ``geometric_median``: the sum of its distances to all other units (FPGM, He et al., CVPR 2019);
    - ``bn_scale``: the sum of \\|gamma\\| of the batch norms that follow (Liu et al., ICCV 2017);
    - ``pivoted_cholesky``: greedy choice of the unit with the most variance not explained by those before it;
    - ``activations``: the same choice by how the units vary together in what their consumers read, each
      weighted by the consumer's weights (:func:`slimfast.calibrate`).

    The largest stay; ties go to the smaller index. The paper's is ``l1``. Weights are those that the layers
    compute with: masked, normed, or otherwise made of parameters. A unit of which they are all 0, or that a
    batch norm or a depthwise filter behind multiplies by 0, goes before any other. Of head dims that
    :func:`slimfast.rotate_heads` has sorted the first stay, whatever the method.

    Args:
        model: The network.
        plan: Its widths, or the path of the file they are in.
        method: One of the above; unless given ``activations`` where there is a calibration, with
            ``lookahead`` for groups that it has not measured, else ``lookahead``.
        calibration: What ``activations`` goes by.
        backend: The kernels to use.

    Returns:
        The plan with the kept units of each group.

    Raises:
        ValueError: For an unknown method, ``activations`` without a calibration, and groups without a batch
            norm where the method needs one.
        SlimfastError: For a plan of another model and weights that are not finite.

    Example:
        chosen = slimfast.select(model, slimfast.plan(model, example, macs=0.5), method="l1")
        thin = slimfast.prune_channels(model, chosen)
    """
    model, plan = unwrapped(model), Plan.of(plan)
    graph = graph_of(model, plan)
    if len(given_units(model, plan.groups)) < len(plan.groups):
        warn_of_units(model, first_method(method, calibration), "select")
    keeps = select_units(model, graph, plan.groups, method=method, calibration=calibration, backend=backend)
    return dataclasses.replace(plan, groups=with_keeps(plan.groups, keeps))


def select_units(
    model: nn.Module,
    graph: ChannelGraph,
    groups: Sequence[GroupPlan],
    *,
    method: Method | None,
    calibration: Calibration | None = None,
    backend: str = "auto",
) -> dict[str, IntArray]:
    """Choose the kept units of each of ``groups``: group name -> sorted units; see :func:`select`."""
    given, method = method, first_method(method, calibration)
    if method not in METHODS:
        hint = did_you_mean(method, METHODS)
        raise ArgumentError(f"select: expected one of {', '.join(METHODS)}, got {method!r}{hint}")
    keeps = given_units(model, groups)
    chosen = [g for g in groups if g.name not in keeps]
    tensors = named_tensors(model)
    for g in chosen:
        for name in graph.needed(graph[g.name]):
            if tensors[name].is_meta:
                raise SlimfastError(f"select: {name} is a meta tensor and has no values ({g.name})")
    if method == "pivoted_cholesky":
        wanted = [(graph[g.name], g.width) for g in chosen]
        return keeps | _by_weights(graph, wanted, graph.effective(tensors), backend)
    if method == "activations":
        if calibration is None:
            raise ArgumentError("select: expected a calibration for method 'activations', got none")
        wanted = [(graph[g.name], g.width) for g in chosen]
        keeps |= _by_activations(model, graph, wanted, calibration, backend, strict=given is not None)
        method, chosen = DEFAULT_METHOD, [g for g in chosen if g.name not in keeps]
    scores = unit_scores(model, graph, [graph[g.name] for g in chosen], method)
    return keeps | {g.name: largest(scores(graph[g.name]), g.width) for g in chosen}


def first_method(method: Method | None, calibration: Calibration | None) -> Method:
    """Return the method that was given, or the one that chooses where none was."""
    return method or (DEFAULT_METHOD if calibration is None else "activations")


def with_keeps(groups: Sequence[GroupPlan], keeps: Mapping[str, IntArray]) -> tuple[GroupPlan, ...]:
    """Copy the groups with the kept units of those that ``keeps`` names."""
    return tuple(
        dataclasses.replace(g, keep=tuple(keeps[g.name].tolist())) if g.name in keeps else g for g in groups
    )


def largest(scores: np.ndarray, width: int) -> IntArray:
    """Find the sorted indices of the ``width`` largest scores; ties go to the smaller index."""
    order = np.lexsort((np.arange(len(scores)), -scores))
    keep: IntArray = np.sort(order[:width]).astype(np.int64)
    return keep


def _by_weights(
    graph: ChannelGraph,
    chosen: Sequence[tuple[ChannelGroup, int]],
    tensors: Mapping[str, Tensor],
    backend: str,
) -> dict[str, IntArray]:
    """Choose each group's units by how they vary over the positions of the weights that produce them."""
    keeps: dict[str, IntArray] = {}
    narrow = []
    for group, width in chosen:
        rows = weight_rows(graph, group, tensors) if 8 * group.n**2 > _BATCH_BYTES else []
        if rows and group.n > sum(row.shape[1] for row in rows):
            _check_finite(graph, group, rows)
            keeps[group.name] = _first(*pivoted_rows(rows, width), width)
        else:
            narrow.append((group, width))
    return keeps | _pivoted_cholesky(narrow, lambda g: _covariance(graph, g, tensors, backend), backend)


def _check_finite(graph: ChannelGraph, group: ChannelGroup, rows: Sequence[Tensor]) -> None:
    for row, member in zip(rows, graph.producers(group), strict=True):
        if not bool(row.isfinite().all()):
            raise SlimfastError(
                f"select: expected finite weights, got others ({group.name}: {member.tensor})"
            )


def _first(order: np.ndarray, variance: np.ndarray, width: int) -> IntArray:
    """Take the units that were chosen first, sorted.

    Where the rank is used up no unit explains more than another: the largest of the rest follow.
    """
    rank = np.full(len(variance), -1.0)
    rank[order] = np.arange(len(order), 0, -1)
    best = np.lexsort((np.arange(len(variance)), -variance, -rank))
    keep: IntArray = np.sort(best[:width]).astype(np.int64)
    return keep


def _pivoted_cholesky(
    chosen: Sequence[tuple[ChannelGroup, int]], covariance: Callable[[ChannelGroup], Tensor], backend: str
) -> dict[str, IntArray]:
    """Choose each group's units, by name, with :func:`slimfast.kernels.ops.grouped_pivoted_cholesky`."""
    keeps: dict[str, IntArray] = {}
    for batch, mats in _batches(chosen, covariance):
        for device in sorted({mat.device for mat in mats}, key=str):
            here = [i for i, mat in enumerate(mats) if mat.device == device]
            picks = grouped_pivoted_cholesky(
                [mats[i] for i in here],
                [batch[i][1] for i in here],
                names=[batch[i][0].name for i in here],
                backend=backend,
            )
            for i, pick in zip(here, picks, strict=True):
                variance, order = mats[i].diagonal().cpu().numpy(), pick.order.cpu().numpy()
                keeps[batch[i][0].name] = _first(order, variance, batch[i][1])
    return keeps


def _by_activations(
    model: nn.Module,
    graph: ChannelGraph,
    chosen: Sequence[tuple[ChannelGroup, int]],
    calibration: Calibration,
    backend: str,
    *,
    strict: bool,
) -> dict[str, IntArray]:
    """Choose each group's units by how they vary in what its consumers read.

    Where those have no moments, because of their width, by a share of the positions that they read. Groups
    that were not calibrated are left out, or are an error where ``strict``.
    """
    consumers = {consumer.weight: consumer for consumer in consumers_of(model, graph)[0]}
    check_calibration(calibration, graph.effective(named_tensors(model)), consumers.values())
    measured = calibration.readings.keys() & consumers.keys()
    narrow = [
        (group, width)
        for group, width in chosen
        if any(member.tensor in measured for member in graph.consumers(group))
    ]
    names = {group.name for group, _ in narrow}
    wide = [(group, width) for group, width in chosen if group.name not in names]
    rows = wide_rows(model, graph, calibration, [group for group, _ in wide])
    keeps: dict[str, IntArray] = {}
    for group, width in wide:
        if group.name not in rows:
            if not strict:
                continue
            left = calibration.left
            why = next((left[m.tensor] for m in group.members if m.tensor in left), "no layer reads it")
            raise SlimfastError(f"select: {group.name} was not calibrated: {why}")
        keeps[group.name] = _first(*pivoted_rows(rows[group.name], width), width)

    def read(group: ChannelGroup) -> Tensor:
        found = unit_covariance(graph, group, consumers, calibration)
        assert found is not None, "a layer with moments reads it"
        return found

    return keeps | _pivoted_cholesky(narrow, read, backend)


def _covariance(
    graph: ChannelGraph, group: ChannelGroup, tensors: Mapping[str, Tensor], backend: str
) -> Tensor:
    """Compute the (n, n) float64 covariance of a group's units over the positions of all its producers."""
    rows = weight_rows(graph, group, tensors)
    if not rows:
        return torch.zeros(group.n, group.n, dtype=torch.float64, device="cpu")
    try:
        (found,) = grouped_covariance(
            [rows],
            side="rows",
            dtype=torch.float64,
            names=[[f"{group.name}: {m.tensor}" for m in graph.producers(group)]],
            backend=backend,
        ).matrices
    except NonFinite as error:
        raise SlimfastError(f"select: {error}") from None
    return found


def _batches(
    chosen: Sequence[tuple[ChannelGroup, int]], covariance: Callable[[ChannelGroup], Tensor]
) -> Iterator[tuple[list[tuple[ChannelGroup, int]], list[Tensor]]]:
    """Yield the groups in order with their covariances, in batches.

    A batch ends where the next covariance would take more than a call may on the device of its first one.
    """
    batch: list[tuple[ChannelGroup, int]] = []
    mats: list[Tensor] = []
    left = 0
    for group, width in chosen:
        mat = covariance(group)
        if batch and mat.nbytes > left:
            yield batch, mats
            batch, mats = [], []
        if not batch:
            left = call_bytes(mat.device, _BATCH_BYTES)
        batch.append((group, width))
        mats.append(mat)
        left -= mat.nbytes
    if batch:
        yield batch, mats

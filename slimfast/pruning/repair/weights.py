"""Repair without data: units that were cut as combinations of those that stay, by the weights that make them.

For inputs that are white, unit u's value before its nonlinearity has the covariance f_u . f_v with unit v's,
f being the unit's weights times the scale of the batch norm that follows. The least squares of those values
stand for the ones of what the consumers read: exact for units that are copies, or where nothing nonlinear
comes between, and a model of it elsewhere. For attention heads see :mod:`slimfast.pruning.repair.heads`,
for the MLPs of transformers :mod:`slimfast.pruning.repair.rectified`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slimfast.arrays import IntArray
from slimfast.calibration.consumers import Consumer, consumers_of, kept_variables, with_moments
from slimfast.graph.channel_graph import ChannelGraph, ChannelGroup
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.recording.module_copies import named_tensors
from slimfast.kernels.cholesky_solve import grouped_cholesky_solve
from slimfast.pruning.repair.heads import head_covariances
from slimfast.pruning.repair.rectified import Moments, rectified_moments
from slimfast.pruning.repair.report import Fit, RepairReport
from slimfast.pruning.repair.writing import write_weight
from slimfast.spectra.unit_matrices import unit_matrix

# Share of the mean variance added to the diagonal: with no data there is none to choose it by.
DAMPING = 1e-2
_GATED = (nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell)


def repair_from_weights(
    model: nn.Module, thin: nn.Module, graph: ChannelGraph, keeps: Mapping[str, IntArray]
) -> RepairReport:
    """Repair ``thin`` in place: what reads cut units gives their weights to those that stay."""
    every, left = consumers_of(model, graph)
    consumers, large = with_moments(every)
    left |= large
    own = named_tensors(model)
    # what dead units are made by tells nothing, but it stays where it is
    tensors, written = graph.effective(own), graph.made(own)
    kept = Cut(graph, keeps).kept_indices
    norms, rectified = _norms_behind(model, graph), rectified_moments(model, graph, tensors)
    cut = {group.name: group for group in graph if len(keeps.get(group.name, range(group.n))) < group.n}
    modules = dict(model.named_modules())
    combinations = {
        name: _gates_behind(group, modules)
        or _combination(graph, group, keeps[name], tensors, norms, rectified)
        for name, group in cut.items()
        if group.kind in ("channel", "residual")
    }
    reading = [r for r in consumers if any(name in cut for name in r.axis.groups)]
    heads = head_covariances(model, graph, reading, tensors)
    means = {
        name: rectified[made[0].tensor].mean
        for name, made in ((name, graph.producers(group)) for name, group in cut.items())
        if len(made) == 1 and made[0].tensor in rectified
    }
    fits = {}
    for consumer in reading:
        _, variables = kept_variables(consumer, kept(consumer.axis), kept(consumer.outputs))
        change: Tensor | str
        if consumer.weight in heads:
            covariance = heads[consumer.weight]
            change = covariance if isinstance(covariance, str) else _combined(covariance, variables)
        else:
            change = _change(consumer, cut, keeps, combinations, variables)
        if isinstance(change, str):
            left[consumer.weight] = change
            continue
        wide = written[consumer.weight]
        weight = consumer.matrix(wide.detach().double())
        repaired = torch.einsum("bolt,lk->bokt", weight, change.to(weight.device))
        # Of a convolution in groups whole ones may be gone, and outputs of those that stay.
        rows = torch.from_numpy(kept(consumer.outputs)).to(weight.device)
        repaired = repaired.flatten(0, 1)[rows]
        target: Any = thin.get_submodule(consumer.module)
        why = write_weight(target, consumer.weight_of(repaired, wide))
        if why is not None:
            left[consumer.weight] = f"{consumer.module}: {why}"
            continue
        bias = target._parameters.get("bias")
        if bias is not None and consumer.blocks == 1:
            mean = _mean(consumer, means)
            moved = mean - change @ mean[variables]
            shift = weight[0].sum(2) @ moved.to(weight.device)
            with torch.no_grad():
                bias += shift[rows].to(bias)
        fits[consumer.weight] = Fit(DAMPING)
    return RepairReport("weights", fits, (), left)


def _gates_behind(group: ChannelGroup, modules: Mapping[str, nn.Module]) -> str | None:
    """Say of units that are made by gates why the weights do not tell them; None for others.

    A unit of an LSTM is a product of what its gates say: units whose weights are alike need not be alike.
    """
    for path in (member.tensor.rpartition(".")[0] for member in group.producers()):
        if isinstance(modules.get(path), _GATED):
            return f"units of {group.name} are products of the gates of {path}, which weights do not tell"
    return None


def _combination(
    graph: ChannelGraph,
    group: ChannelGroup,
    keep: IntArray,
    tensors: Mapping[str, Tensor],
    norms: Mapping[str, Tensor],
    rectified: Mapping[str, Moments],
) -> Tensor | str:
    """Express each unit as a combination of the kept ones, (n, k); or say why the weights do not tell."""
    producers = graph.producers(group)
    if len(producers) == 1 and producers[0].tensor in rectified:
        return _combined(rectified[producers[0].tensor].covariance, keep)
    gram = torch.zeros(group.n, group.n, dtype=torch.float64, device="cpu")
    for member in producers:
        rows = unit_matrix(tensors[member.tensor].detach(), member.dim, member.units).double().cpu()
        scale = norms.get(member.tensor)
        if scale is not None:
            rows = rows * unit_matrix(scale[:, None], 0, member.units)
        gram += rows @ rows.T
    if float(gram.trace()) == 0.0:
        return f"no weights make the units of {group.name}"
    return _combined(gram, keep)


def _combined(covariance: Tensor, keep: IntArray) -> Tensor:
    """Express each of n variables of this covariance as a combination of the kept ones, (n, k)."""
    kept = torch.from_numpy(keep)
    plain = torch.zeros(len(covariance), len(keep), dtype=torch.float64, device="cpu")
    plain[kept, torch.arange(len(keep), device="cpu")] = 1.0
    inner = covariance[kept][:, kept]
    scale = float(inner.diagonal().mean())
    if not scale > 0.0:
        # Nothing varies: nothing to go by.
        return plain
    rest = covariance[:, kept] - plain @ inner
    solved = grouped_cholesky_solve([inner], [rest.T], [[DAMPING * scale]])
    return plain + solved.solutions[0][0].T


def _change(
    consumer: Consumer,
    cut: Mapping[str, ChannelGroup],
    keeps: Mapping[str, IntArray],
    combinations: Mapping[str, Tensor | str],
    variables: IntArray,
) -> Tensor | str:
    """Express the variables of one of the consumer's blocks in those that stay, (l, k).

    Gives the reason where it is not known.
    """
    length = consumer.length // consumer.blocks
    change = torch.zeros(length, len(variables), dtype=torch.float64, device="cpu")
    change[torch.from_numpy(variables), torch.arange(len(variables), device="cpu")] = 1.0
    place = np.full(length, -1, dtype=np.int64)
    place[variables] = np.arange(len(variables))
    claimed = np.zeros(length, dtype=bool)
    for name, units in consumer.axis.parts:
        if name not in cut:
            continue
        if name not in combinations:
            return f"units of {name} are {cut[name].kind}s, of several channels each"
        found = combinations[name]
        if isinstance(found, str):
            return found
        at = units[:: consumer.run]
        if claimed[at >= 0].any():
            return f"{consumer.module} reads variables of several groups at once"
        claimed |= at >= 0
        # Units that were flattened have several variables each, the same combination at every position.
        order = np.argsort(at, kind="stable")[np.count_nonzero(at < 0) :]
        for index in order.reshape(cut[name].n, -1).T:
            kept_places = place[index[keeps[name]]]
            change[torch.from_numpy(index)[:, None], torch.from_numpy(kept_places)] = found
    return change


def _mean(consumer: Consumer, means: Mapping[str, Tensor]) -> Tensor:
    """Gather the means of what the consumer reads, (L,), 0 where they are not known."""
    found = torch.zeros(consumer.length, dtype=torch.float64, device="cpu")
    for name, units in consumer.axis.parts:
        if name in means:
            at = units[:: consumer.run]
            found[torch.from_numpy(at >= 0)] = means[name][torch.from_numpy(at[at >= 0])]
    return found


def _norms_behind(model: nn.Module, graph: ChannelGraph) -> dict[str, Tensor]:
    """Find the scale of the batch norm that each layer's output goes right into, by the layer's weight.

    Scales are float64 on the CPU.
    """
    modules = dict(model.named_modules())
    scales: dict[str, Tensor] = {}
    for made, taken in itertools.pairwise(graph.operations):
        norm: Any = modules.get(taken.module)
        is_norm = isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_var is not None
        if is_norm and "batch_norm" in taken.name:
            scale = (norm.running_var.double() + norm.eps).rsqrt()
            scale = scale if norm.weight is None else scale * norm.weight.detach().double()
            scales[f"{made.module}.weight"] = scale.cpu()
    return scales

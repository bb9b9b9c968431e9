"""Repair without data: units that were cut as combinations of those that stay, by the weights that make them.

For inputs that are white, unit u's value before its nonlinearity has the covariance f_u . f_v with unit v's,
f being the unit's weights times the scale of the batch norm that follows. The least squares of those values
stand for the ones of what the consumers read: exact for units that are copies, or where nothing nonlinear
comes between, and a model of it elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slimfast.graph.copies import named_tensors
from slimfast.graph.groups import ChannelGraph, ChannelGroup, IntArray
from slimfast.graph.surgery import survivors
from slimfast.readers import Reader, readers, survivors_of
from slimfast.repair.least_squares import changes
from slimfast.repair.report import Fit, RepairReport
from slimfast.spectra.unit_matrices import unit_matrix

# Share of the mean variance added to the diagonal: with no data there is none to choose it by.
DAMPING = 1e-2


def repair_from_weights(
    model: nn.Module, thin: nn.Module, graph: ChannelGraph, keeps: Mapping[str, IntArray]
) -> RepairReport:
    """Repair ``thin`` in place: what reads cut units gives their weights to those that stay."""
    found, left = readers(model, graph)
    tensors = named_tensors(model)
    kept = survivors(keeps)
    norms = _norms_behind(model, graph)
    cut = [group for group in graph if len(keeps.get(group.name, range(group.n))) < group.n]
    combinations = {group.name: _combination(group, keeps[group.name], tensors, norms) for group in cut}
    fits = {}
    for reader in found:
        parts = [(name, units) for name, units in reader.axis.parts if name in combinations]
        if not parts:
            continue
        _, variables = survivors_of(reader, kept(reader.axis), kept(reader.outputs))
        change = _change(reader, parts, {group.name: group for group in cut}, keeps, combinations, variables)
        if isinstance(change, str):
            left[reader.weight] = change
            continue
        weight = reader.matrix(tensors[reader.weight].detach().double())
        repaired = torch.einsum("bolt,lk->bokt", weight, change.to(weight.device))
        rows = torch.from_numpy(kept(reader.outputs)).to(weight.device)
        target: Any = thin.get_submodule(reader.module)
        with torch.no_grad():
            target.weight.copy_(reader.weight_of(repaired[:, rows], target.weight))
        fits[reader.weight] = Fit(DAMPING)
    return RepairReport("weights", fits, (), left)


def _combination(
    group: ChannelGroup, keep: IntArray, tensors: Mapping[str, Tensor], norms: Mapping[str, Tensor]
) -> Tensor | str:
    """(n, k): each unit as a combination of the kept ones; a reason where the weights do not say."""
    if group.kind not in ("channel", "residual"):
        return f"units of {group.name} are {group.kind}s, of several channels each"
    gram = torch.zeros(group.n, group.n, dtype=torch.float64)
    for member in group.producers():
        rows = unit_matrix(tensors[member.tensor].detach(), member.dim, member.units).double().cpu()
        scale = norms.get(member.tensor)
        if scale is not None:
            rows = rows * unit_matrix(scale[:, None], 0, member.units)
        gram += rows @ rows.T
    if float(gram.trace()) == 0.0:
        return f"no weights make the units of {group.name}"
    kept = torch.from_numpy(keep)
    plain = torch.zeros(group.n, len(keep), dtype=torch.float64)
    plain[kept, torch.arange(len(keep))] = 1.0
    inner = gram[kept][:, kept]
    ((_, change),) = changes(inner, gram[:, kept] - plain @ inner, (DAMPING,))
    return plain + change


def _change(
    reader: Reader,
    parts: list[tuple[str, IntArray]],
    groups: Mapping[str, ChannelGroup],
    keeps: Mapping[str, IntArray],
    combinations: Mapping[str, Tensor | str],
    variables: IntArray,
) -> Tensor | str:
    """(L, k) what the reader's variables are in those that stay, or the reason why it is not known."""
    if reader.blocks > 1:
        return f"{reader.module} reads in {reader.blocks} groups"
    change = torch.zeros(reader.length, len(variables), dtype=torch.float64)
    change[torch.from_numpy(variables), torch.arange(len(variables))] = 1.0
    place = np.full(reader.length, -1, dtype=np.int64)
    place[variables] = np.arange(len(variables))
    claimed = np.zeros(reader.length, dtype=bool)
    for name, units in parts:
        found = combinations[name]
        if isinstance(found, str):
            return found
        index = reader.unit_index(units, groups[name].n)
        if index.shape[1] != 1 or claimed[index].any():
            return f"{reader.module} reads several channels of a unit of {name}, or of several groups at once"
        claimed[index] = True
        kept_places = place[index[keeps[name], 0]]
        change[torch.from_numpy(index[:, 0])[:, None], torch.from_numpy(kept_places)] = found
    return change


def _norms_behind(model: nn.Module, graph: ChannelGraph) -> dict[str, Tensor]:
    """Weight name -> scale of the batch norm that its layer's output goes right into, float64 on the CPU."""
    modules = dict(model.named_modules())
    scales: dict[str, Tensor] = {}
    for made, taken in zip(graph.operations, graph.operations[1:], strict=False):
        norm: Any = modules.get(taken.module)
        is_norm = isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_var is not None
        if is_norm and "batch_norm" in taken.name:
            scale = (norm.running_var.double() + norm.eps).rsqrt()
            scale = scale if norm.weight is None else scale * norm.weight.detach().double()
            scales[f"{made.module}.weight"] = scale.cpu()
    return scales

"""Error curves from a calibration: what the output loses when only the best k units of a group stay."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from slimfast.calibration import Calibration, unit_covariance
from slimfast.graph.groups import ChannelGraph, ChannelGroup
from slimfast.kernels.ops import grouped_pivoted_cholesky
from slimfast.plans.gains import ErrorCurve
from slimfast.plans.sensitivity import sensitivities
from slimfast.readers import Reader, readers


def error_curves(
    model: nn.Module, graph: ChannelGraph, calibration: Calibration, *, backend: str = "auto"
) -> dict[str, ErrorCurve]:
    """The error curve of every group that a measured layer reads: what pivoted Cholesky leaves of its units'
    covariance (:func:`slimfast.calibration.unit_covariance`) after each pick, which is what least squares
    from the picked units cannot repair, as a share; times what the output feels of the group's units
    (:func:`slimfast.plans.sensitivity.sensitivities`, a forward and a backward pass for each batch of the
    calibration), as a deviation of the output and summed over the layers that read them. So the errors of all
    groups are in one unit. Deviations are what errors that go together add up to; their squares set groups
    further apart than networks do that are repaired or trained (docs/evidence.md).
    """
    found = {reader.weight: reader for reader in readers(model, graph)[0]}
    felt = sensitivities(model, found.values(), calibration)
    curves = {}
    for group in graph:
        covariance = unit_covariance(group, found, calibration)
        if covariance is None:
            continue
        picks = grouped_pivoted_cholesky([covariance], [group.n], names=[group.name], backend=backend)[0]
        residual = np.zeros(group.n + 1)
        residual[0] = float(covariance.trace())
        residual[1 : len(picks.residual) + 1] = np.maximum(picks.residual.cpu().numpy(), 0.0)
        # With the rank used up what is left is rounding.
        residual[-1] = 0.0
        if residual[0] > 0.0:
            deviations = [math.sqrt(variance) for variance in felt_by_reader(group, found, felt)]
            residual *= sum(deviations) / residual[0]
        curves[group.name] = ErrorCurve(group.name, group.n, np.minimum.accumulate(residual))
    return curves


def felt_by_reader(
    group: ChannelGroup, found: Mapping[str, Reader], felt: Mapping[str, Tensor]
) -> list[float]:
    """The variance of the output that a group's units can make, through each measured layer that reads it."""
    variances = []
    for member in group.members:
        if member.role == "consumer" and member.tensor in felt:
            index = torch.from_numpy(found[member.tensor].unit_index(member.units, group.n))
            variances.append(float(felt[member.tensor][index].sum()))
    return variances

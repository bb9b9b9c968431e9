"""Error curves from a calibration: what a group's consumers lose when only its best k units stay."""

from __future__ import annotations

import numpy as np
from torch import nn

from slimfast.calibration import Calibration, unit_covariance
from slimfast.graph.groups import ChannelGraph
from slimfast.kernels.ops import grouped_pivoted_cholesky
from slimfast.plans.gains import ErrorCurve
from slimfast.readers import readers


def error_curves(
    model: nn.Module, graph: ChannelGraph, calibration: Calibration, *, backend: str = "auto"
) -> dict[str, ErrorCurve]:
    """The error curve of every group that a measured layer reads: what pivoted Cholesky leaves of its units'
    covariance (:func:`slimfast.calibration.unit_covariance`) after each pick, which is what least squares
    from the picked units cannot repair.
    """
    found = {reader.weight: reader for reader in readers(model, graph)[0]}
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
        curves[group.name] = ErrorCurve(group.name, group.n, np.minimum.accumulate(residual))
    return curves

"""The curves that a plan is made from, measured once for the plan and its report."""

from __future__ import annotations

from typing import Any

from torch import nn

from slimfast.arrays import Progress
from slimfast.calibration import Calibration, error_curves
from slimfast.graph import ChannelGraph
from slimfast.spectra import measure_spectra


def measured_curves(
    network: nn.Module,
    graph: ChannelGraph,
    calibration: Calibration | None,
    backend: str,
    progress: Progress | None,
) -> dict[str, Any]:
    """Measure what a plan is made from, under the keyword that ``plan`` takes it by.

    Error curves where there is a calibration, else spectra.
    """
    if calibration is not None:
        return {"curves": error_curves(network, graph, calibration, backend=backend, progress=progress)}
    return {"spectra": measure_spectra(network, graph, backend=backend, progress=progress)}

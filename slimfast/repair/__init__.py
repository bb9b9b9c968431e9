"""Repair: least squares into the layers that read what was cut, so that the thin network starts near the
original.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from slimfast.calibration import Calibration
from slimfast.graph.groups import ChannelGraph, IntArray
from slimfast.repair.activations import repair_from_activations
from slimfast.repair.report import Fit, RepairKind, RepairReport, attach_report, repair_report
from slimfast.repair.weights import repair_from_weights

__all__ = ["Fit", "RepairKind", "RepairReport", "check_kind", "repair_report", "repair_thin"]


def repair_thin(
    model: nn.Module,
    thin: nn.Module,
    graph: ChannelGraph,
    keeps: Mapping[str, IntArray],
    *,
    kind: RepairKind,
    calibration: Calibration | None = None,
) -> RepairReport:
    """Repair ``thin``, ``model`` cut to ``keeps``, in place; the report also stays with it.

    ``kind``: from ``weights`` alone, or from the ``activations`` of a calibration. ``ValueError`` for another
    kind, and for activations without a calibration.
    """
    check_kind(kind, calibration)
    if kind == "weights":
        report = repair_from_weights(model, thin, graph, keeps)
    else:
        assert calibration is not None
        report = repair_from_activations(model, thin, graph, keeps, calibration)
    attach_report(thin, report)
    return report


def check_kind(kind: str, calibration: Calibration | None) -> None:
    """``ValueError`` for a kind of repair there is not, or one that lacks its calibration."""
    if kind not in ("weights", "activations"):
        raise ValueError(f"repair: expected 'weights' or 'activations', got {kind!r}")
    if kind == "activations" and calibration is None:
        raise ValueError("repair: from activations it needs a calibration, got none")

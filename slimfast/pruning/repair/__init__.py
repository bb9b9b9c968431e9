"""Repair: least squares into the layers that read what was cut, so that the thin network starts near the
original.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from slimfast.arrays import IntArray, Progress
from slimfast.calibration.data import Calibration
from slimfast.calibration.spilling import MEMORY
from slimfast.errors import ArgumentError
from slimfast.graph.channel_graph import ChannelGraph
from slimfast.pruning.repair.activations import repair_from_activations
from slimfast.pruning.repair.from_moments import repair_from_moments
from slimfast.pruning.repair.report import (
    Finished,
    Fit,
    RepairKind,
    RepairReport,
    attach_report,
    repair_report,
)
from slimfast.pruning.repair.weights import repair_from_weights

__all__ = ["Finished", "Fit", "RepairKind", "RepairReport", "check_kind", "repair_report", "repair_thin"]


def repair_thin(
    model: nn.Module,
    thin: nn.Module,
    graph: ChannelGraph,
    keeps: Mapping[str, IntArray],
    *,
    kind: RepairKind,
    calibration: Calibration | None = None,
    damping: float = 0.0,
    memory: int = MEMORY,
    backend: str = "auto",
    tick: Progress | None = None,
    finished: Finished | None = None,
    folder: Path | None = None,
) -> RepairReport:
    """Repair ``thin``, ``model`` cut to ``keeps``, in place; the report also stays with it.

    ``kind``: from ``weights`` alone, from the ``moments`` of a calibration, for which nothing runs, or from
    its ``activations`` in the thin network, with at least ``damping``
    (:class:`slimfast.pruning.repair.least_squares.LeastSquares`), holding up to ``memory`` bytes of them in
    memory and telling ``tick`` how much is done; layers that are ``finished`` stay, and ``folder`` is
    where the temporary file is. ``ValueError`` as in :func:`check_kind`.
    """
    check_kind(kind, calibration, damping)
    if kind == "weights":
        report = repair_from_weights(model, thin, graph, keeps)
    elif kind == "moments":
        assert calibration is not None
        report = repair_from_moments(
            model, thin, graph, keeps, calibration, damping=damping, tick=tick, finished=finished
        )
    else:
        assert calibration is not None
        report = repair_from_activations(
            model,
            thin,
            graph,
            keeps,
            calibration,
            damping=damping,
            memory=memory,
            backend=backend,
            tick=tick,
            finished=finished,
            folder=folder,
        )
    attach_report(thin, report)
    return report


def check_kind(kind: str | None, calibration: Calibration | None, damping: float = 0.0) -> None:
    """Raise ``ValueError`` for a kind of repair there is not, or one that lacks its calibration.

    Likewise for a damping that is not at least 0, or not for that kind; the kind None is no repair.
    """
    if kind not in (None, "weights", "activations", "moments"):
        raise ArgumentError(f"repair: expected 'weights', 'activations' or 'moments', got {kind!r}")
    of_data = kind in ("activations", "moments")
    if of_data and calibration is None:
        raise ArgumentError(f"repair: expected a calibration for kind {kind!r}, got none")
    if not damping >= 0.0:
        raise ArgumentError(f"repair: expected a damping of at least 0, got {damping}")
    if damping and not of_data:
        raise ArgumentError(
            f"repair: a damping is for repair from activations or moments, got {damping} with {kind!r}"
        )

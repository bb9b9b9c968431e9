"""Networks cut by hand-made plans and repaired, for tests of repair."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

import slimfast
from slimfast.plans import Plan
from slimfast.pruning.repair.least_squares import LeastSquares, Solution


def planned(model: nn.Module, example: Any, keeps: dict[str, list[int]]) -> Plan:
    """A plan that keeps these units of these groups, and all of the others."""
    graph = slimfast.trace_channels(model, example)
    plan = slimfast.plan_widths(graph, {}, overrides={name: len(keep) for name, keep in keeps.items()})
    groups = [
        dataclasses.replace(g, keep=tuple(keeps[g.name])) if g.name in keeps else g for g in plan.groups
    ]
    return dataclasses.replace(plan, groups=tuple(groups))


def repaired(
    model: nn.Module, batch: Tensor, keeps: dict[str, list[int]], kind: Any = "activations"
) -> nn.Module:
    """The network cut to these units and repaired, from weights or from the batch."""
    model.eval()
    plan = planned(model, batch[:2], keeps)
    graph = slimfast.trace_channels(model, batch[:2])
    calibration = slimfast.calibrate(model, graph, [batch]) if kind == "activations" else None
    return slimfast.prune_channels(model, plan, repair=kind, calibration=calibration)


def conv_net() -> nn.Sequential:
    """Two convolutions, a batch norm and a ReLU between them."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        nn.Flatten(),
    )


def solved(
    a: Tensor,
    b: Tensor,
    kept: Tensor,
    weight: Tensor,
    *,
    centred: bool,
    damping: float = 0.0,
    parts: int = 1,
    counts: tuple[int, int] | None = None,
) -> Solution:
    """Least squares of all positions at once, or taken in in several parts, the last quarter held out."""
    total = a.shape[1]
    split = total - total // 4
    system = LeastSquares(kept, weight, centred=centred, counts=counts or (split, total - split))
    for held, span in ((False, slice(0, split)), (True, slice(split, total))):
        for x, y in zip(a[:, span].chunk(parts, 1), b[:, span].chunk(parts, 1), strict=True):
            system.add(x, y, held=held)
    about = b - b.mean(1, keepdim=True) if centred else b
    return system.solve(about @ about.T / total, damping)

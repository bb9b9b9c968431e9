"""Depth and width under one budget: layers go first, and the widths of the others make up the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from slimfast.arrays import Progress
from slimfast.calibration.again import calibrated_again, check_repeatable
from slimfast.calibration.data import Calibration
from slimfast.errors import ArgumentError
from slimfast.graph.trace import trace_channels
from slimfast.plans.limits import COSTS, Limits, budget_of, options_of
from slimfast.pruning.depth.divergence import Divergence, first_samples, samples_of
from slimfast.pruning.depth.drop import SAMPLES, drop_layers
from slimfast.pruning.depth.report import Score, attach_depth_report, depth_report

# How a network is cut to width options, with a calibration of its own.
CutWidths = Callable[[nn.Module, Calibration, Mapping[str, Any]], nn.Module]


def check_depth(
    depth: int | Sequence[int], calibration: Calibration | None, options: Mapping[str, Any]
) -> list[int]:
    """Check how many layers are to go, and list the numbers; ``ValueError`` for what cannot be meant."""
    numbers = [depth] if isinstance(depth, int) else list(depth)
    if not numbers or any(type(number) is not int or number < 0 for number in numbers):
        raise ArgumentError(f"slim: expected depth to be numbers of layers that go, 0 or more, got {depth!r}")
    if calibration is None:
        raise ArgumentError("slim: expected a calibration (slimfast.calibrate) for depth, got none")
    budget = budget_of(options)
    if not budget or any(name.partition(" of ")[0] not in COSTS for name in budget):
        raise ArgumentError(
            f"slim: expected a budget of params or macs alone for depth, got {', '.join(budget) or 'none'}"
        )
    check_repeatable(calibration, "depth")
    return sorted(set(numbers))


def slim_to_depth(
    model: nn.Module,
    example: Any,
    numbers: Sequence[int],
    calibration: Calibration,
    options: Mapping[str, Any],
    cut_widths: CutWidths,
    progress: Progress | None = None,
) -> nn.Module:
    """Drop so many layers, cut the widths of the others to what the budget of the deep network leaves, and
    return the network that diverges least from the deep one where several ``numbers`` are tried.

    ``progress``: told of the networks measured for the choice of layers.
    """
    budget = budget_of(options)
    most = Limits(trace_channels(model, example, include=()), budget).most
    rest = {name: value for name, value in options.items() if name not in ("params", "macs", "within")}
    rest |= options_of(most)
    order: tuple[str, ...] = ()
    scores: Mapping[str, Score] = {}
    if max(numbers):
        deepest = drop_layers(
            model, example, calibration=calibration, layers=max(numbers), repair=False, progress=progress
        )
        order, scores = depth_report(deepest).dropped, depth_report(deepest).scores
        del deepest
    some = first_samples(samples_of(calibration, model, example, "slim"), SAMPLES)
    measured = Divergence(model, some) if len(numbers) > 1 else None
    best: nn.Module | None = None
    least = math.inf
    for number in numbers:
        short, own = model, calibration
        if number:
            short = drop_layers(model, example, calibration=calibration, layers=order[:number])
            attach_depth_report(short, replace(depth_report(short), scores=scores))
            own = calibrated_again(short, trace_channels(short, example), calibration)
        thin = cut_widths(short, own, rest)
        if measured is None:
            return thin
        with torch.no_grad():
            found = measured.of(thin)
        if best is None or found < least:
            best, least = thin, found
    assert best is not None, "there is at least one number"
    return best

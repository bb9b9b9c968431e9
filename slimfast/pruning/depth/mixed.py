"""Depth and width under one budget: layers go first, and the widths of the others make up the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from slimfast.calibration.data import Calibration
from slimfast.calibration.moments import calibrate
from slimfast.errors import ArgumentError
from slimfast.graph.trace import trace_channels
from slimfast.plans.limits import COSTS, Limits, budget_of, options_of
from slimfast.pruning.depth.divergence import Divergence, first_samples, samples_of
from slimfast.pruning.depth.drop import SAMPLES, drop_layers
from slimfast.pruning.depth.report import depth_report
from slimfast.pruning.padded_inputs import MASK

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
    masks = calibration.masks or (None,) * len(calibration.batches)
    pairs = zip(masks, calibration.batches, strict=True)
    if any(mask is not None and MASK not in batch[1] for mask, batch in pairs):
        raise ArgumentError(
            "slim: expected masks named attention_mask for depth, got a calibration of others"
        )
    return sorted(set(numbers))


def slim_to_depth(
    model: nn.Module,
    example: Any,
    numbers: Sequence[int],
    calibration: Calibration,
    options: Mapping[str, Any],
    cut_widths: CutWidths,
) -> nn.Module:
    """Drop so many layers, cut the widths of the others to what the budget of the deep network leaves, and
    return the network that diverges least from the deep one where several ``numbers`` are tried.
    """
    budget = budget_of(options)
    most = Limits(trace_channels(model, example, include=()), budget).most
    rest = {name: value for name, value in options.items() if name not in ("params", "macs", "within")}
    rest |= options_of(most)
    order: tuple[str, ...] = ()
    if max(numbers):
        deepest = drop_layers(model, example, calibration=calibration, layers=max(numbers), repair=False)
        order = depth_report(deepest).dropped
    some = first_samples(samples_of(calibration, model, example, "slim"), SAMPLES)
    measured = Divergence(model, some) if len(numbers) > 1 else None
    best: nn.Module | None = None
    least = math.inf
    for number in numbers:
        short, own = model, calibration
        if number:
            short = drop_layers(model, example, calibration=calibration, layers=order[:number])
            own = calibrated_again(short, example, calibration)
        thin = cut_widths(short, own, rest)
        if measured is None:
            return thin
        with torch.no_grad():
            found = measured.of(thin)
        if best is None or found < least:
            best, least = thin, found
    assert best is not None, "there is at least one number"
    return best


def calibrated_again(short: nn.Module, example: Any, calibration: Calibration) -> Calibration:
    """Calibrate a shorter network with the samples of a calibration."""
    batches = [_as_batch(*batch) for batch in calibration.batches]
    return calibrate(short, trace_channels(short, example), batches, samples=calibration.samples)


def _as_batch(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if args and kwargs:
        raise ArgumentError("slim: expected batches of arguments by place or by name for depth, got both")
    return args or dict(kwargs)

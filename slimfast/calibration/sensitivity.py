"""How much a network's output feels of what each consumer reads: one backward pass for each batch."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.arrays import Arguments
from slimfast.calibration.consumers import Consumer, input_of
from slimfast.calibration.forward import running
from slimfast.calibration.moments import Calibration
from slimfast.errors import SlimfastError, one_line
from slimfast.graph.recording.inputs import cloned, tensors_in


def sensitivities(
    model: nn.Module, consumers: Iterable[Consumer], calibration: Calibration
) -> dict[str, Tensor]:
    """Measure what the output loses where a variable is held at its mean: (L,) float64 for each consumer, by
    weight.

    To first order that is the sum over a sample's positions of (x - mean) dz/dx, squared, summed over the
    output's values z and averaged over the samples (the Taylor score of Molchanov et al., CVPR 2019, of the
    outputs instead of a loss). The derivative is that through this consumer alone. The sum over the outputs
    is the expectation over a direction in them of random signs, of which each sample gets one. Positions are
    summed before the square: errors of neighbouring positions add up where the network averages them.

    Raises :class:`SlimfastError` where the output has no values, or none that can be differentiated.
    """
    wanted = [consumer for consumer in consumers if consumer.weight in calibration.readings]
    totals = {
        consumer.weight: torch.zeros(consumer.length, dtype=torch.float64, device="cpu")
        for consumer in wanted
    }
    if not wanted:
        return totals
    generator = torch.Generator().manual_seed(0)
    with running(model) as (network, _):
        for batch in calibration.batches:
            seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
            with torch.enable_grad(), ExitStack() as hooks:
                for consumer in wanted:
                    module = network.get_submodule(consumer.module)
                    hook = functools.partial(_probe, seen.setdefault(consumer.weight, []))
                    hooks.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
                slope = _slope(_outputs(network, batch), generator)
                pairs = [pair for consumer in wanted for pair in seen[consumer.weight]]
                slopes = iter(torch.autograd.grad(slope, [probe for _, probe in pairs], allow_unused=True))
            count = next(len(t) for t in tensors_in(batch) if t.dim())
            for consumer in wanted:
                for x, _ in seen[consumer.weight]:
                    gradient = next(slopes)
                    if gradient is not None:
                        mean = calibration.readings[consumer.weight].mean
                        totals[consumer.weight] += _felt(consumer, x, gradient, mean, count)
    return {name: total / calibration.samples for name, total in totals.items()}


def _probe(
    seen: list[tuple[Tensor, Tensor]], module: nn.Module, args: Any, kwargs: Any
) -> tuple[Any, Any] | None:
    """Add a zero to what a layer reads, whose gradient is that through this layer alone."""
    x = input_of(args, kwargs)
    if x is None or not x.numel():
        return None
    probe = torch.zeros_like(x, requires_grad=True)
    read = x + probe
    # The sum and not x, which the network may yet change in place.
    seen.append((read.detach(), probe))
    if args and args[0] is x:
        return (read, *args[1:]), kwargs
    return args, {name: read if value is x else value for name, value in kwargs.items()}


def _outputs(network: nn.Module, batch: Arguments) -> list[Tensor]:
    """Run one forward, and return its floating-point outputs that depend on what was read."""
    try:
        output = network(*cloned(batch[0]), **cloned(batch[1]))
    except Exception as error:
        raise SlimfastError(f"plan: the forward fails: {one_line(error)}") from error
    found = [t for t in tensors_in(output) if t.is_floating_point() and t.requires_grad and t.numel()]
    if not found:
        raise SlimfastError("plan: expected outputs that can be differentiated, got none")
    return found


def _slope(outputs: Iterable[Tensor], generator: torch.Generator) -> Tensor:
    """Sum the outputs with random signs."""
    signs = [(z, torch.randint(2, z.shape, generator=generator, device="cpu").to(z) * 2 - 1) for z in outputs]
    return torch.stack([(z * sign).sum().float() for z, sign in signs]).sum()


def _felt(consumer: Consumer, x: Tensor, gradient: Tensor, mean: Tensor, count: int) -> Tensor:
    """Square the sums over each sample's positions, and sum them over the ``count`` samples: (L,) float64."""
    columns = consumer.columns(x).double()
    change = (columns - mean.to(columns.device)[:, None]) * consumer.columns(gradient).double()
    per_sample = count if change.shape[1] % count == 0 else change.shape[1]
    return change.reshape(len(change), per_sample, -1).sum(2).square().sum(1).cpu()

"""Calibration: what the layers of a network read on a few hundred samples, as running moments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.arrays import Arguments, Progress
from slimfast.calibration.consumers import Consumer, consumers_of
from slimfast.calibration.forward import cut_batch, run, running, watched
from slimfast.errors import ArgumentError, NonFinite, SlimfastError
from slimfast.graph.channel_graph import ChannelGraph, ChannelGroup
from slimfast.graph.recording.module_copies import named_tensors
from slimfast.kernels.ops import grouped_covariance
from slimfast.wrappers import unwrapped


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What one layer read: ``mean`` (L,) and ``covariance`` (L, L), float64 on the CPU, over ``count``
    positions of all samples; ``norms`` (L,): the norm of the weights it has for each variable.
    """

    weight: str
    mean: Tensor
    covariance: Tensor
    norms: Tensor
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What every consumer of a network's channel groups reads, as moments.

    Attributes:
        readings: The moments by the name of the weight that reads.
        left: Why other consumers were not measured.
        batches: The inputs measured, (args, kwargs) each; repair runs the thin network on them.
        samples: How many samples they are in all.

    Example:
        calibration = slimfast.calibrate(model, graph, loader)
        calibration.readings["layer1.0.conv2.weight"].mean
    """

    readings: Mapping[str, Reading]
    left: Mapping[str, str]
    batches: tuple[Arguments, ...]
    samples: int


def calibrate(
    model: nn.Module,
    graph: ChannelGraph,
    batches: Iterable[Any],
    *,
    samples: int = 512,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    progress: Progress | None = None,
) -> Calibration:
    """Measure the moments of what the layers that read the graph's groups see of ``samples`` samples.

    The model runs in eval mode on its own device, one batch at a time; it stays as it is. Kept are 8 L^2
    bytes for each layer that reads L channels, whatever the number of samples, and the inputs. Covariances
    are summed in float64 (Chan, Golub and LeVeque, *The American Statistician* 37, 1983).

    Args:
        model: The network that was traced.
        graph: Its groups, from :func:`slimfast.trace_channels`.
        batches: Each is what the graph's example was: a tensor, a tuple or a dict of the model's arguments.
            Targets after them, and a dict's ``labels`` that the example had not, are left out.
        samples: How many samples to measure, at most.
        dtype: float32 or float64, of the covariances of a batch (:func:`slimfast.grouped_covariance`).
        backend: The kernels to use.
        progress: Called with the samples done and of all.

    Returns:
        The moments by the name of the weight that reads, and the inputs that were measured.

    Raises:
        SlimfastError: For no samples, a forward that fails, and activations that are not finite, naming the
            layer that read them.

    Example:
        graph = slimfast.trace_channels(model, example)
        calibration = slimfast.calibrate(model, graph, loader, samples=256)
        thin = slimfast.slim(model, example, macs=0.5, calibration=calibration)
    """
    if samples < 1:
        raise ArgumentError(f"calibrate: expected at least 1 sample, got {samples}")
    model = unwrapped(model)
    consumers, left = consumers_of(model, graph)
    moments = {consumer.weight: _Moments(consumer, dtype, backend) for consumer in consumers}
    kept: list[Arguments] = []
    done = 0
    with running(model) as (network, device), watched(network, consumers, moments):
        for batch in batches:
            args, count = cut_batch(batch, graph.inputs, samples - done, device)
            run(network, args, "calibrate")
            kept.append(args)
            done += count
            if progress is not None:
                progress(done, samples)
            if done >= samples:
                break
    if not done:
        raise SlimfastError("calibrate: expected at least one sample, got no batches")
    tensors = named_tensors(model)
    readings = {}
    for name, moment in moments.items():
        if moment.count == 0:
            left[name] = f"{moment.consumer.module} was not called as a module"
        else:
            readings[name] = moment.reading(tensors[name])
    return Calibration(readings, left, tuple(kept), done)


def unit_covariance(
    group: ChannelGroup, consumers: Mapping[str, Consumer], calibration: Calibration
) -> Tensor | None:
    """Compute how a group's units vary together in what its consumers read, (n, n) float64; None where nobody
    reads.

    The sum over the consumers of the group's covariance in what they read, each in shares of its total, so
    that the trace is the number of consumers that saw anything vary. Each variable counts times the
    norm of the weights that read it, its part in the consumer's output. ``consumers`` are the
    graph's, by weight.
    """
    total = torch.zeros(group.n, group.n, dtype=torch.float64, device="cpu")
    read = False
    for member in group.members:
        reading, consumer = calibration.readings.get(member.tensor), consumers.get(member.tensor)
        if member.role != "consumer" or reading is None or consumer is None:
            continue
        read = True
        covariance = reading.covariance * reading.norms * reading.norms[:, None]
        index = torch.from_numpy(consumer.unit_index(member.units, group.n))
        own = torch.stack([covariance[column[:, None], column] for column in index.T]).sum(0)
        if float(own.trace()) > 0.0:
            total += own / own.trace()
    return total if read else None


class _Moments:
    """Running mean and summed squares of what one consumer sees, in float64 where it runs."""

    def __init__(self, consumer: Consumer, dtype: torch.dtype | None, backend: str) -> None:
        self.consumer = consumer
        self.count = 0
        self._dtype = dtype
        self._backend = backend
        self._mean = self._squares = torch.zeros(0, device="cpu")

    def __call__(self, columns: Tensor) -> None:
        """Take in (L, positions)."""
        fresh = columns.shape[1]
        try:
            covariance = grouped_covariance(
                [columns],
                side="rows",
                dtype=self._dtype,
                names=[f"read by {self.consumer.module}"],
                backend=self._backend,
            ).matrices[0]
        except NonFinite as error:
            raise SlimfastError(f"calibrate: {error}") from None
        squares = covariance.double() * max(fresh - 1, 1)
        mean = columns.sum(1, dtype=torch.float64) / fresh
        if self.count:
            both = self.count + fresh
            apart = mean - self._mean
            squares += self._squares + torch.outer(apart, apart) * (self.count * fresh / both)
            mean = self._mean + apart * (fresh / both)
        self._mean, self._squares, self.count = mean, squares, self.count + fresh

    def reading(self, weight: Tensor) -> Reading:
        norms = self.consumer.matrix(weight.detach().double()).square().sum((1, 3)).sqrt().reshape(-1)
        covariance = self._squares / max(self.count - 1, 1)
        return Reading(self.consumer.weight, self._mean.cpu(), covariance.cpu(), norms.cpu(), self.count)

"""Calibration: what the layers of a network read on a few hundred samples, as running moments."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.arrays import Arguments, Progress
from slimfast.calibration.consumers import Consumer, consumers_of, with_moments
from slimfast.calibration.data import Calibration, Reading, at_most
from slimfast.calibration.forward import Slice, cut_batch, elements_of, running, slices_of
from slimfast.calibration.heap import give_back
from slimfast.calibration.masks import MaskOption, mask_of
from slimfast.calibration.measuring import Measured
from slimfast.calibration.row_keeper import RowKeeper
from slimfast.calibration.sleeping import weigh
from slimfast.calibration.spilling import MEMORY, check_memory
from slimfast.calibration.tokens import TOKENS, check_tokens, tokens_in
from slimfast.errors import ArgumentError, SlimfastError
from slimfast.graph.channel_graph import ChannelGraph, ChannelGroup
from slimfast.graph.recording.module_copies import named_tensors
from slimfast.wrappers import unwrapped

_log = logging.getLogger(__name__)


def calibrate(
    model: nn.Module,
    graph: ChannelGraph,
    batches: Iterable[Any],
    *,
    samples: int = 512,
    mask: MaskOption = "attention_mask",
    dtype: torch.dtype | None = None,
    memory: int = MEMORY,
    for_repair: bool = True,
    backend: str = "auto",
    progress: Progress | None = None,
) -> Calibration:
    """Measure the moments of what the layers that read the graph's groups see of ``samples`` samples.

    The model runs in eval mode on its own device, a few samples at a time; it stays as it is. Kept are 8 L^2
    bytes for each tensor of L channels that layers read, whatever the number of samples and of the layers
    that read it, and the inputs; and what layers read at the positions that repair will look at, so that it
    does not run the model again: on a CPU, of samples of one shape without padding, in what repair leaves of
    ``memory`` and up to four times ``memory`` in a temporary file, for as long as the calibration lives.
    Products are float32 and sums of them float64 (Chan, Golub and LeVeque, *The American Statistician* 37,
    1983). Batches may have any lengths; positions that a mask hides do not count. A token with far more
    energy than others of its sample counts for no more than a bound
    (:func:`slimfast.calibration.massive.shrinking`).

    Args:
        model: The network that was traced.
        graph: Its groups, from :func:`slimfast.trace_channels`.
        batches: Each is what the graph's example was: a tensor, a tuple or a dict of the model's arguments.
            Targets after them, and a dict's ``labels`` that the example had not, are left out.
        samples: How many samples to measure, at most.
        mask: The name of the argument that says which positions are no padding, (samples, positions) with 0
            for padding; or a function of (args, kwargs) that gives such a tensor, or None. It goes with
            the calibration to error curves and repair. Layers that do not read (samples, positions, ...),
            such as those behind pooling and routed experts, count all that they read.
        dtype: float32 or float64, of the products.
        memory: Bytes of activations that a forward may hold: larger batches run a part at a time. A layer
            whose moments take more than twice of that, and more than 2 GiB, is left out: its units can be
            chosen by activations, from a share of the positions, but it has no error curve and no repair.
        for_repair: Whether to keep, beside the moments, what repair looks at. Without it repair runs the
            model once more, to the same result: for calibrations that go to a file, or that plan alone.
        backend: The kernels to use.
        progress: Called with the samples done and of all; what it raises (:class:`slimfast.Cancelled`) ends
            the work.

    Returns:
        The moments by the name of the weight that reads, and the inputs that were measured.

    Raises:
        SlimfastError: For no samples, samples that are padding alone, batches that do not fit the example, a
            forward that fails, and activations that are not finite, naming the layer that read them and the
            batch.

    Example:
        graph = slimfast.trace_channels(model, example)
        calibration = slimfast.calibrate(model, graph, loader, samples=256)
        thin = slimfast.slim(model, example, macs=0.5, calibration=calibration)
    """
    check_memory("calibrate", memory)
    model = unwrapped(model)
    every, left = consumers_of(model, graph)
    consumers, large = with_moments(every, memory=memory)
    left |= large
    measured = Measured(consumers, dtype, backend)
    done = 0
    with running(model) as (network, device):
        taken = list(taken_from(network, batches, graph, samples, mask, device))
        every_batch = [Slice(args, count, own_mask) for _, args, own_mask, count in taken]
        keeper = RowKeeper(network, consumers, every_batch, memory, keeps=for_repair)
        with keeper.sizing():
            held, made = weigh(network, every_batch[0].args)
        keeper.make_room(sum(held * elements_of(batch.args) * batch.samples for batch in every_batch))
        for where, args, own_mask, count in taken:
            for part in slices_of([(args, own_mask)], at_most(memory, held=held)):
                with keeper.keeping(part):
                    measured.measure(network, part, where)
            done += count
            if progress is not None:
                progress(done, samples)
    if progress is not None and done < samples:
        # There were no more of them.
        progress(done, done)
    found = measured.readings(graph.effective(named_tensors(model)))
    for consumer in consumers:
        if consumer.weight not in found:
            left[consumer.weight] = f"{consumer.module} was not called as a module"
    _log.info("calibrated %s on %d samples: %s", type(model).__name__, done, measured.held())
    # Moments were made among activations that are gone: what was between them is free, and resident.
    give_back(memory // 8)
    kept, masks = (tuple(getattr(batch, each) for batch in every_batch) for each in ("args", "mask"))
    return Calibration(found, left, kept, done, masks, held, made, keeper.done(model))


def taken_from(
    network: nn.Module,
    batches: Iterable[Any],
    graph: ChannelGraph,
    samples: int,
    mask: MaskOption,
    device: torch.device,
) -> Iterator[tuple[str, Arguments, Tensor | None, int]]:
    """Take up to so many samples out of batches: a batch's name, its arguments, mask and samples."""
    if samples < 1:
        raise ArgumentError(f"calibrate: expected at least 1 sample, got {samples}")
    done = 0
    for number, batch in enumerate(batches):
        where = f"batch {number}"
        args, count = cut_batch(batch, network, graph.inputs, samples - done, device, where)
        check_tokens(network, args[1].get(TOKENS, tokens_in(args[0])), "calibrate", where)
        yield where, args, mask_of(args, mask, where), count
        done += count
        if done >= samples:
            return
    if not done:
        raise SlimfastError("calibrate: expected at least one sample, got no batches")


def unit_covariance(
    graph: ChannelGraph, group: ChannelGroup, consumers: Mapping[str, Consumer], calibration: Calibration
) -> Tensor | None:
    """Compute how a group's units vary together in what its consumers read, (n, n) float64; None where nobody
    reads.

    The sum over the consumers of the group's covariance in what they read, each in shares of its total, so
    that the trace is the number of consumers that saw anything vary. Each variable counts times the
    norm of the weights that read it, its part in the consumer's output. ``consumers`` are the
    graph's, by weight.
    """
    total: Tensor | None = None
    for member in graph.consumers(group):
        reading, consumer = calibration.readings.get(member.tensor), consumers.get(member.tensor)
        if reading is None or consumer is None:
            continue
        index = torch.from_numpy(consumer.unit_index(member.units, group.n))
        own = functools.reduce(Tensor.add_, (_weighted(reading, column) for column in index.T))
        size = float(own.trace())
        own = own.div_(size) if size > 0.0 else own.zero_()
        total = own if total is None else total.add_(own)
    return total


def _weighted(reading: Reading, column: Tensor) -> Tensor:
    """Gather the covariance of some variables, each times the norm of the weights that read it."""
    norms = reading.norms[column]
    return reading.covariance[column[:, None], column].mul_(norms).mul_(norms[:, None])

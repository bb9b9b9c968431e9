"""Calibration: what the layers of a network read on a few hundred samples, as running moments."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from slimfast.arrays import Arguments, Progress
from slimfast.calibration.consumers import Consumer, consumers_of
from slimfast.calibration.data import Calibration, Reading, at_most, norms_of_variables
from slimfast.calibration.forward import Slice, cut_batch, run, running, slices_of, watched
from slimfast.calibration.masks import MaskOption, mask_of, positions_that_count
from slimfast.calibration.massive import shrinking
from slimfast.calibration.reads import Seen
from slimfast.calibration.sleeping import weigh
from slimfast.calibration.spilling import MEMORY, check_memory
from slimfast.calibration.tokens import TOKENS, check_tokens, tokens_in
from slimfast.errors import ArgumentError, NonFinite, SlimfastError
from slimfast.graph.channel_graph import ChannelGraph, ChannelGroup
from slimfast.graph.recording.module_copies import named_tensors
from slimfast.kernels.moments import add_moments_unseen, all_finite, grouped_moments
from slimfast.kernels.results import Moments
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
    backend: str = "auto",
    progress: Progress | None = None,
) -> Calibration:
    """Measure the moments of what the layers that read the graph's groups see of ``samples`` samples.

    The model runs in eval mode on its own device, a few samples at a time; it stays as it is. Kept are 8 L^2
    bytes for each tensor of L channels that layers read, whatever the number of samples and of the layers
    that read it, and the inputs. Products are float32 and sums of them float64 (Chan, Golub and LeVeque, *The
    American Statistician* 37, 1983). Batches may have any lengths; positions that a mask hides do not count.
    A token with far more energy than others of its sample counts for no more than a bound
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
        memory: Bytes of activations that a forward may hold: larger batches run a part at a time.
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
    if samples < 1:
        raise ArgumentError(f"calibrate: expected at least 1 sample, got {samples}")
    check_memory("calibrate", memory)
    model = unwrapped(model)
    consumers, left = consumers_of(model, graph)
    measured = _Measured(consumers, dtype, backend)
    kept: list[Arguments] = []
    masks: list[Tensor | None] = []
    done, held, made = 0, 0.0, 0.0
    with running(model) as (network, device):
        for number, batch in enumerate(batches):
            where = f"batch {number}"
            args, count = cut_batch(batch, graph.inputs, samples - done, device, where)
            check_tokens(network, args[1].get(TOKENS, tokens_in(args[0])), "calibrate", where)
            kept.append(args)
            masks.append(mask_of(args, mask, where))
            if not number:
                held, made = weigh(network, args)
            for part in slices_of([(args, masks[-1])], at_most(memory, held=held)):
                measured.measure(network, part, where)
            done += count
            if progress is not None:
                progress(done, samples)
            if done >= samples:
                break
    if not done:
        raise SlimfastError("calibrate: expected at least one sample, got no batches")
    found = measured.readings(named_tensors(model))
    for consumer in consumers:
        if consumer.weight not in found:
            left[consumer.weight] = f"{consumer.module} was not called as a module"
    _log.info("calibrated %s on %d samples: %s", type(model).__name__, done, measured.held())
    return Calibration(found, left, tuple(kept), done, tuple(masks), held, made)


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


class _Apart(Exception):
    """A layer that was taken to read the same tensor as another one does not."""

    def __init__(self, weight: str) -> None:
        super().__init__(weight)
        self.weight = weight


class _Measured:
    """The moments of what consumers see: one for all that read the same tensor in every slice."""

    def __init__(self, consumers: Sequence[Consumer], dtype: torch.dtype | None, backend: str) -> None:
        self._consumers, self._dtype, self._backend = consumers, dtype, backend
        # Nothing waits for the device at a layer: a look at all of them follows a slice.
        self._add: Callable[..., list[Moments]] = add_moments_unseen
        # Whose moments a layer shares, of those known to read the same; and those that share nobody's.
        self._as: dict[str, str] = {}
        self._alone: set[str] = set()
        self._moments: dict[str, Moments] = {}
        self._slices: list[tuple[Slice, str]] = []
        self._fresh: set[str] = set()
        self._begin(Slice(((), {}), 0), "")

    def measure(self, network: nn.Module, part: Slice, where: str) -> None:
        """Run a slice and take in what is read."""
        self._slices.append((part, where))
        waiting = [self._slices[-1]]
        while waiting:
            try:
                for one, place in waiting:
                    self._begin(one, place)
                    with watched(network, self._consumers, self._see):
                        run(network, one.args, "calibrate")
                    self._check()
                    if not all_finite(self._moments.values()):
                        self._find_what_is_not_finite(network, one, place)
                waiting = []
            except _Apart as apart:
                # What was taken for one is two: all over again, for there are no moments of the second.
                self._alone.add(apart.weight)
                self._as, self._moments, waiting = {}, {}, list(self._slices)

    def _find_what_is_not_finite(self, network: nn.Module, part: Slice, where: str) -> NoReturn:
        """Run a slice once more, with a look at every layer, and name the first that reads such a value."""
        self._as, self._moments, self._add = {}, {}, grouped_moments
        self._begin(part, where)
        with watched(network, self._consumers, self._see):
            run(network, part.args, "calibrate")
        raise SlimfastError(f"calibrate: expected finite activations, got others once ({where})")

    def _begin(self, part: Slice, where: str) -> None:
        self._part, self._where = part, where
        self._seen: Seen[str] = Seen()
        self._calls: dict[str, int] = {}
        # Measured for the first time in this slice.
        self._fresh = set()

    def _see(self, consumer: Consumer, x: Tensor) -> None:
        weight = consumer.weight
        self._calls[weight] = self._calls.get(weight, 0) + 1
        other = None if weight in self._alone else self._seen.look(consumer, x)
        shared = self._as.get(weight)
        if shared is not None and other != shared:
            raise _Apart(weight)
        if shared is None and weight not in self._moments and other in self._fresh:
            self._as[weight] = other
        if weight in self._as:
            return
        view = consumer.laid_out(x)
        counting = positions_that_count(view.shape[:-1], self._part.mask)
        factors = shrinking(consumer, x, self._part.samples, counting)
        if factors is not None:
            view = view * factors[..., None].to(view)
        before = self._moments.get(weight)
        if before is None:
            self._fresh.add(weight)
        try:
            (self._moments[weight],) = self._add(
                [view],
                dims=-1,
                masks=[counting],
                into=None if before is None else [before],
                dtype=self._dtype,
                names=[f"read by {consumer.module}, {self._where}"],
                backend=self._backend,
            )
        except NonFinite as error:
            raise SlimfastError(f"calibrate: {error}") from None
        if weight not in self._alone:
            self._seen.note(consumer, x, weight)

    def _check(self) -> None:
        """See that layers which share moments were called together, each of them once."""
        for weight, other in self._as.items():
            calls = self._calls.get(weight, 0), self._calls.get(other, 0)
            if calls not in ((0, 0), (1, 1)):
                raise _Apart(weight)

    def readings(self, tensors: Mapping[str, Tensor]) -> dict[str, Reading]:
        """Give what each layer has read; the moments are used up."""
        found: dict[str, Reading] = {}
        for weight, moments in self._moments.items():
            if moments.count:
                covariance = moments.squares.div_(max(moments.count - 1, 1)).cpu()
                found[weight] = Reading(weight, moments.mean.cpu(), covariance, covariance, moments.count)
        readings = {}
        for consumer in self._consumers:
            own = found.get(self._as.get(consumer.weight, consumer.weight))
            if own is not None:
                norms = norms_of_variables(consumer, tensors[consumer.weight])
                readings[consumer.weight] = Reading(
                    consumer.weight, own.mean, own.covariance, norms, own.count
                )
        return readings

    def held(self) -> str:
        """Say what is held, and where."""
        size = sum(moments.squares.nbytes for moments in self._moments.values())
        places = sorted({str(moments.squares.device) for moments in self._moments.values()})
        return f"{len(self._moments)} moments of {size:,} bytes on {', '.join(places) or 'no device'}"

"""The moments of what layers read, taken in as forwards come by; layers that read the same share them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from torch import Tensor, nn

from slimfast.calibration.consumers import Consumer
from slimfast.calibration.data import Reading, norms_of_variables
from slimfast.calibration.forward import Slice, run, watched
from slimfast.calibration.masks import positions_that_count
from slimfast.calibration.massive import shrinking
from slimfast.calibration.reads import Seen
from slimfast.errors import NonFinite, SlimfastError
from slimfast.kernels.moments import add_moments_unseen, all_finite, grouped_moments
from slimfast.kernels.results import Moments


@dataclass(frozen=True, slots=True, eq=False)
class Passing:
    """A slice whose forward is under way, of the batch ``where``, and what its layers have read so far.

    ``calls`` counts their calls; ``fresh`` are those that were measured for the first time in this slice.
    """

    part: Slice
    where: str
    seen: Seen[str] = field(default_factory=Seen)
    calls: dict[str, int] = field(default_factory=dict)
    fresh: set[str] = field(default_factory=set)


class Apart(Exception):
    """A layer that was taken to read the same tensor as another one does not."""

    def __init__(self, weight: str) -> None:
        super().__init__(weight)
        self.weight = weight


class Measured:
    """The moments of what consumers see: one for all that read the same tensor in every slice."""

    def __init__(
        self, consumers: Sequence[Consumer], dtype: torch.dtype | None, backend: str, *, look: bool = False
    ) -> None:
        """Begin with no moments; ``look``: see at once what is not finite, not after each slice."""
        self._consumers, self._dtype, self._backend = consumers, dtype, backend
        # Nothing waits for the device at a layer: a look at all of them follows a slice.
        self._add: Callable[..., list[Moments]] = grouped_moments if look else add_moments_unseen
        # Whose moments a layer shares, of those known to read the same; and those that share nobody's.
        self._as: dict[str, str] = {}
        self._alone: set[str] = set()
        self._moments: dict[str, Moments] = {}
        self._slices: list[tuple[Slice, str]] = []
        # Layers that were measured before, and of those which a forward has come to.
        self.done: set[str] = set()
        self._met: set[str] = set()

    def measure(self, network: nn.Module, part: Slice, where: str) -> None:
        """Run a slice and take in what is read."""
        self._slices.append((part, where))
        waiting = [self._slices[-1]]
        while waiting:
            try:
                for one, place in waiting:
                    passing = Passing(one, place)
                    with watched(network, self._consumers, functools.partial(self.see, passing)):
                        run(network, one.args, "calibrate")
                    self.check(passing)
                    if not all_finite(self._moments.values()):
                        self._find_what_is_not_finite(network, one, place)
                waiting = []
            except Apart as apart:
                # What was taken for one is two: all over again, for there are no moments of the second.
                self.start_again(apart.weight)
                waiting = list(self._slices)

    def _find_what_is_not_finite(self, network: nn.Module, part: Slice, where: str) -> NoReturn:
        """Run a slice once more, with a look at every layer, and name the first that reads such a value."""
        self.forget()
        self._add = grouped_moments
        passing = Passing(part, where)
        with watched(network, self._consumers, functools.partial(self.see, passing)):
            run(network, part.args, "calibrate")
        raise SlimfastError(f"calibrate: expected finite activations, got others once ({where})")

    def start_again(self, weight: str) -> None:
        """Forget what was measured; the layer of this weight is measured on its own from now on."""
        self._alone.add(weight)
        self.forget()

    def forget(self) -> None:
        """Forget what was measured and not taken away."""
        self._as, self._moments = {}, {}
        self._met = set()

    def owner(self, weight: str) -> str:
        """Name the layer whose moments are this one's."""
        return self._as.get(weight, weight)

    def take(self, weight: str) -> Moments | None:
        """Give the moments of a layer away, which then counts as measured before; None where it has none of
        its own.
        """
        self.done.add(weight)
        return self._moments.pop(weight, None)

    def see(self, passing: Passing, consumer: Consumer, x: Tensor) -> None:
        """Take in what a layer is about to read; :class:`Apart` where it was taken for another's."""
        weight = consumer.weight
        passing.calls[weight] = passing.calls.get(weight, 0) + 1
        other = None if weight in self._alone else passing.seen.look(consumer, x)
        if weight in self.done:
            if other is None and weight not in self._alone:
                passing.seen.note(consumer, x, weight)
            if weight not in self._met:
                self._met.add(weight)
                passing.fresh.add(weight)
            return
        shared = self._as.get(weight)
        if shared is not None and other != shared:
            raise Apart(weight)
        if shared is None and weight not in self._moments and other in passing.fresh:
            self._as[weight] = other
        if weight in self._as:
            return
        view = consumer.laid_out(x)
        counting = positions_that_count(view.shape[:-1], passing.part.mask)
        factors = shrinking(consumer, x, passing.part.samples, counting)
        if factors is not None:
            view = view * factors[..., None].to(view)
        before = self._moments.get(weight)
        if before is None:
            passing.fresh.add(weight)
        try:
            (self._moments[weight],) = self._add(
                [view],
                dims=-1,
                masks=[counting],
                into=None if before is None else [before],
                dtype=self._dtype,
                names=[f"read by {consumer.module}, {passing.where}"],
                backend=self._backend,
            )
        except NonFinite as error:
            raise SlimfastError(f"calibrate: {error}") from None
        if weight not in self._alone:
            passing.seen.note(consumer, x, weight)

    def check(self, passing: Passing) -> None:
        """See that layers which share moments were called together, each of them once."""
        for weight, other in self._as.items():
            calls = passing.calls.get(weight, 0), passing.calls.get(other, 0)
            if calls not in ((0, 0), (1, 1)):
                raise Apart(weight)

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

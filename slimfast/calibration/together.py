"""Calibration of a network whose weights come from files: all samples at one layer before any goes on.

So each weight is read once, for all samples, and the moments of a layer are written down and let go when the
last sample has come to it.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from slimfast.arrays import Arguments, Progress
from slimfast.calibration.consumers import Consumer, consumers_of, with_moments
from slimfast.calibration.data import Calibration, at_most, norms_of_variables
from slimfast.calibration.files import hash_samples
from slimfast.calibration.folders import CalibrationFolder
from slimfast.calibration.forward import copy_to_run, device_of, running, slices_of, stop_before, watched
from slimfast.calibration.last_layers import Ending
from slimfast.calibration.lockstep import Place, advance_together
from slimfast.calibration.masks import MaskOption
from slimfast.calibration.measuring import Apart, Measured, Passing
from slimfast.calibration.moments import taken_from
from slimfast.calibration.sleeping import weigh
from slimfast.calibration.spilling import Store, check_memory
from slimfast.graph.channel_graph import ChannelGraph
from slimfast.graph.recording.module_copies import named_tensors
from slimfast.storage.stored_tensors import sizes_alone

_log = logging.getLogger(__name__)
# Of the memory for activations, the share that forwards which wait may keep.
KEPT = 4


class _Samples(NamedTuple):
    names: list[str]
    batches: list[Arguments]
    masks: list[Tensor | None]
    total: int


class _Surprise(Exception):
    """A layer is read again after it was taken for done."""

    def __init__(self, weight: str) -> None:
        super().__init__(weight)
        self.weight = weight


def calibrate_together(
    model: nn.Module,
    graph: ChannelGraph,
    batches: Iterable[Any],
    folder: Path,
    source: str,
    *,
    samples: int,
    mask: MaskOption,
    dtype: torch.dtype | None,
    memory: int,
    backend: str,
    progress: Progress | None,
) -> Calibration:
    """Measure what :func:`slimfast.calibrate` does, into files of a folder.

    ``source`` says in some way of its own which weights they are. What was measured by a run that was stopped
    is not measured again; the folder of other weights, samples or options is refused. ``progress`` is told of
    the layers.
    """
    check_memory("calibrate", memory)
    every, left = consumers_of(model, graph)
    consumers, large = with_moments(every, memory=memory)
    left |= large
    taken = _taken(model, batches, graph, samples, mask, device_of(model))
    options = f"{source} {dtype} {memory} {backend}"
    state = CalibrationFolder(folder, _job(options, consumers, taken), [c.weight for c in consumers])
    with running(model) as (network, _):
        calls: dict[str, int] = {}
        if not state.begun:

            def count(consumer: Consumer, x: Tensor) -> None:
                calls[consumer.weight] = calls.get(consumer.weight, 0) + 1

            sizes = sizes_alone(named_tensors(network).values())
            with watched(network, consumers, count), sizes:
                held, made = weigh(network, taken.batches[0])
            repeated = [weight for weight, times in calls.items() if times > 1]
            state.begin(taken.batches, taken.masks, taken.total, held, made, repeated)
        with Store("calibrate", int(memory / KEPT), folder) as store:
            run = _Run(
                network, graph, consumers, state, Measured(consumers, dtype, backend, look=True), progress
            )
            run.all(taken, memory, store)
    for consumer in consumers:
        if consumer.weight not in state.files:
            left[consumer.weight] = f"{consumer.module} was not called as a module"
    return state.finish(left)


class _Run:
    """The forwards of all slices, and what is measured on their way."""

    def __init__(
        self,
        network: nn.Module,
        graph: ChannelGraph,
        consumers: list[Consumer],
        state: CalibrationFolder,
        measured: Measured,
        progress: Progress | None,
    ) -> None:
        self._network, self._graph, self._state, self._measured = network, graph, state, measured
        self._consumers = {consumer.module: consumer for consumer in consumers}
        self._tensors, self._progress = graph.effective(named_tensors(network)), progress
        # Layers that are read again after others: they are written down at the end.
        self._late = set(state.repeated)
        self._passing: list[Passing] = []
        self._ending: Ending
        self._settled: set[Place] = set()
        self._counts: dict[str, int] = {}

    def all(self, taken: _Samples, memory: int, store: Store) -> None:
        """Run every slice to its end; again where layers turn out to be other than they were taken for."""
        slices = [
            (part, where)
            for where, batch in zip(taken.names, zip(taken.batches, taken.masks, strict=True), strict=True)
            for part in slices_of([batch], at_most(memory, held=self._state.bytes_held))
        ]
        order = {op.module: i for i, op in reversed(list(enumerate(self._graph.operations)))}
        going = True
        while going:
            self._ending = Ending(self._network, self._consumers.values(), order)
            self._passing = [Passing(part, where) for part, where in slices]
            self._settled = set()
            self._measured.done = set(self._state.files)
            try:
                advance_together(
                    [copy_to_run(self._network) for _ in slices],
                    [part for part, _ in slices],
                    self._hooks,
                    order=order,
                    meet=self._meet,
                    settle=functools.partial(self._settle, store),
                    store=store,
                    what="calibrate",
                    in_order=True,
                    # Where layers are read several times, more of that may come.
                    finished=lambda: self._ending.reached and not self._late,
                )
                for passing in self._passing:
                    self._measured.check(passing)
                going = False
            except Apart as apart:
                self._measured.start_again(apart.weight)
                self._again(apart.weight)
            except _Surprise as surprise:
                self._late.add(surprise.weight)
                self._measured.forget()
                self._again(surprise.weight)
        for consumer in self._consumers.values():
            self._write(consumer)
        if self._progress is not None:
            self._progress(len(self._consumers), len(self._consumers))

    def _again(self, weight: str) -> None:
        _log.info("calibrate: %s is not read as it was taken to be: from the beginning", weight)
        if weight in self._state.files:
            self._state.drop(weight)

    def _hooks(self, network: nn.Module, pause: Callable[[tuple[Place, Tensor]], None]) -> None:
        stop_before(network, {**self._consumers, **self._ending.heads}, pause)

    def _meet(self, place: Place, number: int, x: Tensor) -> None:
        consumer = self._consumers.get(place[0])
        if consumer is None:
            return
        if (place[1] or place in self._settled) and consumer.weight not in self._late:
            raise _Surprise(consumer.weight)
        self._measured.see(self._passing[number], consumer, x)

    def _settle(self, store: Store, place: Place) -> None:
        self._settled.add(place)
        self._ending.settle(place[0])
        consumer = self._consumers.get(place[0])
        if consumer is None:
            return
        if consumer.weight not in self._late:
            self._write(consumer)
        _log.debug("calibrate: %s: held are %s, and %s", place[0], self._measured.held(), store.told())
        if self._progress is not None:
            self._progress(
                len(self._consumers.keys() & {path for path, _ in self._settled}), len(self._consumers)
            )

    def _write(self, consumer: Consumer) -> None:
        """Write down what was measured of a layer, where it is not written yet."""
        weight, owner = consumer.weight, self._measured.owner(consumer.weight)
        if weight in self._state.files:
            return
        moments = self._measured.take(weight) if owner == weight else None
        if moments is not None:
            self._counts[weight] = moments.count
        elif owner not in self._counts and owner in self._state.files:
            self._counts[owner] = self._state.reading(owner).count
        count = self._counts.get(owner, 0)
        if count:
            self._measured.done.add(weight)
            norms = norms_of_variables(consumer, self._tensors[weight])
            self._state.add(weight, norms, moments, owner, count)


def _taken(
    model: nn.Module,
    batches: Iterable[Any],
    graph: ChannelGraph,
    samples: int,
    mask: MaskOption,
    device: torch.device,
) -> _Samples:
    taken = list(taken_from(model, batches, graph, samples, mask, device))
    names, args, masks, counts = zip(*taken, strict=True)
    return _Samples(list(names), list(args), list(masks), sum(counts))


def _job(options: str, consumers: Iterable[Consumer], taken: _Samples) -> str:
    """Hash what is measured, and on what."""
    digest = hashlib.sha256(options.encode())
    for c in consumers:
        digest.update(f"{c.weight} {c.dim} {c.length} {c.taps} {c.blocks} {c.run}\n".encode())
    digest.update(hash_samples(taken.batches, taken.masks).encode())
    return digest.hexdigest()

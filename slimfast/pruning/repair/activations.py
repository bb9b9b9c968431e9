"""Repair from activations: each layer solved as the thin network runs, from what it gets to what it got."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from slimfast.arrays import IntArray
from slimfast.calibration.batch_norms import norms_of
from slimfast.calibration.consumers import Consumer, consumers_of, kept_variables
from slimfast.calibration.data import Calibration, check_calibration
from slimfast.calibration.folders import StoredReadings
from slimfast.calibration.forward import Slice, copy_to_run, elements_of, stop_before
from slimfast.calibration.heap import give_back
from slimfast.calibration.lockstep import Place, advance_together
from slimfast.calibration.spilling import MEMORY, Store
from slimfast.errors import NonFinite, SlimfastError
from slimfast.graph.channel_graph import ChannelGraph
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.recording.module_copies import named_tensors
from slimfast.graph.recording.own_modes import without_own_modes
from slimfast.pruning.repair.least_squares import FIRST
from slimfast.pruning.repair.norms import NormMoments
from slimfast.pruning.repair.report import Finished, Fit, RepairReport
from slimfast.pruning.repair.thin_layer import ThinLayer
from slimfast.pruning.repair.wide import WideReads, kept_of, read_wide
from slimfast.storage.stored_tensors import shelves_of

_log = logging.getLogger(__name__)


def repair_from_activations(
    model: nn.Module,
    thin: nn.Module,
    graph: ChannelGraph,
    keeps: Mapping[str, IntArray],
    calibration: Calibration,
    *,
    damping: float = 0.0,
    memory: int = MEMORY,
    backend: str = "auto",
    tick: Callable[[int, int], None] | None = None,
    finished: Finished | None = None,
    folder: Path | None = None,
) -> RepairReport:
    """Repair ``thin``, ``model`` cut to ``keeps``, in place from what both see of the calibration's inputs.

    The wide network runs once, slice by slice, unless the calibration has kept what its layers read; and so
    does the thin one, all slices side by side: each layer that reads a channel group is solved when all of
    them have reached it, from what it gets behind the layers repaired before it, towards what the wide
    network's layer got. So the error that has built up is met again at each layer, residual streams included
    (sequential as in He, Zhang and Sun, ICCV 2017, "Channel Pruning"). Batch norms take the mean and variance
    of what reaches them. The damping pulls towards the plain cut and is chosen, from ``damping`` upwards, by
    the error in the layer's output on a quarter of the positions.

    Held are what the wide network's layers read where the least squares look, and what the thin network's
    forwards hold while they wait: up to ``memory`` bytes in memory, less what the calibration takes there but
    a quarter of it at least, and the rest in a temporary file, in ``folder`` if one is named.
    ``tick``: called with how many layers and slices are done, and of how many. ``finished``: layers that are
    not solved again.

    Networks whose weights come from files (:mod:`slimfast.storage.stored_tensors`) run all slices side by
    side, the wide one too, so that each weight is read once for all of them.
    """
    finished = finished or Finished({}, lambda weight, fit: None)
    consumers, left = consumers_of(model, graph)
    check_calibration(calibration, graph.effective(named_tensors(model)), consumers)
    slices = list(calibration.slices(memory // 4))
    for consumer in consumers:
        if consumer.weight not in calibration.readings:
            was = f"{consumer.module} was not calibrated"
            left[consumer.weight] = calibration.left.get(consumer.weight, was)
    known = [c for c in consumers if c.weight in calibration.readings and c.weight not in finished.fits]
    # The wide network goes from layer to layer where its weights come from files, else from slice to slice.
    stored = bool(shelves_of(named_tensors(model).values()))
    kept = _kept(model, known, slices, calibration)
    done, total = 0, (0 if kept else len(known) if stored else len(slices)) + len(known)

    def advance() -> None:
        nonlocal done
        done += 1
        if tick is not None:
            tick(min(done, total), total)

    rows = 0 if calibration.rows is None else calibration.rows.held
    give_back(memory // 8)
    room = max(memory - _bytes_of_moments(calibration) - rows, memory // 4)
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        without_own_modes(),
        Store("repair", room, folder) as store,
    ):
        each = (part.samples * elements_of(part.args) for part in slices)
        at_once = int(calibration.bytes_held * sum(each)) if len(slices) > 1 else 0
        # What waits is put away and brought back at every layer, what the wide network's layers read once.
        store.reserved = min(at_once, room // 2)
        wide = kept or read_wide(model, graph, known, slices, calibration, store, advance)
        store.reserved = 0
        _log.info("repair: what %d layers read at %d slices: %s", len(known), len(slices), store.told())
        usable = []
        for consumer in known:
            reason = _unusable(consumer, wide, calibration)
            if reason is None:
                usable.append(consumer)
            else:
                left[consumer.weight] = reason
                for piece in wide.pieces.pop(consumer.weight).values():
                    piece.rows.drop()
                advance()
        run = _Run(
            model, thin, Cut(graph, keeps), calibration, wide, slices, damping, backend, advance, finished
        )
        repaired = [consumer for consumer in consumers if consumer.weight in finished.fits]
        run.all(usable, repaired, graph, store if at_once > room - store.held else None)
    return RepairReport("activations", run.fits, tuple(sorted(run.norms)), left | run.left)


def _kept(
    model: nn.Module, consumers: Sequence[Consumer], slices: Sequence[Slice], calibration: Calibration
) -> WideReads | None:
    """Find what the wide network's layers read, where the calibration has kept it; None where it has not."""
    if calibration.rows is None or not consumers:
        return None
    counts = {consumer.weight: calibration.readings[consumer.weight].count for consumer in consumers}
    why = calibration.rows.why_not(model, counts, slices)
    if why is not None:
        _log.info("repair: the wide network runs again: what its layers read is of no use here, %s", why)
        return None
    return kept_of(calibration.rows, consumers, slices, calibration)


def _bytes_of_moments(calibration: Calibration) -> int:
    """Count the bytes of a calibration's moments in memory, each tensor once; those in files take none."""
    if isinstance(calibration.readings, StoredReadings):
        return 0
    held = {id(reading.covariance): reading.covariance for reading in calibration.readings.values()}
    return sum(covariance.nbytes for covariance in held.values())


def _unusable(consumer: Consumer, wide: WideReads, calibration: Calibration) -> str | None:
    """Say why a layer cannot be solved; None where it can."""
    times = wide.calls.get(consumer.weight, 0)
    if times != 1:
        return f"{consumer.module} is called {times} times as a module, not once"
    count, seen = calibration.readings[consumer.weight].count, wide.positions[consumer.weight]
    if count != seen:
        return f"{consumer.module} read {count} positions when it was calibrated, and {seen} now"
    return None


class _Run:
    """The thin network's forwards, and the layers that are solved on their way."""

    def __init__(
        self,
        model: nn.Module,
        thin: nn.Module,
        cut: Cut,
        calibration: Calibration,
        wide: WideReads,
        slices: Sequence[Slice],
        damping: float,
        backend: str,
        advance: Callable[[], None],
        finished: Finished,
    ) -> None:
        self.fits: dict[str, Fit] = dict(finished.fits)
        self.norms: set[str] = set()
        self.left: dict[str, str] = {}
        self._tensors, self._thin = cut.graph.made(named_tensors(model)), thin
        self._kept = cut.kept_indices
        self._calibration, self._wide, self._slices = calibration, wide, slices
        self._damping, self._backend, self._advance = damping, backend, advance
        self._note = finished.note
        chosen = [fit.damping for fit in self.fits.values() if fit.damping < math.inf]
        self._first = chosen[-1] if chosen else FIRST
        self._layers: dict[str, ThinLayer] = {}
        self._moments: dict[Place, NormMoments] = {}
        self._consumers: dict[str, Consumer] = {}
        self._done: set[str] = set()
        self._waiting: set[str] = set()
        self._norms = norms_of(thin)

    def all(
        self,
        consumers: Sequence[Consumer],
        repaired: Sequence[Consumer],
        graph: ChannelGraph,
        store: Store | None,
    ) -> None:
        """Run every slice to its end; what waits is put away into a store, where there is one.

        The slices stop at layers that are repaired too: they come to the others in the order in which they
        would have come without.
        """
        self._done = {consumer.weight for consumer in repaired}
        self._consumers = {consumer.module: consumer for consumer in (*consumers, *repaired)}
        self._waiting = set(self._consumers)
        statistics = {f"{path}.{name}" for path in self._norms for name in ("running_mean", "running_var")}
        networks = [copy_to_run(self._thin, shared=statistics) for _ in self._slices]
        order = {op.module: i for i, op in reversed(list(enumerate(graph.operations)))}
        advance_together(
            networks,
            self._slices,
            self._hooks,
            order=order,
            meet=self._meet,
            settle=self._settle,
            store=store,
            # What comes behind the last layer, such as the logits of all tokens, nobody asks for.
            finished=lambda: not self._norms and not self._waiting,
        )

    def _hooks(self, network: nn.Module, pause: Callable[[tuple[Place, Tensor]], None]) -> None:
        stop_before(network, [*self._consumers, *self._norms], pause)

    def _meet(self, place: Place, number: int, x: Tensor) -> None:
        path = place[0]
        if path not in self._consumers:
            self._moments.setdefault(place, NormMoments()).add(x, self._slices[number].mask)
            return
        consumer = self._consumers[path]
        weight = consumer.weight
        if weight in self.left or weight in self._done:
            return
        if path not in self._layers:
            self._layers[path] = self._layer(consumer)
        piece = self._wide.pieces[weight].pop(number, None)
        try:
            alike = piece is not None and self._layers[path].add(x, piece)
        except NonFinite as error:
            where = f"what {path} reads in the thin network, slice {number} of {len(self._slices)}"
            raise SlimfastError(f"repair: {error} ({where})") from None
        if not alike:
            self.left[weight] = f"{path} reads other positions in the thin network than in the wide one"

    def _settle(self, place: Place) -> None:
        path = place[0]
        if path not in self._consumers:
            if self._moments.pop(place).write(self._norms[path]):
                self.norms.add(path)
            return
        weight, layer = self._consumers[path].weight, self._layers.pop(path, None)
        self._waiting.discard(path)
        if weight in self._done:
            return
        if self._wide.pieces[weight]:
            self.left[weight] = f"{path} reads other positions in the thin network than in the wide one"
        elif layer is not None and weight not in self.left:
            try:
                fit = layer.write(self._first)
            except NonFinite as error:
                raise SlimfastError(f"repair: {error} (what {path} reads in the thin network)") from None
            if isinstance(fit, str):
                self.left[weight] = fit
            else:
                self.fits[weight] = fit
                # Layers of a network end near each other.
                self._first = fit.damping if fit.damping < math.inf else self._first
                self._note(weight, fit)
        self._advance()

    def _layer(self, consumer: Consumer) -> ThinLayer:
        kept = self._kept
        return ThinLayer(
            consumer,
            self._thin.get_submodule(consumer.module),
            self._calibration.readings[consumer.weight],
            self._tensors[consumer.weight],
            self._tensors.get(f"{consumer.module}.bias"),
            kept_variables(consumer, kept(consumer.axis), kept(consumer.outputs)),
            kept(consumer.outputs),
            centred=consumer.weight in self._wide.followed,
            damping=self._damping,
            backend=self._backend,
        )

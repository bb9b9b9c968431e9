"""Measure the latency table of a network: its pieces at a grid of widths, and a few whole thin networks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slimfast.arrays import Arguments, Progress
from slimfast.errors import ArgumentError, SlimfastError, one_line
from slimfast.graph.channel_graph import ChannelGraph
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.recording.inputs import arguments, map_tensors
from slimfast.graph.recording.network import Network
from slimfast.latency.clock import as_used, batch_of, device_of, sampled, undisturbed
from slimfast.latency.onnx_runtime import onnx_runs
from slimfast.latency.pieces import Piece, Split, split_forward
from slimfast.latency.pricing import PricedLatency, TimedPiece
from slimfast.latency.resuming import Unfinished
from slimfast.latency.runtimes import Runtime, check_runtime, machine_name, runner
from slimfast.latency.surfaces import STEP, Point, points_of
from slimfast.latency.table import LatencyTable, fingerprint_of_graph
from slimfast.latency.timing import Measure, checked_seconds
from slimfast.wrappers import unwrapped

# Of the units of every group: whole networks are measured at these shares, ascending.
_SHARES = (0.25, 0.5, 0.75, 1.0)
# Seconds of samples of a piece at one point, and of a whole network.
_PIECE_SECONDS, _WHOLE_SECONDS = 0.01, 1.0
# How many pieces are made ready at once where that takes long, and bytes that they may hold.
_TOGETHER, _TOGETHER_BYTES = 32, 2**26
# Groups of fewer units are not rounded to multiples of STEP.
_SMALL = 16


def latency_table(
    graph: ChannelGraph,
    model: nn.Module,
    example: Any,
    *,
    runtime: Runtime = "torch",
    threads: int | None = None,
    minutes: float = 10.0,
    resume: str | os.PathLike[str] | None = None,
    measure: Measure | None = None,
    progress: Progress | None = None,
) -> LatencyTable:
    """Measure the latency of a network as a function of its widths, on this machine.

    The recorded forward is split into pieces, each an operation with its weights and what follows it up to
    the next one; each distinct piece is measured at a grid of widths, and the whole network at four uniform
    widths, by which the sum of the pieces is corrected. A ResNet-18 takes about a minute. Measure on a quiet
    machine, with the threads and the batch that are meant.

    Args:
        graph: The groups, from :func:`slimfast.trace_channels`.
        model: The network; it stays as it is.
        example: A tensor, a tuple or a dict of its arguments: its batch is the one that is measured.
        runtime: What runs it, as for :func:`measure_latency`; one that compiles takes long.
        threads: With how many threads; PyTorch's own number unless given.
        minutes: How long it may take. Where the full grid would take longer, widths between multiples of 8
            are left out; where that would too, the error says how long it takes.
        resume: A file that keeps what was measured, every few seconds, and is gone on with where it is there.
        measure: A function of your own from a module and an example to seconds, for a device that PyTorch
            does not know: it is given pieces of the network, and whole thin ones.
        progress: Called with the number of points measured and of all.

    Returns:
        The table.

    Raises:
        ValueError: For wrong arguments.
        SlimfastError: For a graph of another network, a runtime that is not installed, and a network that
            takes longer than ``minutes``.

    Example:
        table = slimfast.latency_table(graph, model, example, threads=1)
        plan = slimfast.plan(model, example, graph=graph, latency="20ms", latency_table=table)
    """
    if isinstance(minutes, bool) or not isinstance(minutes, (int, float)) or not minutes > 0:
        raise ArgumentError(f"latency_table: expected minutes above 0, got {minutes!r}")
    if measure is None:
        check_runtime(runtime)
    model = unwrapped(model)
    network = Network.of(model)
    given = arguments(example)
    device = device_of(model, given)
    given = map_tensors(given[0], lambda t: t.to(device)), map_tensors(given[1], lambda t: t.to(device))
    split = split_forward(network, graph, given)
    with as_used([model], threads) as used:
        clock = _Clock(runtime, used, device, measure)
        table = LatencyTable(
            pieces=(),
            whole=(),
            graph=fingerprint_of_graph(graph),
            runtime="measure" if measure is not None else runtime,
            threads=None if measure is not None else used,
            batch=batch_of(given),
            machine="measured by a function" if measure is not None else machine_name(device),
            versions={"torch": torch.__version__},
            measure=measure,
        )
        unfinished = Unfinished(table, None if resume is None else Path(resume))
        pieces = _timed(split, clock, unfinished, minutes * 60.0, progress)
        whole = _whole(network, graph, given, pieces, clock)
    made = unfinished.table(pieces, whole)
    if resume is not None:
        made.save(resume)
    return made


@dataclass(frozen=True, slots=True, eq=False)
class _Clock:
    """What measures a module."""

    runtime: str
    threads: int
    device: torch.device
    measure: Measure | None

    @property
    def together(self) -> int:
        """How many pieces are made ready at once: an export takes long however small a network is."""
        return _TOGETHER if self.measure is None and self.runtime == "onnxruntime" else 1

    def pieces(self, modules: Sequence[tuple[nn.Module, tuple[Tensor, ...]]]) -> Iterator[float]:
        """Measure pieces one after the other, made ready together."""
        if self.measure is not None:
            yield from (checked_seconds(self.measure(module, args)) for module, args in modules)
            return
        if self.runtime == "onnxruntime":
            runs = onnx_runs([m for m, _ in modules], [args for _, args in modules], self.threads)
        else:
            runs = [runner(module, (args, {}), self.runtime, self.threads) for module, args in modules]
        for run in runs:
            yield undisturbed(sampled({"": run}, self.device, None, _PIECE_SECONDS)[""])

    def in_turn(self, networks: Sequence[nn.Module], given: Arguments) -> list[float]:
        """Measure whole networks, in turn."""
        if self.measure is not None:
            example = given[0] or given[1]
            return [checked_seconds(self.measure(network, example)) for network in networks]
        runs = {
            str(i): runner(network, given, self.runtime, self.threads) for i, network in enumerate(networks)
        }
        return [undisturbed(s) for s in sampled(runs, self.device, None, _WHOLE_SECONDS).values()]


def _timed(
    split: Split, clock: _Clock, unfinished: Unfinished, most: float, progress: Progress | None
) -> tuple[TimedPiece, ...]:
    """Measure each distinct piece at its points, whole pieces first."""
    distinct: dict[str, list[Piece]] = {}
    for piece in split.pieces:
        distinct.setdefault(piece.signature, []).append(piece)
    timed = {}
    for signature, places in distinct.items():
        first = places[0]
        timed[signature] = TimedPiece(
            module=first.module,
            operations=first.operations,
            groups=tuple(_leading(d.groups, split.full) for d in first.directions),
            places=tuple(tuple(d.length for d in piece.directions) for piece in places),
            seconds={},
        )

    def take(wanted: Iterable[tuple[str, Point]]) -> Iterator[tuple[str, Point]]:
        """Measure pieces at points, those that are not known, and yield each that is."""
        ready: list[tuple[str, Point, nn.Module, tuple[Tensor, ...]]] = []
        for signature, point in wanted:
            if unfinished.has(signature, point):
                yield signature, point
                continue
            with _told(distinct[signature][0], timed[signature].widths_at(point)) as widths:
                ready.append((signature, point, *split.module_at(distinct[signature][0], widths)))
            held = sum(t.nbytes for _, _, module, args in ready for t in (*module.buffers(), *args))
            if len(ready) >= clock.together or held > _TOGETHER_BYTES:
                yield from measured(ready)
                ready = []
        yield from measured(ready)

    def measured(
        ready: Sequence[tuple[str, Point, nn.Module, tuple[Tensor, ...]]],
    ) -> Iterator[tuple[str, Point]]:
        seconds = clock.pieces([(module, args) for _, _, module, args in ready])
        for signature, point, _, _ in ready:
            with _told(distinct[signature][0], timed[signature].widths_at(point)):
                unfinished.keep(signature, point, next(seconds))
            yield signature, point

    begun = before = time.perf_counter()
    costs = {}
    for signature, _ in take((signature, whole.full) for signature, whole in timed.items()):
        costs[signature] = time.perf_counter() - before
        before = time.perf_counter()
    if clock.together > 1:
        # What is made ready together takes what it takes for all of them alike.
        costs = dict.fromkeys(costs, sum(costs.values()) / len(costs))
    points = _points(timed, costs, most - (time.perf_counter() - begun))
    total = sum(map(len, points.values()))
    for done, _ in enumerate(take((s, point) for s, own in points.items() for point in own), 1):
        if progress is not None:
            progress(done, total)
    return tuple(
        TimedPiece(
            p.module, p.operations, p.groups, p.places, {at: unfinished.seconds(s, at) for at in points[s]}
        )
        for s, p in timed.items()
    )


@contextmanager
def _told(piece: Piece, widths: Mapping[str, int]) -> Iterator[Mapping[str, int]]:
    """Name the piece and its widths where it cannot run."""
    try:
        yield widths
    except RuntimeError as error:
        at = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise SlimfastError(
            f"latency: {piece.module or 'the network'} ({', '.join(piece.operations)}) cannot be measured "
            f"alone with {at}: {one_line(error)}; use budgets of macs or params, and measure_latency"
        ) from error


def _leading(names: tuple[str, ...], full: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """List groups with their units, the one of the most units first."""
    return tuple(sorted(((name, full[name]) for name in names), key=lambda group: -group[1]))


def _points(
    timed: Mapping[str, TimedPiece], costs: Mapping[str, float], seconds: float
) -> dict[str, list[Point]]:
    """Choose the points that can be measured in so many seconds, from how long whole pieces took."""

    def needed(points: Mapping[str, list[Point]]) -> float:
        shares = (
            costs[s] * prod(w / n for w, n in zip(point, timed[s].full, strict=True))
            for s, own in points.items()
            for point in own[1:]
        )
        return sum(shares)

    least = 0.0
    for fine in (True, False):
        points = {s: points_of(piece.full, fine=fine) for s, piece in timed.items()}
        least = needed(points)
        if least <= seconds:
            return points
    raise SlimfastError(
        f"latency_table: expected minutes={least / 60 + 1:.0f} or more for this network, got fewer; "
        "with resume= what was measured is kept"
    )


def _whole(
    network: Network, graph: ChannelGraph, given: Arguments, pieces: tuple[TimedPiece, ...], clock: _Clock
) -> tuple[tuple[float, float], ...]:
    """Measure whole networks at uniform widths: what their pieces add up to, and what they take."""
    priced = PricedLatency(pieces, (), graph)
    added, thin = [], []
    for share in _SHARES:
        widths = {group.name: _uniform(group.n, share) for group in graph.groups}
        thin.append(thin_network(network, graph, widths))
        added.append(priced.price(np.array(list(widths.values()), dtype=np.int64)))
    with as_used(thin, None):
        return tuple(zip(added, clock.in_turn(thin, given), strict=True))


def _uniform(n: int, share: float) -> int:
    width = max(1, round(n * share))
    return width if n < _SMALL else min(n, max(STEP, STEP * round(width / STEP)))


def thin_network(network: Network, graph: ChannelGraph, widths: Mapping[str, int]) -> nn.Module:
    """Make a network as wide as a plan says, of the first units of each group: it takes the time of any."""
    keeps = {group.name: np.arange(widths.get(group.name, group.n)) for group in graph.groups}
    return Cut(graph, keeps).thin_copy(network, share=True)

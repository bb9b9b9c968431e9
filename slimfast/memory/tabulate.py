"""Run a forward once for its memory table: what is taken when, and what operations work with beside."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import nn

from slimfast.errors import SlimfastError, UnsupportedGraph
from slimfast.graph.channel_graph import Axis, ChannelGraph, Operation
from slimfast.graph.cutting.recorded_axes import (
    Axes,
    alike_operations,
    axes_of,
    known_axes,
    operations_of,
)
from slimfast.graph.recording.calls import refs_in
from slimfast.graph.recording.dataless import dataless_copy, dataless_tensors
from slimfast.graph.recording.forward import ForwardFailed, Recording, record_copy
from slimfast.graph.recording.inputs import arguments, map_tensors
from slimfast.graph.recording.module_copies import collector_paused
from slimfast.graph.recording.network import Network
from slimfast.memory.gauges import Level, gauge_of
from slimfast.memory.lifetimes import LifetimeRecorder
from slimfast.memory.measuring import device_of, in_eval, peak_memory, run_once
from slimfast.memory.table import MemoryTable, Stored, blocked
from slimfast.wrappers import unwrapped

# Of what an operation works with, that much may be told by the tensors it reads and makes to count as copies
# of some of them.
_CLOSE = 0.05
# Operations that copy into blocks of so many channels on the CPU, filled up with zeros: as many as its
# vectors hold.
_BLOCKED = frozenset({"aten.convolution"})
_BLOCKS = {"AVX512": 16}
# Of so many tensors every choice is looked at.
_MOST = 8


def memory_table(graph: ChannelGraph, model: nn.Module, example: Any) -> MemoryTable:
    """Find the peak memory of a network as a function of its widths, from one run of its forward.

    While the network runs, the memory that each operation takes is noted, and when it is given back: views
    and operations in place take none. A tensor's bytes follow the lengths of its axes, and so does what an
    operation works with beside what it reads and makes (copies of them in another layout, as convolutions on
    the CPU make). The peak is the most that is there at once.

    Args:
        graph: The groups, from :func:`slimfast.trace_channels`.
        model: The network; it stays as it is.
        example: A tensor, a tuple or a dict of its arguments: its batch counts.

    Returns:
        The table.

    Raises:
        SlimfastError: For a graph of another network, and as :func:`slimfast.peak_memory`.

    Example:
        table = slimfast.memory_table(graph, model, example)
        print(table.predicted(graph, {"layer1.0.conv1": 32}))
    """
    model = unwrapped(model)
    whole = peak_memory(model, example)
    given = arguments(example)
    device = device_of(model, given)
    given = map_tensors(given[0], lambda t: t.to(device)), map_tensors(given[1], lambda t: t.to(device))
    network = Network.of(model)
    gauge = gauge_of(device)
    made: list[LifetimeRecorder] = []

    def recorder_of(**options: Any) -> LifetimeRecorder:
        made.append(LifetimeRecorder(gauge, **options))
        return made[-1]

    with in_eval(model), collector_paused():
        run_once(model, given)
        copied = dataless_copy(network, dataless_tensors(network, "real"))
        try:
            recording = record_copy(
                copied, *given, "real", decisions=graph.decisions, recorder_of=recorder_of
            )
        except ForwardFailed as failure:
            raise UnsupportedGraph(f"memory: {failure}") from failure.__cause__
    try:
        operations = operations_of(graph, recording, "memory")
    except SlimfastError:
        operations = alike_operations(graph, recording, "memory")
    stored = list(_stored(made[0], operations))
    stored += _scratch(made[0], recording, operations, graph, gauge.levels, stored, whole.activations)
    calls = tuple((operation.name, operation.module) for operation in operations)
    # What the network holds beside parameters and buffers, and what it is given.
    sizes = {name: prod(axis.length for axis in axes) * graph.itemsize.get(name, 4)
             for name, axes in graph.axes.items() if name not in graph.tied}  # fmt: skip
    held = float(whole.weights + whole.inputs - sum(sizes.values()))
    return MemoryTable(whole, graph, tuple(stored), calls, held)


def _stored(recorder: LifetimeRecorder, operations: Sequence[Operation]) -> Iterator[Stored]:
    """Say of the memory that calls have taken how long it is there."""
    for taken in recorder.taken:
        axes = operations[taken.call].outputs[taken.result]
        until = len(operations) if taken.until is None else taken.until
        yield Stored(axes, taken.itemsize * taken.share, taken.call, until)


def _scratch(
    recorder: LifetimeRecorder,
    recording: Recording,
    operations: Sequence[Operation],
    graph: ChannelGraph,
    levels: Sequence[Level],
    stored: Sequence[Stored],
    most: int,
) -> Iterator[Stored]:
    """Say of what each call works with beside what is there behind it, which tensors it is made of."""
    if len(levels) != len(operations):
        raise SlimfastError(
            f"memory: expected a level for each of {len(operations)} calls, got {len(levels)}"
        )
    change = np.zeros(len(operations) + 1)
    for one in stored:
        size = one.each * prod(axis.length for axis in one.axes)
        change[one.since] += size
        change[one.until] -= size
    known: dict[int, Axes] = dict(known_axes(recording.names, graph))
    for at, (call, operation, level, there) in enumerate(
        zip(recording.calls, operations, levels, np.cumsum(change).tolist(), strict=False)
    ):
        read = {ref.value: axes_of(ref, known) for ref in refs_in(call.arguments)}
        known |= {ref.value: own for ref, own in zip(call.outputs, operation.outputs, strict=True)}
        block = _BLOCKS.get(torch.backends.cpu.get_cpu_capability(), 8) if operation.name in _BLOCKED else 1
        # What only this run took, such as what is made once, is not in what was measured.
        beside = min(level.most, most) - there
        if beside <= 0:
            continue
        read |= {ref.value: axes_of(ref, known) for ref in call.outputs}
        sizes = {v: prod(a.length for a in axes) * recorder.itemsizes[v] for v, axes in read.items()}
        parts = copies_in(beside, sizes)
        # What is no copy, such as the patches that a convolution lays side by side, is not in blocks.
        block = block if abs(sum(sizes[v] for v in parts) / beside - 1.0) <= _CLOSE else 1
        if not parts:
            yield Stored((Axis(1),), beside, at, at + 1)
        rounded = {v: _rounded(read[v], block) * recorder.itemsizes[v] for v in parts}
        scale = beside / max(sum(rounded.values()), 1)
        for value in parts:
            yield Stored(read[value], scale * recorder.itemsizes[value], at, at + 1, block)


def _rounded(axes: Axes, block: int) -> int:
    """Count elements where the lengths that widths change are rounded up to multiples."""
    lengths = blocked(np.array([axis.length for axis in axes], dtype=np.float64), block).tolist()
    return round(prod(n if axis.places else axis.length for n, axis in zip(lengths, axes, strict=True)))


def copies_in(beside: float, sizes: Mapping[int, int]) -> tuple[int, ...]:
    """Choose the tensors, by value, of which copies make up so many bytes: the fewest that come close, all
    where none do.
    """
    names = sorted((v for v, size in sizes.items() if size), key=lambda v: -sizes[v])
    best: tuple[float, tuple[int, ...]] = (_CLOSE, tuple(names))
    for number in range(1, min(len(names), _MOST) + 1):
        for some in itertools.combinations(names[:_MOST], number):
            off = abs(sum(sizes[v] for v in some) / beside - 1.0)
            if off < best[0] - 1e-9:
                best = off, some
    return best[1]
